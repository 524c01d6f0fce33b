"""Schedules of other trainers, against a simulation of what those do."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_schedules import micro_batch_sizes, stages
from real_loader import run_loader

from adaoptax.schedules import BatchSizeSchedule

from_increments, from_steps = BatchSizeSchedule.from_increments, BatchSizeSchedule.from_steps


def stages_of(schedule):
    assert schedule.stages is not None
    return schedule.stages


def ramp_of_megatron(consumed, start, increment, samples, final):
    """Its rule at one place, in exact fractions where it has floats."""
    if consumed >= samples:
        return final
    per_increment = Fraction(samples, (final - start) // increment)
    return start + int(consumed / per_increment) * increment


@given(st.integers(1, 40), st.integers(1, 20), st.integers(0, 300), st.integers(0, 9), st.data())
def test_a_ramp_by_increments_is_that_of_megatron(start, increment, samples, count, data):
    final = start + count * increment
    schedule = from_increments(start, increment, samples, final)
    assert stages_of(schedule)[-1][1] == schedule.max_batch_size == final
    consumed = data.draw(st.integers(0, samples + 5))
    for seen in {consumed, samples, *(threshold for threshold, _ in stages_of(schedule))}:
        expected = ramp_of_megatron(seen, start, increment, samples, final) if count else final
        assert schedule(seen) == expected
        if seen and count:
            before = ramp_of_megatron(seen - 1, start, increment, samples, final)
            assert schedule(seen - 1) == before


def test_the_ramp_of_the_nemo_manual():
    """[256, 128, 50M] to 1024: six equal parts of 50M."""
    schedule = from_increments(256, 128, 50_000_000, final=1024)
    assert [size for _, size in stages_of(schedule)] == [256, 384, 512, 640, 768, 896, 1024]
    assert stages_of(schedule)[3][0] == 25_000_000
    assert stages_of(schedule)[-1][0] == 50_000_000
    assert schedule(8_333_333) == 256
    assert schedule(8_333_334) == 384


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((64, 32, 1000, 32), "got start=64, increment=32, final=32"),
        ((32, 32, 1000, 100), "jump over the final size"),
        ((0, 32, 1000, 64), "start >= 1"),
        ((32, 0, 1000, 64), "increment >= 1"),
        ((32, 32, -1, 64), "samples >= 0"),
        ((32, 32, 0.5, 64), "samples to be a whole number"),
    ],
)
def test_ramps_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        from_increments(*arguments)


@given(stages(largest_step=8), micro_batch_sizes)
def test_stages_by_step_keep_their_steps_in_a_real_loader(pairs, micro_batch_size):
    schedule = from_steps(pairs, micro_batch_size=micro_batch_size)
    num_steps = pairs[-1][0] + 3
    by_step = [[size for start, size in pairs if start <= step][-1] for step in range(num_steps)]
    rounded = [-(-size // micro_batch_size) * micro_batch_size for size in by_step]
    steps = run_loader(schedule, sum(rounded), micro_batch_size)
    assert [step.batch_size for step in steps] == rounded


def test_stages_by_step_are_refused_like_stages_by_example():
    with pytest.raises(ValueError, match="got 5 after a stage that begins at 10"):
        from_steps([(0, 8), (10, 16), (5, 32)])
    with pytest.raises(ValueError, match="micro_batch_size >= 1"):
        from_steps([(0, 8)], micro_batch_size=0)
