"""A dry run: what a schedule of batch sizes will do to steps, programs and the learning rate."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adaoptax._validate import positive, round_up, whole_number
from adaoptax.schedules.batch_size import BatchSizes, BatchSizeSchedule, Stage, batch_size_schedule

_MAX_STEPS = 10_000_000  # that a function of examples is asked for
_SHOWN = 40  # rows of the table; the middle of a longer plan is left out
_UNITS = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"))


class Run(NamedTuple):
    """Steps of one size in a row; the run ends where the next one begins.

    Attributes:
        step: The first step, counted from 0.
        examples: Examples seen before it.
        batch_size: Examples of each step, a multiple of the micro-batch.
    """

    step: int
    examples: int
    batch_size: int


def runs_of_stages(stages: tuple[Stage, ...], micro_batch_size: int) -> list[Run]:
    """All runs, in closed form; the last one lasts for ever."""
    runs: list[Run] = []
    step = examples = 0
    ends = [threshold for threshold, _ in stages[1:]] + [None]
    for (_, wanted), end in zip(stages, ends, strict=True):
        if end is not None and examples >= end:
            continue  # the batch before went beyond the whole stage
        size = round_up(wanted, micro_batch_size)
        if not runs or runs[-1].batch_size != size:
            runs.append(Run(step, examples, size))
        if end is not None:
            num_steps = -(-(end - examples) // size)
            step, examples = step + num_steps, examples + num_steps * size
    return runs


def runs_until(
    schedule: BatchSizeSchedule, micro_batch_size: int, num_examples: int
) -> Iterator[Run]:
    """The runs that begin before `num_examples`; a function is asked at every step."""
    if schedule.stages is not None:
        for run in runs_of_stages(schedule.stages, micro_batch_size):
            if run.examples < num_examples:
                yield run
        return
    examples = size = 0
    for step in range(_MAX_STEPS):
        if examples >= num_examples:
            return
        if (wanted := round_up(schedule(examples), micro_batch_size)) != size:
            size = wanted
            yield Run(step, examples, size)
        examples += size
    if examples < num_examples:
        raise ValueError(
            f"Expected a run of at most {_MAX_STEPS} steps, got {num_examples=} of which "
            f"{examples} were seen by then: a function is asked at every step; pass stages, such "
            'as "0:768 250B:1536", which are planned in closed form.'
        )


class PlanStage(NamedTuple):
    """Steps of one batch size in a row.

    Attributes:
        first_step: The first step, counted from 0.
        steps: Number of steps, a short last one included.
        first_example: Examples seen before the stage.
        end_example: Examples seen after it.
        batch_size: Examples of a step, a multiple of the micro-batch.
        capacity: Rows of the compiled step that runs it; `batch_size` without capacities.
        new_programs: Programs that are compiled in this stage for the first time.
        first_rate: Learning rate of the first step; None without a schedule.
        last_rate: Learning rate of the last step; None without a schedule.
        seconds: Time of the stage; None without `seconds_per_example`.
    """

    first_step: int
    steps: int
    first_example: int
    end_example: int
    batch_size: int
    capacity: int
    new_programs: int
    first_rate: float | None
    last_rate: float | None
    seconds: float | None


class Plan(NamedTuple):
    """What a run will do; `str` gives it as a table.

    Attributes:
        stages: The stages, in order.
        num_examples: Examples of the whole run.
        num_steps: Steps of the whole run.
        num_programs: Programs compiled in the whole run.
        last_batch: Examples of the last step, which may be fewer than its batch size.
        fixed_steps: Steps that a fixed batch of the first size would need.
        seconds: Time of the whole run; None without `seconds_per_example`.
    """

    stages: tuple[PlanStage, ...]
    num_examples: int
    num_steps: int
    num_programs: int
    last_batch: int
    fixed_steps: int
    seconds: float | None

    @property
    def batch_sizes(self) -> BatchSizeSchedule:
        """The plan as stages: what makes a function of examples fit for `over_examples`."""
        return BatchSizeSchedule([(stage.first_example, stage.batch_size) for stage in self.stages])

    def __str__(self) -> str:
        first, last = self.stages[0].batch_size, self.stages[-1].batch_size
        short = f" (the last has {self.last_batch:,})" if self.last_batch < last else ""
        time = "" if self.seconds is None else f", {_duration(self.seconds)}"
        return (
            f"{_table(_columns(self))}\n"
            f"{_count(self.num_steps, 'step')} for {_count(self.num_examples, 'example')}{short}, "
            f"{_count(self.num_programs, 'program')}{time}.\n"
            f"A fixed batch of {first:,} would take {_count(self.fixed_steps, 'step')}."
        )


def plan(
    batch_sizes: BatchSizes,
    num_examples: int,
    *,
    micro_batch_size: int = 1,
    capacities: Sequence[int] | None = None,
    learning_rate: optax.ScalarOrSchedule | None = None,
    seconds_per_example: float | None = None,
) -> Plan:
    """Says what a run will do, before anything runs.

    It is exactly what a `BatchLoader` does that is resized to ``schedule(loader.examples_seen)``
    before every batch. Stages are planned in closed form, however long the run is; a function of
    examples is asked at every step, for at most ten million steps.

    Args:
        batch_sizes: A `BatchSizeSchedule`, or what `batch_size_schedule` makes one of.
        num_examples: Examples of the whole run: those of the data times the epochs (epochs follow
            each other without a seam).
        micro_batch_size: That of the loader, which rounds sizes up to it.
        capacities: Rows for which a step is compiled; each batch runs in the smallest that holds
            it. None: a program for every size (a short last batch has one of its own).
        learning_rate: An Optax schedule over examples, or a number.
        seconds_per_example: Time of one example, for a column of times.

    Returns:
        A `Plan`; print it.

    Raises:
        TypeError: If `batch_sizes` describes no schedule.
        ValueError: If an argument is outside its range, no capacity holds a batch, or a function
            needs more than ten million steps.

    Examples:
        >>> import optax
        >>> from adaoptax.schedules import plan
        >>> rate = optax.linear_schedule(0.1, 0.0, 10_000)
        >>> print(plan("0:32 1K:64 4K:256", 10_000, micro_batch_size=32, learning_rate=rate))
        examples from      to  batch size  steps     learning rate  new programs
                    0   1,024          32     32     0.1 -> 0.0901             1
                1,024   4,032          64     47  0.0898 -> 0.0603             1
                4,032  10,000         256     24  0.0597 -> 0.0008             2
        103 steps for 10,000 examples (the last has 80), 4 programs.
        A fixed batch of 32 would take 313 steps.
    """
    schedule = batch_size_schedule(batch_sizes)
    total = whole_number("num_examples", num_examples, 1, "it counts the examples of the run.")
    micro = whole_number("micro_batch_size", micro_batch_size, 1, "it counts examples.")
    positive("seconds_per_example", seconds_per_example, "it is the time of one example.")
    rows = sorted(whole_number("capacity", c, 1, "it counts rows.") for c in capacities or ())
    runs = list(runs_until(schedule, micro, total))
    ends = [*(run.examples for run in runs[1:]), total]
    seen: set[int] = set()
    stages = []
    for run, end in zip(runs, ends, strict=True):
        needed = {_capacity(size, rows) for size in _sizes(run, end, micro)}
        stages.append(_stage(run, end, needed, seen, seconds_per_example))
        seen |= needed
    stages = _with_rates(stages, learning_rate)
    last = stages[-1]
    return Plan(
        stages=tuple(stages),
        num_examples=total,
        num_steps=last.first_step + last.steps,
        num_programs=len(seen),
        last_batch=total - last.first_example - (last.steps - 1) * last.batch_size,
        fixed_steps=-(-total // runs[0].batch_size),
        seconds=None if seconds_per_example is None else seconds_per_example * total,
    )


def _stage(
    run: Run,
    end: int,
    needed: set[int],
    seen: set[int],
    seconds_per_example: float | None,
) -> PlanStage:
    return PlanStage(
        first_step=run.step,
        steps=-(-(end - run.examples) // run.batch_size),
        first_example=run.examples,
        end_example=end,
        batch_size=run.batch_size,
        capacity=max(needed),
        new_programs=len(needed - seen),
        first_rate=None,
        last_rate=None,
        seconds=None if seconds_per_example is None else seconds_per_example * (end - run.examples),
    )


def _sizes(run: Run, end: int, micro_batch_size: int) -> set[int]:
    """Rows of the batches of a run: its size, and those of a short last batch."""
    full, short = divmod(end - run.examples, run.batch_size)
    sizes = {run.batch_size} if full else set()
    return sizes | ({round_up(short, micro_batch_size)} if short else set())


def _capacity(size: int, capacities: list[int]) -> int:
    if not capacities:
        return size
    for capacity in capacities:
        if capacity >= size:
            return capacity
    raise ValueError(
        f"Expected capacities up to {size}, got capacities={capacities}: a batch of {size} fits "
        "none of them; add a larger one, or bound the schedule by max_batch_size."
    )


def _with_rates(stages: list[PlanStage], learning_rate: Any) -> list[PlanStage]:
    if learning_rate is None:
        return stages
    rates = learning_rate if callable(learning_rate) else optax.constant_schedule(learning_rate)
    firsts = [stage.first_example for stage in stages]
    lasts = [stage.first_example + (stage.steps - 1) * stage.batch_size for stage in stages]
    points = jax.device_put(np.asarray([firsts, lasts], jnp.result_type(float)))
    every = jax.jit(jax.vmap(jax.vmap(lambda count: jnp.asarray(rates(count)))))
    pairs = zip(stages, *jax.device_get(every(points)).tolist(), strict=True)
    return [stage._replace(first_rate=first, last_rate=last) for stage, first, last in pairs]


def _columns(plan: Plan) -> dict[str, list[str]]:
    stages = plan.stages
    columns = {
        "examples from": [f"{stage.first_example:,}" for stage in stages],
        "to": [f"{stage.end_example:,}" for stage in stages],
        "batch size": [f"{stage.batch_size:,}" for stage in stages],
        "steps": [f"{stage.steps:,}" for stage in stages],
    }
    if stages[0].first_rate is not None:
        columns["learning rate"] = [f"{s.first_rate:.3g} -> {s.last_rate:.3g}" for s in stages]
    if any(stage.capacity != stage.batch_size for stage in stages):
        columns["capacity"] = [f"{stage.capacity:,}" for stage in stages]
    columns["new programs"] = [f"{stage.new_programs}" for stage in stages]
    if stages[0].seconds is not None:
        columns["time"] = [_duration(stage.seconds or 0.0) for stage in stages]
    return columns


def _table(columns: Mapping[str, Sequence[str]]) -> str:
    """Right-aligned columns under their names; the middle of a long table is left out."""
    rows = list(zip(*columns.values(), strict=True))
    widths = [max(map(len, (name, *cells))) for name, cells in columns.items()]
    line = lambda cells: "  ".join(
        cell.rjust(width) for cell, width in zip(cells, widths, strict=True)
    )
    lines = [line(row) for row in rows]
    if len(lines) > _SHOWN:
        half = _SHOWN // 2
        lines[half:-half] = [f"... {len(lines) - 2 * half:,} more ..."]
    return "\n".join([line(columns), *lines])


def _count(number: int, noun: str) -> str:
    """A number of things, "1 step" or "2,000 steps"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _duration(seconds: float) -> str:
    """A length of time in the largest unit of which it holds two, "36.5 h"."""
    for size, unit in _UNITS:
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.3g} s"
