"""The user's loss as a way of measuring sees it, and what a way of measuring is."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from adaoptax import _validate
from adaoptax._tree import ArrayTree
from adaoptax.measure.rows import check_rows_in_batch, count_rows
from adaoptax.stats import GradientStats

KINDS = ("separable", "assumed", "ghost")

GHOST = """\
Expected loss_kind="separable" or "assumed" with {method}, got "ghost": it measures the gradient \
of every example, and a loss whose groups are batches of their own has none. Write \
adaoptax.value_grad_and_stats(loss_fn, adaoptax.measure.groups(n), loss_kind="ghost")."""


CAPTURED = """\
Expected a loss that changes nothing outside of itself, got TraceContextError: {error} This \
usually means that loss_fn closes over a Flax nnx module, nnx.Rngs or Variable and changes it, \
such as the counter of a Dropout or the averages of a BatchNorm. Hand it over: a random key as an \
argument in key_argnums, from which loss_fn makes nnx.Rngs; a model by nnx.split, merged anew in \
loss_fn with nnx.merge(..., copy=True), its new averages returned as aux."""

NOT_AN_ARRAY = """\
Expected params of arrays, got {kind} at params{path}: this usually means a whole Equinox model, \
whose functions and settings have no gradient. Take params, static = eqx.partition(model, \
eqx.is_inexact_array), and build the model in loss_fn with eqx.combine(params, static)."""

NOT_A_FLOAT = """\
Expected params of floats, got dtype {dtype} at params{path}: counters, random keys and indices \
have no gradient; pass them as an extra argument of the loss, or take apart what has one, with \
nnx.split(model, nnx.Param, ...) or eqx.partition(model, eqx.is_inexact_array)."""


class Loss(NamedTuple):
    """A mean loss over the rows of a batch, and everything that describes it.

    Attributes:
        fn: ``fn(params, *inputs)`` → loss, or ``(loss, aux)``.
        kind: ``"separable"``, ``"assumed"`` or ``"ghost"``, see `value_grad_and_stats`.
        batch_argnums: Positions in `fn` of the batch: one number, or several, whose inputs are a
            tuple then.
        key_argnums: Positions in `fn` of the random keys.
        has_aux: Whether `fn` returns `aux`.
        due: Whether this step is to be measured, for `measure.every`; None if nobody said.
        metric: Pytree like the parameters, the preconditioner that noise is measured in; or None.
    """

    fn: Callable[..., Any]
    kind: str
    batch_argnums: int | tuple[int, ...]
    key_argnums: tuple[int, ...]
    has_aux: bool
    due: Any = None
    metric: ArrayTree | None = None

    def __call__(self, params: ArrayTree, batch: ArrayTree, args: tuple) -> tuple[jax.Array, Any]:
        """Returns ``(loss, aux)``, with ``aux=None`` if there is none."""
        try:
            out = self.fn(params, *self.join(batch, args))
        except Exception as error:
            if type(error).__name__ != "TraceContextError":  # of Flax, which is not imported here
                raise
            raise ValueError(CAPTURED.format(error=str(error).splitlines()[0])) from error
        return out if self.has_aux else (out, None)

    def of_trace(self, args: tuple) -> Callable[[ArrayTree, ArrayTree], tuple[jax.Array, Any]]:
        """``f(params, batch)``, to be traced: no trace is left in modules among `args`."""
        return lambda params, batch: self(params, batch, jax.tree.map(lambda x: x, args))

    def join(self, batch: ArrayTree, args: tuple) -> list:
        """What the loss takes after `params`, in its order: the inverse of `split`."""
        parts = (batch,) if isinstance(self.batch_argnums, int) else batch
        if not isinstance(parts, tuple | list) or len(parts) != len(self._positions):
            raise ValueError(
                f"Expected a batch that is a tuple of {len(self._positions)} parts, as"
                f" batch_argnums={self.batch_argnums} says, got {type(batch).__name__} of"
                f" structure {jax.tree.structure(batch)}."
            )
        inputs = list(args)
        for argnum, part in sorted(
            zip(self._positions, parts, strict=True), key=lambda pair: pair[0]
        ):
            inputs.insert(argnum - 1, part)
        return inputs

    def split(self, params: ArrayTree, inputs: tuple) -> tuple[ArrayTree, tuple]:
        """``(batch, args)``: what the loss takes after `params`, as ways of measuring take it.

        Raises:
            TypeError: If inputs are missing.
            ValueError: If `params` hold what has no gradient, or there is data with one entry for
                each row outside of the batch.
        """
        missing = [n for n in (*self._positions, *self.key_argnums) if n > len(inputs)]
        if missing:
            raise TypeError(
                f"Expected inputs at positions {missing} of the loss (batch_argnums, key_argnums),"
                f" got params and {len(inputs)} more: pass them in the order of loss_fn."
            )
        _check_params(params)
        parts = tuple(inputs[argnum - 1] for argnum in self._positions)
        batch = parts[0] if isinstance(self.batch_argnums, int) else parts
        args = tuple(x for i, x in enumerate(inputs, 1) if i not in self._positions)
        of_shapes = lambda batch, args: self(params, batch, args)[0]
        check_rows_in_batch(of_shapes, batch, args, self._arg_positions(args), self._positions)
        return batch, args

    def of_rows(self, params: ArrayTree, batch: ArrayTree, args: tuple) -> tuple[jax.Array, Any]:
        """``(losses [B], aux [B, ...])`` of single rows, each with random keys of its own.

        The parameters are not batched: the products with them stay those of the whole batch.
        """
        args = self.split_keys(args, count_rows(batch))
        # As an argument, not closed over: Flax nnx wants its variables made where they are used.
        row = lambda params, x, args: self(params, jax.tree.map(lambda x: x[None], x), args)
        return jax.vmap(row, in_axes=(None, 0, self.key_axes(args)))(params, batch, args)

    def is_key(self, args: tuple) -> list[bool]:
        """Which of `args` are random keys."""
        return [argnum in self.key_argnums for argnum in self._arg_positions(args)]

    def split_keys(self, args: tuple, num: int) -> tuple:
        """Gives every random key in `args` a leading axis of `num` independent keys."""
        return self.map_keys(lambda key: jax.random.split(key, num), args)

    def map_keys(self, fn: Callable[[Any], Any], args: tuple) -> tuple:
        """Applies `fn` to the leaves of the random keys in `args`."""
        return tuple(
            jax.tree.map(fn, arg) if key else arg
            for arg, key in zip(args, self.is_key(args), strict=True)
        )

    def key_axes(self, args: tuple) -> tuple:
        """`in_axes` for `args` under vmap: 0 for random keys, None for all else."""
        return tuple(0 if key else None for key in self.is_key(args))

    def check_has_examples(self, method: str) -> None:
        """Raises ValueError for a loss of kind ``"ghost"``."""
        if self.kind == "ghost":
            raise ValueError(GHOST.format(method=method))

    @property
    def _positions(self) -> tuple[int, ...]:
        argnums = self.batch_argnums
        return (argnums,) if isinstance(argnums, int) else argnums

    def _arg_positions(self, args: tuple) -> list[int]:
        """The position in `fn` of each of `args`."""
        total = len(args) + len(self._positions)
        return [argnum for argnum in range(1, total + 1) if argnum not in self._positions]


def _check_params(params: ArrayTree) -> None:
    """Raises ValueError for leaves that cannot be differentiated."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        where = jax.tree_util.keystr(path)
        try:
            dtype = jax.dtypes.result_type(leaf)
        except (TypeError, ValueError):
            kind = f"{leaf!r}" if isinstance(leaf, str) else type(leaf).__name__
            raise ValueError(NOT_AN_ARRAY.format(kind=kind, path=where)) from None
        if not jax.dtypes.issubdtype(dtype, np.inexact):
            raise ValueError(NOT_A_FLOAT.format(dtype=dtype, path=where))


