"""What eight devices say of the noise, beside what every example says."""

from matplotlib.figure import Figure

from benchmarks.experiments import style
from benchmarks.experiments.experiment import Report, Verdict
from benchmarks.experiments.store import Store
from benchmarks.experiments.summary import (
    SAME,
    Mean,
    Rows,
    average,
    mean,
    paired,
    pick,
    split,
)
from benchmarks.tables import markdown

REACHED = "until_"
WAYS = ("every example", "8 devices")
LOOKS = dict(zip(WAYS, ("#4b5563", style.COLORS[0]), strict=True))
APART = 2  # standard errors of a difference that count
SAME_STEPS = (
    "The same steps at a fixed batch of 64, so 8 examples a device. *Truth* is that of all data at"
    " the same parameters, at 24 of the steps and linear between them. Spreads are standard"
    " deviations over steps: of the quotient on their left; for the requirement of its log2 (1 is a"
    " factor of two), where there was a signal:"
)
DRIVEN = (
    "Runs whose batch (32, 64, ..., 512) follows the test. Examples at which the batch reaches a"
    " size, the end of the run where it does not; the difference is seed by seed, and curves differ"
    f" where it is more than {APART} standard errors:"
)
DRIVEN_CAPTION = (
    "The batch over the examples seen, in runs driven by the statistics of 8 devices and by those"
    " of every example (mean and standard error over seeds)."
)
SAME_CAPTION = (
    "One run at a fixed batch: S² and the batch that the norm test requires, by 8 devices, by every"
    " example, and the truth."
)


def report(store: Store) -> Report:
    """The verdict, a table of each kind, and two figures."""
    same, driven = pick(store.rows, kind="same steps"), pick(store.rows, kind="driven")
    return Report(
        [_verdict(same, driven), SAME_STEPS, _same_table(same), DRIVEN, _driven_table(driven)],
        {
            "": (_driven_figure(pick(store.curves, kind="driven")), DRIVEN_CAPTION),
            "_same_steps": (_same_figure(pick(store.curves, kind="same steps")), SAME_CAPTION),
        },
    )


def _verdict(same: Rows, driven: Rows) -> Verdict:
    by_decay = split(driven, "decay")
    one, eight = (pick(same, source=way, decay=min(by_decay)) for way in WAYS)
    percent = lambda x, sign="": f"{100 * x.value:{sign}.1f} ± {100 * x.error:.1g} %"
    off = lambda x: x._replace(value=x.value - 1)
    bias, truth = (off(average(eight, f"variance_over_{x}")) for x in ("examples", "truth"))
    scatter = [percent(average(rows, "variance_spread")) for rows in (eight, one)]
    beside = percent(average(eight, "spread_beside_examples"))
    shows = "no bias that shows" if bias.outcome(APART) == SAME else "a bias"
    verdict: dict[str, str | list[str]] = {
        "S² from 8 devices over a run": [
            f"{percent(bias, '+')} off that of every example of the same batches ({shows})",
            f"{percent(truth, '+')} off the truth",
        ],
        "Single steps": [
            f"the two differ by {beside}, with 7 degrees of freedom against 63",
            f"around the truth they scatter by {' and '.join(scatter)}: what a batch happens to"
            " hold, which all statistics of it share",
        ],
    }
    for decay, rows in by_decay.items():
        apart = {f"{size}": _apart(rows, size) for size in _sizes(driven)}
        differ = [size for size, x in apart.items() if x.outcome(APART) != SAME]
        largest = max(apart.values(), key=lambda x: abs(x.value))
        verdict[f"Batch curves with decay {decay:g}"] = [
            f"differ at {', '.join(differ)}" if differ else "coincide",
            f"largest mean difference {_count(largest, '+')} examples",
        ]
    return verdict


def _sizes(rows: Rows) -> list[int]:
    return [int(k.removeprefix(REACHED)) for k in rows[0] if k.startswith(REACHED)]


