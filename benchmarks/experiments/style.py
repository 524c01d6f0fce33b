"""How figures look: on white, so that they are legible on dark pages too."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.experiments.summary import Mean, Rows, split

COLORS = ("#0b66c3", "#c2410c", "#1b7837", "#6d28d9", "#d97706", "#4b5563", "#be185d", "#0f766e")


def panels(count: int, height: float = 3.4, width: float = 4.2) -> tuple[Figure, list[Axes]]:
    """A figure with `count` panels beside each other."""
    figure = Figure(figsize=(width * count, height), layout="constrained", facecolor="white")
    axes = list(figure.subplots(1, count, squeeze=False).flat)
    for axis in axes:
        axis.grid(color="#e5e7eb", linewidth=0.6)
        axis.tick_params(labelsize=9)
    return figure, axes


def legend_below(figure: Figure, axis: Axes, columns: int = 4) -> None:
    """One legend under all panels, of what one of them shows."""
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)


def points(axis: Axes, x: Sequence[float], means: Sequence[Mean], **options: Any) -> None:
    """Means with their standard errors."""
    axis.errorbar(
        x,
        [each.value for each in means],
        [each.error for each in means],
        **{"capsize": 2} | options,
    )


def band(axis: Axes, x: Sequence[float], runs: Any, **options: Any) -> None:
    """Mean over runs [runs, points] as a line, and its standard error as a band."""
    runs = np.asarray(runs, float)
    middle = runs.mean(axis=0)
    (line,) = axis.plot(x, middle, **options)
    if len(runs) > 1:
        error = runs.std(axis=0, ddof=1) / np.sqrt(len(runs))
        axis.fill_between(
            x, middle - error, middle + error, color=line.get_color(), alpha=0.2, linewidth=0
        )


def by_run(curves: Rows, name: str) -> np.ndarray:
    """A column of curves as [runs, points], as long as the shortest of them."""
    runs = [[float(point[name]) for point in run] for run in split(curves, "seed").values()]
    return np.array([run[: min(map(len, runs))] for run in runs])
