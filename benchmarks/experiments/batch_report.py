"""What is said of batch sizes by tests: verdict, tables and figures, from the rows."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes

from benchmarks.experiments.batch_methods import RAMPS, is_test
from benchmarks.experiments.experiment import Report, pick
from benchmarks.experiments.problems import PROBLEMS
from benchmarks.experiments.store import Store
from benchmarks.experiments.style import COLORS, band, legend_below, panels
from benchmarks.experiments.summary import Mean, folded, markdown, mean

APART = 3.0  # standard errors of a difference: with five seeds, one in twenty-five is so by chance
SHOWN = ("norm 3", "inner product 3", "augmented 3", "coordinate 3")  # as lines
OUTCOMES = ("better", "no difference seen", "worse")

Key = tuple[str, float, str]  # optimizer, learning rate, sizes
Rows = Sequence[Mapping[str, Any]]


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
        value, error, _ = self.difference
        if math.isfinite(value) and not abs(value) > APART * error:
            return OUTCOMES[1]
        return OUTCOMES[0] if value < 0 else OUTCOMES[2]


def report(store: Store) -> Report:
    """Of every problem: a table, what follows from it, and a figure."""
    parts, figures, captions = [], {}, {}
    duels: list[tuple[Duel, Duel | None]] = []
    held = 0
    for problem in dict.fromkeys(row["problem"] for row in store.rows):
        rows = pick(store.rows, problem=problem)
        methods = _methods(rows)
        found = _duels(methods)
        duels += found.values()
        held += sum(_holds(methods, key, best) for key, (best, _) in found.items())
        parts.append(f"### {_title(problem)}\n\n{_sentences(methods, found)}\n\n{_table(methods)}")
        if found:
            parts.append(_duel_table(methods, found))
        figures[f"_{problem}"] = _figure(pick(store.curves, problem=problem), methods)
        captions[f"_{problem}"] = (
            f"{_title(problem)}: batch size, loss, and updates against final loss, SGD with"
            " momentum. Bands are standard errors over seeds."
        )
    return Report("\n\n".join([_verdict(duels, held), *parts]), figures, captions)


def _methods(rows: Rows) -> dict[Key, Rows]:
    """Rows of each method, by seed."""
    methods: dict[Key, list[Any]] = {}
    for row in sorted(rows, key=lambda row: row["seed"]):
        key = row["optimizer"], row["learning_rate"], row["sizes"]
        methods.setdefault(key, []).append(row)
    return dict(methods)


def _of(rows: Rows, metric: str) -> Mean:
    return mean([float(row[metric]) for row in rows if metric in row])


def _loss(rows: Rows) -> float:
    """The mean final loss, infinite where a run diverged: never the best."""
    value = _of(rows, "loss").value
    return math.inf if any(row["diverged"] for row in rows) or math.isnan(value) else value


def _duels(methods: Mapping[Key, Rows]) -> dict[Key, tuple[Duel, Duel | None]]:
    """Each test against the best ramp, and against ramps of as many updates as it had."""
    found = {}
    for key, rows in methods.items():
        if not is_test(key[2]):
            continue
        ramps = {k[2]: r for k, r in methods.items() if k[:2] == key[:2] and k[2] in RAMPS}
        if not ramps:
            continue
        best = min(ramps, key=lambda name: _loss(ramps[name]))
        small = (*key[:2], "constant small")
        found[key] = (
            _duel(best, rows, ramps[best]),
            _duel_between(rows, {"constant small": methods.get(small, ()), **ramps}),
        )
    return found


def _holds(methods: Mapping[Key, Rows], key: Key, best: Duel) -> bool:
    """No worse, and really fewer updates: a batch that does not grow proves nothing."""
    optimizer = "SGD" if key[0] == "AdaScale" else key[0]  # the same where nothing grows
    small = methods.get((optimizer, key[1], "constant small"), ())
    fewer = _of(methods[key], "updates").value <= 0.9 * _of(small, "updates").value
    return best.outcome != OUTCOMES[2] and fewer


def _duel(name: str, rows: Rows, ramp: Rows) -> Duel:
    theirs = {row["seed"]: float(row["loss"]) for row in ramp}
    updates = _of(rows, "updates").value / _of(ramp, "updates").value
    return Duel(name, _difference(rows, theirs), updates)


def _duel_between(rows: Rows, ramps: Mapping[str, Rows]) -> Duel | None:
    """Against the line between the two ramps next to it in updates, over their logarithms."""
    updates = _of(rows, "updates").value
    whole = {name: r for name, r in ramps.items() if r and _loss(r) < math.inf}
    order = sorted(whole, key=lambda name: _of(whole[name], "updates").value)
    for low, high in itertools.pairwise(order):
        ends = [_of(whole[name], "updates").value for name in (low, high)]
        if ends[0] <= updates <= ends[1]:
            share = math.log(updates / ends[0]) / math.log(ends[1] / ends[0])
            above = {row["seed"]: float(row["loss"]) for row in whole[high]}
            theirs = {
                row["seed"]: float(row["loss"]) ** (1 - share) * above[row["seed"]] ** share
                for row in whole[low]
                if row["seed"] in above
            }
            return Duel(f"{low} – {high}", _difference(rows, theirs), 1.0)
    return None


def _difference(rows: Rows, theirs: Mapping[int, float]) -> Mean:
    if any(row["diverged"] for row in rows):
        return Mean(math.inf, math.nan, len(rows))
    return mean([float(row["loss"]) - theirs[row["seed"]] for row in rows if row["seed"] in theirs])


def _verdict(duels: Sequence[tuple[Duel, Duel | None]], held: int) -> str:
    """Over all problems and optimizers."""
    count = lambda some: ", ".join(
        f"{sum(duel.outcome == outcome for duel in some)} {outcome}" for outcome in OUTCOMES
    )
    at_cost = [between for _, between in duels if between is not None]
    fewest = len(duels) - len(at_cost)
    none = f" ({fewest} had fewer or more updates than all of them)" if fewest else ""
    return (
        f"**Verdict.** The claim holds for {held} of {len(duels)} tests with an optimizer on a"
        " problem: a loss not seen to be worse than that of the best ramp, and at most nine tenths"
        " of the updates of the constant small batch. Each test is compared with the ramp of the"
        " lowest mean loss, of two or four tried with the same optimizer and learning rate:"
        f" {count([best for best, _ in duels])}. With ramps of as many updates (the line between"
        " the two next to it, the constant small batch among them):"
        f" {count(at_cost)}{none}. Better and worse are differences, paired by seed, of more than"
        f" {APART:g} standard errors. The best ramp was chosen by how it"
        " ended; tolerances were set by a pilot for batches that grow, the same for all problems."
    )


def _sentences(methods: Mapping[Key, Rows], found: Mapping[Key, Any]) -> str:
    """What a reader of the table should see first."""
    lines = []
    for optimizer in dict.fromkeys(key[0] for key in methods):
        ramps = {k: r for k, r in methods.items() if k[0] == optimizer and k[2] in RAMPS}
        if not ramps:
            continue
        best = min(ramps, key=lambda key: _loss(ramps[key]))
        loss, updates = _of(ramps[best], "loss").show(), _of(ramps[best], "updates").value
        line = f"{optimizer}: the best ramp is *{best[2]}*, {loss} in {updates:.0f} updates"
        for outcome in OUTCOMES:
            names = [k[2] for k, (duel, _) in found.items()
                     if k[0] == optimizer and duel.outcome == outcome]  # fmt: skip
            line += f"; {outcome}: {', '.join(names)}" if names else ""
        lines.append(line + ".")
    return "\n".join(f"- {line}" for line in lines)


def _table(methods: Mapping[Key, Rows]) -> str:
    header = ["optimizer", "rate", "batch size", "updates", "largest", "final loss", "accuracy",
              "diverged", "seconds"]  # fmt: skip
    lines = []
    for (optimizer, rate, sizes), rows in methods.items():
        accuracy = _of(rows, "accuracy")
        percent = Mean(100 * accuracy.value, 100 * accuracy.error, accuracy.runs)
        diverged = sum(int(row["diverged"]) for row in rows)
        lines.append([
            optimizer, f"{rate:g}", sizes, f"{_of(rows, 'updates').value:.0f}",
            f"{_of(rows, 'largest').value:.0f}", _of(rows, "loss").show(4), percent.show(),
            f"{diverged} of {len(rows)}" if diverged else "–",
            f"{_of(rows, 'train_seconds').value:.2f}",
        ])  # fmt: skip
    return folded("All methods", markdown(header, lines))


def _duel_table(methods: Mapping[Key, Rows], found: Mapping[Key, Any]) -> str:
    """Tests against ramps."""
    header = ["optimizer", "test", "updates", "best ramp", "loss beside it", "updates beside it",
              "ramps of as many updates", "loss beside them"]  # fmt: skip

    def show(duel: Duel) -> str:
        value, error, _ = duel.difference
        return f"{value:+.2g} ± {error:.1g}: {duel.outcome}"

    lines = []
    for key, (best, between) in found.items():
        lines.append([
            key[0], key[2], f"{_of(methods[key], 'updates').value:.0f}", best.ramp, show(best),
            f"{best.updates:.2f}×", between.ramp if between else "none",
            show(between) if between else "–",
        ])  # fmt: skip
    return markdown(header, lines)


def _figure(curves: Rows, methods: Mapping[Key, Rows]) -> Any:
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
        updates, examples, losses = (_by_run(of_key, x) for x in ("updates", "seen", "loss"))
        if not np.isfinite(losses).all():
            continue
        grown = np.diff(examples, axis=1) / np.maximum(np.diff(updates, axis=1), 1)
        middle = examples.mean(0)
        band(size, (middle[1:] + middle[:-1]) / 2, grown, color=color, label=label)
        band(loss, middle, losses, color=color)
        band(steps, updates.mean(0), losses, color=color)
    _trade_off(trade, methods)
    for axis, x, y in ((size, "examples", "batch size"), (loss, "examples", "held-out loss"),
                       (steps, "updates", "held-out loss"),
                       (trade, "updates", "final held-out loss")):  # fmt: skip
        axis.set(xlabel=x, ylabel=y, yscale="log")
    size.set_yscale("log", base=2)
    steps.set_xscale("log")
    trade.set_xscale("log")
    legend_below(figure, size, columns=5)
    trade.legend(frameon=False, fontsize=7)
    return figure


def _trade_off(axis: Axes, methods: Mapping[Key, Rows]) -> None:
    """A point a method."""
    kinds = {
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
            losses = [_of(rows, "loss") for rows in chosen]
            axis.errorbar(
                [_of(rows, "updates").value for rows in chosen], [x.value for x in losses],
                [x.error for x in losses], fmt=marker, ms=5, color=color, label=kind,
            )  # fmt: skip


def _by_run(curves: Rows, column: str) -> np.ndarray:
    """[runs, points]."""
    runs: dict[Any, list[float]] = {}
    for row in curves:
        runs.setdefault(row["seed"], []).append(float(row[column]))
    shortest = min(len(run) for run in runs.values())
    return np.array([run[:shortest] for run in runs.values()])


def _title(problem: str) -> str:
    return (PROBLEMS[problem].__doc__ or problem).split("\n")[0].rstrip(".")
