"""Columns of a run for its pictures: what the records hold, in arrays, NaN where nothing is."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np


class Run(NamedTuple):
    """One run, ready to be drawn.

    Attributes:
        name: What the legend calls it.
        records: Its records.
        x: Where every record lies on the horizontal axis.
        color: Of its lines.
    """

    name: str
    records: Sequence[Mapping[str, Any]]
    x: np.ndarray
    color: str

    def column(self, name: str) -> np.ndarray:
        """Numbers of one name, NaN where a record has none."""
        return column(self.records, name)

    def has(self, *names: str) -> bool:
        """Whether at least one record has a number for each of the names."""
        return all(not np.isnan(self.column(name)).all() for name in names)


def column(records: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
    """Numbers of one name, NaN where a record has none."""
    known = (record.get(name) for record in records)
    return np.array([math.nan if x is None or isinstance(x, str) else x for x in known], float)


def examples_seen(records: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Examples seen after every update."""
    return column(records, "examples")


def seconds_passed(records: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Seconds of training after every update, from its speed; unmeasured updates take none."""
    speed, sizes = column(records, "examples_per_s"), column(records, "batch_size")
    with np.errstate(divide="ignore", invalid="ignore"):
        seconds = np.where(speed > 0, sizes / speed, 0.0)
    return np.cumsum(seconds)


def scale_invariant_steps(records: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """τ after every update: as recorded, otherwise the gains added up."""
    recorded = column(records, "scale_invariant_steps")
    if not np.isnan(recorded).all():
        return recorded
    return np.nancumsum(column(records, "gain"))


def fixed_batch_updates(records: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Updates in which the first batch size would have seen the same examples."""
    examples, sizes = examples_seen(records), column(records, "batch_size")
    return column(records, "step")[0] + (examples - examples[0]) / sizes[0]


def binned_means(x: np.ndarray, y: np.ndarray, num_bins: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Means of x and y over bins of equally many records, without what is not finite."""
    known = np.isfinite(x) & np.isfinite(y)
    parts = np.array_split(np.stack([x[known], y[known]]), min(num_bins, max(known.sum(), 1)), 1)
    means = np.array([part.mean(axis=1) for part in parts if part.size]).reshape(-1, 2)
    return means[:, 0], means[:, 1]
