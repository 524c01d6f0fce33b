"""The batch changes in the middle of a run: AdaScale continues at the same τ, nothing is tuned."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from benchmarks.experiments import style
from benchmarks.experiments.adascale import SETTINGS
from benchmarks.experiments.experiment import Case, Experiment, Outcome, Report, Size, main
from benchmarks.experiments.scaled_report import Quality, diverged, outcome_columns
from benchmarks.experiments.scaled_runs import Phases, Setting, run_adascale, run_fixed
from benchmarks.experiments.store import Store
from benchmarks.experiments.summary import Rows, pick, split, table

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
    quality, base = Quality("digits_cnn"), pick(store.rows, scales="S = 1")
    courses = split(store.rows, "scales", "method")
    worse = [
        f"{_METHODS[method]} with {scales} ({quality.loss(rows, base).show(2)} points; diverged:"
        f" {diverged(rows)} of {len(rows)})"
        for (scales, method), rows in courses.items()
        if quality.is_worse(rows, base)
    ]
    verdict = {"Worse than S = 1 by more than two standard errors, or diverged": worse}
    notes = (
        "For all others no difference is seen. LSW takes the examples of S = 1, and S times its"
        " learning rate after the warm-up of 5.5 %."
    )
    columns = {"batch": lambda key, _: key[0], "method": lambda key, _: _METHODS[key[1]]}
    columns |= outcome_columns(quality, ("test loss", "test_loss"))
    caption = (
        "Runs of AdaScale over τ, means of all seeds with standard error: S, the gain, and the loss"
        " of the batches."
    )
    return Report([verdict, notes, table(courses, columns)], {"": (_draw(store), caption)})


def _draw(store: Store) -> Figure:
    figure, axes = style.panels(3)
    courses = split(pick(store.curves, method="adascale"), "scales")
    for color, (scales, points) in zip(style.COLORS, courses.items(), strict=False):
        for axis, name in zip(axes, ("scale", "gain", "loss"), strict=True):
            runs = _interpolated(points, name)
            x = np.linspace(0, 1, runs.shape[1])
            style.band(axis, x.tolist(), runs, color=color, label=scales)
            axis.set(xlabel="τ as a share of the run", ylabel="S" if name == "scale" else name)
            axis.set_yscale("log", base=10 if name == "loss" else 2)
            if name != "loss":
                axis.yaxis.set_major_formatter("{x:g}")
    style.legend_below(figure, axes[0], columns=3)
    return figure


def _interpolated(points: Rows, name: str, length: int = 40) -> np.ndarray:
    """[runs, points] at equal shares of τ: a run of few steps has fewer points than others."""
    runs = []
    for of in split(points, "seed").values():
        x, y = ([float(point[column]) for point in of] for column in ("tau", name))
        runs.append(np.interp(np.linspace(x[0], x[-1], length), x, y))
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
