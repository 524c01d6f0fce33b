"""Optax schedules on the clock of examples: a bigger batch moves them further in one step."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from adaoptax import _tree
from adaoptax._tree import ArrayTree
from adaoptax._validate import positive, whole_number
from adaoptax.clock import Clock, init_clock
from adaoptax.schedules.batch_size import BatchSizes, BatchSizeSchedule, batch_size_schedule
from adaoptax.schedules.dry_run import Run, runs_of_stages
from adaoptax.stats import GradientStats, check_stats

# The clock counts in units of 2^16 examples, exact in binary: int32 then lasts for 10^14 of them.
UNIT = 65536
MAX_EXAMPLES = 2**31 * UNIT - 1
_MAX_STEP = 2**31 - 1


class ScaleByScheduleOverExamplesState(NamedTuple):
    """State of `scale_by_schedule_over_examples`.

    Attributes:
        examples_clock: Examples seen so far, in units of 65536.
    """

    examples_clock: Clock


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


def scale_by_schedule_over_examples(
    schedule: optax.Schedule, *, tokens_per_example: float = 1
) -> optax.GradientTransformationExtraArgs:
    """Multiplies updates by ``-schedule(examples seen so far)``.

    With a batch that grows, steps are no measure of progress: a schedule over them would not end
    with the data. This one takes the number of examples from the statistics of every step. Where
    the batch sizes are known before the run, `over_examples` does it without statistics.

    Args:
        schedule: Any Optax schedule; its count is in examples, a float.
        tokens_per_example: Where this is given, the count of `schedule` is in tokens: examples
            times this number. The state counts examples all the same.

    Returns:
        An `optax.GradientTransformationExtraArgs` to put last in a chain, in the place of
        `optax.scale_by_learning_rate`; `update` requires ``stats=``. The first step sees 0. A step
        with a NaN or infinite gradient counts its examples: they are gone from the stream.

    Raises:
        TypeError: If `schedule` is not a function.
        ValueError: If `tokens_per_example` is not above 0.

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
    unit = _schedule_unit(schedule, tokens_per_example)

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
        rate = schedule(unit * clock.value())
        scaled = jax.tree.map(lambda u: (-rate * u).astype(jnp.result_type(u)), updates)
        dtype = clock.fraction.dtype
        seen = stats.num_examples.astype(dtype) / UNIT
        return scaled, ScaleByScheduleOverExamplesState(clock.advance(seen))

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def over_examples(
    schedule: optax.Schedule,
    batch_sizes: BatchSizes,
    micro_batch_size: int = 1,
    *,
    tokens_per_example: float = 1,
) -> optax.Schedule:
    """Turns a schedule over examples into one over steps, for batch sizes known before the run.

    The result is an ordinary Optax schedule: for ``optax.sgd(rate)``, `optax.inject_hyperparams`,
    `jax.jit`. At step t it gives ``schedule(examples seen before step t)`` of a loader that is
    resized to ``batch_sizes(loader.examples_seen)`` before every batch.

    The examples are computed from t in whole numbers, closed form, and exact. Only then they become
    the float that `schedule` receives: in float32 exact up to 2^24 examples, and within one part in
    8 million beyond (16384 examples at 250 billion); with ``jax_enable_x64`` exact.

    Args:
        schedule: Any Optax schedule; its count is in examples, a float.
        batch_sizes: A `BatchSizeSchedule` of stages, or what `batch_size_schedule` makes one of: a
            whole number, ``"0:768 250B:1536"``, pairs. (A function has no closed form: plan it
            first, and pass `Plan.batch_sizes`.)
        micro_batch_size: That of the loader, which rounds sizes up to it.
        tokens_per_example: Where this is given, the count of `schedule` is in tokens.

    Returns:
        A function of the step. It stays at its last value after 2^31 steps or 10^14 examples.

    Raises:
        TypeError: If `schedule` is not a function.
        ValueError: If `batch_sizes` is a function, or an argument is outside its range.

    Examples:
        >>> import optax
        >>> from adaoptax.schedules import over_examples
        >>> decay = optax.linear_schedule(1.0, 0.0, transition_steps=256)
        >>> rate = over_examples(decay, "0:32 64:64")
        >>> [float(rate(step)) for step in range(5)]
        [1.0, 0.875, 0.75, 0.5, 0.25]
        >>> optimizer = optax.sgd(rate)
    """
    unit = _schedule_unit(schedule, tokens_per_example)
    micro = whole_number("micro_batch_size", micro_batch_size, 1, "it counts examples.")
    stages = batch_size_schedule(batch_sizes).stages
    if stages is None:
        raise ValueError(
            f"Expected batch_sizes of stages, got {batch_sizes!r}: a function of examples has no "
            "closed form; pass adaoptax.schedules.plan(batch_sizes, num_examples, "
            "micro_batch_size=...).batch_sizes, or scale_by_schedule_over_examples, which counts."
        )
    runs = [run for run in runs_of_stages(stages, micro) if _reached(run)]
    if (largest := max(run.batch_size for run in runs)) > _MAX_STEP:
        raise ValueError(
            f"Expected batch sizes below 2^31, got {largest}: this usually means a size in tokens; "
            "divide it by the tokens of one example."
        )
    last = runs[-1]
    last_step = min(_MAX_STEP, last.step + (MAX_EXAMPLES - last.examples) // last.batch_size)
    steps, units, rests, sizes = np.array(
        [(run.step, *divmod(run.examples, UNIT), run.batch_size) for run in runs], np.uint32
    ).T

    def schedule_over_steps(count: ArrayLike) -> ArrayLike:
        step = jnp.clip(count, 0, last_step).astype(jnp.uint32)
        run = jnp.searchsorted(steps, step, side="right") - 1
        at_run = lambda table: jnp.asarray(table)[run]
        high, low = _product(step - at_run(steps), at_run(sizes))
        low = low + at_run(rests)
        whole = at_run(units) + high + low // UNIT
        dtype = jnp.result_type(float)
        fraction = (low % UNIT).astype(dtype) / UNIT
        return schedule(unit * Clock(whole.astype(jnp.int32), fraction).value())

    return schedule_over_steps


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


def _schedule_unit(schedule: Any, tokens_per_example: float) -> float:
    """What one unit of the clock is for the schedule."""
    if not callable(schedule):
        raise TypeError(
            f"Expected schedule to be a function of examples, got {schedule!r}: a constant rate "
            "needs no clock; pass it to the optimizer as it is."
        )
    positive("tokens_per_example", tokens_per_example, "it is the length of an example in tokens.")
    return float(UNIT) * tokens_per_example  # which `inject_hyperparams` may trace


def _reached(run: Run) -> bool:
    return run.step <= _MAX_STEP and run.examples <= MAX_EXAMPLES


def _product(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """``a * b`` of uint32 as (units of 2^16, rest < 2^16), where the units are below 2^31."""
    (a_high, a_low), (b_high, b_low) = divmod(a, UNIT), divmod(b, UNIT)
    low = a_low * b_low
    high = a_high * b_high * UNIT + a_high * b_low + a_low * b_high + low // UNIT
    return high, low % UNIT
