"""What the noise scale's runs say: coverage, how often it is known, and what others report."""

import math
from collections.abc import Callable
from typing import Any

from matplotlib.figure import Figure

from benchmarks.experiments import style
from benchmarks.experiments.experiment import Report, Verdict
from benchmarks.experiments.store import Store
from benchmarks.experiments.summary import Mean, Rows, average, mean, pick, split, table

NOMINAL = 0.95
ESTIMATES = {
    "estimate": "ratio of means",
    "mean_of_ratios": "mean of ratios",
    "plug_in": "plug-in",
}
STANDING = (
    "At standing parameters, after {} steps. *Wrong* counts, of all draws, those that give a number"
    " whose interval does not hold the truth. Estimates are medians over draws, divided by the"
    " truth, and in brackets the share of draws within a factor of two of it; for the ratio of"
    " means among those that are known, for the others among all:"
)
ALONG = (
    "Along runs, where the noise scale drifts. The truth *over the window* is true noise over true"
    " signal, each averaged over the examples that the estimate spans; the truth *now* is that of"
    " the parameters at hand, which the window lags behind:"
)
OTHERS = (
    "The plug-in form leaves the noise of the batch in ‖g‖²: on average it stays below B, and says"
    " more about the batch than about the gradient. A mean of ratios is ruled by the steps whose"
    " measured signal happens to lie near zero, on either side of it."
)
RUNS_CAPTION = (
    "The noise scale along one run of each problem: truth of the parameters at hand, truth over the"
    " window, and the estimate with its interval (none where it is not yet known)."
)
STANDING_CAPTION = (
    "Trackers at standing parameters late in training: share that give a number, and share of their"
    " intervals that hold the truth, over the steps seen."
)


def report(store: Store) -> Report:
    """The verdict, a table of each kind, and two figures."""
    standing, runs = pick(store.rows, kind="standing"), pick(store.rows, kind="run")
    after = STANDING.format(int(standing[0]["steps"]))
    return Report(
        [
            _verdict(standing, runs),
            *(after, _standing_table(standing)),
            *(ALONG, _runs_table(runs)),
            OTHERS,
        ],
        {
            "": (_runs_figure(pick(store.curves, kind="run")), RUNS_CAPTION),
            "_standing": (_standing_figure(pick(store.curves, kind="standing")), STANDING_CAPTION),
        },
    )


def known(rows: Rows, name: str) -> Mean:
    """The mean of a column over the rows that have a number."""
    return average([row for row in rows if math.isfinite(float(row.get(name, math.nan)))], name)


def _verdict(standing: Rows, runs: Rows) -> Verdict:
    share = lambda x: f"{100 * x.value:.1f} ± {100 * x.error:.1g} %"
    held = _by_seed(standing, "coverage")
    low = held.value + 2 * held.error < NOMINAL
    verdict: dict[str, list[str]] = {
        "Where parameters stand still": [
            f"{share(held)} of the intervals hold the truth"
            f" ({'fewer than' if low else 'in line with'} the nominal {100 * NOMINAL:.0f} %)",
            f"{share(_by_seed(standing, 'wrong'))} of all askings get a wrong interval",
        ],
        "Along runs": [
            f"{share(_by_seed(runs, 'coverage'))} hold the truth over their window",
            f"{share(_by_seed(runs, 'coverage_now'))} that of the parameters at hand",
        ],
    }
    if low:
        cells = split(standing, "problem", "examples", "batch_size")
        coverage = {key: known(rows, "coverage") for key, rows in cells.items()}
        worst = min(
            (key for key, found in coverage.items() if found.runs),
            key=lambda key: coverage[key].value,
        )
        problem, trained, size = worst
        verdict["The lowest where parameters stand still"] = [
            f"{share(coverage[worst])}, on {problem} after {trained:,} examples at B = {size},"
            f" where {share(known(cells[worst], 'known'))} of the draws are known"
        ]
    return verdict


def _by_seed(rows: Rows, name: str) -> Mean:
    """Mean over all cases with a number, seed by seed."""
    each = [known(some, name) for _, some in sorted(split(rows, "seed").items())]
    return mean([found.value for found in each if found.runs])


