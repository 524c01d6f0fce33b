"""What the noise scale's runs say: coverage, how often it is known, and what others report."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.experiments import style
from benchmarks.experiments.experiment import Report, pick
from benchmarks.experiments.store import Store
from benchmarks.experiments.summary import Mean, markdown, mean, means

NOMINAL = 0.95
ESTIMATES = {
    "estimate": "ratio of means",
    "mean_of_ratios": "mean of ratios",
    "plug_in": "plug-in",
}

Row = Mapping[str, Any]


def report(store: Store) -> Report:
    """The verdict, a table of each kind, and two figures."""
    standing, runs = pick(store.rows, kind="standing"), pick(store.rows, kind="run")
    steps = int(standing[0]["steps"])
    parts = [
        _verdict(standing, runs),
        f"At standing parameters, after {steps} steps. *Wrong* counts, of all draws, those that"
        " give a number whose interval does not hold the truth. Estimates are medians over draws,"
        " divided by the truth, and in brackets the share of draws within a factor of two of it;"
        " for the ratio of means among those that are known, for the others among all:",
        _standing_table(standing),
        "Along runs, where the noise scale drifts. The truth *over the window* is true noise over"
        " true signal, each averaged over the examples that the estimate spans; the truth *now* is"
        " that of the parameters at hand:",
        _runs_table(runs),
        "The plug-in form leaves the noise of the batch in ‖g‖²: on average it stays below B, and"
        " says more about the batch than about the gradient. A mean of ratios is ruled by the steps"
        " whose measured signal happens to lie near zero, on either side of it.",
    ]
    return Report(
        "\n\n".join(parts),
        {"": _runs_figure(store), "_standing": _standing_figure(store)},
        {
            "": "The noise scale along one run of each problem: truth of the parameters at hand,"
            " truth over the window, and the estimate with its interval (none where it is not yet"
            " known).",
            "_standing": "Trackers at standing parameters late in training: share that give a"
            " number, and share of their intervals that hold the truth, over the steps seen.",
        },
    )


def _verdict(standing: Sequence[Row], runs: Sequence[Row]) -> str:
    held = _by_seed(standing, "coverage")
    wrong = _by_seed(standing, "wrong")
    window, now = _by_seed(runs, "coverage"), _by_seed(runs, "coverage_now")
    low = held.value + 2 * held.error < NOMINAL
    share = lambda x: f"{100 * x.value:.1f} ± {100 * x.error:.1g} %"
    text = (
        f"Where parameters stand still, {share(held)} of the intervals hold the truth"
        f" ({'fewer than' if low else 'in line with'} the nominal {100 * NOMINAL:.0f} %), and"
        f" {share(wrong)} of all askings get a wrong interval."
        f" Along runs {share(window)} hold the truth over their window, and {share(now)} that of"
        " the parameters at hand, which the window lags behind."
    )
    if low:
        worst = min(
            ((k, m) for k, m in _cells(standing, "coverage").items() if m.value == m.value),
            key=lambda item: item[1].value,
        )
        (problem, trained, size), found = worst
        known = _cells(standing, "known")[problem, trained, size]
        text += (
            f" The lowest is {share(found)}, on {problem} after {trained:,} examples at B ="
            f" {size}, where {share(known)} of the draws are known."
        )
    return text


def _by_seed(rows: Sequence[Row], metric: str) -> Mean:
    """Mean over all cases with a number, seed by seed."""
    seeds = sorted({row["seed"] for row in rows})
    each = [[float(row[metric]) for row in pick(rows, seed=seed)] for seed in seeds]
    kept = [[x for x in values if math.isfinite(x)] for values in each]
    return mean([sum(values) / len(values) for values in kept if values])


def _cells(rows: Sequence[Mapping[str, Any]], metric: str) -> dict[Any, Mean]:
    """By problem, training and batch size, over the seeds that have a number."""
    finite = [row for row in rows if math.isfinite(float(row.get(metric, math.nan)))]
    return means(finite, ("problem", "examples", "batch_size"), metric)


def _percent(found: Mean | None) -> str:
    if found is None:
        return "–"
    error = "" if math.isnan(found.error) else f" ± {100 * found.error:.0f}"
    return f"{100 * found.value:.0f}{error} %"


def _standing_table(rows: Sequence[Row]) -> str:
    header = ["problem", "trained on", "B", "truth", "known", "hold the truth", "wrong"]
    get = {
        metric: _cells(rows, metric)
        for metric in (
            *("true_noise_scale", "known", "coverage", "wrong"),
            *(f"{name}_{kind}" for name in ESTIMATES for kind in ("over_truth", "within_2")),
        )
    }
    lines = []
    for key in get["known"]:
        cells = [key[0], f"{key[1]:,}", key[2], get["true_noise_scale"][key].show(2)]
        cells += [_percent(get[m].get(key)) for m in ("known", "coverage", "wrong")]
        for name in ESTIMATES:
            over, within = get[f"{name}_over_truth"].get(key), get[f"{name}_within_2"].get(key)
            cells.append(f"{over.show(2)} ({100 * within.value:.0f} %)" if over and within else "–")
        lines.append(cells)
    return markdown([*header, *ESTIMATES.values()], lines)


def _runs_table(rows: Sequence[Row]) -> str:
    header = ["problem", "B", "known", "hold the window's truth", "hold the truth now", "width"]
    metrics = ("known", "coverage", "coverage_now")
    get = {metric: _cells(rows, metric) for metric in (*metrics, "width")}
    over = {name: _cells(rows, f"{name}_over_truth") for name in ESTIMATES}
    lines = []
    for key in get["known"]:
        cells: list[Any] = [key[0], key[2], *(_percent(get[m].get(key)) for m in metrics)]
        numbers = [get["width"], *over.values()]
        cells += [found[key].show(2) if key in found else "–" for found in numbers]
        lines.append(cells)
    return markdown([*header, *ESTIMATES.values()], lines)


def _runs_figure(store: Store) -> Any:
    curves = pick(store.curves, kind="run")
    problems = list(dict.fromkeys(row["problem"] for row in curves))
    sizes = sorted({row["batch_size"] for row in curves})
    seed, size = min(row["seed"] for row in curves), sizes[len(sizes) // 2]
    figure, axes = style.panels(len(problems), width=5.2)
    for axis, problem in zip(axes, problems, strict=True):
        points = pick(curves, problem=problem, batch_size=size, seed=seed)
        x = [row["at"] for row in points]
        y = {k: [float(row[k]) for row in points] for k in ("estimate", "low", "high")}
        axis.plot(x, [row["truth_now"] for row in points], color="#9ca3af", label="truth now")
        axis.plot(x, [row["truth"] for row in points], color="#111827", label="truth, window")
        axis.plot(x, y["estimate"], color=style.COLORS[0], marker=".", label="estimate")
        axis.fill_between(x, y["low"], y["high"], color=style.COLORS[0], alpha=0.2, lw=0)
        axis.set(title=f"{problem}, B = {size}", xlabel="examples", yscale="log")
    axes[0].set_ylabel("noise scale, examples")
    style.legend_below(figure, axes[0], columns=3)
    return figure


def _standing_figure(store: Store) -> Any:
    curves = pick(store.curves, kind="standing")
    late = [row for row in curves if row["examples"] == max(r["examples"] for r in curves)]
    figure, (known, coverage) = style.panels(2, width=5.2)
    pairs = list(dict.fromkeys((row["problem"], row["batch_size"]) for row in late))
    for i, (problem, size) in enumerate(pairs):
        points = pick(late, problem=problem, batch_size=size)
        color = style.COLORS[i % len(style.COLORS)]
        for axis, metric in ((known, "known"), (coverage, "coverage")):
            kept = [row for row in points if math.isfinite(float(row[metric]))]
            found = means(kept, ("seen",), metric)
            axis.errorbar(
                [key[0] for key in found], [m.value for m in found.values()],
                [m.error for m in found.values()], marker=".", color=color, capsize=2,
                label=f"{problem}, B = {size}",
            )  # fmt: skip
    coverage.axhline(NOMINAL, color="#111827", lw=0.8, ls="--")
    for axis, title in ((known, "share known"), (coverage, "share that hold the truth")):
        axis.set(title=title, xlabel="steps seen", ylim=(0, 1.03))
        axis.set_xscale("log", base=2)
    style.legend_below(figure, known, columns=3)
    return figure
