"""What the runs of `adascale` say: verdicts, tables and figures, for any problems."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from benchmarks.experiments import style
from benchmarks.experiments.experiment import Report, Verdict
from benchmarks.experiments.scaled_runs import LAST, LEARNT, MOMENTUM, WARM_UP
from benchmarks.experiments.store import Store
from benchmarks.experiments.summary import Mean, Rows, average, folded, mean, pick, split, table

NAMES = {
    "adascale": "AdaScale",
    "lsw": "LSW",
    "lsw_stretched": "LSW, as long as AdaScale",
    "sqrt": "√S",
    "sqrt_stretched": "√S, as long as AdaScale",
    "none": "not scaled",
}
TITLES = {"digits_cnn": "digits CNN", "mnist1d": "MNIST-1D", "byte_lm": "byte LM"}
ERRORS = 2  # standard errors of a difference that count
QUALITY = (
    "Final quality over S, mean ± standard error; a cross marks where runs diverged (they are not"
    " in the mean)."
)
CUT = (
    "How many times fewer iterations AdaScale takes than S = 1, beside S itself and what the noise"
    " scale φ along the runs of S = 1 predicts."
)

_HOW = (
    f"SGD with momentum {MOMENTUM}, whose learning rate decays exponentially to {LAST:.0%}."
    " AdaScale stops when its clock τ has counted the steps of S = 1; LSW, √S and not scaled take"
    " that number divided by S. LSW and √S rise from the learning rate of S = 1 to their multiple"
    f" of it within the first {WARM_UP:.1%} of a run. A run diverged if its last training loss is"
    f" not finite, or above {LEARNT:.0%} of that of a uniform guess. *Worse* is worse than S = 1 by"
    f" more than {ERRORS} standard errors of the difference, or diverged; losses of quality are of"
    " runs that did not diverge. Averages of AdaScale keep 0.99 a base batch (the default is 0.999,"
    " for longer runs). AdaScale sees more examples than S = 1"
    " (column *examples*): where runs have not converged it may end better for that, and where"
    " noise grows along the way the cut exceeds the prediction. The paper's cuts are those of its"
    " own φ."
)


class Quality:
    """The final metric of a problem: how it is called, shown and compared."""

    def __init__(self, problem: str) -> None:
        bits = problem == "byte_lm"
        self.column = "bits_per_byte" if bits else "test_accuracy"
        self.label = "bits per byte" if bits else "test accuracy (%)"
        self.unit = "bits" if bits else "points"
        self._factor, self._better = (1, -1) if bits else (100, 1)

    def of(self, rows: Rows) -> Mean:
        """Mean over the runs that did not diverge."""
        return mean([self._factor * float(r[self.column]) for r in rows if not r["diverged"]])

    def loss(self, rows: Rows, base: Rows) -> Mean:
        """How much worse than `base`, with the standard error of the difference."""
        here, there = self.of(rows), self.of(base)
        value = self._better * (there.value - here.value)
        return Mean(value, math.hypot(here.error, there.error), here.runs)

    def is_worse(self, rows: Rows, base: Rows) -> bool:
        """Whether more runs diverged than of `base`, or the difference counts."""
        lost = self.loss(rows, base)
        return diverged(rows) > diverged(base) or lost.value > ERRORS * lost.error


def diverged(rows: Rows) -> int:
    """How many runs did."""
    return sum(int(row["diverged"]) for row in rows)


def outcome_columns(quality: Quality, loss: tuple[str, str]) -> dict[str, Any]:
    """Columns that every table of whole runs has; `loss` is a heading and a column."""
    kept = lambda rows: [row for row in rows if not row["diverged"]]
    return {
        quality.label: lambda _, rows: quality.of(rows).show(4),
        loss[0]: lambda _, rows: average(kept(rows), loss[1]).show(3),
        "iterations": lambda _, rows: f"{average(rows, 'iterations').value:.0f}",
        "examples": lambda _, rows: f"{average(rows, 'examples').value:.0f}",
        "diverged": lambda _, rows: f"{diverged(rows)} of {len(rows)}",
    }


def write(store: Store) -> Report:
    """Verdict and table of each problem; quality and iterations over S as figures."""
    problems = split(store.rows, "problem")
    parts: list[str | Verdict] = []
    for name, rows in problems.items():
        parts += _section(name, rows, pick(store.curves, problem=name, method="adascale"))
    return Report(
        [*parts, _HOW],
        {"": (_draw_quality(problems), QUALITY), "_cut": (_draw_cut(problems, store), CUT)},
    )


def _section(problem: str, rows: Rows, points: Rows) -> list[str | Verdict]:
    quality, base = Quality(problem), pick(rows, scale=1)
    of = {scale: split(some, "method") for scale, some in split(rows, "scale").items() if scale > 1}
    title = (
        f"**{TITLES[problem]}: base batch {base[0]['base_batch']}, {base[0]['steps']} steps at"
        f" S = 1 with learning rate {base[0]['learning_rate']}.**"
    )
    verdict: Verdict = {
        **{NAMES[m]: _against_base(quality, base, {s: of[s][m] for s in of}) for m in NAMES},
        "Times fewer iterations of AdaScale, in brackets as predicted from the noise along S = 1": [
            f"{_cut(of[s]['adascale']).value:.1f} at S = {s} ({predicted_cut(points, s):.1f})"
            for s in of
            if s in (8, 64) or s == max(of)
        ],
        "Noise scale φ in base batches, median along the runs of AdaScale": (
            f"{noise_scale(points):.0f}; the gain of a step is at most 1 + φ of that step"
        ),
        "LSW with the iterations of AdaScale, beside AdaScale": _extra_iterations(of, quality),
    }
    groups = {"1, all methods": base}
    groups |= {f"{s}, {NAMES[m]}": of[s][m] for s in of for m in NAMES}
    columns = {"S": lambda key, _: key} | outcome_columns(quality, ("train loss", "train_loss"))
    return [title, verdict, folded("All methods at every S", table(groups, columns))]


def _against_base(quality: Quality, base: Rows, of: Mapping[int, Rows]) -> list[str]:
    """Where a method is worse than S = 1, its largest loss, and where it diverged."""
    losses = {scale: quality.loss(rows, base) for scale, rows in of.items()}
    worse = [scale for scale, rows in of.items() if quality.is_worse(rows, base)]
    found = [f"worse at S = {_list(worse)}" if worse else "nowhere worse"]
    finite = [scale for scale in worse or losses if math.isfinite(losses[scale].value)]
    if finite:
        most = max(finite, key=lambda scale: losses[scale].value)
        found.append(f"largest loss {losses[most].show(2)} {quality.unit} at S = {most}")
    gone = [f"{diverged(r)} of {len(r)} at S = {s}" for s, r in of.items() if diverged(r)]
    return [*found, f"diverged in {', '.join(gone)}" if gone else "never diverged"]


def _extra_iterations(of: Mapping[int, Mapping[str, Rows]], quality: Quality) -> list[str]:
    """The doubters' question: whether LSW with the iterations of AdaScale is as good."""
    is_worse = lambda s, method: quality.is_worse(of[s][method], of[s]["adascale"])
    worse = [s for s in of if is_worse(s, "lsw_stretched")]
    same = [s for s in of if s not in worse]
    gained = [s for s in same if is_worse(s, "lsw")]
    found = {
        f"worse at S = {_list(worse)}": worse,
        f"no difference seen at S = {_list(same)}": same,
        f"of these LSW of its own length is worse at S = {_list(gained)}, where the extra"
        " iterations explain what AdaScale gains": gained,
    }
    return [text for text, scales in found.items() if scales]


