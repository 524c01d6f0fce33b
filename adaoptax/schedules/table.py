"""Plain text for the eye: aligned columns, numbers of things, lengths of time."""

from collections.abc import Mapping, Sequence

_UNITS = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"))


def table(columns: Mapping[str, Sequence[str]], most_rows: int) -> str:
    """Right-aligned columns under their names; the middle of a long table is left out."""
    rows = list(zip(*columns.values(), strict=True))
    widths = [max(map(len, (name, *cells))) for name, cells in columns.items()]
    line = lambda cells: "  ".join(
        cell.rjust(width) for cell, width in zip(cells, widths, strict=True)
    )
    lines = [line(row) for row in rows]
    if len(lines) > most_rows:
        half = most_rows // 2
        lines[half:-half] = [f"... {len(lines) - 2 * half:,} more ..."]
    return "\n".join([line(columns), *lines])


def count(number: int, noun: str) -> str:
    """A number of things, "1 step" or "2,000 steps"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def duration(seconds: float) -> str:
    """A length of time in the largest unit of which it holds two, "36.5 h"."""
    for size, unit in _UNITS:
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.3g} s"
