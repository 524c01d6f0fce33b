import math
from collections.abc import Callable

import pytest

from benchmarks import timing
from benchmarks.timing import Measurement, Program, interleave


@pytest.fixture
def step_of(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Callable[[], float]]:
    """Makes runs whose seconds pass on a clock of their own, step by step."""
    now = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])

    def make(*seconds: float) -> Callable[[], float]:
        left = list(seconds)

        def run() -> float:
            elapsed = left.pop(0) if len(left) > 1 else left[0]
            now[0] += elapsed
            return elapsed

        return run

    return make


def test_the_first_round_warms_up(step_of: Callable) -> None:
    times = interleave({"a": step_of(9.0, 1.0, 2.0, 3.0)}, rounds=3)
    assert times == {"a": [1.0, 2.0, 3.0]}


def test_all_run_once_a_round_in_changing_order(step_of: Callable) -> None:
    turns: list[tuple[int, str]] = []
    runs = {name: step_of(1.0) for name in "abcd"}
    interleave(runs, 5, progress=lambda name, round_: turns.append((round_, name)))
    rounds = [[name for round_, name in turns if round_ == i] for i in range(6)]
    assert all(sorted(names) == list("abcd") for names in rounds)
    assert len({tuple(names) for names in rounds}) > 1


def test_a_slow_run_rests_and_the_others_go_on(step_of: Callable) -> None:
    # A share of 10 s: the slow run has spent it while it warmed up, the middling one later.
    runs = {"slow": step_of(100.0), "middling": step_of(4.0), "fast": step_of(0.5)}
    times = interleave(runs, rounds=8, seconds=30.0)
    assert times["slow"] == [100.0]
    assert times["middling"] == [4.0, 4.0]
    assert times["fast"] == [0.5] * 8


def test_short_steps_are_repeated_within_a_turn(step_of: Callable) -> None:
    # 50 ms hold five steps of 10 ms: one that warms up, then turns of five.
    times = interleave({"a": step_of(0.01, *[0.01, 0.02, 0.03, 0.04, 0.05])}, rounds=1)
    assert times["a"] == [pytest.approx(0.03)]


def test_ratios_are_medians_within_a_round() -> None:
    program = lambda temp, flops, seconds: Program(lambda: 0.0, temp, flops, seconds)
    base = Measurement([1.0, 10.0, 2.0, 2.0], program(100.0, 50.0, 2.0))
    own = Measurement([2.0, 10.0, 3.0, 5.0], program(150.0, 55.0, 5.0))  # 2, 1, 1.5 and 2.5
    assert own.time_ratio(base) == 1.75
    assert (own.memory_ratio(base), own.flop_ratio(base)) == (1.5, 1.1)
    assert own.compile_ratio(base) == 2.5


def test_a_run_that_rested_early_is_compared_with_all_rounds_of_the_base() -> None:
    program = Program(lambda: 0.0)
    base = Measurement([5.0, 1.0, 1.2, 0.9], program)  # the first of them disturbed
    assert Measurement([22.0], program).time_ratio(base) == pytest.approx(22 / 1.1)


def test_what_did_not_run_has_no_ratio() -> None:
    nothing = Measurement([], Program(lambda: 0.0))
    assert math.isnan(nothing.time_ratio(Measurement([1.0], Program(lambda: 0.0))))
    assert math.isnan(nothing.memory_ratio(nothing))
