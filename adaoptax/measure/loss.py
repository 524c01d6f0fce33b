"""The user's loss, and what a way of measuring needs to know about it."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax

from adaoptax._tree import ArrayTree
from adaoptax.measure.rows import count_rows
from adaoptax.stats import GradientStats


class Loss(NamedTuple):
    """A mean loss over the leading axis of a batch.

    Attributes:
        fn: ``fn(params, batch, *args)`` → loss, or ``(loss, aux)``.
        has_aux: Whether `fn` returns `aux`.
        key_argnums: Positions (counted in `fn`) of the random keys.
        due: Whether this step is to be measured, for `measure.every`; None if nobody said.
        metric: Pytree like the parameters, P: norms are Σ P |g|² then, see `as_metric`; or None.
    """

    fn: Callable[..., Any]
    has_aux: bool
    key_argnums: tuple[int, ...]
    due: Any = None
    metric: ArrayTree | None = None

    def __call__(self, params: ArrayTree, batch: ArrayTree, args: tuple) -> tuple[jax.Array, Any]:
        """Returns ``(loss, aux)``, with ``aux=None`` if there is none."""
        out = self.fn(params, batch, *args)
        return out if self.has_aux else (out, None)

    def of_rows(self, params: ArrayTree, batch: ArrayTree, args: tuple) -> tuple[jax.Array, Any]:
        """``(losses [B], aux [B, ...])`` of single rows, each with random keys of its own.

        The parameters are not batched: the products with them stay those of the whole batch.
        """
        args = self.split_keys(args, count_rows(batch))
        # As an argument, not closed over: Flax nnx wants its variables made where they are used.
        row = lambda params, x, args: self(params, jax.tree.map(lambda x: x[None], x), args)
        return jax.vmap(row, in_axes=(None, 0, self.key_axes(args)))(params, batch, args)

    def check_keys(self, args: tuple) -> None:
        """Raises TypeError where `args` end before the random keys."""
        missing = [argnum for argnum in self.key_argnums if argnum - 2 >= len(args)]
        if missing:
            raise TypeError(
                f"Expected random keys at positions {missing} of the loss (key_argnums), got"
                f" {len(args)} extra arguments: pass the keys after the batch."
            )

    def split_keys(self, args: tuple, num: int) -> tuple:
        """Gives every random key in `args` a leading axis of `num` independent keys."""
        return self.map_keys(lambda key: jax.random.split(key, num), args)

    def map_keys(self, fn: Callable[[Any], Any], args: tuple) -> tuple:
        """Applies `fn` to the leaves of the random keys in `args`."""
        return tuple(
            jax.tree.map(fn, arg) if 2 + i in self.key_argnums else arg
            for i, arg in enumerate(args)
        )

    def key_axes(self, args: tuple) -> tuple:
        """`in_axes` for `args` under vmap: 0 for random keys, None for all else."""
        return tuple(0 if 2 + i in self.key_argnums else None for i in range(len(args)))


def make_loss(loss_fn: Callable[..., Any], has_aux: bool, key_argnums: int | Sequence[int]) -> Loss:
    """The loss as the user describes it; ValueError for keys in the place of params or batch."""
    argnums = (key_argnums,) if isinstance(key_argnums, int) else tuple(key_argnums)
    if any(argnum < 2 for argnum in argnums):
        raise ValueError(
            f"Expected key_argnums >= 2, got key_argnums={key_argnums}: positions 0 and 1 of the"
            " loss are params and batch; keys are extra arguments."
        )
    return Loss(loss_fn, has_aux, argnums)


Measured = tuple[tuple[jax.Array, Any], ArrayTree, GradientStats]


class Method(Protocol):
    """A way of measuring: turns a loss into a function that measures it."""

    def __call__(
        self, loss: Loss
    ) -> Callable[[ArrayTree, ArrayTree, tuple, jax.Array | None], Measured]:
        """Returns ``f(params, batch, args, mask)`` → ``((loss, aux), grads, stats)``."""
        ...


def check_method(name: str, method: Any) -> None:
    """Raises TypeError for what is not a method, or for the function that makes one."""
    if inspect.isfunction(method) or not callable(method):
        raise TypeError(
            f"Expected {name} to be made by adaoptax.measure, got {name}={method!r}: call it, as in"
            " adaoptax.measure.groups(4)."
        )
