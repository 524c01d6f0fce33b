"""Programs that are compiled before they are needed: how long it takes, what memory they need."""

import sys
import time
from collections.abc import Callable
from typing import Any

import jax

Compiled = Any

Progress = bool | Callable[[str], None]


def compile_ahead(fn: Any, what: str, args: tuple, say: Callable[[str], None]) -> Compiled:
    """Compiles the jitted `fn` for arguments or their shapes, and says what it cost."""
    started = time.perf_counter()
    compiled = fn.lower(*args).compile()
    size = program_bytes(compiled)
    memory = "" if size is None else f", {size / 1e6:.3g} MB"
    say(f"{what}, {time.perf_counter() - started:.1f} s{memory}")
    return compiled


def program_bytes(compiled: Compiled) -> int | None:
    """Bytes of one device that the program needs while it runs; None if the backend cannot tell."""
    memory = compiled.memory_analysis()
    if memory is None:
        return None
    outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return memory.argument_size_in_bytes + memory.temp_size_in_bytes + outputs


def required_bytes(compiled: Compiled) -> int:
    """`program_bytes`, or a ValueError where the backend cannot tell."""
    size = program_bytes(compiled)
    if size is None:
        raise ValueError(
            "Expected a backend that tells the memory of compiled programs, got none from"
            f" {jax.default_backend()!r}: try sizes from below by hand."
        )
    return size


def memory_limit(memory_bytes: int | None, device: jax.Device) -> int:
    """Bytes that the step may take: `memory_bytes`, or the memory of the device."""
    if memory_bytes is not None:
        return memory_bytes
    stats = device.memory_stats()
    if not stats or "bytes_limit" not in stats:
        raise ValueError(
            f"Expected memory_bytes for a {device.platform} device, got memory_bytes=None: it does"
            " not tell how much memory it has; pass the bytes that the step may take."
        )
    return int(stats["bytes_limit"])


def speaker(progress: Progress, count: int) -> Callable[[str], None]:
    """A function that takes one line a program, numbered; silent on all processes but the first."""
    done = 0

    def say(line: str) -> None:
        nonlocal done
        done += 1
        numbered = f"compiled {done}/{count}: {line}"
        if not progress or jax.process_index():
            return
        if callable(progress):
            progress(numbered)
        else:
            print(numbered, file=sys.stderr, flush=True)

    return say
