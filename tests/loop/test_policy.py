"""The growth policy: its decision table, its counters, and what holds for every input."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adaoptax.loop import GrowthPolicy

INF, NAN = math.inf, math.nan


@pytest.mark.parametrize(
    ("arguments", "required", "expected"),
    [
        pytest.param({}, [8.0, 7.9, 0.0], [8, 8, 8], id="enough is kept"),
        pytest.param({}, [8.01, 13.33, 99, 99], [9, 14, 28, 56], id="rounds up, at most doubles"),
        pytest.param({}, [INF] * 5, [16, 32, 64, 64, 64], id="inf grows by the largest step"),
        pytest.param({}, [NAN] * 3, [8, 8, 8], id="nan is no evidence"),
        pytest.param({"multiple_of": 8}, [9, 17, 30, 41], [16, 24, 32, 48], id="grid"),
        pytest.param({"multiple_of": 8, "max_growth": 1.1}, [99] * 3, [16, 24, 32], id="one step"),
        pytest.param({"max_growth": 1.5}, [99] * 4, [12, 18, 27, 40], id="growth rounds down"),
        pytest.param({"max_growth": INF}, [30.5, INF], [31, 64], id="no limit of growth"),
        pytest.param({"patience": 2}, [99, 99, 99, 99], [8, 16, 16, 32], id="patience"),
        pytest.param({"patience": 2}, [99, 1, 99, 99], [8, 8, 8, 16], id="row broken"),
        pytest.param({"patience": 2}, [99, NAN, 99], [8, 8, 16], id="row survives nan"),
        pytest.param({}, [None, 99, None, None, 99], [8, 16, 16, 16, 32], id="not measured"),
        pytest.param({"patience": 2}, [99, None, 99], [8, 8, 16], id="row survives steps between"),
        pytest.param(
            {"cooldown": 40}, [99, None, None, 99, 99], [16, 16, 16, 32, 32], id="examples between"
        ),
        pytest.param({"cooldown": 40}, [99] * 5, [16, 16, 16, 32, 32], id="cooldown"),
        pytest.param({}, [INF, INF, INF, 1, 1], [16, 32, 64, 64, 64], id="never shrinks"),
        pytest.param({"shrink": True}, [INF, INF, 17, 16, 1], [16, 32, 32, 16, 8], id="shrinks"),
        pytest.param({"shrink": True}, [64, 64, 64, 11, 11], [16, 32, 64, 32, 16], id="halves"),
        pytest.param(
            {"shrink": True, "max_growth": INF}, [64, 20.5, 1], [64, 21, 8], id="shrinks at once"
        ),
        pytest.param(
            {"shrink": True, "hysteresis": 0.9, "multiple_of": 8, "max_growth": 1.1},
            [99, 99, 99, 1, 1],
            [16, 24, 32, 24, 16],
            id="shrinks one step",
        ),
        pytest.param(
            {"shrink": True, "patience": 2}, [64, 64, 1, 9, 1, 1], [8, 16, 16, 16, 16, 8], id="row"
        ),
    ],
)
def test_decision_table(arguments, required, expected):
    policy = GrowthPolicy(8, 64, **arguments)
    assert [policy.update(r) for r in required] == expected
    assert policy.batch_size == expected[-1]


def test_requirement_is_kept_apart_from_the_size():
    policy = GrowthPolicy(8, 64)
    seen = [(policy.required_batch_size, policy.batch_size)]
    for required in (100.5, NAN, INF):
        policy.update(required)
        seen.append((policy.required_batch_size, policy.batch_size))
    assert seen == [(None, 8), (100.5, 16), (100.5, 16), (INF, 32)]


def test_counters():
    policy = GrowthPolicy(8, 16, shrink=True)
    for required in [1.0, 20.0, 16.0, INF, NAN, 2.0, NAN, 17.0]:
        policy.update(required)
    found = {name: value for name, value in vars(policy).items() if name.startswith("num_")}
    assert found == {
        "num_updates": 8, "num_cap_hits": 3, "num_noise_dominated": 1, "num_undefined": 2,
        "num_grown": 2, "num_shrunk": 1,
    }  # fmt: skip


def test_a_step_that_was_not_measured_counts_examples_only():
    policy = GrowthPolicy(8, 64, cooldown=50)
    policy.update(20.0)
    before = policy.get_state()
    assert policy.update(None, num_examples=33) == 16
    assert policy.get_state() == before | {"since_change": 33, "num_examples": 41, "clock": 41}


def test_cooldown_counts_the_examples_of_undefined_steps_too():
    policy = GrowthPolicy(8, 64, cooldown=10)
    sizes = [policy.update(99, n) for n in (8, 4)] + [policy.update(NAN, 6), policy.update(99, 0)]
    assert sizes == [16, 16, 16, 32]


@pytest.mark.parametrize("convert", [int, np.float32, np.array, jnp.float32, jnp.int32])
def test_takes_every_kind_of_number(convert):
    policy, number = GrowthPolicy(8, 64), convert(12)
    with jax.transfer_guard("disallow_explicit" if convert is int else "disallow"):
        size = policy.update(number)
    assert (type(size), size, type(policy.required_batch_size)) == (int, 12, float)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"min_batch_size": 0}, "Expected min_batch_size >= 1, got min_batch_size=0"),
        ({"min_batch_size": -8}, "Expected min_batch_size >= 1, got min_batch_size=-8"),
        ({"min_batch_size": True}, "min_batch_size to be a whole number, got min_batch_size=True"),
        ({"max_batch_size": 64.0}, "max_batch_size to be a whole number, got max_batch_size=64.0"),
        (
            {"max_batch_size": 4},
            "Expected max_batch_size >= min_batch_size=8, got max_batch_size=4",
        ),
        ({"multiple_of": 3}, "multiple of multiple_of=3, got min_batch_size=8.*min_batch_size=9"),
        ({"multiple_of": 8, "max_batch_size": 60}, "got max_batch_size=60.*pass max_batch_size=64"),
        ({"multiple_of": 0}, "Expected multiple_of >= 1"),
        ({"max_growth": 1.0}, "Expected max_growth > 1, got max_growth=1.0"),
        ({"max_growth": NAN}, "Expected max_growth > 1, got max_growth=nan"),
        ({"patience": 0}, "Expected patience >= 1, got patience=0"),
        ({"patience": 1.5}, "Expected patience to be a whole number"),
        ({"cooldown": -1}, "Expected cooldown >= 0, got cooldown=-1"),
        ({"hysteresis": 0.0}, "Expected 0 < hysteresis < 1, got hysteresis=0.0"),
        ({"hysteresis": 1.0}, "Expected 0 < hysteresis < 1, got hysteresis=1.0"),
    ],
)
def test_refuses_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        GrowthPolicy(**({"min_batch_size": 8, "max_batch_size": 64} | arguments))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1.0,), "required_batch_size=-1.0: this usually means a division by a negative"),
        ((-INF,), "required_batch_size=-inf"),
        ((np.ones(2),), r"got an array of shape \(2,\)"),
        ((9.0, -1), "Expected num_examples >= 0"),
        ((9.0, 1.5), "Expected num_examples to be a whole number"),
    ],
)
def test_refused_updates_change_nothing(arguments, message):
    policy = GrowthPolicy(8, 64)
    policy.update(10.0)
    before = policy.get_state()
    with pytest.raises(ValueError, match=message):
        policy.update(*arguments)
    assert policy.get_state() == before


@pytest.mark.topic("damaged states")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 0}, "Expected version=1 as here, got version=0"),
        ({"batch_size": 4}, "multiple_of=8 from 16 to 64, got batch_size=4"),
        ({"batch_size": 128}, "multiple_of=8 from 16 to 64, got batch_size=128"),
        ({"batch_size": 20}, "multiple_of=8 from 16 to 64, got batch_size=20"),
        ({"batch_size": None}, "Expected batch_size to be a whole number"),
        ({"required_batch_size": "much"}, "required_batch_size to be a number, got .*'much'"),
        ({"required_batch_size": "NaN"}, "required_batch_size >= 0, got .*'NaN'"),
        ({"since_change": -1}, "Expected since_change >= 0"),
        ({"num_above": "1"}, "Expected num_above to be a whole number"),
    ],
)
def test_refuses_damaged_and_foreign_states(change, message):
    policy = GrowthPolicy(16, 64, multiple_of=8)
    policy.update(INF)
    before = policy.get_state()
    with pytest.raises(ValueError, match=message):
        policy.set_state(before | change)
    assert policy.get_state() == before


@pytest.mark.topic("damaged states")
@pytest.mark.parametrize("key", sorted(GrowthPolicy(1, 2).get_state()))
def test_names_the_missing_key(key):
    state = GrowthPolicy(1, 2).get_state()
    del state[key]
    with pytest.raises(ValueError, match=f"the key '{key}'"):
        GrowthPolicy(1, 2).set_state(state)


@pytest.mark.parametrize("required", [99.0, 1.0])
def test_updates_in_a_row_are_part_of_the_state(required):
    def at_32():
        policy = GrowthPolicy(8, 64, patience=3, shrink=True)
        policy.set_state(policy.get_state() | {"batch_size": 32})
        return policy

    policy, resumed = at_32(), at_32()
    assert [policy.update(required), policy.update(required)] == [32, 32]
    resumed.set_state(policy.get_state())
    assert resumed.update(required) == policy.update(required) != 32


def test_continues_under_other_arguments_that_fit():
    policy = GrowthPolicy(8, 64)
    policy.update(INF)
    wider = GrowthPolicy(16, 256, multiple_of=16, max_growth=4.0)
    wider.set_state(policy.get_state())
    assert wider.update(INF) == 64


@st.composite
def policy_arguments(draw):
    multiple = draw(st.integers(1, 16))
    low = draw(st.integers(1, 20))
    return {
        "min_batch_size": low * multiple,
        "max_batch_size": (low + draw(st.integers(0, 200))) * multiple,
        "multiple_of": multiple,
        "max_growth": draw(st.floats(1.0, 10.0, exclude_min=True)),
        "patience": draw(st.integers(1, 4)),
        "cooldown": draw(st.integers(0, 500)),
        "shrink": draw(st.booleans()),
        "hysteresis": draw(st.floats(0.01, 0.99)),
    }


requirements = st.lists(
    st.one_of(st.floats(0, 5000), st.floats(min_value=0), st.just(NAN), st.just(INF)), max_size=40
)


@settings(deadline=None, max_examples=150)
@given(policy_arguments(), requirements)
def test_every_size_lies_on_the_grid_and_in_reach(arguments, required):
    policy = GrowthPolicy(**arguments)
    multiple, growth = arguments["multiple_of"], arguments["max_growth"]
    for number, r in enumerate(required, 1):
        before = policy.batch_size
        size = policy.update(r)
        assert type(size) is int
        assert size % multiple == 0
        assert arguments["min_batch_size"] <= size <= arguments["max_batch_size"]
        assert size <= max(before * growth, before + multiple)
        assert size >= min(before / growth, before - multiple)
        assert arguments["shrink"] or size >= before
        assert size == before or not math.isnan(r)
        # It moves towards the requirement, and past it by less than one step of the grid.
        assert size <= before or (r > before and size < r + multiple)
        assert size >= before or (r < before and size >= r)
        assert policy.num_updates == number
    assert policy.num_undefined == sum(map(math.isnan, required))
    assert policy.num_cap_hits == sum(r > arguments["max_batch_size"] for r in required)


@settings(deadline=None, max_examples=100)
@given(policy_arguments(), requirements, requirements)
def test_equal_states_continue_alike(arguments, first, second):
    policy, resumed = GrowthPolicy(**arguments), GrowthPolicy(**arguments)
    for r in first:
        policy.update(r)
    state = json.loads(json.dumps(policy.get_state(), allow_nan=False))
    resumed.set_state(state)
    assert resumed.get_state() == state
    assert [policy.update(r) for r in second] == [resumed.update(r) for r in second]
    assert policy.get_state() == resumed.get_state()


@settings(deadline=None, max_examples=100)
@given(policy_arguments())
def test_a_lasting_requirement_is_reached(arguments):
    policy = GrowthPolicy(**arguments | {"cooldown": 0})
    for _ in range(5 * 201):
        policy.update(INF)
    assert policy.batch_size == arguments["max_batch_size"]
    for _ in range(5 * 201):
        policy.update(0.0)
    lowest = arguments["min_batch_size"] if arguments["shrink"] else arguments["max_batch_size"]
    assert policy.batch_size == lowest
