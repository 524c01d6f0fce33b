"""Debiased exponential averages of pytrees, held in an optimizer state.

Numerators and denominators are averaged separately and divided afterwards: a ratio of means.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from adaoptax._tree import ArrayTree


class Averages(NamedTuple):
    """A debiased exponential average.

    Attributes:
        total: Pytree, Σ of samples by their weights.
        weight: Scalar, Σ of the weights; zero before the first sample.
    """

    total: ArrayTree
    weight: jax.Array


def init_averages(like: ArrayTree, dtype: Any) -> Averages:
    """Averages of nothing yet, for samples shaped like `like`."""
    return Averages(jax.tree.map(jnp.zeros_like, like), jnp.zeros([], dtype))


def update_averages(averages: Averages, sample: ArrayTree, share: Any) -> Averages:
    """Moves total and weight towards the sample (and 1) by `share`, which is 1 − decay."""
    move = lambda total, x: ((1 - share) * total + share * x).astype(total.dtype)
    return Averages(jax.tree.map(move, averages.total, sample), move(averages.weight, 1))


def debiased(averages: Averages) -> ArrayTree:
    """The average: total / weight, zero before the first sample."""
    weight = averages.weight
    return jax.tree.map(
        lambda x: x / jnp.where(weight > 0, weight, 1).astype(x.dtype), averages.total
    )
