"""Steps of changing batch sizes, and random trees, for the tests of Adam."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

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