def describe_loss(
    loss_fn: Callable[..., Any],
    *,
    loss_kind: str = "separable",
    batch_argnums: int | Sequence[int] = 1,
    weights_of: Callable[..., Any] | None = None,
    has_aux: bool = False,
    key_argnums: int | Sequence[int] = (),
) -> Loss:
    """The loss as the user describes it, see `value_grad_and_stats`.

    Raises:
        ValueError: If `loss_kind` is unknown, or positions are not different inputs of the loss.
        NotImplementedError: If there is `weights_of`.
    """
    _validate.one_of("loss_kind", loss_kind, KINDS)
    if weights_of is not None:
        raise NotImplementedError(
            "Expected weights_of=None, got a function: a mean that is weighted by more than a mask"
            " is not measured yet. Divide each example by its own count instead."
        )
    batch = (batch_argnums,) if isinstance(batch_argnums, int) else tuple(batch_argnums)
    keys = (key_argnums,) if isinstance(key_argnums, int) else tuple(key_argnums)
    if not batch or min(batch) < 1 or len(set(batch)) < len(batch):
        raise ValueError(
            f"Expected batch_argnums to be different positions >= 1, got {batch_argnums=}: position"
            " 0 of the loss is params."
        )
    if any(argnum < 1 or argnum in batch for argnum in keys):
        raise ValueError(
            f"Expected key_argnums to be positions >= 1 beside batch_argnums={batch_argnums}, got"
            f" {key_argnums=}: position 0 of the loss is params, and keys are not data."
        )
    positions = batch_argnums if isinstance(batch_argnums, int) else batch
    return Loss(loss_fn, loss_kind, positions, keys, has_aux)


Measured = tuple[tuple[jax.Array, Any], ArrayTree, GradientStats]
Measure = Callable[[ArrayTree, ArrayTree, tuple, jax.Array | None], Measured]


class Method(Protocol):
    """A way of measuring: an object that turns a loss into a function which measures it.

    `value_grad_and_stats` calls it with the `Loss` that the user described, and what it returns
    with ``(params, batch, args, mask)`` at each trace; `mask` is a bool array [B] or None. The
    guide has a page on writing one.
    """

    def __call__(self, loss: Loss) -> Measure:
        """Returns ``f(params, batch, args, mask)`` → ``((loss, aux), grads, stats)``."""
        ...


def check_method(name: str, method: Any) -> None:
    """Raises TypeError for what is not a method, or for the function that makes one."""
    if inspect.isfunction(method) or not callable(method):
        raise TypeError(
            f"Expected {name} to be made by adaoptax.measure, got {name}={method!r}: call it, as in"
            " adaoptax.measure.groups(4)."
        )