def _apart(rows: Rows, size: int) -> Mean:
    """Examples at which devices reach a size minus those of every example, seed by seed."""
    one, eight = (pick(rows, source=way) for way in WAYS)
    return mean(paired(eight, one, f"{REACHED}{size}"))


def _same_table(rows: Rows) -> str:
    """Sources and decays, those without `vary` last."""
    lines, last = [], []
    for (source, decay), of in split(rows, "source", "decay").items():
        show = lambda name, of=of: average(of, name).show()
        cells = [source, _decay(decay), show("variance_over_truth"), show("variance_spread")]
        cells += [show("variance_over_examples"), show("spread_beside_examples")]
        if "required_over_truth" in of[0]:
            no_signal = f"{100 * average(of, 'no_signal').value:.0f} %"
            lines.append([*cells, show("required_over_truth"), show("required_spread"), no_signal])
        else:
            caught = all(row["refused"] for row in of)
            outcome = "refused by `stats_from_axis`" if caught else "**not refused**"
            last.append([*cells, "0: it never grows", "", outcome])
    header = ["statistics of", "decay of the test", "S² / truth", "spread of S²"]
    header += ["S² / that of every example", "its spread"]
    header += ["requirement / truth, median", "its spread", "steps without signal"]
    return markdown(header, lines + last)


def _decay(decay: float) -> str:
    return f"{decay:g}" if decay else "none"


def _driven_table(rows: Rows) -> str:
    sizes = _sizes(rows)
    quality = "test_accuracy" if "test_accuracy" in rows[0] else "bits_per_byte"
    lines: list[list[str]] = []
    for decay, some in sorted(split(rows, "decay").items()):
        for way in WAYS:
            of = pick(some, source=way)
            cells = [_count(average(of, f"{REACHED}{size}")) for size in sizes]
            last = [_count(average(of, "updates")), average(of, quality).show()]
            lines.append([_decay(decay), way, *cells, *last])
        cells = [_count(_apart(some, size), sign="+") for size in sizes]
        lines.append([_decay(decay), "*difference*", *cells, "", ""])
    header = ["decay", "statistics of", *(f"reaches {size}" for size in sizes), "updates"]
    return markdown([*header, quality.replace("_", " ")], lines)


def _count(found: Mean, sign: str = "") -> str:
    return f"{found.value:{sign},.0f} ± {found.error:,.0f}"


def _title(decay: float) -> str:
    return f"decay {decay:g}" if decay else "each test alone"


def _driven_figure(curves: Rows) -> Figure:
    by_decay = sorted(split(curves, "decay").items())
    figure, axes = style.panels(len(by_decay))
    for axis, (decay, rows) in zip(axes, by_decay, strict=True):
        for way, color in LOOKS.items():
            x, runs = (style.by_run(pick(rows, source=way), name) for name in ("at", "batch_size"))
            style.band(axis, x[0], runs, color=color, label=way)
        axis.set(title=_title(decay), xlabel="examples")
        axis.set_yscale("log", base=2)
    axes[0].set_ylabel("batch size")
    style.legend_below(figure, axes[0])
    return figure


def _same_figure(curves: Rows) -> Figure:
    curves = pick(curves, seed=min(row["seed"] for row in curves))
    decays = sorted({row["decay"] for row in curves})
    shown = [("S²", "variance", decays[0])]
    shown += [(f"required, {_title(decay)}", "required", decay) for decay in decays]
    figure, axes = style.panels(len(shown))
    for axis, (title, name, decay) in zip(axes, shown, strict=True):
        for way in reversed(WAYS):
            of = pick(curves, source=way, decay=decay)
            x = [row["at"] for row in of]
            axis.plot(x, [row[name] for row in of], color=LOOKS[way], label=way, lw=1)
        axis.plot(x, [row[f"true_{name}"] for row in of], color="#111827", ls="--", label="truth")
        axis.set(title=title, xlabel="examples", yscale="log")
    style.legend_below(figure, axes[0])
    return figure
