"""What is said of the cost of the whole loop: verdict, table and figure."""

import math
import operator
import re
import statistics
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.experiments.experiment import Report, Verdict
from benchmarks.experiments.problems import PROBLEMS
from benchmarks.experiments.store import Store
from benchmarks.experiments.style import COLORS, legend_below, panels
from benchmarks.experiments.summary import Rows, paired, pick, split, table

Methods = Mapping[tuple[str, float], Rows]  # by method and learning rate

SMALL = ("fixed small", 0.1)
NOTES = (
    "Times are medians over seeds, interleaved; a ratio is the median of ratios within a seed."
    " *First steps* are tracing, compiling and three steps. *Host* is data and decisions over all"
    " of a step at the first batch size, one after the other; in the run they overlap. A device"
    " that takes as long for an example of a large batch as for one of a small batch, as a CPU"
    " does, gains no time by large batches but the overhead of steps."
)
CAPTION = (
    "Held-out loss over seconds, compilation left out: median over seeds of the time at each place,"
    " mean loss there. The dashed line is the loss to reach."
)


def report(store: Store) -> Report:
    """A verdict and a table for each problem, and one figure."""
    parts: list[str | Verdict] = [NOTES]
    for problem, rows in split(store.rows, "problem").items():
        methods = split(rows, "method", "learning_rate")
        goal = f"Seconds to a held-out loss of {rows[0]['target']}, beside the fixed small batch:"
        parts += [f"### {_title(problem)}", goal, _verdict(methods), _table(methods)]
    return Report(parts, {"": (_figure(store), CAPTION)})


def _ratios(rows: Rows, base: Rows, name: str = "seconds_to_target") -> list[float]:
    """A number over that of `base`, in the seeds in which both reached the target."""
    rows, base = ([row for row in some if row["reached"]] for some in (rows, base))
    return paired(rows, base, name, operator.truediv)


def _verdict(methods: Methods) -> Verdict:
    """Every contender against the fixed small batch, and which are faster in every seed."""
    base = methods[SMALL]
    faster = [
        _name(key, methods)
        for key, rows in methods.items()
        if key[0].startswith("adaptive")
        and all(row["reached"] for row in rows)
        and (ratios := _ratios(rows, base))
        and max(ratios) < 1
    ]
    verdict: dict[str, str | list[str]] = {
        "Faster in every seed": faster or "no adaptive loop",
    }
    for key, rows in methods.items():
        if key == SMALL:
            continue
        told = [f"reached in {_count(rows)} runs"]
        if ratios := _ratios(rows, base):
            median = lambda name, rows=rows: statistics.median(_ratios(rows, base, name))
            told += [
                f"{statistics.median(ratios):.2f}× ({min(ratios):.2f} to {max(ratios):.2f})",
                f"{median('examples_to_target'):.2f}× the examples",
                f"{median('us_an_example'):.2f}× the time of one",
            ]
        verdict[_name(key, methods)] = told
    return verdict


def _count(rows: Rows) -> str:
    return f"{sum(int(row['reached']) for row in rows)} of {len(rows)}"


def _table(methods: Methods) -> str:
    beside = lambda rows: _ratios(rows, methods[SMALL])
    columns: dict[str, Callable[[Any, Rows], str]] = {
        "loop": lambda key, _: _name(key, methods),
        "reached": lambda _, rows: _count(rows),
        "seconds to it": lambda _, rows: _median(rows, "seconds_to_target", ".2f"),
        "beside fixed small": lambda _, rows: (
            f"{statistics.median(ratios):.2f}×" if (ratios := beside(rows)) else "–"
        ),
        "examples to it": lambda _, rows: _median(rows, "examples_to_target", ",.0f"),
        "updates": lambda _, rows: _median(rows, "updates", ".0f"),
        "µs an example": lambda _, rows: _median(rows, "us_an_example", ".0f"),
        "host": lambda _, rows: _median(rows, "host_share", ".0%"),
        "first steps, s": lambda _, rows: _median(rows, "compile_seconds", ".1f"),
        "programs": lambda _, rows: _median(rows, "programs", ".0f"),
        "later": lambda _, rows: _median(rows, "programs_later", ".0f"),
    }
    return table(methods, columns)


def _median(rows: Rows, name: str, form: str) -> str:
    found = [float(row[name]) for row in rows if not math.isnan(float(row.get(name, math.nan)))]
    return format(statistics.median(found), form) if found else "–"


def _name(key: tuple[str, float], methods: Methods) -> str:
    """With its rate, where there are several."""
    several = sum(other[0] == key[0] for other in methods) > 1
    return f"{key[0]}, rate {key[1]:g}" if several else key[0]


def _figure(store: Store) -> Figure:
    problems = split(store.rows, "problem")
    figure, axes = panels(len(problems), width=5.0)
    for (problem, of), axis in zip(problems.items(), axes, strict=True):
        methods = split(of, "method", "learning_rate")
        for color, key in zip(COLORS, methods, strict=False):
            rows = pick(store.curves, problem=problem, method=key[0], learning_rate=key[1])
            at = [some for _, some in sorted(split(rows, "point").items())]
            seconds = [statistics.median(float(row["at_seconds"]) for row in some) for some in at]
            losses = [np.mean([float(row["loss"]) for row in some]) for some in at]
            axis.plot(seconds, losses, color=color, label=_name(key, methods), lw=1.4)
        axis.axhline(float(of[0]["target"]), color="#4b5563", ls="--", lw=0.8)
        axis.set(xlabel="seconds", ylabel="held-out loss", yscale="log", title=_title(problem))
        axis.title.set_fontsize(9)
    legend_below(figure, axes[0], columns=3)
    return figure


def _title(problem: str) -> str:
    return re.split("[:;.]", PROBLEMS[problem].__doc__ or problem)[0]
