"""Ladders of sizes, bounds that are schedules, and what a decision is called."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaoptax.loop import GrowthPolicy

INF, NAN = math.inf, math.nan


def ramp(*stages):
    """A schedule as users write one: the last size whose threshold was passed."""
    return lambda examples: [size for threshold, size in stages if threshold <= examples][-1]


@pytest.mark.parametrize(
    ("arguments", "required", "decisions"),
    [
        ({}, [9, 8, 99, 99, INF, 99], ["grow", "keep", "grow", "grow", "grow", "cap"]),
        ({}, [NAN, None, 8.0, 0.0], ["undefined", "unmeasured", "keep", "keep"]),
        ({"patience": 2}, [9, NAN, 9, 9], ["wait", "undefined", "grow", "keep"]),
        ({"cooldown": 40}, [9, 99, 99, 8], ["grow", "cooldown", "cooldown", "keep"]),
        ({"shrink": True, "patience": 2}, [99, 99, 1, 1, 1, 1],
         ["wait", "grow", "wait", "shrink", "keep", "keep"]),
    ],
)  # fmt: skip
def test_every_decision_has_a_name(arguments, required, decisions):
    policy = GrowthPolicy(8, 64, **arguments)
    assert policy.decision is None
    seen: list[str | None] = []
    for r in required:
        policy.update(r)
        seen.append(policy.decision)
    assert seen == decisions


@pytest.mark.parametrize(
    ("arguments", "required", "expected"),
    [
        ({}, [9, 33, 33, INF], [16, 32, 48, 64]),
        ({"max_growth": 1.1}, [99, 99, 99, 99], [16, 32, 48, 64]),  # one rung is always allowed
        ({"max_growth": 3.0}, [99, 99, 99], [16, 48, 64]),
        ({"shrink": True, "max_growth": INF}, [INF, 17, 9, 1], [64, 32, 16, 8]),
        ({"shrink": True, "max_growth": 1.1}, [INF, INF, 1, 1, 1], [16, 32, 16, 8, 8]),
    ],
)
def test_sizes_are_those_of_the_ladder(arguments, required, expected):
    policy = GrowthPolicy(8, 64, multiple_of=8, sizes=(8, 16, 32, 48, 64), **arguments)
    assert [policy.update(r) for r in required] == expected


@given(
    st.sets(st.integers(1, 500), min_size=2, max_size=12),
    st.lists(st.floats(0, 1000) | st.just(INF), max_size=30),
    st.floats(1.01, 5),
)
def test_no_size_is_ever_off_the_ladder(sizes, required, max_growth):
    rungs = sorted(sizes)
    policy = GrowthPolicy(rungs[0], rungs[-1], sizes=rungs, max_growth=max_growth, shrink=True)
    for r in required:
        before = rungs.index(policy.batch_size)
        after = rungs.index(policy.update(r))
        reached = [i for i, size in enumerate(rungs) if size <= rungs[before] * max_growth]
        assert after <= max(before + 1, reached[-1])


def test_a_schedule_as_both_bounds_is_the_size():
    schedule = ramp((0, 8), (100, 16), (200, 64))
    policy = GrowthPolicy(schedule, schedule, multiple_of=8)
    sizes = {examples: policy.size_at(examples) for examples in (0, 99, 100, 199, 200, 10**12)}
    assert sizes == {0: 8, 99: 8, 100: 16, 199: 16, 200: 64, 10**12: 64}
    assert policy.update(INF) == 64
    assert (policy.decision, policy.num_cap_hits) == ("cap", 1)


def test_the_requirement_moves_between_scheduled_bounds():
    policy = GrowthPolicy(ramp((0, 8), (96, 24)), ramp((0, 16), (96, 64)), multiple_of=8)
    sizes = [policy.update(INF, 16) for _ in range(7)]
    assert sizes == [16, 16, 16, 16, 16, 48, 64]  # at 96 examples raised to 24, then doubled


def test_sizes_of_a_schedule_are_rounded_up_to_the_grid():
    assert GrowthPolicy(lambda examples: 9, 64, multiple_of=8).batch_size == 16
    assert GrowthPolicy(8, lambda examples: 9, sizes=(8, 24, 48)).max_batch_size == 24


def test_a_late_requirement_never_passes_a_threshold_late():
    policy = GrowthPolicy(ramp((0, 8), (16, 32)), 64, multiple_of=8)
    policy.size_at(8)
    assert policy.size_at(16) == 32  # although no update came yet


def test_the_clock_of_bounds_is_part_of_the_state():
    policy = GrowthPolicy(ramp((0, 8), (20, 32)), 64, multiple_of=8)
    assert [policy.update(1.0, 8) for _ in range(4)] == [8, 8, 32, 32]
    resumed = GrowthPolicy(ramp((0, 8), (20, 32)), 64, multiple_of=8)
    resumed.set_state(json.loads(json.dumps(policy.get_state())))
    assert resumed.batch_size == resumed.size_at(0) == 32


@pytest.mark.parametrize(
    ("low", "high", "arguments", "message"),
    [
        (lambda examples: 0, 8, {}, "Expected batch size >= 1, got batch size=0: the schedule"),
        (lambda examples: 8.5, 8, {}, "batch size to be a whole number.*after 0 examples"),
        (lambda examples: 16, 8, {}, "max_batch_size >= min_batch_size=16, got max_batch_size=8"),
        (8, 64, {"sizes": (8, 32)}, r"max_batch_size to be one of \(8, 32\), got max.*=64"),
        (8, 64, {"sizes": (8, 8, 64)}, "Expected sizes to be increasing"),
        (8, 64, {"sizes": ()}, "Expected sizes to be increasing"),
        (8, 64, {"sizes": (8, 20, 64), "multiple_of": 8}, "multiples of multiple_of=8, got 20"),
    ],
)  # fmt: skip
def test_refuses_sizes_that_do_not_fit(low, high, arguments, message):
    with pytest.raises(ValueError, match=message):
        GrowthPolicy(low, high, **arguments)


def test_bounds_that_cross_later_are_told_with_their_place():
    policy = GrowthPolicy(ramp((0, 8), (100, 32)), 16, multiple_of=8)
    with pytest.raises(
        ValueError, match=r"min_batch_size=32 after 100 examples.*max_batch_size=16"
    ):
        policy.size_at(100)


def test_staged_schedules_are_checked_at_every_stage():
    class Staged:
        stages = ((0, 8), (100, 32))

        def __call__(self, examples):
            return ramp(*self.stages)(examples)

    with pytest.raises(ValueError, match="after 100 examples"):
        GrowthPolicy(Staged(), 16)
