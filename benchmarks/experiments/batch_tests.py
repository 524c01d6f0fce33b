"""Batch sizes by tests against constant sizes and ramps by hand, at equal examples.

    python -m benchmarks.experiments.batch_tests

All runs go through `AdaptiveLoop`. Learning rates follow a cosine over examples (SEBS and AdaGrad:
constant), from the best of those tried at the small batch: 0.01 to 0.2 for SGD with momentum 0.9,
0.01 to 0.1 for AdaGrad, 1 to 10 for AdaGrad-Norm. AdaGrad with the coordinate test is AdAdaGrad,
AdaGrad-Norm with the norm test AdAdaGrad-Norm. "AdaScale" is SGD whose step has the gain. Seconds
leave compilation out; all tests but the norm test measure all statistics, in one program.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax

import adaoptax
from benchmarks.experiments.batch_methods import RAMPS, contender
from benchmarks.experiments.batch_report import report
from benchmarks.experiments.experiment import Case, Experiment, Outcome, Size, main
from benchmarks.experiments.problems import PROBLEMS, Problem
from benchmarks.training import Trainer

POINTS = 20  # of each curve

# The same tolerances on all problems, so that batches grow on all; the smaller grows sooner.
TESTS = tuple(f"{kind} {x}" for kind in ("norm", "inner product", "augmented", "coordinate")
              for x in (1.5, 3))  # fmt: skip
FEW_RAMPS = ("ramp late", "ramp doubling")
METHODS: tuple[tuple[str, float, str], ...] = (
    ("SGD", 0.1, "constant small"),
    *(("SGD", rate, "constant large") for rate in (0.1, 0.2, 0.4)),
    *(("SGD", 0.1, name) for name in (*RAMPS, "SEBS", *TESTS)),
    *(("AdaScale", 0.1, name) for name in ("constant large", *FEW_RAMPS, "norm 1.5", "norm 3")),
    *(("AdaGrad", 0.1, name) for name in ("constant small", *FEW_RAMPS, "coordinate 3")),
    *(("AdaGrad-Norm", 3.0, name) for name in ("constant small", *FEW_RAMPS, "norm 3")),
)
TINY = (("SGD", 0.1, "constant small"), ("SGD", 0.1, "ramp late"), ("SGD", 0.1, "norm 1.5"))
EXAMPLES = {"digits_cnn": 28_800, "mnist1d": 40_000, "byte_lm": 8_000}
WIDE = {"digits_cnn": 128, "mnist1d": 128, "byte_lm": 256}  # on an accelerator


def cases(size: Size) -> list[Case]:
    """Every method on every problem."""
    large, times = {"tiny": (64, 1), "default": (512, 1), "full": (2048, 20)}[size]
    return [
        {
            "problem": problem,
            "width": WIDE[problem] if size == "full" else 0,
            "examples": 1600 if size == "tiny" else times * examples,
            "small": 32,
            "large": large,
            "optimizer": optimizer,
            "learning_rate": rate,
            "sizes": sizes,
        }
        for problem, examples in EXAMPLES.items()
        if size != "tiny" or problem == "mnist1d"
        for optimizer, rate, sizes in (TINY if size == "tiny" else METHODS)
    ]


def run(case: Case, seeds: Sequence[int]) -> list[Outcome]:
    """One method on one problem, a run a seed."""
    name, width, large = str(case["problem"]), int(case["width"]), int(case["large"])
    problem, metrics, trainer = _programs(name, width, int(case["small"]), large)
    start = trainer.prepare(contender(case))
    outcomes = []
    for seed in seeds:
        curve: dict[str, list[float]] = {"updates": [], "seen": [], "loss": []}

        def look(updates: int, examples: int, params: Any, curve: Any = curve) -> None:
            loss = float(_loss(metrics(params)))
            for column, x in zip(curve.values(), (updates, examples, loss), strict=True):
                column.append(x)

        trained = start(seed, int(case["examples"]), look, POINTS)
        final = {name: float(x) for name, x in metrics(trained.params).items()}
        loss = float(_loss(final))
        diverged = not (math.isfinite(loss) and loss < problem.guess)
        numbers = {
            "updates": trained.updates,
            "largest": trained.largest,
            "train_seconds": trained.seconds,
            "loss": loss,
            "accuracy": final.get("test_accuracy", math.nan),
            "diverged": float(diverged),
        }
        outcomes.append(Outcome(numbers, curve))
    return outcomes


@functools.cache
def _programs(name: str, width: int, small: int, large: int) -> tuple[Problem, Any, Trainer]:
    """A problem, its jitted metrics and its trainer, whose sizes are doubled from `small` on."""
    problem = PROBLEMS[name](**({"width": width} if width else {}))
    capacities = tuple(small << i for i in range((large // small).bit_length()))
    trainer = Trainer(
        problem,
        lambda statistics: adaoptax.measure.exact(statistics),
        micro_batch_size=small,
        capacities=capacities,
        padded=False,
    )
    return problem, jax.jit(problem.metrics), trainer


def _loss(metrics: Any) -> Any:
    return metrics["bits_per_byte" if "bits_per_byte" in metrics else "test_loss"]


EXPERIMENT = Experiment(
    name="batch_tests",
    title="Batch sizes by tests, against ramps by hand",
    claim=(
        "A batch that grows as a test asks reaches, at equal examples, a loss as low as the best"
        " ramp by hand, with fewer updates than the constant small batch."
    ),
    cases=cases,
    run=run,
    report=report,
)

if __name__ == "__main__":
    main(EXPERIMENT)
