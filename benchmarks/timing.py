"""Interleaved timing: every contender runs once a round, so that drift hits all alike."""

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax


class Measurement(NamedTuple):
    """What one contender cost.

    Attributes:
        seconds: Time of each round.
        temp_bytes: Temporary memory of the compiled program.
        compile_seconds: Time to lower and compile it.
    """

    seconds: list[float]
    temp_bytes: int
    compile_seconds: float

    def time_ratio(self, base: "Measurement") -> float:
        """Median over rounds of this time over that of `base` in the same round."""
        return statistics.median(a / b for a, b in zip(self.seconds, base.seconds, strict=True))

    def memory_ratio(self, base: "Measurement") -> float:
        """Temporary memory over that of `base`."""
        return self.temp_bytes / max(base.temp_bytes, 1)


def measure(
    contenders: dict[str, tuple[Callable[..., Any], tuple]], rounds: int = 21
) -> dict[str, Measurement]:
    """Compiles every ``(fn, args)`` ahead of time and times them in turn."""
    programs = {}
    for name, (fn, args) in contenders.items():
        started = time.perf_counter()
        compiled = jax.jit(fn).lower(*args).compile()
        elapsed = time.perf_counter() - started
        analysis = compiled.memory_analysis()
        temp = analysis.temp_size_in_bytes if analysis is not None else 0
        programs[name] = (compiled, args, Measurement([], temp, elapsed))
    for round_ in range(rounds + 1):
        for compiled, args, measurement in programs.values():
            started = time.perf_counter()
            jax.block_until_ready(compiled(*args))
            if round_:  # the first round warms up
                measurement.seconds.append(time.perf_counter() - started)
    return {name: measurement for name, (_, _, measurement) in programs.items()}


def machine() -> str:
    """One line on where the numbers come from."""
    device = jax.devices()[0]
    return f"{device.device_kind} ({device.platform}), jax {jax.__version__}"
