"""What is said of adaptive sampling on convex problems: verdict, tables and figures."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.experiments.experiment import Report, pick
from benchmarks.experiments.store import Store
from benchmarks.experiments.style import COLORS, legend_below, panels
from benchmarks.experiments.summary import Mean, markdown, mean

Rows = Sequence[Mapping[str, Any]]

GOALS = {"L2": ("0.1", "0.01", "0.001"), "L1": ("0.001", "1e-06", "1e-08")}
ERROR = {"L2": "error R(w) − R*, over that at the start", "L1": "relative duality gap"}


def report(store: Store) -> Report:
    """Of each penalty a table and a figure; of each data set a sentence."""
    parts, figures, captions, sentences = [], {}, {}, []
    for penalty in ("L2", "L1"):
        rows = pick(store.rows, penalty=penalty)
        if not rows:
            continue
        for data in dict.fromkeys(row["data"] for row in rows):
            sentences.append(_sentence(penalty, data, _methods(pick(rows, data=data))))
        parts.append(_table(penalty, rows))
        figures[f"_{penalty}"] = _figure(pick(store.curves, penalty=penalty), penalty)
        captions[f"_{penalty}"] = (
            f"{penalty} logistic regression: {ERROR[penalty]}, and batch size, by effective"
            " gradient evaluations; medians over seeds with the range of all runs, as far as the"
            " shortest of them."
        )
    verdict = "**Verdict.** " + " ".join(sentences)
    notes = (
        "The batch starts at 2 and grows as the test asked; steps are 1/L. *Plug-in* is the test as"
        " printed (tolerances 0.9 and 5.84), whose squared norm holds the noise of its own batch;"
        " *debiased* is the default here. Sets other than cancer are drawn in the sizes of public"
        " ones: numbers are not those of the papers."
    )
    return Report("\n\n".join([verdict, notes, *parts]), figures, captions)


def _methods(rows: Rows) -> dict[str, list[Mapping[str, Any]]]:
    methods: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        methods.setdefault(_name(row), []).append(row)
    return methods


def _name(row: Mapping[str, Any]) -> str:
    debiased = row["penalty"] == "L2" and row["signal"] == "debiased"
    return f"{row['method']}, debiased" if debiased else str(row["method"])


def _reached(rows: Rows, goal: str) -> tuple[Mean, int]:
    """Evaluations to a goal over the runs that reached it, and how many did."""
    found = [float(row[f"to_{goal}"]) for row in rows if not _missing(row.get(f"to_{goal}"))]
    return mean(found), len(found)


def _missing(x: Any) -> bool:
    return x is None or math.isnan(float(x))


def _sentence(penalty: str, data: str, methods: Mapping[str, Rows]) -> str:
    """Who is first at the goals, and which claim that bears out."""
    last = {name: _error(rows) for name, rows in methods.items() if name != "BlitzWS"}
    show = lambda name: f"{name} ({_error(methods[name]).show(2)})"
    if penalty == "L2":
        order = sorted(last, key=lambda name: last[name].value)
        by = lambda one, other: _beats(methods, one, other)
        return (
            f"L2, {data}: lowest relative error at the end {show(order[0])}, highest"
            f" {show(order[-1])}; the inner-product test as printed is"
            f" {by('inner product', 'norm')} the norm test, which is"
            f" {by('norm', 'full gradient')} the full gradient."
        )
    goal = GOALS["L1"][-1]
    counted = {name: _reached(rows, goal) for name, rows in methods.items()}
    told = "; ".join(
        f"{name} {x.show()} evaluations ({n} of {len(methods[name])} runs)"
        for name, (x, n) in counted.items()
    )
    test, full = (counted.get(name) for name in ("complete-step test", "full gradient"))
    saved = ""
    if test and full and test[1] and full[1]:
        ratio = test[0].value / full[0].value
        saved = f" The test takes {ratio:.2f} times the evaluations of the full gradient."
    return f"L1, {data}, to a gap of {goal}: {told}.{saved}"


def _beats(methods: Mapping[str, Rows], one: str, other: str) -> str:
    """By more than three standard errors of the error's logarithm, paired by seed."""
    if one not in methods or other not in methods:
        return "not compared with"
    theirs = {row["seed"]: _log_error(row) for row in methods[other]}
    pairs = [row for row in methods[one] if row["seed"] in theirs]
    value, error, _ = mean([_log_error(row) - theirs[row["seed"]] for row in pairs])
    if not abs(value) > 3 * error:
        return "not to be told from"
    return "better than" if value < 0 else "worse than"


