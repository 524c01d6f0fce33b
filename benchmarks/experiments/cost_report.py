"""What is said of the cost of the whole loop: verdict, table and figure."""

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.experiments.experiment import Report, pick
from benchmarks.experiments.problems import PROBLEMS
from benchmarks.experiments.store import Store
from benchmarks.experiments.style import COLORS, legend_below, panels
from benchmarks.experiments.summary import markdown

Rows = Sequence[Mapping[str, Any]]
Key = tuple[str, float]  # method, learning rate

SMALL = ("fixed small", 0.1)


def report(store: Store) -> Report:
    """A verdict and a table for each problem, and one figure."""
    sentences, parts = [], []
    for problem in dict.fromkeys(row["problem"] for row in store.rows):
        methods = _methods(pick(store.rows, problem=problem))
        target = methods[SMALL][0]["target"]
        sentences.append(f"{_title(problem)}, to a held-out loss of {target}: {_sentence(methods)}")
        parts.append(f"### {_title(problem)}\n\n{_table(methods)}")
    notes = (
        "Times are medians over seeds, interleaved; a ratio is the median of ratios within a seed."
        " *First steps* are tracing, compiling and three steps. *Host* is data and decisions over"
        " all of a step at the first batch size, one after the other; in the run they overlap. A"
        " device that takes as long for an example of a large batch as for one of a small batch, as"
        " a CPU does, gains no time by large batches but the overhead of steps."
    )
    text = "\n\n".join(["**Verdict.** " + " ".join(sentences), notes, *parts])
    caption = (
        "Held-out loss over seconds, compilation left out: median over seeds of the time at each"
        " place, mean loss there. The dashed line is the loss to reach."
    )
    return Report(text, {"": _figure(store)}, {"": caption})


def _methods(rows: Rows) -> dict[Key, dict[int, Mapping[str, Any]]]:
    """Rows of each contender by seed."""
    methods: dict[Key, dict[int, Mapping[str, Any]]] = {}
    for row in rows:
        key = str(row["method"]), float(row["learning_rate"])
        methods.setdefault(key, {})[int(row["seed"])] = row
    return methods


def _ratios(rows: Mapping[int, Any], base: Mapping[int, Any]) -> list[float]:
    """Seconds to the target over those of `base`, where both reached it."""
    both = [s for s in rows if s in base and rows[s]["reached"] and base[s]["reached"]]
    return [rows[s]["seconds_to_target"] / base[s]["seconds_to_target"] for s in both]


def _beside(rows: Mapping[int, Any], base: Mapping[int, Any], name: str) -> str:
    """Median of a number over that of `base`, in the seeds that both reached the target in."""
    both = [s for s in rows if s in base and rows[s]["reached"] and base[s]["reached"]]
    return f"{statistics.median(rows[s][name] / base[s][name] for s in both):.2f}"


def _sentence(methods: Mapping[Key, Mapping[int, Any]]) -> str:
    """Every contender against the fixed small batch."""
    told = []
    for key, rows in methods.items():
        if key == SMALL:
            continue
        ratios, name = _ratios(rows, methods[SMALL]), _name(key, methods)
        reached = sum(bool(row["reached"]) for row in rows.values())
        if not ratios:
            told.append(f"{name} reached it in {reached} of {len(rows)} runs")
            continue
        few = "" if reached == len(rows) else f", in {reached} of {len(rows)} runs"
        told.append(
            f"{name} {statistics.median(ratios):.2f}× ({min(ratios):.2f} to {max(ratios):.2f}{few};"
            f" {_beside(rows, methods[SMALL], 'examples_to_target')}× the examples,"
            f" {_beside(rows, methods[SMALL], 'us_an_example')}× the time of one)"
        )
    faster = [
        _name(key, methods)
        for key, rows in methods.items()
        if key[0].startswith("adaptive")
        and all(row["reached"] for row in rows.values())
        and (ratios := _ratios(rows, methods[SMALL]))
        and max(ratios) < 1
    ]
    held = ", ".join(faster) or "no adaptive loop"
    return f"Faster in every seed: {held}. Seconds beside the fixed small batch: {'; '.join(told)}."


def _table(methods: Mapping[Key, Mapping[int, Any]]) -> str:
    header = ["loop", "reached", "seconds to it", "beside fixed small", "examples to it", "updates",
              "µs an example", "host", "first steps, s", "programs", "later"]  # fmt: skip
    lines = []
    for key, by_seed in methods.items():
        rows = list(by_seed.values())
        ratios = _ratios(by_seed, methods[SMALL])
        middle = lambda name, form, rows=rows: _median(rows, name, form)
        lines.append([
            _name(key, methods), f"{sum(int(row['reached']) for row in rows)} of {len(rows)}",
            middle("seconds_to_target", ".2f"),
            f"{statistics.median(ratios):.2f}×" if ratios else "–",
            middle("examples_to_target", ",.0f"), middle("updates", ".0f"),
            middle("us_an_example", ".0f"), middle("host_share", ".0%"),
            middle("compile_seconds", ".1f"), middle("programs", ".0f"),
            middle("programs_later", ".0f"),
        ])  # fmt: skip
    return markdown(header, lines)


def _median(rows: Rows, name: str, form: str) -> str:
    found = [float(row[name]) for row in rows if not math.isnan(float(row.get(name, math.nan)))]
    return format(statistics.median(found), form) if found else "–"


def _name(key: Key, methods: Mapping[Key, Any]) -> str:
    """With its rate, where there are several."""
    several = sum(other[0] == key[0] for other in methods) > 1
    return f"{key[0]}, rate {key[1]:g}" if several else key[0]


def _figure(store: Store) -> Figure:
    problems = list(dict.fromkeys(row["problem"] for row in store.rows))
    figure, axes = panels(len(problems), width=5.0)
    for problem, axis in zip(problems, axes, strict=True):
        methods = _methods(pick(store.rows, problem=problem))
        for color, key in zip(COLORS, methods, strict=False):
            rows = pick(store.curves, problem=problem, method=key[0], learning_rate=key[1])
            places = sorted({row["point"] for row in rows})
            at = [[row for row in rows if row["point"] == place] for place in places]
            seconds = [statistics.median(float(row["at_seconds"]) for row in some) for some in at]
            losses = [np.mean([float(row["loss"]) for row in some]) for some in at]
            axis.plot(seconds, losses, color=color, label=_name(key, methods), lw=1.4)
        target = float(pick(store.rows, problem=problem)[0]["target"])
        axis.axhline(target, color="#4b5563", ls="--", lw=0.8)
        axis.set(xlabel="seconds", ylabel="held-out loss", yscale="log", title=_title(problem))
        axis.title.set_fontsize(9)
    legend_below(figure, axes[0], columns=3)
    return figure


def _title(problem: str) -> str:
    return re.split("[:;.]", PROBLEMS[problem].__doc__ or problem)[0]
