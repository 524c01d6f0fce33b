"""What the runs of Adam say: losses above the re-tuned learning rate, and where rules land."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.experiments import style
from benchmarks.experiments.experiment import Report, Verdict
from benchmarks.experiments.store import Store
from benchmarks.experiments.summary import (
    Mean,
    Rows,
    average,
    column,
    judged,
    mean,
    paired,
    pick,
    split,
)
from benchmarks.tables import markdown

RETUNED = "re-tuned"
POWERS = {"nothing changed": 0.0, "sqrt": 0.5, "linear": 1.0}  # of B/B₀: points of the grid
NO_FACTOR = ("Marek", "half-lives", "half-lives, sqrt")  # rules that change the decays
NAMES = {"byte_lm": "byte LM, bits per byte", "digits_cnn": "digits CNN, test loss"}
ERRORS = 2  # standard errors of a difference that count
EXCESS = (
    "Loss above that of the best learning rate at the same batch size, on the same seeds. More than"
    f" {ERRORS} standard errors above it are *worse*; rules that move the decays may be *better*."
)
FACTORS = (
    "Factor on the learning rate of the base batch. *Best* is the minimum of a parabola through the"
    " best point of the grid and its neighbours; a measured factor is that of the last step."
)
HOW = (
    "Adam was tuned at B₀ = {base}. At every other batch size the same number of examples is seen"
    " (so fewer steps when the batch is larger), under the same warm-up and cosine over examples."
    " The learning rate is tuned anew at each size on a grid of factors of two; rules get no second"
    " chance. *gain^0.5* is `scale_by_adascale(exponent=0.5)`, *preconditioned* feeds it with"
    " `measure.adam_preconditioner`; *surge* is `rules.surge` at the noise scale measured so far;"
    " *Malladi*, *Marek* and *half-lives* are the rules of `scale_by_adam_with_batch`, the first"
    " with `rules.sqrt`, the others with the learning rate as it is, but where *sqrt* stands"
    " behind. Malladi's β1 leaves its range at B ≥ 10 B₀, and is held at 0 there."
)


class Found:
    """The runs of one problem.

    Attributes:
        base: Batch size at which Adam was tuned.
        sizes: All batch sizes.
        others: All but the base.
        rules: Names of rules, powers first.
    """

    def __init__(self, rows: Rows) -> None:
        self._of = split(rows, "batch_size", "rule")
        self.base = int(rows[0]["base"])
        self.sizes = sorted({int(row["batch_size"]) for row in rows})
        self.others = [size for size in self.sizes if size != self.base]
        own = dict.fromkeys(str(row["rule"]) for row in rows if row["rule"] != RETUNED)
        self.rules = [*POWERS, *own]

    def grid(self, size: int) -> dict[float, list[float]]:
        """Losses by factor of the learning rate, one a seed."""
        factors = split(self._of[size, RETUNED], "factor")
        return {x: column(factors[x], "loss") for x in sorted(factors)}

    def best(self, size: int) -> float:
        """The factor whose mean loss is lowest."""
        grid = self.grid(size)
        return min(grid, key=lambda x: _or_inf(mean(grid[x])))

    def of_rule(self, rule: str, size: int) -> tuple[float, Rows]:
        """The factor of a rule at a batch size, and its runs."""
        if rule in POWERS:
            factor = (size / self.base) ** POWERS[rule]
            nearest = min(self.grid(size), key=lambda x: abs(math.log(x / factor)))
            return nearest, pick(self._of[size, RETUNED], factor=nearest)
        rows = self._of[size, rule]
        return average(rows, "factor_at_end").value, rows

    def excess(self, rule: str, size: int) -> list[float]:
        """Loss above that of the best factor, seed by seed."""
        best = pick(self._of[size, RETUNED], factor=self.best(size))
        return paired(self.of_rule(rule, size)[1], best, "loss")

    def ranked(self) -> list[str]:
        """The rules by their largest mean excess."""
        worst = lambda rule: max(_or_inf(mean(self.excess(rule, size))) for size in self.others)
        return sorted(self.rules, key=worst)

    def best_rate(self, size: int) -> Mean:
        """The best factor between the points of the grid: by a parabola, seed by seed."""
        grid = self.grid(size)
        factors, at = list(grid), list(grid).index(self.best(size))
        near = slice(max(min(at - 1, len(factors) - 3), 0), max(at + 2, 3))
        x = np.log2(factors[near])
        tops = []
        for losses in zip(*(grid[f] for f in factors[near]), strict=True):
            if len(x) < 3 or not np.isfinite(losses).all():
                return Mean(self.best(size), math.nan, 1)
            bent, slope, _ = np.polyfit(x, losses, 2)
            top = -slope / (2 * bent) if bent > 0 else x[int(np.argmin(losses))]
            tops.append(float(2 ** np.clip(top, x[0], x[-1])))
        return mean(tops)


def report(store: Store) -> Report:
    """A verdict, two tables and a figure of each problem, and one figure of all."""
    found = {str(name): Found(rows) for name, rows in split(store.rows, "problem").items()}
    parts: list[str | Verdict] = [HOW.format(base=store.rows[0]["base"])]
    caption = "Loss of each rule above the best learning rate at the same batch size; the dotted"
    figures = {"": (_excess_figure(found), f"{caption} line is the base batch.")}
    for name, of in found.items():
        parts += [f"### {NAMES.get(name, name)}", EXCESS, _verdict(of), _excess_table(of)]
        parts += [FACTORS, _factor_table(of)]
        figures[f"_{name}"] = (
            _rates_figure(of),
            f"{NAMES.get(name, name)} over the factor on the learning rate (lines; the best factor"
            " is ringed), and where each rule lands.",
        )
    return Report(parts, figures)


def _verdict(of: Found) -> Verdict:
    """Of each rule at each batch size: what keeps the optimum may not lose it anywhere."""
    verdict: dict[str, str | list[str]] = {
        rule: judged({f"B = {s}": mean(of.excess(rule, s)) for s in of.others}, ERRORS)
        for rule in of.ranked()
    }
    if (base := of.best(of.base)) != 1:
        text = f"{base:g}; all rules start beside the optimum"
        verdict["Best factor at the base batch on these seeds"] = text
    return verdict


def _excess_table(of: Found) -> str:
    best = [mean(of.grid(size)[of.best(size)]).show() for size in of.others]
    lines: list[list[str]] = [["*best: its loss*", *best, ""]]
    for rule in of.ranked():
        cells = []
        for size in of.others:
            count = int(sum(column(of.of_rule(rule, size)[1], "diverged")))
            cells.append(f"diverged in {count}" if count else mean(of.excess(rule, size)).show(2))
        by_seed = zip(*(of.excess(rule, size) for size in of.others), strict=True)
        lines.append([rule, *cells, mean([float(np.mean(x)) for x in by_seed]).show(2)])
    return markdown(["rule", *(f"B = {size}" for size in of.others), "mean"], lines)


def _factor_table(of: Found) -> str:
    lines: list[list[str]] = [["*best*", *(of.best_rate(size).show(2) for size in of.sizes)]]
    for rule in [rule for rule in of.rules if rule not in NO_FACTOR]:
        factors = [of.of_rule(rule, s)[0] if s != of.base else 1.0 for s in of.sizes]
        lines.append([rule, *(f"{factor:.2g}" for factor in factors)])
    noise = []
    for size in of.sizes:
        known = column(of.of_rule("nothing changed", size)[1], "noise_scale")
        noise.append(mean([x for x in known if not math.isnan(x)]).show(2))
    lines.append(["*noise scale of the run*", *noise])
    return markdown(["rule", *(f"B = {size}" for size in of.sizes)], lines)


def _rates_figure(of: Found) -> Figure:
    figure, axes = style.panels(len(of.sizes), width=3.4)
    for axis, size in zip(axes, of.sizes, strict=True):
        grid, best = of.grid(size), of.best(size)
        style.band(axis, list(grid), np.array(list(grid.values())).T, color="#374151", marker=".")
        axis.plot(best, mean(grid[best]).value, "o", ms=13, mfc="none", color="#374151")
        for k, rule in enumerate(of.rules if size != of.base else ()):
            factor, rows = of.of_rule(rule, size)
            loss = average(rows, "loss").value
            axis.plot(factor, loss, ms=6, linestyle="none", label=rule, **_look(k))
        # From below the best to above the untouched rate, so that divergence does not hide it.
        far = max(_finite([*of.excess("nothing changed", size), *of.excess("sqrt", size)]))
        low = mean(grid[best]).value
        height = max(1.6 * far, 0.05 * abs(low))
        axis.set(title=f"B = {size}", xlabel="factor on the learning rate")
        axis.set_ylim(low - 0.15 * height, low + height)
        axis.set_xscale("log", base=2)
    axes[0].set_ylabel("final loss")
    style.legend_below(figure, axes[-1], columns=5)
    return figure


def _excess_figure(found: Mapping[str, Found]) -> Figure:
    figure, axes = style.panels(len(found), width=5.2)
    for axis, (name, of) in zip(axes, found.items(), strict=True):
        for k, rule in enumerate(of.rules):
            each = [mean(of.excess(rule, size)) for size in of.others]
            style.points(axis, of.others, each, label=rule, lw=1, **_look(k))
        axis.set(title=NAMES.get(name, name), xlabel="batch size", ylim=_limits(of))
        axis.set_xscale("log", base=2)
        axis.axhline(0, color="#111827", lw=0.8)
        axis.axvline(of.base, color="#9ca3af", lw=0.8, ls=":")
    axes[0].set_ylabel("loss above the best rate")
    style.legend_below(figure, axes[0], columns=5)
    return figure


def _limits(of: Found) -> tuple[float, float]:
    far = max(max(_finite(of.excess("nothing changed", s))) for s in of.others) or 1.0
    least = min(mean(_finite(of.excess(r, s))).value for r in of.rules for s in of.others)
    return min(1.1 * least, 0) - 0.1 * far, 2 * far


def _look(k: int) -> dict[str, Any]:
    """Colour and marker of the rule number k."""
    return {"color": style.COLORS[k % len(style.COLORS)], "marker": "osDv^<>PX*"[k % 10]}


def _or_inf(found: Mean) -> float:
    return found.value if math.isfinite(found.value) else math.inf


def _finite(values: Sequence[float]) -> list[float]:
    return [x for x in values if math.isfinite(x)] or [1.0]
