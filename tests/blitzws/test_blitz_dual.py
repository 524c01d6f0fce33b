"""The duality gap is a proof: weak duality, feasible points, and the line search between them."""

import numpy as np
import pytest
from blitz_problems import optimum, primal_by_definition, random_problem
from blitzws.dual import dual_value, scaled, strong_convexity, towards
from blitzws.problem import correlations, sigmoid_of
from hypothesis import given, settings
from hypothesis import strategies as st

seeds = st.integers(0, 10_000)


@given(seeds, st.floats(0, 3))
@settings(max_examples=50)
def test_no_feasible_dual_point_is_above_any_primal_value(seed: int, size: float) -> None:
    problem = random_problem(seed % 20)
    rng = np.random.default_rng(seed)
    weights = size * rng.normal(size=problem.num_features)
    theta = rng.random(problem.num_examples)
    point = scaled(problem, theta, correlations(problem.columns, theta))
    recomputed = correlations(problem.columns, point.theta)
    assert np.abs(recomputed).max() <= problem.penalty * (1 + 1e-12)
    np.testing.assert_allclose(point.correlations, recomputed, rtol=1e-9, atol=1e-15)
    assert point.value <= primal_by_definition(problem, weights) + 1e-12


def test_primal_and_dual_meet_at_the_optimum() -> None:
    problem, solution = optimum(0)
    theta = sigmoid_of(problem.columns @ solution.weights)
    assert dual_value(theta) == pytest.approx(solution.objective, rel=1e-9)
    np.testing.assert_allclose(theta, solution.dual_point, atol=1e-6)


@given(seeds)
@settings(max_examples=50)
def test_the_line_search_ends_at_the_boundary_or_at_its_goal(seed: int) -> None:
    problem = random_problem(seed % 20)
    rng = np.random.default_rng(seed)
    a, goal = rng.random((2, problem.num_examples))
    start = scaled(problem, 0.5 * a, correlations(problem.columns, 0.5 * a))
    point = towards(problem, start, goal, correlations(problem.columns, goal))
    c = np.abs(correlations(problem.columns, point.theta))
    assert c.max() <= problem.penalty * (1 + 1e-12)
    share = (point.theta - start.theta) @ (goal - start.theta) / np.sum((goal - start.theta) ** 2)
    assert 0 <= share <= 1 + 1e-12
    assert share > 1 - 1e-9 or c.max() >= problem.penalty * (1 - 1e-9)


@given(seeds)
@settings(max_examples=50)
def test_the_dual_is_as_strongly_concave_as_said(seed: int) -> None:
    problem = random_problem(seed % 20)
    a, b = np.random.default_rng(seed).random((2, problem.num_examples))
    middle = (dual_value(a) + dual_value(b)) / 2
    excess = strong_convexity(problem) / 8 * np.sum((a - b) ** 2)
    assert dual_value((a + b) / 2) >= middle + excess - 1e-12


def test_the_edges_of_the_entropy_are_zero_and_finite() -> None:
    assert dual_value(np.array([0.0, 1.0])) == 0.0
    assert dual_value(np.array([0.5])) == pytest.approx(np.log(2), rel=1e-15)
