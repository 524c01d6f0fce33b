"""What the runs of `adascale` say: sentences, tables and figures, for any problems."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from benchmarks.experiments import style
from benchmarks.experiments.experiment import Report, pick
from benchmarks.experiments.scaled_runs import LAST, LEARNT, MOMENTUM, WARM_UP
from benchmarks.experiments.store import Store
from benchmarks.experiments.summary import Mean, folded, markdown, mean

Rows = Sequence[Mapping[str, Any]]

NAMES = {
    "adascale": "AdaScale",
    "lsw": "LSW",
    "lsw_stretched": "LSW, as long as AdaScale",
    "sqrt": "√S",
    "sqrt_stretched": "√S, as long as AdaScale",
    "none": "not scaled",
}
TITLES = {"digits_cnn": "digits CNN", "mnist1d": "MNIST-1D", "byte_lm": "byte LM"}

_HOW = (
    f"SGD with momentum {MOMENTUM}, whose learning rate decays exponentially to {LAST:.0%}."
    " AdaScale stops when its clock τ has counted the steps of S = 1; LSW, √S and not scaled take"
    " that number divided by S. LSW and √S rise from the learning rate of S = 1 to their multiple"
    f" of it within the first {WARM_UP:.1%} of a run. A run diverged if its last training loss is"
    f" not finite, or above {LEARNT:.0%} of that of a uniform guess. Averages of AdaScale keep 0.99"
    " a base batch (the default is 0.999, for longer runs). AdaScale sees more examples than S = 1"
    " (column *examples*): where runs have not converged it may end better for that, and where"
    " noise grows along the way the cut exceeds the prediction. The paper's cuts are those of its"
    " own φ."
)


class Quality:
    """The final metric of a problem: how it is called, shown and compared."""

    def __init__(self, problem: str) -> None:
        self.column = "bits_per_byte" if problem == "byte_lm" else "test_accuracy"
        self.label = "bits per byte" if problem == "byte_lm" else "test accuracy (%)"
        self.unit = "bits" if problem == "byte_lm" else "points"
        self._factor, self._better = (1, -1) if problem == "byte_lm" else (100, 1)

    def of(self, rows: Rows) -> Mean:
        """Mean over the runs that did not diverge."""
        return mean([self._factor * float(r[self.column]) for r in rows if not r["diverged"]])

    def loss(self, rows: Rows, base: Rows) -> Mean:
        """How much worse than `base`, with the standard error of the difference."""
        here, there = self.of(rows), self.of(base)
        value = self._better * (there.value - here.value)
        return Mean(value, math.hypot(here.error, there.error), here.runs)

    def show(self, rows: Rows) -> str:
        """The mean, and how many diverged."""
        gone = sum(r["diverged"] for r in rows)
        if gone == len(rows):
            return "all diverged" if rows else "–"
        return self.of(rows).show(4) + (f" ({gone} of {len(rows)} diverged)" if gone else "")


def write(store: Store) -> Report:
    """Sentences and tables of each problem; quality and iterations over S as figures."""
    problems = list(dict.fromkeys(row["problem"] for row in store.rows))
    text = "\n\n".join(_section(name, store) for name in problems)
    return Report(
        f"{text}\n\n{_HOW}",
        {"": _draw_quality(problems, store), "_cut": _draw_cut(problems, store)},
        {
            "": "Final quality over S, mean ± standard error; a cross marks where runs diverged"
            " (they are not in the mean).",
            "_cut": "How many times fewer iterations AdaScale takes than S = 1, beside S itself and"
            " what the noise scale φ along the runs of S = 1 predicts.",
        },
    )


def _section(problem: str, store: Store) -> str:
    rows, quality = pick(store.rows, problem=problem), Quality(problem)
    base = pick(rows, scale=1)
    scales = list(dict.fromkeys(r["scale"] for r in rows if r["scale"] > 1))
    setting = (
        f"{TITLES[problem]}: base batch {base[0]['base_batch']}, {base[0]['steps']} steps at S = 1"
        f" with learning rate {base[0]['learning_rate']}"
    )
    verdicts = [f"**{NAMES[m]}** {_verdict(m, rows, base, scales, quality)}" for m in NAMES]
    return "\n\n".join(
        [
            f"**{setting}.** {_iterations(problem, store, scales)}"
            f" {_extra_iterations(rows, scales, quality)}",
            "\n".join(f"- {line}" for line in verdicts),
            _table(rows, base, scales, quality),
        ]
    )


def _verdict(method: str, rows: Rows, base: Rows, scales: Sequence[int], quality: Quality) -> str:
    """Where a method is worse than S = 1 by more than two standard errors."""
    of = {scale: pick(rows, scale=scale, method=method) for scale in scales}
    diverged = [
        f"{sum(r['diverged'] for r in of[s])} of {len(of[s])} at S = {s}"
        for s in scales
        if any(r["diverged"] for r in of[s])
    ]
    tail = f"; diverged in {', '.join(diverged)}." if diverged else "; never diverged."
    losses = {s: quality.loss(of[s], base) for s in scales}
    worse = [
        s for s, x in losses.items() if any(r["diverged"] for r in of[s]) or x.value > 2 * x.error
    ]
    finite = [s for s in worse or losses if math.isfinite(losses[s].value)]
    if not finite:
        return "has no run to compare" + tail
    most = max(finite, key=lambda s: losses[s].value)
    lost = losses[most]
    if worse:
        return (
            "is worse than S = 1 by more than two standard errors, or diverged, at S ="
            f" {', '.join(map(str, worse))}; of runs that did not diverge most at S = {most}"
            f" ({lost.show(2)} {quality.unit}){tail}"
        )
    if lost.value < 0:
        gained = lost._replace(value=-lost.value).show(2)
        return f"has a better mean at every S, least at S = {most} ({gained} {quality.unit}){tail}"
    return (
        f"shows no loss beyond two standard errors ({lost.show(2)} {quality.unit} at S = {most},"
        f" its worst){tail}"
    )


def _iterations(problem: str, store: Store, scales: Sequence[int]) -> str:
    noise = noise_scale(problem, store)
    parts = [
        f"{_cut(problem, store, s).value:.1f} times at S = {s}"
        f" (predicted from the noise along S = 1: {predicted_cut(problem, store, s):.1f})"
        for s in scales
        if s in (8, 64) or s == scales[-1]
    ]
    return (
        f"AdaScale cut the iterations {' and '.join(parts)}. The noise scale φ, in base batches,"
        f" was {noise:.0f} (median along the runs of AdaScale); the gain of a step is at most 1 + φ"
        " of that step."
    )


def _extra_iterations(rows: Rows, scales: Sequence[int], quality: Quality) -> str:
    """The doubters' question: whether LSW with the iterations of AdaScale is as good."""
    worse = []
    for scale in scales:
        ours, theirs = (pick(rows, scale=scale, method=m) for m in ("adascale", "lsw_stretched"))
        lost = quality.loss(theirs, ours)
        more = sum(r["diverged"] for r in theirs) > sum(r["diverged"] for r in ours)
        if more or lost.value > 2 * lost.error:
            worse.append(scale)
    same = [scale for scale in scales if scale not in worse]
    answers = {
        "it is worse than AdaScale by more than two standard errors, or diverged": worse,
        "no difference is seen": same,
    }
    parts = [
        f"at S = {', '.join(map(str, where))} {what}" for what, where in answers.items() if where
    ]
    gained = [s for s in same if _gains_over_plain(rows, s, quality)]
    explained = (
        f" Of the latter, LSW of its own length is worse at S = {', '.join(map(str, gained))}:"
        " there the extra iterations explain what AdaScale gains."
    )
    return f"LSW of the same length: {'; '.join(parts)}.{explained if gained else ''}"