def _percent(name: str) -> Callable[[Any, Rows], str]:
    """A column of shares."""

    def cell(_: Any, rows: Rows) -> str:
        found = known(rows, name)
        if not found.runs:
            return "–"
        error = "" if math.isnan(found.error) else f" ± {100 * found.error:.0f}"
        return f"{100 * found.value:.0f}{error} %"

    return cell


def _number(name: str) -> Callable[[Any, Rows], str]:
    """A column of numbers."""
    return lambda _, rows: known(rows, name).show(2)


def _estimate(name: str) -> Callable[[Any, Rows], str]:
    """A column of an estimate over the truth, and of how often it is within a factor of two."""

    def cell(_: Any, rows: Rows) -> str:
        over, within = (known(rows, f"{name}_{kind}") for kind in ("over_truth", "within_2"))
        return f"{over.show(2)} ({100 * within.value:.0f} %)" if over.runs and within.runs else "–"

    return cell


def _standing_table(rows: Rows) -> str:
    columns: dict[str, Callable[[Any, Rows], Any]] = {
        "problem": lambda key, _: key[0],
        "trained on": lambda key, _: f"{key[1]:,}",
        "B": lambda key, _: key[2],
        "truth": _number("true_noise_scale"),
        "known": _percent("known"),
        "hold the truth": _percent("coverage"),
        "wrong": _percent("wrong"),
    }
    columns |= {title: _estimate(name) for name, title in ESTIMATES.items()}
    return table(split(rows, "problem", "examples", "batch_size"), columns)


def _runs_table(rows: Rows) -> str:
    columns: dict[str, Callable[[Any, Rows], Any]] = {
        "problem": lambda key, _: key[0],
        "B": lambda key, _: key[1],
        "known": _percent("known"),
        "hold the window's truth": _percent("coverage"),
        "hold the truth now": _percent("coverage_now"),
        "width": _number("width"),
    }
    columns |= {title: _number(f"{name}_over_truth") for name, title in ESTIMATES.items()}
    return table(split(rows, "problem", "batch_size"), columns)


def _runs_figure(curves: Rows) -> Figure:
    problems = split(curves, "problem")
    sizes = sorted({row["batch_size"] for row in curves})
    seed, size = min(row["seed"] for row in curves), sizes[len(sizes) // 2]
    figure, axes = style.panels(len(problems), width=5.2)
    for axis, (problem, rows) in zip(axes, problems.items(), strict=True):
        points = pick(rows, batch_size=size, seed=seed)
        of = lambda name, points=points: [float(row[name]) for row in points]
        axis.plot(of("at"), of("truth_now"), color="#9ca3af", label="truth now")
        axis.plot(of("at"), of("truth"), color="#111827", label="truth, window")
        axis.plot(of("at"), of("estimate"), color=style.COLORS[0], marker=".", label="estimate")
        axis.fill_between(of("at"), of("low"), of("high"), color=style.COLORS[0], alpha=0.2, lw=0)
        axis.set(title=f"{problem}, B = {size}", xlabel="examples", yscale="log")
    axes[0].set_ylabel("noise scale, examples")
    style.legend_below(figure, axes[0], columns=3)
    return figure


def _standing_figure(curves: Rows) -> Figure:
    late = pick(curves, examples=max(row["examples"] for row in curves))
    figure, axes = style.panels(2, width=5.2)
    axes[1].axhline(NOMINAL, color="#111827", lw=0.8, ls="--")
    shown = {"known": "share known", "coverage": "share that hold the truth"}
    for axis, (name, title) in zip(axes, shown.items(), strict=True):
        for i, ((problem, size), points) in enumerate(split(late, "problem", "batch_size").items()):
            found = {seen: known(rows, name) for seen, rows in split(points, "seen").items()}
            found = {seen: each for seen, each in found.items() if each.runs}
            color, label = style.COLORS[i % len(style.COLORS)], f"{problem}, B = {size}"
            style.points(
                axis, list(found), list(found.values()), marker=".", color=color, label=label
            )
        axis.set(title=title, xlabel="steps seen", ylim=(0, 1.03))
        axis.set_xscale("log", base=2)
    style.legend_below(figure, axes[0], columns=3)
    return figure
