"""What a rule for both emits: batch sizes and learning rates on one clock of examples."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from adaoptax.schedules.batch_size import BatchSizeSchedule


class SizesAndRate(NamedTuple):
    """Batch sizes and the learning rate that belongs to them, as `sebs` and `seesaw` emit them.

    Both count the examples seen so far: give `batch_sizes` to an `AdaptiveLoop`, or as a bound to
    a `GrowthPolicy`, and `learning_rate` to `scale_by_schedule_over_examples` or `over_examples`.

    Attributes:
        batch_sizes: A `BatchSizeSchedule` of stages.
        learning_rate: An Optax schedule; its count is in examples, a float (in tokens where the
            maker was given `tokens_per_example`).
    """

    batch_sizes: BatchSizeSchedule
    learning_rate: optax.Schedule


def as_counts(examples: ArrayLike | Sequence[int], tokens_per_example: float) -> np.ndarray:
    """What schedules receive after so many examples: the same float as that of the clock."""
    dtype = np.dtype(jnp.result_type(float))
    return np.asarray(examples).astype(dtype) * dtype.type(tokens_per_example)


def factor_of_stage(
    schedule: optax.Schedule,
    examples: Sequence[int],
    factors: Sequence[float],
    tokens_per_example: float = 1,
) -> optax.Schedule:
    """Multiplies a schedule by one factor from each of these examples on; the first is 0."""

    def multiplied(count: ArrayLike) -> jax.Array:
        begins = jnp.asarray(as_counts(examples, tokens_per_example))
        stage = jnp.searchsorted(begins, jnp.asarray(count, begins.dtype), side="right") - 1
        return schedule(count) * jnp.asarray(factors, begins.dtype)[jnp.maximum(stage, 0)]

    return multiplied
