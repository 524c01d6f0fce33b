"""Working sets against plain coordinate descent over all features, side by side in one run."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse
from sklearn.linear_model import LogisticRegression

from blitzws.problem import L1Logistic, largest_penalty, make_problem, objective
from blitzws.solver import Solution, solve, solve_plain


class Timed(NamedTuple):
    """One solver's result.

    Attributes:
        seconds: Median over rounds, compilation left out.
        first_seconds: Of the very first call, which compiles.
        solution: Of the last call.
    """

    seconds: float
    first_seconds: float
    solution: Solution


def sparse_data(
    rows: int, columns: int, per_column: int = 20, support: int = 100, seed: int = 0
) -> tuple[scipy.sparse.csc_array, np.ndarray]:
    """Normal entries at random places, labels from a logistic model of few features.

    Args:
        rows: Examples.
        columns: Features.
        per_column: Mean number of entries of a column.
        support: Features that the labels depend on.
        seed: Of all that is drawn.

    Returns:
        ``(features, labels)``, labels -1 and 1.
    """
    rng = np.random.default_rng(seed)
    count = per_column * columns
    places = rng.integers(0, rows, count), rng.integers(0, columns, count)
    features = scipy.sparse.csc_array((rng.normal(size=count), places), shape=(rows, columns))
    weights = np.zeros(columns)
    weights[rng.choice(columns, min(support, columns), replace=False)] = 3.0
    margins = features @ (weights * rng.choice([-1, 1], columns))
    return features, np.where(rng.random(rows) < 1 / (1 + np.exp(-margins)), 1, -1)


def compare(
    features: Any, labels: Any, share: float, tolerance: float = 1e-8, rounds: int = 3
) -> dict[str, Timed]:
    """Times `solve` and `solve_plain` in turn on one problem.

    Args:
        features: As in `make_problem`.
        labels: As in `make_problem`.
        share: Penalty as a share of `largest_penalty`.
        tolerance: Relative duality gap to reach.
        rounds: Timed calls of each, after one that compiles.

    Returns:
        ``{"working sets": Timed, "plain": Timed}``.
    """
    problem = make_problem(features, labels, share * largest_penalty(features, labels))
    solvers: dict[str, Callable[..., Solution]] = {"working sets": solve, "plain": solve_plain}
    times: dict[str, list[float]] = {name: [] for name in solvers}
    solutions = {}
    for _ in range(rounds + 1):
        for name, solver in solvers.items():
            started = time.perf_counter()
            solutions[name] = solver(problem, tolerance)
            times[name].append(time.perf_counter() - started)
    return {
        name: Timed(float(np.median(of[1:])), of[0], solutions[name]) for name, of in times.items()
    }


def scikit_learn(problem: L1Logistic, tolerance: float = 1e-8) -> tuple[np.ndarray, float]:
    """Weights and objective of scikit-learn's liblinear, whose C is 1/(examples · λ)."""
    model = LogisticRegression(
        l1_ratio=1.0,
        C=1 / (problem.num_examples * problem.penalty),
        solver="liblinear",
        fit_intercept=False,
        tol=tolerance,
        max_iter=100_000,
        random_state=0,
    )
    # The columns carry the label already, and two classes are wanted: turn half of the rows over.
    signs = np.where(np.arange(problem.num_examples) % 2, 1.0, -1.0)
    model.fit((scipy.sparse.diags_array(signs) @ problem.columns).tocsr(), signs)
    weights = model.coef_.ravel()
    return weights, objective(problem, weights, problem.columns @ weights)


def report(results: dict[str, Timed]) -> str:
    """The comparison as text."""
    lines = [
        "               seconds   first call   visits (millions)   objective      relative gap"
    ]
    for name, r in results.items():
        s = r.solution
        lines.append(
            f"{name:<13}{r.seconds:>9.3f}{r.first_seconds:>13.2f}{s.visits / 1e6:>20.2f}"
            f"   {s.objective:<14.10f}{s.relative_gap:>12.1e}"
        )
    fast, plain = results["working sets"], results["plain"]
    lines.append(
        f"\nWorking sets: {plain.seconds / fast.seconds:.1f} times faster than plain coordinate"
        f" descent, {plain.solution.visits / max(fast.solution.visits, 1):.1f} times fewer visits;"
        f" {fast.solution.screened.sum():,} of {len(fast.solution.weights):,} features screened,"
        f" {np.count_nonzero(fast.solution.weights):,} not zero."
    )
    return "\n".join(lines)
