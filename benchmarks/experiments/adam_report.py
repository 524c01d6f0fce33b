"""What the runs of Adam say: losses above the re-tuned learning rate, and where rules land."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.experiments import style
from benchmarks.experiments.experiment import Report, pick
from benchmarks.experiments.store import Store
from benchmarks.experiments.summary import Mean, markdown, mean

RETUNED = "re-tuned"
POWERS = {"nothing changed": 0.0, "sqrt": 0.5, "linear": 1.0}  # of B/B₀: points of the grid
NAMES = {"byte_lm": "byte LM, bits per byte", "digits_cnn": "digits CNN, test loss"}


class Found:
    """The runs of one problem.

    Attributes:
        base: Batch size at which Adam was tuned.
        sizes: All batch sizes.
        rules: Names of rules, powers first.
    """

    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self._rows = rows
        self.base = int(rows[0]["base"])
        self.sizes = sorted({int(row["batch_size"]) for row in rows})
        own = dict.fromkeys(str(row["rule"]) for row in rows if row["rule"] != RETUNED)
        self.rules = [*POWERS, *own]

    def grid(self, size: int) -> dict[float, list[float]]:
        """Losses by factor of the learning rate, one a seed."""
        rows = pick(self._rows, batch_size=size, rule=RETUNED)
        factors = sorted({float(row["factor"]) for row in rows})
        return {x: _column(pick(rows, factor=x), "loss") for x in factors}

    def best(self, size: int) -> float:
        """The factor whose mean loss is lowest."""
        grid = self.grid(size)
        return min(grid, key=lambda x: _mean_or_inf(grid[x]))

    def of_rule(self, rule: str, size: int) -> tuple[float, list[Mapping[str, Any]]]:
        """The factor of a rule at a batch size, and its runs."""
        if rule in POWERS:
            factor = (size / self.base) ** POWERS[rule]
            factors = self.grid(size)
            nearest = min(factors, key=lambda x: abs(math.log(x / factor)))
            return nearest, pick(self._rows, batch_size=size, rule=RETUNED, factor=nearest)
        rows = pick(self._rows, batch_size=size, rule=rule)
        return mean(_column(rows, "factor_at_end")).value, rows

    def excess(self, rule: str, size: int) -> list[float]:
        """Loss above that of the best factor, seed by seed."""
        best = self.grid(size)[self.best(size)]
        _, rows = self.of_rule(rule, size)
        return [x - y for x, y in zip(_column(rows, "loss"), best, strict=True)]

    def diverged(self, rule: str, size: int) -> int:
        """Runs that ended no better than a guess."""
        return int(sum(_column(self.of_rule(rule, size)[1], "diverged")))

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
    """The verdict, two tables a problem, and two figures."""
    names = list(dict.fromkeys(str(row["problem"]) for row in store.rows))
    found = {name: Found(pick(store.rows, problem=name)) for name in names}
    parts = [_how(store.rows[0])]
    for name, of in found.items():
        parts += [
            f"### {NAMES.get(name, name)}",
            _verdict(of),
            "Loss above that of the best learning rate at the same batch size, on the same seeds:",
            _excess_table(of),
            "Factor on the learning rate of the base batch. *Best* is the minimum of a parabola"
            " through the best point of the grid and its neighbours; a measured factor is that of"
            " the last step.",
            _factor_table(of),
        ]
    return Report(
        "\n\n".join(parts),
        {
            "": _excess_figure(found),
            **{f"_{name}": _rates_figure(of) for name, of in found.items()},
        },
        {
            "": "Loss of each rule above the best learning rate at the same batch size; the dotted"
            " line is the base batch.",
            **{
                f"_{name}": f"{NAMES.get(name, name)} over the factor on the learning rate (lines;"
                " the best factor is ringed), and where each rule lands."
                for name in found
            },
        },
    )


def _how(row: Mapping[str, Any]) -> str:
    return (
        f"Adam was tuned at B₀ = {row['base']}. At every other batch size the same number of"
        " examples is seen (so fewer steps when the batch is larger), under the same warm-up and"
        " cosine over examples. The learning rate is tuned anew at each size on a grid of factors"
        " of two; rules get no second chance. *gain^0.5* is `scale_by_adascale(exponent=0.5)`,"
        " *preconditioned* feeds it with `measure.adam_preconditioner`; *surge* is `rules.surge`"
        " at the noise scale measured so far; *Malladi*, *Marek* and *half-lives* are the rules of"
        " `scale_by_adam_with_batch`, the first with `rules.sqrt`, the others with the learning"
        " rate as it is, but where *sqrt* stands behind. Malladi's β1 leaves its range at"
        " B ≥ 10 B₀, and is held at 0 there."
    )


def _others(of: Found) -> list[int]:
    return [size for size in of.sizes if size != of.base]


def _mean_excess(of: Found, rule: str) -> Mean:
    """Over all sizes but the base, seed by seed."""
    return mean(
        [float(np.mean(x)) for x in zip(*(of.excess(rule, s) for s in _others(of)), strict=True)]
    )


def _worst(of: Found, rule: str) -> tuple[Mean, int]:
    """The largest excess of a rule, and at which batch size."""
    return max(
        ((mean(of.excess(rule, size)), size) for size in _others(of)),
        key=lambda found: _or_inf(found[0].value),
    )


def _verdict(of: Found) -> str:
    """By the worst batch size: what keeps the optimum may not lose it anywhere."""
    worst = {rule: _worst(of, rule) for rule in of.rules}
    winner = min(worst, key=lambda rule: _or_inf(worst[rule][0].value))
    at_most = lambda rule: f"{worst[rule][0].show(2)} (at B = {worst[rule][1]})"
    kept = [rule for rule in of.rules if not any(_worse(of, rule, s) for s in _others(of))]
    better = [
        f"{rule} at B = {size} (by {_gain(of, rule, size).show(2)})"
        for rule in of.rules
        for size in _others(of)
        if _gain(of, rule, size).value > 2 * _gain(of, rule, size).error
    ]
    text = (
        f"**{winner}** stays closest to the re-tuned learning rate: at most {at_most(winner)}"
        f" above it, against {at_most('nothing changed')} with nothing changed and"
        f" {at_most('linear')} under the linear rule. Nowhere worse than re-tuning by more than two"
        f" standard errors: {', '.join(kept) or 'none'}."
    )
    if better:
        text += (
            f" Better than re-tuning the learning rate alone: {'; '.join(better)}. (Rules that move"
            " the decays may be; the grid does not.)"
        )
    base = of.best(of.base)
    if base != 1:
        text += (
            f" The base itself was best at {base:g} times its learning rate on these seeds, so that"
            " all rules start beside the optimum."
        )
    return text


def _gain(of: Found, rule: str, size: int) -> Mean:
    """How much better than the best learning rate."""
    return mean([-x for x in of.excess(rule, size)])


def _worse(of: Found, rule: str, size: int) -> bool:
    found = mean(of.excess(rule, size))
    return not found.value <= 2 * found.error


def _excess_table(of: Found) -> str:
    header = ["rule", *(f"B = {size}" for size in _others(of)), "mean"]
    lines: list[list[Any]] = [
        [
            "*best: its loss*",
            *(mean(of.grid(size)[of.best(size)]).show() for size in _others(of)),
            "",
        ]
    ]
    ranked = sorted(of.rules, key=lambda rule: _or_inf(_worst(of, rule)[0].value))
    for rule in ranked:
        cells = []
        for size in _others(of):
            count = of.diverged(rule, size)
            cells.append(f"diverged in {count}" if count else mean(of.excess(rule, size)).show(2))
        lines.append([rule, *cells, _mean_excess(of, rule).show(2)])
    return markdown(header, lines)


def _factor_table(of: Found) -> str:
    header = ["rule", *(f"B = {size}" for size in of.sizes)]
    lines: list[list[Any]] = [["*best*", *(of.best_rate(size).show(2) for size in of.sizes)]]
    for rule in [r for r in of.rules if r not in ("Marek", "half-lives", "half-lives, sqrt")]:
        cells = [
            f"{of.of_rule(rule, size)[0]:.2g}" if size != of.base else "1" for size in of.sizes
        ]
        lines.append([rule, *cells])
    noise = [
        mean(
            [x for x in _column(of.of_rule("nothing changed", s)[1], "noise_scale") if x == x]
        ).show(2)
        for s in of.sizes
    ]
    return markdown(header, [*lines, ["*noise scale of the run*", *noise]])


def _rates_figure(of: Found) -> Any:
    figure, axes = style.panels(len(of.sizes), width=3.4)
    for axis, size in zip(axes, of.sizes, strict=True):
        grid = of.grid(size)
        best = of.best(size)
        runs = np.array(list(grid.values())).T
        style.band(axis, list(grid), runs, color="#374151", marker=".")
        axis.plot(best, mean(grid[best]).value, "o", ms=13, mfc="none", color="#374151")
        if size != of.base:
            _place_rules(axis, of, size)
        axis.set(title=f"B = {size}", xlabel="factor on the learning rate")
        axis.set_ylim(*_limits(of, size))
        axis.set_xscale("log", base=2)
    axes[0].set_ylabel("final loss")
    style.legend_below(figure, axes[-1], columns=5)
    return figure


def _limits(of: Found, size: int) -> tuple[float, float]:
    """From below the best to a bit above the untouched rate, so that divergence does not hide."""
    best = mean(of.grid(size)[of.best(size)]).value
    far = max(_finite([*of.excess("nothing changed", size), *of.excess("sqrt", size)]))
    height = max(1.6 * far, 0.05 * abs(best))
    return best - 0.15 * height, best + height


def _place_rules(axis: Any, of: Found, size: int) -> None:
    for k, rule in enumerate(of.rules):
        factor, rows = of.of_rule(rule, size)
        loss = mean(_column(rows, "loss")).value
        color, marker = style.COLORS[k % len(style.COLORS)], "osDv^<>PX*"[k % 10]
        axis.plot(factor, loss, marker, ms=6, color=color, label=rule, linestyle="none")


def _excess_figure(found: Mapping[str, Found]) -> Any:
    figure, axes = style.panels(len(found), width=5.2)
    for axis, (name, of) in zip(axes, found.items(), strict=True):
        for k, rule in enumerate(of.rules):
            each = [mean(of.excess(rule, size)) for size in _others(of)]
            color, marker = style.COLORS[k % len(style.COLORS)], "osDv^<>PX*"[k % 10]
            axis.errorbar(
                _others(of), [x.value for x in each], [x.error for x in each],
                marker=marker, color=color, label=rule, lw=1, capsize=2,
            )  # fmt: skip
        far = max(max(_finite(of.excess("nothing changed", s))) for s in _others(of)) or 1.0
        least = min(mean(_finite(of.excess(r, s))).value for r in of.rules for s in _others(of))
        limits = (min(1.1 * least, 0) - 0.1 * far, 2 * far)
        axis.set(title=NAMES.get(name, name), xlabel="batch size", ylim=limits)
        axis.set_xscale("log", base=2)
        axis.axhline(0, color="#111827", lw=0.8)
        axis.axvline(of.base, color="#9ca3af", lw=0.8, ls=":")
    axes[0].set_ylabel("loss above the best rate")
    style.legend_below(figure, axes[0], columns=5)
    return figure


def _column(rows: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    """A column in the order of the seeds."""
    return [float(row.get(name, math.nan)) for row in sorted(rows, key=lambda row: row["seed"])]


def _mean_or_inf(values: Sequence[float]) -> float:
    return _or_inf(mean(values).value)


def _or_inf(value: float) -> float:
    return value if math.isfinite(value) else math.inf


def _finite(values: Sequence[float]) -> list[float]:
    return [x for x in values if math.isfinite(x)] or [1.0]