def _gains_over_plain(rows: Rows, scale: int, quality: Quality) -> bool:
    """Whether AdaScale is better than LSW of its own length."""
    ours, plain = (pick(rows, scale=scale, method=m) for m in ("adascale", "lsw"))
    lost = quality.loss(plain, ours)
    more = sum(r["diverged"] for r in plain) > sum(r["diverged"] for r in ours)
    return more or lost.value > 2 * lost.error


def _table(rows: Rows, base: Rows, scales: Sequence[int], quality: Quality) -> str:
    header = ["S", quality.label, "train loss", "iterations", "examples", "diverged"]
    lines = []
    for scale in (1, *scales):
        for method in NAMES if scale > 1 else ("adascale",):
            of = pick(rows, scale=scale, method=method)
            kept = [r for r in of if not r["diverged"]]
            lines.append(
                [
                    f"{scale}, {NAMES[method]}" if scale > 1 else "1, all methods",
                    quality.of(of).show(4),
                    mean([float(r["train_loss"]) for r in kept]).show(3),
                    f"{mean([float(r['iterations']) for r in of]).value:.0f}",
                    f"{mean([float(r['examples']) for r in of]).value:.0f}",
                    f"{sum(r['diverged'] for r in of)} of {len(of)}",
                ]
            )
    return folded("All methods at every S", markdown(header, lines))


