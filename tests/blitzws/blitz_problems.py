"""Random problems, and their optimum far beyond the tolerance of any test."""

import functools
from typing import Any

import numpy as np
import scipy.sparse
from blitzws import L1Logistic, Solution, make_problem, solve_plain
from blitzws.problem import largest_penalty


def random_problem(
    seed: int, rows: int = 40, columns: int = 60, share: float = 0.2, density: float = 0.5
) -> L1Logistic:
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(rows, columns)) * (rng.random((rows, columns)) < density)
    features *= rng.uniform(0.1, 3, columns)  # constraint distances differ from correlations
    margins = features[:, :3] @ rng.normal(size=3) * 2
    labels = np.where(rng.random(rows) < 1 / (1 + np.exp(-margins)), 1, -1)
    return make_problem(features, labels, share * largest_penalty(features, labels))


@functools.cache
def optimum(seed: int, **sizes: Any) -> tuple[L1Logistic, Solution]:
    problem = random_problem(seed, **sizes)
    solution = solve_plain(problem, 1e-14)
    assert solution.relative_gap < 1e-13
    return problem, solution


def primal_by_definition(problem: L1Logistic, weights: np.ndarray) -> float:
    margins = problem.columns.toarray() @ weights
    return float(np.mean(np.log1p(np.exp(-margins))) + problem.penalty * np.sum(np.abs(weights)))


def sparse_problem(seed: int = 0) -> tuple[scipy.sparse.csc_array, np.ndarray]:
    from blitzws.benchmark import sparse_data

    return sparse_data(300, 1500, per_column=8, support=10, seed=seed)
