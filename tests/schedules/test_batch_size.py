"""Batch sizes as a function of examples: what is read, what is written back, what is refused."""

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_schedules import stages

from adaoptax.schedules import BatchSizeSchedule, batch_size_schedule

parse = BatchSizeSchedule.parse


def size_by_scanning(pairs, examples):
    """The last entry whose threshold is not above the examples, as Megatron finds it."""
    return [size for threshold, size in pairs if threshold <= examples][-1]


@given(stages(), st.integers(0, 2000))
def test_the_size_in_force_is_that_of_the_last_threshold_reached(pairs, examples):
    schedule = BatchSizeSchedule(pairs)
    for seen in (examples, *(threshold for threshold, _ in pairs)):
        assert schedule(seen) == size_by_scanning(pairs, seen)
    assert schedule.stages == tuple(pairs)
    assert schedule.min_batch_size == min(size for _, size in pairs)
    assert schedule.max_batch_size == max(size for _, size in pairs)


@given(stages(largest_step=10**15))
def test_what_is_written_is_read_back(pairs):
    schedule = BatchSizeSchedule(pairs)
    assert parse(str(schedule)) == schedule
    assert eval(repr(schedule)) == schedule
    assert hash(parse(str(schedule))) == hash(schedule)


@given(
    st.integers(1, 999_999),
    st.integers(0, 6),
    st.sampled_from([("", 0), ("K", 3), ("m", 6), ("b", 9), ("T", 12)]),
)
def test_decimals_and_suffixes_are_exact(digits, point, suffix):
    letter, power = suffix
    text = f"{digits:07d}"
    text = f"{text[: 7 - point]}.{text[7 - point :]}{letter}"
    if digits * 10**power % 10**point:
        with pytest.raises(ValueError, match="whole number"):
            parse(f"0:1 {text}:2")
    else:
        value = digits * 10**power // 10**point
        assert parse(f"0:1 {text}:2").stages == ((0, 1), (value, 2))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0:768 250B:1536", [(0, 768), (250 * 10**9, 1536)]),
        ("0:768 250B:1536 500B:3072 750B:6144", None),
        ("  0:4,\t1k:8,1.5K:16\n", [(0, 4), (1000, 8), (1500, 16)]),
        ("0:4 61035156250:1536", [(0, 4), (61035156250, 1536)]),
        ("0:1K 2e3:1.024K", [(0, 1000), (2000, 1024)]),
        ("0.0:1 .5K:2 1.T:3", [(0, 1), (500, 2), (10**12, 3)]),
    ],
)
def test_strings_are_read(text, expected):
    if expected is None:
        expected = [(0, 768), (25 * 10**10, 1536), (5 * 10**11, 3072), (75 * 10**10, 6144)]
        assert str(parse(text)) == text
    assert parse(text).stages == tuple(expected)


@pytest.mark.parametrize(
    ("text", "piece"),
    [
        ("0:768 250G:1536", "'250G' in '250G:1536'"),
        ("0:768 250B", "'250B'"),
        ("0:768 1:2:3", "'1:2:3'"),
        ("0: 768", "'' in '0:'"),
        ("0:768 -5:8", "'-5' in '-5:8'"),
        ("0:768 nan:8", "'nan'"),
        ("0:768 inf:8", "'inf'"),
        ("0:768 1e999:8", "'1e999'"),
        ("0:768 ١:8", "'١'"),
        ("0:768 10:1_0", "'1_0'"),
        ("0:7.5", "'7.5' in '0:7.5'"),
        ("", "''"),
        (" , ", "THRESHOLD:SIZE"),
    ],
)
def test_the_bad_piece_of_a_string_is_shown(text, piece):
    with pytest.raises(ValueError, match=piece.replace("(", r"\(")) as error:
        parse(text)
    assert "\n" not in str(error.value).replace(text, "")


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([(0, 8), (10, 16), (5, 32)], "got 5 after a stage that begins at 10 examples.*in time"),
        ([(0, 8), (10, 16), (10, 32)], "got 10 after a stage that begins at 10"),
        ([(5, 8)], "first threshold to be 0, got 5"),
        ([(0, 0)], "batch_size >= 1, got batch_size=0.*from 0 on"),
        ([(0, 8), (7, -1)], "batch_size >= 1, got batch_size=-1.*from 7 on"),
        ([(0, 8.5)], "whole number, got batch_size=8.5"),
        ([(0, float("nan"))], "whole number, got batch_size=nan"),
        ([(0, True)], "whole number, got batch_size=True"),
        ([(0, 8), (float("nan"), 9)], "whole number, got threshold=nan"),
        ([(0, 8), (float("inf"), 9)], "whole number, got threshold=inf"),
        ([(-1, 8)], "threshold >= 0, got threshold=-1"),
        ([], "at least one stage"),
    ],
)
def test_stages_that_make_no_sense_are_refused(pairs, message):
    with pytest.raises(ValueError, match=message):
        BatchSizeSchedule(pairs)


