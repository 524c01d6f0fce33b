"""What eight devices say of the noise, beside what every example says."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.experiments import style
from benchmarks.experiments.experiment import Report, pick
from benchmarks.experiments.store import Store
from benchmarks.experiments.summary import Mean, markdown, mean

REACHED = "until_"
WAYS = ("every example", "8 devices")

Row = Mapping[str, Any]


def report(store: Store) -> Report:
    """The verdict, a table of each kind, and two figures."""
    same, driven = pick(store.rows, kind="same steps"), pick(store.rows, kind="driven")
    parts = [
        _verdict(same, driven),
        "The same steps at a fixed batch of 64, so 8 examples a device. *Truth* is that of all"
        " data at the same parameters, at 24 of the steps and linear between them."
        " Spreads are standard deviations over steps: of the quotient"
        " on their left; for the requirement of its log2 (1 is a factor of two), where there was a"
        " signal:",
        _same_table(same),
        "Runs whose batch (32, 64, ..., 512) follows the test. Examples at which the batch reaches"
        " a size, the end of the run where it does not; the difference is seed by seed:",
        _driven_table(driven),
    ]
    return Report(
        "\n\n".join(parts),
        {"": _driven_figure(store), "_same_steps": _same_figure(store)},
        {
            "": "The batch over the examples seen, in runs driven by the statistics of 8 devices"
            " and by those of every example (mean and standard error over seeds).",
            "_same_steps": "One run at a fixed batch: S² and the batch that the norm test requires,"
            " by 8 devices, by every example, and the truth.",
        },
    )


def _verdict(same: Sequence[Row], driven: Sequence[Row]) -> str:
    decays = sorted({row["decay"] for row in driven})
    eight, one = (pick(same, source=way, decay=decays[0]) for way in reversed(WAYS))
    metric = lambda rows, name: mean(_column(rows, name))
    bias, truth = (metric(eight, f"variance_over_{x}") for x in ("examples", "truth"))
    percent = lambda x, sign="": f"{100 * x.value:{sign}.1f} ± {100 * x.error:.1g} %"
    off = lambda x: percent(x._replace(value=x.value - 1), "+")
    biased = abs(bias.value - 1) > 2 * bias.error
    text = (
        f"Over a run S² from 8 devices is {off(bias)} off that of every example of the same"
        f" batches ({'a bias' if biased else 'no bias that shows'}), and {off(truth)} off the"
        f" truth. Single steps differ between the two by"
        f" {percent(metric(eight, 'spread_beside_examples'))}, with 7 degrees of freedom against"
        f" 63; around the truth they scatter by {percent(metric(eight, 'variance_spread'))} and"
        f" {percent(metric(one, 'variance_spread'))}: what a batch happens to hold, which all"
        " statistics of it share."
    )
    for decay in decays:
        apart = {size: _apart(driven, decay, size) for size in _sizes(driven)}
        told = [size for size, x in apart.items() if abs(x.value) > 2 * x.error]
        largest = max(apart.values(), key=lambda x: abs(x.value))
        text += (
            f" With decay {decay:g} the batch curves "
            + ("coincide" if not told else f"differ at {', '.join(map(str, told))}")
            + f" (largest mean difference {largest.value:+.0f} ± {largest.error:.0f} examples)."
        )
    return text + " (*Differ*: by more than two standard errors.)"


def _sizes(rows: Sequence[Row]) -> list[int]:
    return [int(k.removeprefix(REACHED)) for k in rows[0] if k.startswith(REACHED)]


def _apart(rows: Sequence[Row], decay: float, size: int) -> Mean:
    """Examples at which devices reach a size minus those of every example, seed by seed."""
    one, eight = (_column(pick(rows, source=w, decay=decay), f"{REACHED}{size}") for w in WAYS)
    return mean([b - a for a, b in zip(one, eight, strict=True)])


def _column(rows: Sequence[Row], name: str) -> list[float]:
    """A column in the order of the seeds."""
    return [float(row[name]) for row in sorted(rows, key=lambda row: row["seed"])]


def _same_table(rows: Sequence[Row]) -> str:
    header = ["statistics of", "decay of the test", "S² / truth", "spread of S²"]
    header += ["S² / that of every example", "its spread"]
    header += ["requirement / truth, median", "its spread", "steps without signal"]
    lines = []
    for source, decay in dict.fromkeys((row["source"], row["decay"]) for row in rows):
        of = pick(rows, source=source, decay=decay)
        cells: list[Any] = [source, f"{decay:g}" if decay else "none"]
        names = ("variance_over_truth", "variance_spread", "variance_over_examples")
        cells += [mean(_column(of, k)).show() for k in (*names, "spread_beside_examples")]
        if "required_over_truth" in of[0]:
            cells += [mean(_column(of, f"required_{k}")).show() for k in ("over_truth", "spread")]
            cells.append(f"{100 * mean(_column(of, 'no_signal')).value:.0f} %")
        else:
            caught = all(_column(of, "refused"))
            outcome = "refused by `stats_from_axis`" if caught else "**not refused**"
            cells += ["0: it never grows", "", outcome]
        lines.append(cells)
    last = [line for line in lines if "without" in line[0]]
    return markdown(header, [*(line for line in lines if line not in last), *last])


def _driven_table(rows: Sequence[Row]) -> str:
    sizes = _sizes(rows)
    header = ["decay", "statistics of", *(f"reaches {size}" for size in sizes), "updates"]
    quality = "test_accuracy" if "test_accuracy" in rows[0] else "bits_per_byte"
    lines: list[list[Any]] = []
    for decay in sorted({row["decay"] for row in rows}):
        name = f"{decay:g}" if decay else "none"
        for way in WAYS:
            of = pick(rows, source=way, decay=decay)
            cells = [_count(mean(_column(of, f"{REACHED}{size}"))) for size in sizes]
            last = [_count(mean(_column(of, "updates"))), mean(_column(of, quality)).show()]
            lines.append([name, way, *cells, *last])
        cells = [_count(_apart(rows, decay, size), sign="+") for size in sizes]
        lines.append([name, "*difference*", *cells, "", ""])
    return markdown([*header, quality.replace("_", " ")], lines)


def _count(found: Mean, sign: str = "") -> str:
    return f"{found.value:{sign},.0f} ± {found.error:,.0f}"


def _driven_figure(store: Store) -> Any:
    curves = pick(store.curves, kind="driven")
    decays = sorted({row["decay"] for row in curves})
    figure, axes = style.panels(len(decays))
    for axis, decay in zip(axes, decays, strict=True):
        for way, color in zip(WAYS, ("#4b5563", style.COLORS[0]), strict=True):
            of = pick(curves, source=way, decay=decay)
            seeds = sorted({row["seed"] for row in of})
            runs = [[row["batch_size"] for row in pick(of, seed=seed)] for seed in seeds]
            x = [row["at"] for row in pick(of, seed=seeds[0])]
            style.band(axis, x, np.array(runs), color=color, label=way)
        axis.set(title=f"decay {decay:g}" if decay else "each test alone", xlabel="examples")
        axis.set_yscale("log", base=2)
    axes[0].set_ylabel("batch size")
    style.legend_below(figure, axes[0])
    return figure


def _same_figure(store: Store) -> Any:
    curves = pick(store.curves, kind="same steps")
    curves = pick(curves, seed=min(row["seed"] for row in curves))
    decays = sorted({row["decay"] for row in curves})
    figure, axes = style.panels(1 + len(decays))
    ways = list(zip(WAYS, ("#4b5563", style.COLORS[0]), strict=True))
    for axis, decay, name in zip(
        axes, [decays[0], *decays], ["variance", *["required"] * len(decays)], strict=True
    ):
        for way, color in reversed(ways):
            of = pick(curves, source=way, decay=decay)
            x = [row["at"] for row in of]
            axis.plot(x, [row[name] for row in of], color=color, label=way, lw=1)
        axis.plot(x, [row[f"true_{name}"] for row in of], color="#111827", ls="--", label="truth")
        title = f"decay {decay:g}" if decay else "each test alone"
        axis.set(title="S²" if name == "variance" else f"required, {title}", xlabel="examples")
        axis.set_yscale("log")
    style.legend_below(figure, axes[0])
    return figure
