"""Interleaved timing: every contender runs once a round, so that drift hits all alike."""

import math
import os
import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.monitoring

from benchmarks.flops import flops

TURN = 0.05
"""Seconds that the repeated steps of a turn take, at least about."""


class Program(NamedTuple):
    """A step that is ready to run, and what is known of it; NaN for what is not.

    Attributes:
        run: Computes one step and returns the seconds that it took.
        temp_bytes: Temporary memory.
        flops: Floating-point operations.
        compile_seconds: Time to trace, lower and compile it.
    """

    run: Callable[[], float]
    temp_bytes: float = math.nan
    flops: float = math.nan
    compile_seconds: float = math.nan


class Measurement(NamedTuple):
    """What one contender cost.

    Attributes:
        seconds: Time of each round.
        program: What ran.
    """

    seconds: list[float]
    program: Program

    def time_ratio(self, base: "Measurement") -> float:
        """Time over that of `base`: see `time_ratio`."""
        return time_ratio(self.seconds, base.seconds)

    def memory_ratio(self, base: "Measurement") -> float:
        """Temporary memory over that of `base`."""
        return self.program.temp_bytes / max(base.program.temp_bytes, 1)

    def flop_ratio(self, base: "Measurement") -> float:
        """Floating-point operations over those of `base`."""
        return self.program.flops / max(base.program.flops, 1)

    def compile_ratio(self, base: "Measurement") -> float:
        """Time to compile over that of `base`."""
        return self.program.compile_seconds / base.program.compile_seconds


def time_ratio(seconds: Sequence[float], base: Sequence[float]) -> float:
    """Median, over the rounds in which both ran, of the ratio within one round.

    With fewer than three such rounds, the ratio of the medians over the rounds of each.
    """
    if not seconds or not base:
        return math.nan
    ratios = [own / other for own, other in zip(seconds, base, strict=False)]
    if len(ratios) < 3:
        return statistics.median(seconds) / statistics.median(base)
    return statistics.median(ratios)


class Compilations:
    """Counts the programs that JAX compiles."""

    def __init__(self) -> None:
        self.count = 0
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, duration_secs: float, **_: str | int) -> None:
        self.count += event == "/jax/core/compile/backend_compile_duration"


def temp_bytes(compiled: Any) -> float:
    """Temporary memory of a compiled program; NaN where it is not known."""
    analysis = compiled.memory_analysis()
    return math.nan if analysis is None else analysis.temp_size_in_bytes


def timed(step: Callable[[], Any]) -> Callable[[], float]:
    """A function that runs `step`, which returns when it is done, and returns its seconds."""

    def run() -> float:
        started = time.perf_counter()
        step()
        return time.perf_counter() - started

    return run


def compile_program(fn: Callable[..., Any], args: tuple) -> Program:
    """Compiles ``fn(*args)`` ahead of time; nothing runs yet."""
    started = time.perf_counter()
    # A function of its own, so that an earlier trace of the same `fn` does not shorten this one.
    compiled = jax.jit(lambda *args: fn(*args)).lower(*args).compile()
    elapsed = time.perf_counter() - started
    run = timed(lambda: jax.block_until_ready(compiled(*args)))
    return Program(run, temp_bytes(compiled), flops(compiled), elapsed)


def interleave(
    runs: dict[str, Callable[[], float]],
    rounds: int,
    seconds: float = math.inf,
    progress: Callable[[str, int], None] = lambda name, round_: None,
) -> dict[str, list[float]]:
    """Times every run once a round, after a first round that warms up.

    The order is another one each round, so that none always follows the one that leaves the caches
    cold; short steps are repeated within their turn, as in training.

    Args:
        runs: Name → a function that returns the seconds of one step.
        rounds: Rounds that are kept.
        seconds: For all of it. A run that has spent an equal share rests, so that what is a
            hundred times slower than the others runs once, and they have their rounds.
        progress: Called with name and round before each turn; the round that warms up is 0.

    Returns:
        Name → seconds of a step in each round: in all rounds, or the first ones.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    spent = dict.fromkeys(runs, 0.0)
    repeats = dict.fromkeys(runs, 1)
    order, share = random.Random(0), seconds / len(runs)
    for round_ in range(rounds + 1):
        for name in order.sample(list(runs), len(runs)):
            if times[name] and spent[name] > share:
                continue
            progress(name, round_)
            started = time.perf_counter()
            elapsed = statistics.mean(runs[name]() for _ in range(repeats[name]))
            spent[name] += time.perf_counter() - started
            if round_ or spent[name] > share:
                times[name].append(elapsed)
            else:
                repeats[name] = min(max(round(TURN / elapsed), 1), 100)
    return times


def measure(
    contenders: dict[str, tuple[Callable[..., Any], tuple]], rounds: int = 21
) -> dict[str, Measurement]:
    """Compiles every ``(fn, args)`` ahead of time and times them in turn."""
    programs = {name: compile_program(fn, args) for name, (fn, args) in contenders.items()}
    times = interleave({name: program.run for name, program in programs.items()}, rounds)
    return {name: Measurement(times[name], program) for name, program in programs.items()}


def machine() -> str:
    """One line on where the numbers come from."""
    device = jax.devices()[0]
    kind = f"{os.cpu_count()} cores" if device.platform == "cpu" else device.device_kind
    return f"{kind} ({device.platform}), jax {jax.__version__}"
