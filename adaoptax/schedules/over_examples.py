"""An Optax schedule on the clock of examples: a bigger batch moves it further in one step."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from adaoptax import _tree
from adaoptax._tree import ArrayTree
from adaoptax.clock import Clock, init_clock
from adaoptax.stats import GradientStats, check_stats

# The clock counts in units of 2^16 examples, exact in binary: int32 then lasts for 10^14 of them.
_UNIT = 65536


class ScaleByScheduleOverExamplesState(NamedTuple):
    """State of `scale_by_schedule_over_examples`.

    Attributes:
        examples_clock: Examples seen so far, in units of 65536.
    """

    examples_clock: Clock


def scale_by_schedule_over_examples(
    schedule: optax.Schedule,
) -> optax.GradientTransformationExtraArgs:
    """Multiplies updates by ``-schedule(examples seen so far)``.

    With a batch that grows, steps are no measure of progress: a schedule over them would not end
    with the data. This one takes the number of examples from the statistics of every step.

    Args:
        schedule: Any Optax schedule; its count is in examples.

    Returns:
        An `optax.GradientTransformationExtraArgs` to put last in a chain, in the place of
        `optax.scale_by_learning_rate`; `update` requires ``stats=``. The first step sees 0. A step
        with a NaN or infinite gradient counts its examples: they are gone from the stream.

    Examples:
        >>> import adaoptax, jax.numpy as jnp, optax
        >>> tx = adaoptax.scale_by_schedule_over_examples(optax.linear_schedule(1.0, 0.0, 256))
        >>> grads, stats = adaoptax.stats_from_groups(jnp.ones((4, 1)), group_size=16)
        >>> state = tx.init(grads)
        >>> for _ in range(3):
        ...     updates, state = tx.update(grads, state, stats=stats)
        ...     print(float(updates[0]))
        -1.0
        -0.75
        -0.5
    """

    def init_fn(params: ArrayTree) -> ScaleByScheduleOverExamplesState:
        return ScaleByScheduleOverExamplesState(init_clock(_tree.scalar_dtype(params)))

    def update_fn(
        updates: ArrayTree,
        state: ScaleByScheduleOverExamplesState,
        params: ArrayTree | None = None,
        *,
        stats: GradientStats,
        **extra_args: Any,
    ) -> tuple[ArrayTree, ScaleByScheduleOverExamplesState]:
        del params, extra_args
        check_stats(stats, "scale_by_schedule_over_examples")
        clock = state.examples_clock
        rate = schedule(_UNIT * clock.value())
        scaled = jax.tree.map(lambda u: (-rate * u).astype(jnp.result_type(u)), updates)
        dtype = clock.fraction.dtype
        seen = stats.num_examples.astype(dtype) / _UNIT
        return scaled, ScaleByScheduleOverExamplesState(clock.advance(seen))

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
