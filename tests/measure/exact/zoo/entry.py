"""What an entry of the zoo is, how it draws its numbers, and the list of all entries."""

import math
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

ROWS = 5


class Entry(NamedTuple):
    """A tiny model.

    Attributes:
        loss_fn: ``loss_fn(params, batch, *args)``, a mean over the leading axis of the batch.
            It follows the dtypes of its arguments, so that it runs in float64 too.
        params: Pytree of float32 (or complex64) arrays.
        batch: Pytree of arrays [ROWS, ...].
        args: Extra arguments of the loss.
        has_aux: Whether the loss returns ``(loss, aux)``.
        losses: ``losses(params, batch, *args)`` [ROWS], whose mean is the loss, where the loss of a
            batch of one row is another: its draws are those of the batch.
        mask: [ROWS] or None; rows of weight zero hold garbage.
        float64: Whether the measurement itself runs in float64.
        rtol: Of statistics, relative to the largest of their kind.
        grad_rtol: Of the mean gradient, relative to its norm.
    """

    loss_fn: Callable[..., Any]
    params: Any
    batch: Any
    args: tuple = ()
    has_aux: bool = False
    losses: Callable[..., Any] | None = None
    mask: Any = None
    float64: bool = False
    rtol: float = 1e-5
    grad_rtol: float = 1e-6


class Draw:
    """Random numpy arrays in float32 and int32."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def __call__(self, *shape: int) -> np.ndarray:
        """Standard normal."""
        return np.asarray(self._rng.normal(size=shape), np.float32)

    def weight(self, *shape: int) -> np.ndarray:
        """Normal, of a size that keeps activations of size one; vectors are about one."""
        if len(shape) < 2:
            return np.float32(1) + np.float32(0.3) * self(*shape)
        return self(*shape) / np.float32(math.sqrt(math.prod(shape[:-1])))

    def ids(self, num: int, *shape: int) -> np.ndarray:
        """Integers below `num`."""
        return self._rng.integers(0, num, size=shape).astype(np.int32)

    def like(self, shapes: Any) -> Any:
        """Parameters for a pytree of shapes, as `jax.eval_shape` returns it; biases are small.

        Flax computes variances as E x² − (E x)²: large biases would cost digits in any program.
        """

        def leaf(path: Any, shape: Any) -> np.ndarray:
            drawn = self.weight(*shape.shape)
            return (drawn - 1) if "bias" in jax.tree_util.keystr(path) else drawn

        return jax.tree_util.tree_map_with_path(leaf, shapes)


ENTRIES: dict[str, Callable[[], Entry]] = {}


def entry(build: Callable[[Draw], Entry], name: str | None = None) -> Callable[[Draw], Entry]:
    """Adds an entry to the zoo, by default under the name of the function that builds it."""
    name = name or build.__name__
    assert name not in ENTRIES, f"two entries are called {name}"
    ENTRIES[name] = lambda: build(Draw(zlib.crc32(name.encode())))
    return build


def fit(
    draw: Draw, forward: Callable[[Any, Any], jax.Array], params: Any, inputs: Any, **options: Any
) -> Entry:
    """An entry whose loss is the mean squared distance of ``forward(params, inputs)`` to targets.

    The targets are random, so that every output has a cotangent of its own.
    """
    shape = jax.eval_shape(forward, params, inputs)

    def loss_fn(params: Any, batch: Any) -> jax.Array:
        return 0.5 * jnp.mean((forward(params, batch["inputs"]) - batch["targets"]) ** 2)

    return Entry(loss_fn, params, {"inputs": inputs, "targets": draw(*shape.shape)}, **options)


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean cross-entropy of integer labels over all leading axes."""
    scores = jax.nn.log_softmax(logits)
    return -jnp.mean(jnp.take_along_axis(scores, labels[..., None], axis=-1))


def with_loss(
    params: Callable[[Draw], Any], batch: Callable[[Draw], Any]
) -> Callable[[Callable], Callable]:
    """Adds an entry with the decorated ``loss_fn(params, batch)``, on what the functions draw."""

    def add(loss_fn: Callable[..., jax.Array]) -> Callable:
        entry(lambda draw: Entry(loss_fn, params(draw), batch(draw)), loss_fn.__name__)
        return loss_fn

    return add


def fitted(
    params: Callable[[Draw], Any], inputs: Callable[[Draw], Any], *, each: bool = False
) -> Callable[[Callable], Callable]:
    """Adds `fit` of the decorated ``forward(params, inputs)``, with what the two functions draw.

    If `each` is True the function is of one example, and is mapped over the rows.
    """

    def add(forward: Callable[[Any, Any], jax.Array]) -> Callable:
        of_all = jax.vmap(forward, in_axes=(None, 0)) if each else forward

        entry(lambda draw: fit(draw, of_all, params(draw), inputs(draw)), forward.__name__)
        return forward

    return add
