"""The batch changes in the middle of a run: AdaScale continues at the same τ, nothing is tuned."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.experiments import style
from benchmarks.experiments.adascale import SETTINGS
from benchmarks.experiments.experiment import Case, Experiment, Outcome, Report, Size, main, pick
from benchmarks.experiments.scaled_report import Quality
from benchmarks.experiments.scaled_runs import Phases, Setting, run_adascale, run_fixed
from benchmarks.experiments.store import Store
from benchmarks.experiments.summary import markdown, mean

_METHODS = {"adascale": "AdaScale", "lsw": "LSW"}
_SCALES: dict[Size, tuple[tuple[int, ...], ...]] = {
    "tiny": ((1,), (1, 4)),
    "default": ((1,), (16,), (64,), (1, 16, 4), (4, 16, 64), (64, 16, 4)),
    "full": ((1,), (32,), (128,), (1, 128, 8), (32, 64, 128), (128, 64, 32)),
}


def phases_of(scales: str) -> Phases:
    """Each S and where it ends: the changes come at a quarter and a half, as in the paper."""
    each = [int(part) for part in scales.removeprefix("S = ").split(" → ")]
    ends = {1: (1.0,), 2: (0.25, 1.0), 3: (0.25, 0.5, 1.0)}[len(each)]
    return tuple(zip(each, ends, strict=True))


def cases(size: Size) -> list[Case]:
    """Constant S first, then those that change."""
    shown = ["S = " + " → ".join(map(str, scales)) for scales in _SCALES[size]]
    return [
        {**SETTINGS[size]["digits_cnn"]._asdict(), "scales": scales, "method": method}
        for scales in shown
        for method in _METHODS
        if scales != "S = 1" or method == "adascale"  # they are the same
    ]


def run(case: Case, seeds: Sequence[int]) -> list[Outcome]:
    """One run a seed."""
    setting, phases = Setting.of_case(case), phases_of(str(case["scales"]))
    if case["method"] == "adascale":
        return [run_adascale(setting, phases, seed) for seed in seeds]
    examples = setting.steps * setting.base_batch
    return [run_fixed(setting, phases, seed, float, examples) for seed in seeds]


def report(store: Store) -> Report:
    """Final quality and iterations of each course of S; gain, S and loss over τ."""
    quality = Quality("digits_cnn")
    base = pick(store.rows, scales="S = 1")
    lines, worse = [], []
    for scales in dict.fromkeys(row["scales"] for row in store.rows):
        for method, name in _METHODS.items():
            rows = pick(store.rows, scales=scales, method=method)
            if not rows:
                continue
            lost = quality.loss(rows, base)
            gone = sum(row["diverged"] for row in rows)
            if gone or lost.value > 2 * lost.error:
                worse.append(
                    f"{name} with {scales} ({lost.show(2)} points; diverged: {gone} of {len(rows)})"
                )
            lines.append(
                [
                    scales,
                    name,
                    quality.of(rows).show(4),
                    mean([float(r["test_loss"]) for r in rows if not r["diverged"]]).show(3),
                    f"{mean([float(r['iterations']) for r in rows]).value:.0f}",
                    f"{mean([float(r['examples']) for r in rows]).value:.0f}",
                    f"{gone} of {len(rows)}",
                ]
            )
    header = ["batch", "method", quality.label, "test loss", "iterations", "examples", "diverged"]
    verdict = (
        "Worse than S = 1 by more than two standard errors, or diverged: "
        + ("; ".join(worse) if worse else "no course of S")
        + ". For all others no difference is seen. LSW takes the examples of S = 1, and S times its"
        " learning rate after the warm-up of 5.5 %."
    )
    caption = (
        "Runs of AdaScale over τ, means of all seeds with standard error: S, the gain, and the loss"
        " of the batches."
    )
    return Report(f"{verdict}\n\n{markdown(header, lines)}", {"": _draw(store)}, {"": caption})


def _draw(store: Store) -> Figure:
    figure, axes = style.panels(3)
    points = pick(store.curves, method="adascale")
    for color, scales in zip(
        style.COLORS, dict.fromkeys(p["scales"] for p in points), strict=False
    ):
        for axis, name in zip(axes, ("scale", "gain", "loss"), strict=True):
            runs = _by_seed(pick(points, scales=scales), name)
            x = np.linspace(0, 1, runs.shape[1])
            style.band(axis, x.tolist(), runs, color=color, label=scales)
            axis.set_xlabel("τ as a share of the run")
            axis.set_ylabel({"scale": "S", "gain": "gain", "loss": "loss"}[name])
            axis.set_yscale("log", base=10 if name == "loss" else 2)
            if name != "loss":
                axis.yaxis.set_major_formatter("{x:g}")
    style.legend_below(figure, axes[0], columns=3)
    return figure


def _by_seed(points: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
    """[runs, points]: points that a run with few steps has not are as the one before."""
    length = 40
    runs = []
    for seed in dict.fromkeys(p["seed"] for p in points):
        of = pick(points, seed=seed)
        x = [float(p["tau"]) for p in of]
        grid = np.linspace(x[0], x[-1], length)
        runs.append(np.interp(grid, x, [float(p[name]) for p in of]))
    return np.stack(runs)


EXPERIMENT = Experiment(
    name="elastic",
    title="Elastic batches with AdaScale",
    claim=(
        "The batch may change in the middle of a run: with learning rate and schedule on τ,"
        " AdaScale ends at the quality of S = 1 whatever the course of S was, in the iterations"
        " that the gains allow."
    ),
    cases=cases,
    run=run,
    report=report,
)

if __name__ == "__main__":
    main(EXPERIMENT)
