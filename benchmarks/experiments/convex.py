"""Adaptive sampling on convex problems, by effective gradient evaluations.

    python -m benchmarks.experiments.convex

L2 logistic regression after Bollapragada, Byrd and Nocedal (2018), and L1 after Xie, Bollapragada,
Byrd and Nocedal (2020) against BlitzWS: the programs `logistic_adaptive_sampling.py` and
`l1_logistic.py` of `examples`, over seeds. An evaluation is N gradients of one example; for
BlitzWS, which visits columns, it is one visit of every column.
"""

import contextlib
import io
import math
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

sys.path.append(str(pathlib.Path(__file__).parents[2] / "examples"))  # scripts, not a package

import l1_logistic
import logistic_adaptive_sampling as sampling
import logistic_data
from blitzws import make_problem, solve
from blitzws.problem import largest_penalty

from benchmarks.experiments.convex_report import report
from benchmarks.experiments.experiment import Case, Experiment, Outcome, Size, main

POINTS = 40  # of each curve
GAPS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8)  # that BlitzWS is asked for


def cases(size: Size) -> list[Case]:
    """Methods on data sets; the penalty says which of the two problems."""
    rows = 200 if size == "tiny" else 0
    evaluations = {"tiny": 3, "default": 15, "full": 100}[size]
    datasets = {
        "tiny": ["cancer"],
        "default": ["cancer", "synthetic"],
        "full": ["cancer", "synthetic", "mushrooms", "covertype"],
    }[size]
    chosen = [(method, "plug-in") for method in sampling.METHODS]
    if size == "tiny":
        chosen = [chosen[0], chosen[-1]]
    else:
        chosen += [("norm", "debiased"), ("inner product", "debiased")]
    smooth: list[Case] = [
        {"penalty": "L2", "data": data, "rows": rows, "evaluations": evaluations, "method": method,
         "signal": signal}
        for data in datasets
        for method, signal in chosen
    ]  # fmt: skip
    most = 20 if size == "tiny" else 500
    sparse: list[Case] = [
        {"penalty": "L1", "data": data, "rows": rows, "evaluations": most, "method": method,
         "signal": "debiased"}
        for data in (["cancer"] if size == "tiny" else ["synthetic", "mushrooms"])
        for method in ("complete-step test", "full gradient", "BlitzWS")
    ]  # fmt: skip
    return smooth + sparse


def run(case: Case, seeds: Sequence[int]) -> list[Outcome]:
    """One method on one data set; a seed draws the batches, and the data but for `cancer`."""
    of_kind = _smooth if case["penalty"] == "L2" else _sparse
    outcomes = []
    for seed in seeds:
        data = logistic_data.load(str(case["data"]), seed, int(case["rows"]) or None)
        with _silent():
            outcomes.append(of_kind(case, data, seed))
    return outcomes


def _smooth(case: Case, data: Any, seed: int) -> Outcome:
    """Error above the minimum."""
    options = sampling.parse_arguments(
        ["--evaluations", str(case["evaluations"]), "--signal", str(case["signal"]),
         "--seed", str(seed)]
    )  # fmt: skip
    with jax.enable_x64(True):
        problem = sampling.make_problem(*data)
        done = sampling.run(problem, str(case["method"]), options, "")
    relative = [max(error, 0) / done.errors[0] for error in done.errors]
    return _outcome(done.evaluations, relative, done.sizes, (1e-1, 1e-2, 1e-3))


def _sparse(case: Case, data: Any, seed: int) -> Outcome:
    """Relative duality gap."""
    features, labels = data
    problem = make_problem(features, labels, 0.2 * largest_penalty(features, labels))
    if case["method"] == "BlitzWS":
        return _working_sets(problem)
    options = l1_logistic.parse_arguments(
        ["--evaluations", str(case["evaluations"]), "--seed", str(seed)]
    )
    with jax.enable_x64(True):
        done = l1_logistic.proximal_descent(problem, options, case["method"] != "full gradient", "")
    return _outcome(done.evaluations, done.gaps, done.sizes, (1e-3, 1e-6, 1e-8))


def _working_sets(problem: Any) -> Outcome:
    """BlitzWS from the start to each gap; a clock that ticks evenly makes its choices repeat."""
    gaps, work = [l1_logistic.relative_gap(problem, np.zeros(problem.num_features))], [0.0]
    for gap in GAPS:
        ticks: Iterator[int] = iter(range(10**9))
        clock: Callable[[], float] = lambda ticks=ticks: float(next(ticks))  # type: ignore[misc]
        done = solve(problem, gap, clock=clock)
        # A visit is a column; each outer iteration correlates all columns with the residuals.
        work.append(done.visits / problem.num_features + len(done.steps) + 1)
        gaps.append(max(done.relative_gap, 1e-16))
    return _outcome(work, gaps, [], (1e-3, 1e-6, 1e-8))


def _outcome(
    evaluations: Sequence[float], errors: Sequence[float], sizes: Sequence[int], goals: Any
) -> Outcome:
    """Final numbers, and the curve at the places of a fixed grid."""
    reached = lambda goal: next(
        (x for x, error in zip(evaluations, errors, strict=True) if error <= goal), math.nan
    )
    numbers = {"error": errors[-1], "evaluations_seen": evaluations[-1], "iterations": len(sizes)}
    numbers |= {f"to_{goal:g}": reached(goal) for goal in goals}
    if sizes:
        numbers["last_batch"] = sizes[-1]
    chosen = np.unique(np.linspace(0, len(errors) - 1, POINTS).round().astype(int))
    curve = {"at": [evaluations[i] for i in chosen], "error": [errors[i] for i in chosen]}
    if sizes:
        seen = np.cumsum(sizes) / sum(sizes) * evaluations[-1]
        places = np.minimum(np.searchsorted(seen, curve["at"]), len(sizes) - 1)
        curve["batch_size"] = [float(sizes[i]) for i in places]
    return Outcome(numbers, curve)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Hides the examples' own progress bars, which would break the one of all runs."""
    with contextlib.redirect_stderr(io.StringIO()):
        yield


EXPERIMENT = Experiment(
    name="convex",
    title="Adaptive sampling on convex problems",
    claim=(
        "The inner-product test needs fewer gradient evaluations than the norm test and the full"
        " gradient on L2 logistic regression, and the complete-step test fewer than the full"
        " gradient on L1, to the optimum that BlitzWS proves."
    ),
    cases=cases,
    run=run,
    report=report,
)

if __name__ == "__main__":
    main(EXPERIMENT)
