"""Screening is safe, and a working set keeps the promise that it was chosen for."""

from collections.abc import Callable

import numpy as np
import pytest
from blitz_problems import optimum
from blitzws import L1Logistic, solve
from blitzws.dual import DualPoint, scaled, strong_convexity, towards
from blitzws.newton import Subproblem
from blitzws.problem import correlations, objective, sigmoid_of
from blitzws.progress import critical_progress
from hypothesis import given, settings
from hypothesis import strategies as st

problems = st.integers(0, 9)
seeds = st.integers(0, 10_000)
# How far the weights are from the optimum, as powers of ten: from nothing known to nearly all.
distances = st.floats(-5, 0.3)


def point_of(problem: L1Logistic, theta: np.ndarray) -> DualPoint:
    return scaled(problem, theta, correlations(problem.columns, theta))


def situation(
    which: int, seed: int, distance: float
) -> tuple[L1Logistic, np.ndarray, DualPoint, float, np.ndarray]:
    """Weights near an optimum, an unrelated feasible point, and ξ_j of all features."""
    problem, solution = optimum(which)
    rng = np.random.default_rng(seed)
    support = solution.weights != 0
    noise = 10**distance * rng.normal(size=len(support))
    weights = solution.weights + np.where(support | (rng.random(len(support)) < 0.05), noise, 0)
    margins = problem.columns @ weights
    theta = sigmoid_of(margins)
    mix = 10**distance * rng.random()
    other = np.clip(solution.dual_point + mix * rng.normal(size=len(theta)), 0, 1)
    point = point_of(problem, other)
    primal = objective(problem, weights, margins)
    c = correlations(problem.columns, theta)
    critical = critical_progress(problem, problem.norms, point, theta, c, primal)
    return problem, weights, point, primal, critical


@given(problems, seeds, distances)
@settings(max_examples=300)
def test_no_screened_feature_has_weight_at_the_optimum(
    which: int, seed: int, distance: float
) -> None:
    *_, critical = situation(which, seed, distance)
    assert not optimum(which)[1].weights[critical > 1].any()


@given(problems, seeds, distances)
@settings(max_examples=100)
def test_the_ball_contains_the_dual_optimum(which: int, seed: int, distance: float) -> None:
    problem, weights, point, primal, _ = situation(which, seed, distance)
    best = optimum(which)[1].dual_point
    theta = sigmoid_of(problem.columns @ weights)
    squares = np.sum((best - point.theta) ** 2) + np.sum((best - theta) ** 2)
    reach = 2 * (primal - point.value) / strong_convexity(problem)
    assert squares <= reach * (1 + 1e-6) + 1e-9


def test_screening_does_screen_near_the_optimum() -> None:
    screened = [np.mean(situation(which, 0, -5)[-1] > 1) for which in range(10)]
    assert np.mean(screened) > 0.5


@given(problems, seeds, distances, st.floats(0.01, 1.0))
@settings(max_examples=100)
def test_a_working_set_makes_the_progress_that_it_was_chosen_for(
    which: int, seed: int, distance: float, promised: float
) -> None:
    problem, weights, point, primal, critical = situation(which, seed, distance)
    inside = np.flatnonzero((critical <= promised) | (weights != 0))
    inner = Subproblem(problem, problem.columns[:, inside]).solve(
        weights[inside], problem.columns @ weights, 1e-12
    )
    after = towards(problem, point, inner.theta, correlations(problem.columns, inner.theta))
    gap = primal - point.value
    assert inner.primal - after.value <= (1 - promised) * gap + 1e-9


def test_all_features_are_needed_by_some_promise_and_the_support_is_never_screened() -> None:
    problem, solution = optimum(1)
    theta = sigmoid_of(np.zeros(problem.num_examples))
    c = correlations(problem.columns, theta)
    point = point_of(problem, theta)
    critical = critical_progress(problem, problem.norms, point, theta, c, np.log(2))
    assert (critical >= 0).all()
    assert (critical[solution.weights != 0] <= 1).all()
    # The feature that the point of the dual touches already is needed by the smallest promise.
    assert critical[np.argmax(np.abs(point.correlations))] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("which", range(10))
def test_what_a_whole_run_screened_has_no_weight(which: int) -> None:
    problem, best = optimum(which)
    solution = solve(problem, 1e-10)
    assert solution.screened.any()
    assert not best.weights[solution.screened].any()
    assert not solution.weights[solution.screened].any()


def largest(function: Callable[[float], bool], high: float) -> float:
    """The largest number below `high` up to which `function` holds, by bisection."""
    if function(high):
        return np.inf
    low = 0.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) else (low, middle)
    return low


@pytest.mark.parametrize("which", range(3))
@pytest.mark.parametrize("distance", [-1.5, -0.5])
def test_critical_progress_is_what_the_geometry_says(which: int, distance: float) -> None:
    """From the definitions, with explicit vectors: no correlations, and no formula of the code."""
    problem, weights, y, primal, critical = situation(which, 3, distance)
    n = problem.num_examples
    a, theta = problem.columns.toarray() / n, sigmoid_of(problem.columns @ weights)
    reach = 2 * (primal - y.value) / (4 / n)  # ‖x-y‖² + ‖x-θ̂‖² is at most this

    middle = (y.theta + theta) / 2
    side = np.random.default_rng(0).normal(size=n)
    inside = lambda r: (
        sum(np.sum((middle + r * side / np.linalg.norm(side) - p) ** 2) for p in (y.theta, theta))
        <= reach
    )
    # Around the middle of two points the sum of squares does not depend on the direction.
    radius = largest(inside, 1e3)

    d = np.linspace(1e-4, 1, 20_001) * np.sqrt(reach)  # ‖x-y‖, which nobody knows
    for j in range(problem.num_features):
        c = a[:, j] @ y.theta
        norm = np.linalg.norm(a[:, j])
        tau = (problem.penalty - abs(c)) / norm
        share = np.minimum(tau / d, 1)  # of the way that is feasible, at least
        near = 1 - np.max((1 - share) * (1 - share * d**2 / reach))
        near = near if tau < np.sqrt(reach) else np.inf
        tips = [middle + s * radius * a[:, j] / norm for s in (1, -1)]
        allowed = lambda xi, j=j, tips=tips: all(
            abs(a[:, j] @ (y.theta + xi * (tip - y.theta))) <= problem.penalty for tip in tips
        )
        expected = max(near, largest(allowed, 1e6))
        assert critical[j] == pytest.approx(expected, rel=1e-3, abs=1e-6)