def _list(scales: Sequence[int]) -> str:
    return ", ".join(map(str, scales))


def _draw_quality(problems: Mapping[str, Rows]) -> Figure:
    alone = len(problems) == 1
    figure, axes = style.panels(len(problems), width=6.0 if alone else 4.6)
    for axis, (problem, rows) in zip(axes, problems.items(), strict=True):
        quality = Quality(problem)
        errors = quality.column == "test_accuracy"
        by_scale = split(rows, "scale")
        scales = list(by_scale)
        for color, (method, label) in zip(style.COLORS, NAMES.items(), strict=False):
            of = [pick(rows, method=method) if s > 1 else rows for s, rows in by_scale.items()]
            means = [quality.of(some) for some in of]
            if errors:
                means = [m._replace(value=100 - m.value) for m in means]
            width = 2.2 if method == "adascale" else 1.1
            style.points(
                axis, scales, means, color=color, marker="o", ms=4, capsize=2, lw=width, label=label
            )
            crossed = [s for s, some in zip(scales, of, strict=True) if diverged(some)]
            at = [0.02 + 0.05 * list(NAMES).index(method)] * len(crossed)
            axis.plot(crossed, at, "x", color=color, transform=axis.get_xaxis_transform())
        axis.set_xscale("log", base=2)
        axis.set_xticks(scales, [str(s) for s in scales])
        axis.set(
            xlabel="S", ylabel="test error (%)" if errors else quality.label, title=TITLES[problem]
        )
        if errors:  # from one to eighty percent
            axis.set_yscale("log")
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter("{x:g}")
            axis.yaxis.set_minor_formatter(NullFormatter())
    style.legend_below(figure, axes[0], columns=2 if alone else 3)
    return figure


def _draw_cut(problems: Mapping[str, Rows], store: Store) -> Figure:
    figure, axes = style.panels(len(problems), width=4.6)
    for axis, (problem, rows) in zip(axes, problems.items(), strict=True):
        points = pick(store.curves, problem=problem, method="adascale")
        of = split(pick(rows, method="adascale"), "scale")
        scales = list(of)
        predicted = [predicted_cut(points, s) for s in scales]
        orange, label = style.COLORS[1], "predicted from the noise at S = 1"
        axis.plot(scales, scales, ":", color="#4b5563", label="S")
        axis.plot(scales, predicted, "--", color=orange, label=label)
        cuts = [_cut(some) for some in of.values()]
        style.points(axis, scales, cuts, color=style.COLORS[0], marker="o", ms=4, label="AdaScale")
        axis.set_xscale("log", base=2)
        axis.set_yscale("log", base=2)
        for set_ticks in (axis.set_xticks, axis.set_yticks):
            set_ticks(scales, [str(s) for s in scales])
        axis.set(xlabel="S", ylabel="times fewer iterations")
        axis.set_title(f"{TITLES[problem]}, φ = {noise_scale(points):.0f} base batches")
    style.legend_below(figure, axes[0])
    return figure


def gain(noise: float, scale: float) -> float:
    """The closed form, of a noise scale in base batches."""
    return (noise + 1) / (noise / scale + 1)


def predicted_cut(points: Rows, scale: float) -> float:
    """Of the noise along S = 1, whose points are equal shares of τ: iterations are τ over gain."""
    gains = [gain(float(point["noise"]), scale) for point in pick(points, scale=1)]
    return statistics.harmonic_mean(gains)


def noise_scale(points: Rows) -> float:
    """Median over all points of AdaScale's runs, in base batches."""
    return statistics.median(float(point["noise"]) for point in points)


def _cut(rows: Rows) -> Mean:
    return mean([float(row["steps"]) / float(row["iterations"]) for row in rows])
