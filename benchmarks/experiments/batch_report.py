"""What is said of batch sizes by tests: verdict, tables and figures, from the rows."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.experiments.batch_methods import RAMPS, is_test
from benchmarks.experiments.experiment import Report, Verdict
from benchmarks.experiments.problems import PROBLEMS
from benchmarks.experiments.store import Store
from benchmarks.experiments.style import COLORS, band, by_run, legend_below, panels, points
from benchmarks.experiments.summary import (
    OUTCOMES,
    WORSE,
    Mean,
    Rows,
    average,
    folded,
    judged,
    mean,
    paired,
    pick,
    split,
    table,
)

APART = 3.0  # standard errors of a difference: with five seeds, one in twenty-five is so by chance
SHOWN = ("norm 3", "inner product 3", "augmented 3", "coordinate 3")  # as lines
NOTES = (
    "The claim asks for a loss not seen to be worse than that of the best ramp, and at most nine"
    " tenths of the updates of the constant small batch. The best ramp is that of the lowest mean"
    " loss, of two or four tried with the same optimizer and learning rate, chosen by how it ended."
    " Ramps of as many updates are the line between the two next to the test, the constant small"
    f" batch among them. Better and worse are differences, paired by seed, of more than {APART:g}"
    " standard errors. Tolerances were set by a pilot for batches that grow, the same for all"
    " problems."
)

Key = tuple[str, float, str]  # optimizer, learning rate, sizes
Methods = Mapping[Key, Rows]


class Duel(NamedTuple):
    """A test against a ramp.

    Attributes:
        ramp: Which one, or which two it lies between.
        difference: Loss of the test less that of the ramp, paired by seed; infinite where a run of
            the test diverged.
        updates: Updates of the test over those of the ramp.
    """

    ramp: str
    difference: Mean
    updates: float

    @property
    def outcome(self) -> str:
        """One of `OUTCOMES`."""
        return self.difference.outcome(APART)

    def show(self) -> str:
        """As in "+0.03 ± 0.01: worse"."""
        return f"{self.difference.value:+.2g} ± {self.difference.error:.1g}: {self.outcome}"


def report(store: Store) -> Report:
    """Of every problem: a table, what follows from it, and a figure."""
    parts: list[str | Verdict] = []
    figures: dict[str, tuple[Figure, str]] = {}
    duels: list[tuple[Duel, Duel | None]] = []
    held = 0
    for problem, rows in split(store.rows, "problem").items():
        methods = methods_of(rows)
        found = duels_of(methods)
        duels += found.values()
        held += sum(_holds(methods, key, best) for key, (best, _) in found.items())
        parts += [f"### {_title(problem)}", _verdict(methods, found), _table(methods)]
        if found:
            parts.append(_duel_table(methods, found))
        caption = "batch size, loss, and updates against final loss, SGD with momentum. Bands are"
        figures[f"_{problem}"] = (
            _figure(pick(store.curves, problem=problem), methods),
            f"{_title(problem)}: {caption} standard errors over seeds.",
        )
    return Report([_overall(duels, held), NOTES, *parts], figures)


def methods_of(rows: Rows) -> Methods:
    """Rows of each method."""
    return split(rows, "optimizer", "learning_rate", "sizes")


def duels_of(methods: Methods) -> dict[Key, tuple[Duel, Duel | None]]:
    """Each test against the best ramp, and against ramps of as many updates as it had."""
    found = {}
    for key, rows in methods.items():
        ramps = {k[2]: r for k, r in methods.items() if k[:2] == key[:2] and k[2] in RAMPS}
        if not is_test(key[2]) or not ramps:
            continue
        best = min(ramps, key=lambda name: _loss(ramps[name]))
        small = {"constant small": methods.get((*key[:2], "constant small"), ())}
        updates = _updates(rows) / _updates(ramps[best])
        duel = Duel(best, _difference(rows, ramps[best]), updates)
        found[key] = duel, _duel_between(rows, small | ramps)
    return found


def _updates(rows: Rows) -> float:
    return average(rows, "updates").value


def _loss(rows: Rows) -> float:
    """The mean final loss, infinite where a run diverged: never the best."""
    value = average(rows, "loss").value
    return math.inf if any(row["diverged"] for row in rows) or math.isnan(value) else value


def _difference(rows: Rows, ramp: Rows) -> Mean:
    if any(row["diverged"] for row in rows):
        return Mean(math.inf, math.nan, len(rows))
    return mean(paired(rows, ramp, "loss"))


def _duel_between(rows: Rows, ramps: Mapping[str, Rows]) -> Duel | None:
    """Against the line between the two ramps next to it in updates, over their logarithms."""
    updates = _updates(rows)
    whole = {name: ramp for name, ramp in ramps.items() if ramp and _loss(ramp) < math.inf}
    order = sorted(whole, key=lambda name: _updates(whole[name]))
    for low, high in itertools.pairwise(order):
        least, most = _updates(whole[low]), _updates(whole[high])
        if least <= updates <= most:
            share = math.log(updates / least) / math.log(most / least)
            above = {row["seed"]: float(row["loss"]) for row in whole[high]}
            line = [
                {"seed": s, "loss": float(row["loss"]) ** (1 - share) * above[s] ** share}
                for row in whole[low]
                if (s := row["seed"]) in above
            ]
            return Duel(f"{low} – {high}", _difference(rows, line), 1.0)
    return None


def _holds(methods: Methods, key: Key, best: Duel) -> bool:
    """No worse, and really fewer updates: a batch that does not grow proves nothing."""
    optimizer = "SGD" if key[0] == "AdaScale" else key[0]  # the same where nothing grows
    small = methods.get((optimizer, key[1], "constant small"), ())
    return best.outcome != WORSE and _updates(methods[key]) <= 0.9 * _updates(small)


def _overall(duels: Sequence[tuple[Duel, Duel | None]], held: int) -> Verdict:
    """Over all problems and optimizers."""
    count = lambda some: [
        f"{sum(duel.outcome == outcome for duel in some)} {outcome}" for outcome in OUTCOMES
    ]
    at_cost = [between for _, between in duels if between is not None]
    fewest = len(duels) - len(at_cost)
    none = [f"{fewest} had fewer or more updates than all of them"] if fewest else []
    return {
        "The claim holds": f"for {held} of {len(duels)} tests with an optimizer on a problem",
        "Beside the best ramp": count([best for best, _ in duels]),
        "Beside ramps of as many updates": count(at_cost) + none,
    }


def _verdict(methods: Methods, found: Mapping[Key, tuple[Duel, Duel | None]]) -> Verdict:
    """Of one problem, by optimizer."""
    verdict = {}
    for optimizer in dict.fromkeys(key[0] for key in methods if key[2] in RAMPS):
        ramps = {k: r for k, r in methods.items() if k[0] == optimizer and k[2] in RAMPS}
        best = min(ramps, key=lambda key: _loss(ramps[key]))
        loss, updates = average(ramps[best], "loss").show(), _updates(ramps[best])
        own = {key[2]: duel.difference for key, (duel, _) in found.items() if key[0] == optimizer}
        asked = f"{optimizer}, beside *{best[2]}* ({loss} in {updates:.0f} updates)"
        verdict[asked] = judged(own, APART)
    return verdict


def _table(methods: Methods) -> str:
    gone = lambda rows: sum(int(row["diverged"]) for row in rows)
    columns: dict[str, Callable[[Key, Rows], str]] = {
        "optimizer": lambda key, _: key[0],
        "rate": lambda key, _: f"{key[1]:g}",
        "batch size": lambda key, _: key[2],
        "updates": lambda _, rows: f"{_updates(rows):.0f}",
        "largest": lambda _, rows: f"{average(rows, 'largest').value:.0f}",
        "final loss": lambda _, rows: average(rows, "loss").show(4),
        "accuracy": lambda _, rows: average(rows, "accuracy").times(100).show(),
        "diverged": lambda _, rows: f"{gone(rows)} of {len(rows)}" if gone(rows) else "–",
        "seconds": lambda _, rows: f"{average(rows, 'train_seconds').value:.2f}",
    }
    return folded("All methods", table(methods, columns))


def _duel_table(methods: Methods, found: Mapping[Key, tuple[Duel, Duel | None]]) -> str:
    """Tests against ramps."""
    between = lambda key: found[key][1]
    columns: dict[str, Callable[[Key, Rows], str]] = {
        "optimizer": lambda key, _: key[0],
        "test": lambda key, _: key[2],
        "updates": lambda _, rows: f"{_updates(rows):.0f}",
        "best ramp": lambda key, _: found[key][0].ramp,
        "loss beside it": lambda key, _: found[key][0].show(),
        "updates beside it": lambda key, _: f"{found[key][0].updates:.2f}×",
        "ramps of as many updates": lambda key, _: x.ramp if (x := between(key)) else "none",
        "loss beside them": lambda key, _: x.show() if (x := between(key)) else "–",
    }
    return table({key: methods[key] for key in found}, columns)


def _figure(curves: Rows, methods: Methods) -> Figure:
    """Batch size and loss over examples, loss over updates, and the trade-off of all methods."""
    figure, (size, loss, steps, trade) = panels(4, width=3.6)
    sgd = {key: rows for key, rows in methods.items() if key[0] == "SGD"}
    large = {k: r for k, r in sgd.items() if k[2] == "constant large"}
    ramps = {k: r for k, r in sgd.items() if k[2] in RAMPS}
    best = [min(some, key=lambda k: _loss(some[k])) for some in (large, ramps) if some]
    lines = [k for k in sgd if k in best or k[2] in ("constant small", "SEBS", *SHOWN)]
    for color, key in zip(COLORS, lines, strict=False):
        label = f"{key[2]} (best)" if key in best else key[2]
        of_key = pick(curves, optimizer="SGD", learning_rate=key[1], sizes=key[2])
        updates, examples, losses = (by_run(of_key, x) for x in ("updates", "seen", "loss"))
        if not np.isfinite(losses).all():
            continue
        grown = np.diff(examples, axis=1) / np.maximum(np.diff(updates, axis=1), 1)
        middle = examples.mean(0)
        band(size, (middle[1:] + middle[:-1]) / 2, grown, color=color, label=label)
        band(loss, middle, losses, color=color)
        band(steps, updates.mean(0), losses, color=color)
    _trade_off(trade, methods)
    size.set(xlabel="examples", ylabel="batch size")
    loss.set(xlabel="examples", ylabel="held-out loss", yscale="log")
    steps.set(xlabel="updates", ylabel="held-out loss", yscale="log", xscale="log")
    trade.set(xlabel="updates", ylabel="final held-out loss", yscale="log", xscale="log")
    size.set_yscale("log", base=2)
    legend_below(figure, size, columns=5)
    trade.legend(frameon=False, fontsize=7)
    return figure


def _trade_off(axis: Axes, methods: Methods) -> None:
    """A point a method."""
    kinds: dict[str, Callable[[Key], bool]] = {
        "constant": lambda key: key[0] == "SGD" and key[2].startswith("constant"),
        "ramp": lambda key: key[0] == "SGD" and key[2] in RAMPS,
        "SEBS": lambda key: key[2] == "SEBS",
        "test": lambda key: key[0] == "SGD" and is_test(key[2]),
        "ramp + AdaScale": lambda key: key[0] == "AdaScale" and key[2] in RAMPS,
        "test + AdaScale": lambda key: key[0] == "AdaScale" and is_test(key[2]),
    }
    for (kind, holds), marker, color in zip(kinds.items(), "sovDo^", COLORS, strict=False):
        chosen = [rows for key, rows in methods.items() if holds(key) and _loss(rows) < math.inf]
        if chosen:
            x, losses = [_updates(r) for r in chosen], [average(r, "loss") for r in chosen]
            points(axis, x, losses, fmt=marker, ms=5, color=color, label=kind, capsize=None)


def _title(problem: str) -> str:
    return (PROBLEMS[problem].__doc__ or problem).split("\n")[0].rstrip(".")