def _draw_quality(problems: Sequence[str], store: Store) -> Figure:
    alone = len(problems) == 1
    figure, axes = style.panels(len(problems), width=6.0 if alone else 4.6)
    for axis, problem in zip(axes, problems, strict=True):
        rows, quality = pick(store.rows, problem=problem), Quality(problem)
        errors = quality.column == "test_accuracy"
        base = pick(rows, scale=1)
        scales = [1, *dict.fromkeys(r["scale"] for r in rows if r["scale"] > 1)]
        for color, (method, label) in zip(style.COLORS, NAMES.items(), strict=False):
            of = {s: pick(rows, scale=s, method=method) if s > 1 else base for s in scales}
            means = [quality.of(of[s]) for s in scales]
            axis.errorbar(
                scales,
                [100 - m.value if errors else m.value for m in means],
                [m.error for m in means],
                color=color,
                marker="o",
                markersize=4,
                capsize=2,
                linewidth=2.2 if method == "adascale" else 1.1,
                label=label,
            )
            crossed = [s for s in scales if any(r["diverged"] for r in of[s])]
            at = 0.02 + 0.05 * list(NAMES).index(method)
            axis.plot(
                crossed,
                [at] * len(crossed),
                "x",
                color=color,
                transform=axis.get_xaxis_transform(),
            )
        axis.set_xscale("log", base=2)
        axis.set_xticks(scales, [str(s) for s in scales])
        axis.set_xlabel("S")
        axis.set_ylabel("test error (%)" if errors else quality.label)
        if errors:  # from one to eighty percent
            axis.set_yscale("log")
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter("{x:g}")
            axis.yaxis.set_minor_formatter(NullFormatter())
        axis.set_title(TITLES[problem])
    style.legend_below(figure, axes[0], columns=2 if alone else 3)
    return figure


def _draw_cut(problems: Sequence[str], store: Store) -> Figure:
    figure, axes = style.panels(len(problems), width=4.6)
    for axis, problem in zip(axes, problems, strict=True):
        scales = list(dict.fromkeys(r["scale"] for r in pick(store.rows, problem=problem)))
        cuts = [_cut(problem, store, s) for s in scales]
        noise = noise_scale(problem, store)
        axis.plot(scales, scales, ":", color="#4b5563", label="S")
        axis.plot(
            scales,
            [predicted_cut(problem, store, s) for s in scales],
            "--",
            color=style.COLORS[1],
            label="predicted from the noise at S = 1",
        )
        axis.errorbar(
            scales,
            [c.value for c in cuts],
            [c.error for c in cuts],
            color=style.COLORS[0],
            marker="o",
            markersize=4,
            capsize=2,
            label="AdaScale",
        )
        axis.set_xscale("log", base=2)
        axis.set_yscale("log", base=2)
        for set_ticks in (axis.set_xticks, axis.set_yticks):
            set_ticks(scales, [str(s) for s in scales])
        axis.set_xlabel("S")
        axis.set_ylabel("times fewer iterations")
        axis.set_title(f"{TITLES[problem]}, φ = {noise:.0f} base batches")
    style.legend_below(figure, axes[0])
    return figure


def gain(noise: float, scale: float) -> float:
    """The closed form, of a noise scale in base batches."""
    return (noise + 1) / (noise / scale + 1)


def predicted_cut(problem: str, store: Store, scale: float) -> float:
    """Of the noise along S = 1, whose points are equal shares of τ: iterations are τ over gain."""
    points = pick(store.curves, problem=problem, scale=1, method="adascale")
    return statistics.harmonic_mean([gain(float(p["noise"]), scale) for p in points])


def noise_scale(problem: str, store: Store) -> float:
    """Median over all points of AdaScale's runs, in base batches."""
    points = pick(store.curves, problem=problem, method="adascale")
    return statistics.median(float(p["noise"]) for p in points)


def _cut(problem: str, store: Store, scale: int) -> Mean:
    rows = pick(store.rows, problem=problem, scale=scale, method="adascale")
    return mean([float(r["steps"]) / float(r["iterations"]) for r in rows])
