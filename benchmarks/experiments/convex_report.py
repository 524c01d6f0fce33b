"""What is said of adaptive sampling on convex problems: verdict, tables and figures."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.experiments.experiment import Report, Verdict
from benchmarks.experiments.store import Store
from benchmarks.experiments.style import COLORS, legend_below, panels
from benchmarks.experiments.summary import (
    BETTER,
    SAME,
    WORSE,
    Mean,
    Rows,
    average,
    mean,
    paired,
    pick,
    split,
    table,
)

GOALS = {"L2": ("0.1", "0.01", "0.001"), "L1": ("0.001", "1e-06", "1e-08")}
ERROR = {"L2": "error R(w) − R*, over that at the start", "L1": "relative duality gap"}
APART = 3  # standard errors of a difference of logarithms that count
WORDS = {BETTER: "better than", SAME: "not to be told from", WORSE: "worse than"}
NOTES = (
    "The batch starts at 2 and grows as the test asked; steps are 1/L. *Plug-in* is the test as"
    " printed (tolerances 0.9 and 5.84), whose squared norm holds the noise of its own batch;"
    " *debiased* is the default here. Sets other than cancer are drawn in the sizes of public ones:"
    " numbers are not those of the papers."
)
CAPTION = (
    "{} logistic regression: {}, and batch size, by effective gradient evaluations; medians over"
    " seeds with the range of all runs, as far as the shortest of them."
)


def report(store: Store) -> Report:
    """Of each penalty a table and a figure; of each data set a verdict."""
    verdict: dict[str, str | list[str]] = {}
    tables: list[str | Verdict] = []
    figures: dict[str, tuple[Figure, str]] = {}
    for penalty, rows in split(store.rows, "penalty").items():
        for data, some in split(rows, "data").items():
            judge = _smooth_verdict if penalty == "L2" else _sparse_verdict
            verdict |= judge(data, _methods(some))
        tables += [f"### {penalty}", _table(penalty, rows)]
        figures[f"_{penalty}"] = (
            _figure(pick(store.curves, penalty=penalty), penalty),
            CAPTION.format(penalty, ERROR[penalty]),
        )
    return Report([verdict, NOTES, *tables], figures)


def _methods(rows: Rows) -> dict[str, Rows]:
    """The rows by method and signal."""
    return {
        f"{method}, debiased" if (penalty, signal) == ("L2", "debiased") else method: of
        for (penalty, method, signal), of in split(rows, "penalty", "method", "signal").items()
    }


def _smooth_verdict(data: str, methods: Mapping[str, Rows]) -> dict[str, list[str]]:
    """Who ends lowest, and what is better than what."""
    order = sorted(methods, key=lambda name: average(methods[name], "error").value)
    show = lambda name: f"{name} ({average(methods[name], 'error').show(2)})"
    return {
        f"L2, {data}": [
            f"lowest relative error at the end {show(order[0])}, highest {show(order[-1])}",
            _compared(methods, "inner product", "norm"),
            _compared(methods, "norm", "full gradient"),
        ]
    }


def _compared(methods: Mapping[str, Rows], one: str, other: str) -> str:
    """By the logarithm of the last error, paired by seed."""
    if one not in methods or other not in methods:
        return f"{one} not compared with {other}"
    log = lambda error: math.log(max(error, 1e-16))
    ratios = paired(methods[one], methods[other], "error", lambda x, y: log(x) - log(y))
    return f"{one} is {WORDS[mean(ratios).outcome(APART)]} {other}"


def _sparse_verdict(data: str, methods: Mapping[str, Rows]) -> dict[str, list[str]]:
    """Evaluations to the smallest gap."""
    goal = GOALS["L1"][-1]
    counted = {name: _reached(rows, goal) for name, rows in methods.items()}
    told = [
        f"{name} {found.show()} evaluations ({found.runs} of {len(methods[name])} runs)"
        for name, found in counted.items()
    ]
    test, full = (counted.get(name) for name in ("complete-step test", "full gradient"))
    if test and full and test.runs and full.runs:
        told.append(
            f"the test takes {test.value / full.value:.2f} times those of the full gradient"
        )
    return {f"L1, {data}, to a gap of {goal}": told}


def _reached(rows: Rows, goal: str) -> Mean:
    """Evaluations to a goal over the runs that reached it."""
    found = [float(row.get(f"to_{goal}", math.nan)) for row in rows]
    return mean([x for x in found if not math.isnan(x)])


def _table(penalty: str, rows: Rows) -> str:
    groups = {
        (data, name): of
        for data, some in split(rows, "data").items()
        for name, of in _methods(some).items()
    }

    def rounded(rows: Rows, name: str) -> str:
        value = average(rows, name).value
        return "–" if math.isnan(value) or value == 0 else f"{value:.0f}"

    columns: dict[str, Callable[[Any, Rows], str]] = {
        "data": lambda key, _: key[0],
        "method": lambda key, _: key[1],
        "iterations": lambda _, rows: rounded(rows, "iterations"),
        "last batch": lambda _, rows: rounded(rows, "last_batch"),
        "error at the end": lambda _, rows: average(rows, "error").show(2),
    }
    for goal in GOALS[penalty]:
        columns[f"evaluations to {goal}"] = functools.partial(_reached_cell, goal)
    return table(groups, columns)


def _reached_cell(goal: str, _: Any, rows: Rows) -> str:
    found = _reached(rows, goal)
    some = found.runs not in (0, len(rows))
    return found.show() + (f" ({found.runs} of {len(rows)} runs)" if some else "")


def _figure(curves: Rows, penalty: str) -> Figure:
    """Error and batch size, two panels a data set."""
    datasets = split(curves, "data")
    figure, axes = panels(2 * len(datasets), width=3.6)
    names = list(_methods(curves))
    for data, error, size in zip(datasets, axes[::2], axes[1::2], strict=True):
        methods = _methods(datasets[data])
        for color, name in zip(COLORS, names, strict=False):
            _draw(error, methods.get(name, []), "error", color, name)
            _draw(size, methods.get(name, []), "batch_size", color, name)
        for axis, what in ((error, ERROR[penalty]), (size, "batch size")):
            axis.set(xlabel="effective gradient evaluations", yscale="log", title=data)
            axis.set_ylabel(what, fontsize=9)
    legend_below(figure, axes[0], columns=4)
    return figure


def _draw(axis: Axes, rows: Rows, name: str, color: str, label: str) -> None:
    """Median over runs as a line on a common grid of evaluations, and all of them as a band."""
    runs = split([row for row in rows if name in row], "seed").values()
    if not runs:
        return
    grid = np.linspace(0, max(float(run[-1]["at"]) for run in runs), 100)
    logs = []
    for run in runs:
        x, y = np.array([(float(row["at"]), float(row[name])) for row in run]).T
        logs.append(np.interp(grid, x, np.log(np.maximum(y, 1e-16)), right=np.nan))
    lines = np.exp(np.array(logs))
    seen = ~np.isnan(lines).any(axis=0)
    x, lines = grid[seen], lines[:, seen]
    dashes = "--" if label == "augmented" else "-"
    axis.plot(x, np.median(lines, axis=0), color=color, label=label, lw=1.5, ls=dashes)
    axis.fill_between(x, lines.min(0), lines.max(0), color=color, alpha=0.15, lw=0)
