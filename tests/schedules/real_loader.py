"""The oracle of the schedules: a real loader that is resized before every batch."""

from typing import NamedTuple

import numpy as np

from adaoptax import BatchLoader


class Step(NamedTuple):
    before: int  # examples seen before the step
    batch_size: int  # that was in force
    num_examples: int  # that were real
    num_rows: int  # padding included


def run_loader(schedule, num_examples, micro_batch_size=1):
    """All steps of a run of one epoch that follows the schedule."""
    loader = BatchLoader(
        np.zeros(num_examples, np.int8),
        micro_batch_size,
        micro_batch_size=micro_batch_size,
        num_epochs=1,
        shuffle=False,
    )
    steps = []
    while (before := loader.examples_seen) < num_examples:
        size = loader.resize(schedule(before))
        next(loader)
        steps.append(Step(before, size, loader.num_examples, loader.num_rows))
    return steps
