"""What a loader makes of a schedule: runs of steps of one size."""

from collections.abc import Iterator
from typing import NamedTuple

from adaoptax._numbers import round_up
from adaoptax.schedules.batch_size import BatchSizeSchedule, Stage

_MAX_STEPS = 10_000_000


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
