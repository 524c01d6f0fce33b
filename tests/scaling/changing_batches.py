"""Steps of changing batch sizes, random trees, and comparisons to the bit or with Optax."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adaoptax import GradientStats

SIZES = (32, 32, 48, 64, 128, 16, 8, 256, 256, 32)
RULES = ("half-life", "marek", "malladi")


def stats(batch: float, dtype: Any = jnp.float32, sq_norm: float = 2.0) -> GradientStats:
    return GradientStats(*(jnp.asarray(x, dtype) for x in (batch, 4, sq_norm, 5)))


def tree(seed: int, dtype: Any = jnp.float32, spread: float = 0.0) -> Any:
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.normal(size=shape) * 10 ** rng.uniform(-spread, spread, shape)
    return {"w": jnp.asarray(draw(7, 5), dtype), "b": jnp.asarray(draw(3), dtype)}


def bits(tree: Any) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def assert_bits(left: Any, right: Any) -> None:
    for a, b in zip(bits(left), bits(right), strict=True):
        np.testing.assert_array_equal(a, b)


def tau(state: Any) -> float:
    """The scale-invariant step count of AdaScale."""
    return int(state.scale_invariant_count) + float(state.scale_invariant_fraction)


def beside_optax(
    ours: Any,
    theirs: Any,
    steps: int,
    *,
    batch: float = 48,
    compiled: bool = False,
    dtype: Any = jnp.float32,
    spread: float = 0.0,
) -> Iterator[tuple[Any, Any, Any, Any]]:
    """Updates of ours and of Optax, and both states, on the same gradients at one batch size."""
    maybe: Callable[[Any], Any] = jax.jit if compiled else lambda f: f
    update, optax_update = maybe(ours.update), maybe(theirs.update)
    params = other = tree(0, dtype)
    state, optax_state = ours.init(params), theirs.init(other)
    for seed in range(steps):
        grads = tree(seed, dtype, spread)
        updates, state = update(grads, state, params, stats=stats(batch, dtype))
        expected, optax_state = optax_update(grads, optax_state, other)
        yield updates, expected, state, optax_state
        params = optax.apply_updates(params, updates)
        other = optax.apply_updates(other, expected)
