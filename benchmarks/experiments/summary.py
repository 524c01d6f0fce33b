"""Rows of runs as means, as differences paired by seed, and as tables in Markdown."""

import math
import operator
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks.tables import markdown

Rows = Sequence[Mapping[str, Any]]

BETTER, SAME, WORSE = OUTCOMES = ("better", "no difference seen", "worse")


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

    def times(self, factor: float) -> "Mean":
        """In another unit."""
        return Mean(factor * self.value, abs(factor) * self.error, self.runs)

    def outcome(self, errors: float) -> str:
        """What a difference of losses says: one of `OUTCOMES`, at so many standard errors."""
        if math.isfinite(self.value) and not abs(self.value) > errors * self.error:
            return SAME
        return BETTER if self.value < 0 else WORSE


def mean(values: Sequence[float]) -> Mean:
    """Mean and standard error; infinite or NaN if one of the values is."""
    n = len(values)
    if n == 0:
        return Mean(math.nan, math.nan, 0)
    if not all(math.isfinite(x) for x in values):
        return Mean(sum(values), math.nan, n)
    error = statistics.stdev(values) / math.sqrt(n) if n > 1 else math.nan
    return Mean(statistics.fmean(values), error, n)


def pick(rows: Rows, **values: Any) -> list[Mapping[str, Any]]:
    """The rows that have these values."""
    return [row for row in rows if all(row.get(name) == x for name, x in values.items())]


def split(rows: Rows, *names: str) -> dict[Any, list[Mapping[str, Any]]]:
    """The rows by the values of these columns, in the order of the rows.

    A key is a tuple, or the value itself if there is one column.
    """
    found: dict[Any, list[Mapping[str, Any]]] = {}
    for row in rows:
        key = tuple(row.get(name) for name in names)
        found.setdefault(key if len(names) > 1 else key[0], []).append(row)
    return found


def column(rows: Rows, name: str) -> list[float]:
    """A column in the order of the seeds, of the rows that have it."""
    return [float(row[name]) for row in sorted(rows, key=lambda row: row["seed"]) if name in row]


def average(rows: Rows, name: str) -> Mean:
    """The mean of a column over the rows that have it."""
    return mean(column(rows, name))


def paired(
    rows: Rows, base: Rows, name: str, by: Callable[[float, float], float] = operator.sub
) -> list[float]:
    """A column compared with that of `base`, in the seeds that both have."""
    theirs = {row["seed"]: float(row[name]) for row in base}
    return [by(float(row[name]), theirs[row["seed"]]) for row in rows if row["seed"] in theirs]


def judged(differences: Mapping[Any, Mean], errors: float) -> list[str]:
    """Differences of losses by their outcome: "better: A (-1 ± 0.2), B (-2 ± 0.1)"."""
    found: dict[str, list[str]] = {outcome: [] for outcome in OUTCOMES}
    for name, difference in differences.items():
        found[difference.outcome(errors)].append(f"{name} ({difference.show(2)})")
    return [f"{outcome}: {', '.join(names)}" for outcome, names in found.items() if names]


def table(groups: Mapping[Any, Rows], columns: Mapping[str, Callable[[Any, Rows], Any]]) -> str:
    """A table with a line for each group of rows; a column is ``cell(key, rows)`` by its name."""
    cells = [[cell(key, rows) for cell in columns.values()] for key, rows in groups.items()]
    return markdown(list(columns), cells)


def folded(title: str, text: str) -> str:
    """Markdown that a page shows on request: long tables would hide what follows."""
    return f"<details><summary>{title}</summary>\n\n{text}\n\n</details>"