def _log_error(row: Mapping[str, Any]) -> float:
    return math.log(max(float(row["error"]), 1e-16))


def _error(rows: Rows) -> Mean:
    return mean([float(row["error"]) for row in rows])


def _table(penalty: str, rows: Rows) -> str:
    goals = GOALS[penalty]
    header = ["data", "method", "iterations", "last batch", "error at the end",
              *(f"evaluations to {goal}" for goal in goals)]  # fmt: skip
    lines = []
    for data in dict.fromkeys(row["data"] for row in rows):
        for name, runs in _methods(pick(rows, data=data)).items():
            cells = []
            for goal in goals:
                found, count = _reached(runs, goal)
                some = "" if count in (0, len(runs)) else f" ({count} of {len(runs)} runs)"
                cells.append(found.show() + some)
            steps = mean([float(row["iterations"]) for row in runs]).value
            size = mean([float(row["last_batch"]) for row in runs if "last_batch" in row]).value
            lines.append([data, name, f"{steps:.0f}" if steps else "–",
                          "–" if math.isnan(size) else f"{size:.0f}", _error(runs).show(2),
                          *cells])  # fmt: skip
    return f"### {penalty}\n\n{markdown(header, lines)}"


def _figure(curves: Rows, penalty: str) -> Figure:
    """Error and batch size, two panels a data set."""
    datasets = list(dict.fromkeys(row["data"] for row in curves))
    figure, axes = panels(2 * len(datasets), width=3.6)
    names = list(_methods(curves))
    for data, error, size in zip(datasets, axes[::2], axes[1::2], strict=True):
        for color, name in zip(COLORS, names, strict=False):
            rows = _methods(pick(curves, data=data)).get(name, [])
            _draw(error, rows, "error", color, name)
            if any("batch_size" in row for row in rows):
                _draw(size, rows, "batch_size", color, name)
        for axis, what in ((error, ERROR[penalty]), (size, "batch size")):
            axis.set(xlabel="effective gradient evaluations", yscale="log", title=data)
            axis.set_ylabel(what, fontsize=9)
    legend_below(figure, axes[0], columns=4)
    return figure


def _draw(axis: Axes, rows: Rows, column: str, color: str, label: str) -> None:
    """Median over runs as a line on a common grid of evaluations, and all of them as a band."""
    runs: dict[Any, list[tuple[float, float]]] = {}
    for row in rows:
        if column in row:
            runs.setdefault(row["seed"], []).append((float(row["at"]), float(row[column])))
    if not runs:
        return
    end = max(points[-1][0] for points in runs.values())
    grid = np.linspace(0, end, 100)
    logs = []
    for points in runs.values():
        x, y = np.array(points).T
        logs.append(np.interp(grid, x, np.log(np.maximum(y, 1e-16)), right=np.nan))
    lines = np.exp(np.array(logs))
    seen = ~np.isnan(lines).any(axis=0)
    style: dict[str, Any] = {
        "color": color,
        "label": label,
        "lw": 1.5,
        "ls": "--" if label == "augmented" else "-",
    }
    axis.plot(grid[seen], np.median(lines[:, seen], axis=0), **style)
    axis.fill_between(
        grid[seen], lines[:, seen].min(0), lines[:, seen].max(0), color=color, alpha=0.15, lw=0
    )
