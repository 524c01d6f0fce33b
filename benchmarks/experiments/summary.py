"""Means and standard errors of runs, as numbers and as tables in Markdown."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple


class Mean(NamedTuple):
    """A mean over seeds.

    Attributes:
        value: The mean.
        error: Its standard error; NaN from one run.
        runs: How many there are.
    """

    value: float
    error: float
    runs: int

    def show(self, digits: int = 3) -> str:
        """As in "0.0123 ± 0.00041"."""
        if math.isnan(self.value):
            return "–"
        spread = "" if math.isnan(self.error) else f" ± {float(f'{self.error:.2g}'):g}"
        return f"{self.value:.{digits}g}{spread}"


def mean(values: Sequence[float]) -> Mean:
    """Mean and standard error; infinite or NaN if one of the values is."""
    n = len(values)
    if n == 0:
        return Mean(math.nan, math.nan, 0)
    if not all(math.isfinite(x) for x in values):
        return Mean(sum(values), math.nan, n)
    error = statistics.stdev(values) / math.sqrt(n) if n > 1 else math.nan
    return Mean(statistics.fmean(values), error, n)


def means(
    rows: Sequence[Mapping[str, Any]], by: Sequence[str], metric: str
) -> dict[tuple[Any, ...], Mean]:
    """Mean of a metric for each combination of the columns `by`, in the order of the rows."""
    found: dict[tuple[Any, ...], list[float]] = {}
    for row in rows:
        if metric in row:
            found.setdefault(tuple(row.get(name) for name in by), []).append(float(row[metric]))
    return {key: mean(values) for key, values in found.items()}


def markdown(header: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    """A table."""
    rows = [list(header), ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows)


def folded(title: str, text: str) -> str:
    """Markdown that a page shows on request: long tables would hide what follows."""
    return f"<details><summary>{title}</summary>\n\n{text}\n\n</details>"


def grid(
    found: Mapping[tuple[Any, Any], Mean], corner: str, show: Callable[[Mean], str] = Mean.show
) -> str:
    """A table of means by two columns: the first down, the second across."""
    down = list(dict.fromkeys(key[0] for key in found))
    across = list(dict.fromkeys(key[1] for key in found))
    cell = lambda i, j: show(found[i, j]) if (i, j) in found else "–"
    lines = [[i, *(cell(i, j) for j in across)] for i in down]
    return markdown([corner, *across], lines)
