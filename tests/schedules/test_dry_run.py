"""The dry run against real runs of a loader, and its table."""

import itertools
import textwrap

import jax
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_schedules import micro_batch_sizes, stages
from real_loader import run_loader

from adaoptax.schedules import BatchSizeSchedule, dry_run, over_examples, plan

# What a function of examples may do: rise, fall, jump to and fro.
FUNCTIONS = {
    "rising": lambda examples: 1 + examples // 7,
    "falling": lambda examples: max(1, 60 - examples // 5),
    "jumping": lambda examples: 1 + (examples * 37) % 23,
}


def check_against(made, steps, num_examples, programs):
    """Whether a plan is what the steps of a real run say."""
    groups = [list(group) for _, group in itertools.groupby(steps, lambda step: step.batch_size)]
    assert len(made.stages) == len(groups)
    done = 0
    compiled: set[int] = set()
    for stage, group in zip(made.stages, groups, strict=True):
        rows = {programs(step.num_rows) for step in group}
        assert stage.first_step == done
        assert stage.steps == len(group)
        assert stage.first_example == group[0].before
        assert stage.end_example == group[-1].before + group[-1].num_examples
        assert stage.batch_size == group[0].batch_size
        assert stage.capacity == max(rows)
        assert stage.new_programs == len(rows - compiled)
        done, compiled = done + len(group), compiled | rows
    assert made.num_steps == len(steps)
    assert made.num_examples == num_examples == made.stages[-1].end_example
    assert made.num_programs == len(compiled)
    assert made.last_batch == steps[-1].num_examples
    assert made.fixed_steps == -(-num_examples // steps[0].batch_size)


@given(stages(), micro_batch_sizes, st.integers(1, 1500))
def test_a_plan_of_stages_is_what_a_real_loader_does(pairs, micro, num_examples):
    schedule = BatchSizeSchedule(pairs)
    steps = run_loader(schedule, num_examples, micro)
    made = plan(schedule, num_examples, micro_batch_size=micro)
    check_against(made, steps, num_examples, lambda rows: rows)


@given(st.sampled_from(sorted(FUNCTIONS)), micro_batch_sizes, st.integers(1, 1500))
def test_a_plan_of_a_function_is_what_a_real_loader_does(name, micro, num_examples):
    schedule = BatchSizeSchedule(FUNCTIONS[name], max_batch_size=100)
    steps = run_loader(schedule, num_examples, micro)
    made = plan(schedule, num_examples, micro_batch_size=micro)
    check_against(made, steps, num_examples, lambda rows: rows)
    assert run_loader(made.batch_sizes, num_examples, micro) == steps


@given(stages(), micro_batch_sizes, st.integers(1, 1500), st.lists(st.integers(1, 80), max_size=4))
def test_each_batch_runs_in_the_smallest_capacity_that_holds_it(pairs, micro, total, capacities):
    capacities.append(80)
    steps = run_loader(BatchSizeSchedule(pairs), total, micro)
    made = plan(pairs, total, micro_batch_size=micro, capacities=capacities)
    holds = lambda rows: min(capacity for capacity in capacities if capacity >= rows)
    check_against(made, steps, total, holds)


def test_one_padded_capacity_is_one_program():
    made = plan("0:8 100:16 200:64", 1003, micro_batch_size=8, capacities=[64])
    assert made.num_programs == 1
    assert [stage.new_programs for stage in made.stages] == [1, 0, 0]


@given(stages(), micro_batch_sizes)
@settings(max_examples=20)
def test_the_rates_are_those_of_the_same_schedule_over_steps(pairs, micro):
    decay = optax.exponential_decay(0.5, 100, 0.7)
    made = plan(pairs, 1000, micro_batch_size=micro, learning_rate=decay)
    over_steps = over_examples(decay, pairs, micro)
    for stage in made.stages:
        assert stage.first_rate is not None
        assert stage.last_rate is not None
        last = stage.first_step + stage.steps - 1
        np.testing.assert_allclose(stage.first_rate, over_steps(stage.first_step), rtol=1e-6)
        np.testing.assert_allclose(stage.last_rate, over_steps(last), rtol=1e-6)


@pytest.mark.parametrize("rate", [0.25, optax.constant_schedule(0.25), lambda count: 0.25])
def test_a_constant_rate_is_shown_too(rate):
    with jax.transfer_guard("disallow"):
        made = plan("0:8 16:16", 64, learning_rate=rate)
    assert [(stage.first_rate, stage.last_rate) for stage in made.stages] == [(0.25, 0.25)] * 2


def test_a_trillion_examples_are_planned_in_closed_form():
    """By hand, in floors: 250e9 = 768 * 325520833 + 256, and each later stage starts beyond."""
    made = plan("0:768 250B:1536 500B:3072 750B:6144", 10**12)
    begins = [0, 250 * 10**9 + 512, 500 * 10**9 + 1024, 750 * 10**9]
    assert [stage.first_example for stage in made.stages] == begins
    assert [stage.steps for stage in made.stages] == [325520834, 162760417, 81380208, 40690105]
    assert made.num_steps == 325520834 + 162760417 + 81380208 + 40690105
    assert made.last_batch == 250 * 10**9 - 40690104 * 6144 == 1024
    assert made.fixed_steps == 1302083334


def test_a_function_that_needs_too_many_steps_is_refused(monkeypatch):
    monkeypatch.setattr(dry_run, "_MAX_STEPS", 100)
    grow = lambda examples: 8
    assert plan(grow, 800).num_steps == 100
    with pytest.raises(ValueError, match="at most 100 steps, got num_examples=801"):
        plan(grow, 801)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_examples": 0}, "num_examples >= 1"),
        ({"num_examples": 1.5}, "num_examples to be a whole number"),
        ({"num_examples": 9, "micro_batch_size": 0}, "micro_batch_size >= 1"),
        ({"num_examples": 99, "capacities": [8, 16]}, "up to 32, got capacities=\\[8, 16\\]"),
        ({"num_examples": 9, "capacities": [0]}, "capacity >= 1"),
        ({"num_examples": 9, "seconds_per_example": 0.0}, "seconds_per_example > 0"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        plan("0:8 10:32", **arguments)


def test_the_table_is_aligned_and_complete():
    made = plan(
        "0:32 1K:64 4K:256",
        10_000,
        micro_batch_size=32,
        capacities=[64, 256],
        learning_rate=optax.linear_schedule(0.1, 0.0, 10_000),
        seconds_per_example=0.5,
    )
    expected = """
 examples from      to  batch size  steps     learning rate  capacity  new programs      time
             0   1,024          32     32     0.1 -> 0.0901        64             1   8.5 min
         1,024   4,032          64     47  0.0898 -> 0.0603        64             0  25.1 min
         4,032  10,000         256     24  0.0597 -> 0.0008       256             1  49.7 min
 103 steps for 10,000 examples (the last has 80), 2 programs, 83.3 min.
 A fixed batch of 32 would take 313 steps."""
    assert str(made) == textwrap.dedent(expected).strip()


def test_single_things_are_singular():
    lines = str(plan(8, 8)).splitlines()
    assert lines[-2:] == [
        "1 step for 8 examples, 1 program.",
        "A fixed batch of 8 would take 1 step.",
    ]


def test_the_middle_of_a_long_table_is_left_out():
    lines = str(plan(lambda examples: 1 + examples, 2**60)).splitlines()
    assert len(lines) == 1 + 40 + 1 + 2
    assert "... 21 more ..." in lines


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.00123, "0.00123 s"),
        (119.0, "119 s"),
        (120.0, "2.0 min"),
        (7199.0, "120.0 min"),
        (7200.0, "2.0 h"),
        (172_799.0, "48.0 h"),
        (172_800.0, "2.0 d"),
        (1e9, "11,574.1 d"),
    ],
)
def test_a_time_is_in_the_largest_unit_of_which_it_holds_two(seconds, text):
    assert dry_run._duration(seconds) == text