@pytest.mark.parametrize("sizes", [None, 3.5, "0:8", [8, 16], [(0, 8, 9)], [None]])
def test_what_is_no_schedule_is_refused(sizes):
    with pytest.raises(TypeError, match="batch_size_schedule"):
        BatchSizeSchedule(sizes)


def test_a_threshold_may_be_written_as_a_whole_float():
    assert BatchSizeSchedule([(0, 8), (250e9, 16)]).stages == ((0, 8), (250 * 10**9, 16))


@given(stages(), st.integers(1, 50), st.integers(0, 100))
def test_tokens_begin_a_stage_with_the_first_example_at_or_after_them(pairs, length, examples):
    starts = [-(-threshold // length) for threshold, _ in pairs]
    if len(set(starts)) < len(starts):
        with pytest.raises(ValueError, match="back in time"):
            BatchSizeSchedule(pairs, tokens_per_example=length)
        return
    in_tokens = BatchSizeSchedule(pairs, tokens_per_example=length)
    assert in_tokens(examples) == size_by_scanning(pairs, examples * length)
    assert in_tokens.stages == tuple(
        (start, size) for start, (_, size) in zip(starts, pairs, strict=True)
    )


def test_tokens_of_a_string_and_of_a_function():
    assert str(parse("0:768 250B:1536", tokens_per_example=4096)) == "0:768 61035157:1536"
    function = batch_size_schedule(lambda tokens: 1 + tokens // 100, tokens_per_example=10)
    assert [function(examples) for examples in (0, 9, 10, 20)] == [1, 1, 2, 3]


@given(stages(), st.integers(1, 70), st.integers(1, 70), st.integers(0, 2000))
def test_bounds_hold_for_stages_and_functions_alike(pairs, low, high, examples):
    free = BatchSizeSchedule(pairs)
    if low > high:
        with pytest.raises(ValueError, match="max_batch_size >= min_batch_size"):
            BatchSizeSchedule(pairs, min_batch_size=low, max_batch_size=high)
        return
    bounds = {"min_batch_size": low, "max_batch_size": high}
    for bounded in (BatchSizeSchedule(pairs, **bounds), BatchSizeSchedule(free, **bounds)):
        assert bounded(examples) == int(np.clip(free(examples), low, high))
        assert bounded.stages is not None
        assert bounded.max_batch_size is not None
        assert low <= bounded.min_batch_size <= bounded.max_batch_size <= high


def test_a_function_has_no_stages_and_only_the_bounds_that_were_given():
    schedule = BatchSizeSchedule(lambda examples: 8 + examples)
    assert schedule.stages is None
    assert (schedule.min_batch_size, schedule.max_batch_size) == (1, None)
    assert schedule(np.int64(5)) == 13
    assert "lambda" in str(schedule)


@pytest.mark.parametrize("returned", [16.0, 16.5, float("nan"), None, "16", True, 0, -3])
def test_a_function_must_return_whole_numbers(returned):
    with pytest.raises(ValueError, match="returned it at 7 examples"):
        BatchSizeSchedule(lambda examples: returned)(7)


@pytest.mark.parametrize("examples", [-1, 0.5, float("nan"), None, "3"])
def test_examples_are_whole_numbers(examples):
    with pytest.raises(ValueError, match="examples"):
        parse("0:8")(examples)


def test_numbers_of_numpy_and_jax_are_taken_by_explicit_transfers(monkeypatch):
    fetched = []
    fetch = jax.device_get

    def counting(x):
        fetched.append(x)
        return fetch(x)

    monkeypatch.setattr(jax, "device_get", counting)
    stages = BatchSizeSchedule([(np.int64(0), np.int32(8)), (np.int64(10), 16)])
    assert stages.stages == ((0, 8), (10, 16))
    assert stages(jnp.int32(12)) == 16
    function = BatchSizeSchedule(lambda examples: jax.device_put(np.int32(8 + examples // 2)))
    assert function(12) == 14
    assert len(fetched) == 2  # the guard of transfers does not see reads from a CPU device


@pytest.mark.parametrize("sizes", [8, np.int64(8), "0:8", [(0, 8)], ((0, 8),), iter([(0, 8)])])
def test_one_function_takes_every_form(sizes):
    assert batch_size_schedule(sizes) == parse("0:8")


def test_a_schedule_is_returned_as_it_is():
    schedule = parse("0:8")
    assert batch_size_schedule(schedule) is schedule
    with pytest.raises(ValueError, match="in examples already"):
        batch_size_schedule(schedule, tokens_per_example=2)


@pytest.mark.parametrize("sizes", [None, 0, -1, 8.5, float("nan"), True])
def test_other_forms_are_refused(sizes):
    with pytest.raises(ValueError, match="batch_size"):
        batch_size_schedule(sizes)


def test_a_schedule_cannot_be_changed_and_survives_copies():
    schedule = parse("0:8 10:16")
    for name in ("stages", "min_batch_size", "other"):
        with pytest.raises(AttributeError):
            setattr(schedule, name, 1)
    for other in (copy.deepcopy(schedule), pickle.loads(pickle.dumps(schedule))):
        assert other == schedule
        assert other(10) == 16
    assert schedule != parse("0:8 10:17")
    assert schedule != "0:8 10:16"
