"""Floating-point operations of a compiled program, with loops counted as often as they run.

XLA's own analysis counts the body of a loop once, so that a method which scans over examples would
look like a fraction of what it does. What the bodies of loops compute is therefore counted again
from the program's text, once for every further trip.
"""

import math
import re
from typing import Any, NamedTuple

_COMPUTATION = re.compile(r"^(ENTRY )?%(\S+) \(.*\) -> .*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%(\S+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
_CALLED = re.compile(r"(?:calls|body|to_apply|true_computation|false_computation)=%([^\s,}]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_ARITHMETIC = {"add", "subtract", "multiply", "divide", "maximum", "minimum"}
_FOLDS = {"reduce", "reduce-window"}  # what they apply is counted by the size of their input


class _Computation(NamedTuple):
    """Operations of its own, and ``(name, trips)`` of what it calls."""

    operations: int
    calls: list[tuple[str, int]]


def flops(compiled: Any) -> float:
    """Operations of `compiled`: XLA's analysis, corrected for the trips of loops."""
    computations, entry = _parse(compiled.as_text())

    def total(name: str, loops: bool) -> int:
        own = computations[name]
        calls = ((trips if loops else 1) * total(called, loops) for called, trips in own.calls)
        return own.operations + sum(calls)

    counted_once = compiled.cost_analysis().get("flops", 0.0)
    return counted_once + total(entry, loops=True) - total(entry, loops=False)


def _parse(text: str) -> tuple[dict[str, _Computation], str]:
    """All computations of the program, and the name of the one that it enters."""
    computations: dict[str, _Computation] = {}
    shapes: dict[str, list[int]] = {}
    name = entry = ""
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            name, shapes = header[2], {}
            entry = name if header[1] else entry
            computations[name] = _Computation(0, [])
        elif instruction := _INSTRUCTION.match(line):
            result, kind, opcode, rest = instruction.groups()
            shapes[result] = _shape(kind)
            own = computations[name]
            operations = own.operations + _operations(opcode, shapes[result], rest, shapes)
            trips = _TRIPS.search(rest)
            branches = re.findall(r"%([^\s,]+)", "".join(_BRANCHES.findall(rest)))
            called = [] if opcode in _FOLDS else _CALLED.findall(rest) + branches
            calls = own.calls + [(other, int(trips[1]) if trips else 1) for other in called]
            computations[name] = _Computation(operations, calls)
    return computations, entry


def _shape(kind: str) -> list[int]:
    sizes = re.match(r"\w+\[([\d,]*)\]", kind)
    return [int(size) for size in sizes[1].split(",") if size] if sizes else []


def _operations(opcode: str, result: list[int], rest: str, shapes: dict[str, list[int]]) -> int:
    """Operations of one instruction; those of a convolution include the padding."""
    operands = [shapes.get(name, []) for name in re.findall(r"%([^\s,)]+)", rest)]
    if opcode in _ARITHMETIC:
        return math.prod(result)
    if opcode in _FOLDS:
        return math.prod(operands[0])
    if opcode == "dot":
        axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", rest)
        contracted = [operands[0][int(axis)] for axis in axes[1].split(",") if axis] if axes else []
        return 2 * math.prod(result) * math.prod(contracted)
    if opcode == "convolution":
        kernel = re.search(r"dim_labels=\w+_(\w+)->", rest)
        outputs = operands[1][kernel[1].index("o")] if kernel else 1
        dilation = re.search(r"lhs_dilate=([\dx]+)", rest)  # zeros between the rows of the input
        zeros = math.prod(map(int, dilation[1].split("x"))) if dilation else 1
        return 2 * math.prod(result) * math.prod(operands[1]) // outputs // zeros
    return 0
