"""The optimum is that of scikit-learn, proved by the gap; the work is far less than plain."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import scipy.optimize
from blitz_problems import optimum, primal_by_definition, random_problem, sparse_problem
from blitzws import L1Logistic, Solution, make_problem, solve, solve_plain
from blitzws.benchmark import compare, report, scikit_learn
from blitzws.problem import largest_penalty
from conftest import Compilations


def counting_clock() -> Callable[[], float]:
    """A clock whose every reading is a second later: schedules do not depend on the machine."""
    return itertools.count(0.0, 1.0).__next__


@pytest.mark.parametrize("solver", [solve, solve_plain])
@pytest.mark.parametrize("share", [0.5, 0.1, 0.02])
def test_the_objective_is_that_of_scikit_learn(
    solver: Callable[[L1Logistic], Solution], share: float
) -> None:
    problem = random_problem(11, rows=120, columns=80, share=share)
    solution = solver(problem)
    weights, value = scikit_learn(problem)
    assert value == pytest.approx(primal_by_definition(problem, weights), rel=1e-12)
    assert solution.converged
    assert solution.relative_gap <= 1e-8
    assert solution.objective == pytest.approx(value, rel=1e-7)
    assert solution.objective <= value * (1 + 1e-8)


def test_the_objective_is_that_of_a_bound_constrained_newton_method() -> None:
    problem = random_problem(5, share=0.3)
    p, n = problem.num_features, problem.num_examples
    a = problem.columns.toarray()

    def split(uv: np.ndarray) -> tuple[float, np.ndarray]:  # w = u - v with u, v >= 0
        margins = a @ (uv[:p] - uv[p:])
        slope = -a.T @ (1 / (1 + np.exp(margins))) / n
        value = np.log1p(np.exp(-margins)).mean() + problem.penalty * uv.sum()
        return value, np.concatenate([slope, -slope]) + problem.penalty

    found = scipy.optimize.minimize(
        split, np.zeros(2 * p), jac=True, method="L-BFGS-B", bounds=[(0, None)] * (2 * p),
        options={"maxiter": 20_000, "maxfun": 50_000, "ftol": 1e-16, "gtol": 1e-10},
    )  # fmt: skip
    assert solve(problem).objective == pytest.approx(found.fun, rel=1e-8)


@pytest.mark.parametrize("which", range(10))
def test_the_gap_that_is_reported_is_a_proof(which: int) -> None:
    problem, best = optimum(which)
    for tolerance in (1e-2, 1e-5, 1e-8, 1e-11):
        solution = solve(problem, tolerance)
        assert solution.converged
        assert solution.relative_gap <= tolerance
        value = primal_by_definition(problem, solution.weights)
        assert solution.objective == pytest.approx(value, rel=1e-12)
        assert value - best.objective <= tolerance * value
        # Optimality without any duality: |gradient| is λ on the support, and no more elsewhere.
    margins = problem.columns @ solution.weights
    c = problem.columns.T @ (1 / (1 + np.exp(margins))) / problem.num_examples
    np.testing.assert_allclose(np.abs(c).max(), problem.penalty, rtol=1e-4)
    on = solution.weights != 0
    np.testing.assert_allclose(c[on], problem.penalty * np.sign(solution.weights[on]), rtol=1e-4)


def test_an_example_counted_twice_changes_nothing() -> None:
    problem = random_problem(6)
    a = problem.columns.toarray()
    twice = make_problem(np.concatenate([a, a]), np.ones(2 * len(a)), problem.penalty)
    first, second = solve(problem, 1e-12), solve(twice, 1e-12)
    np.testing.assert_allclose(first.weights, second.weights, atol=1e-6)
    assert first.objective == pytest.approx(second.objective, rel=1e-11)


def test_working_sets_visit_a_fifth_of_the_coordinates_or_less() -> None:
    features, labels = sparse_problem()
    problem = make_problem(features, labels, 0.3 * largest_penalty(features, labels))
    fast, plain = solve(problem, clock=counting_clock()), solve_plain(problem)
    assert fast.converged
    assert plain.converged
    assert fast.objective == pytest.approx(plain.objective, rel=1e-8)
    assert 5 * fast.visits <= plain.visits


def test_a_second_run_compiles_nothing(compilations: Compilations) -> None:
    features, labels = sparse_problem(1)
    problem = make_problem(features, labels, 0.2 * largest_penalty(features, labels))
    first = solve(problem, clock=counting_clock())
    compilations.reset()
    second = solve(problem, clock=counting_clock())
    assert compilations.count == 0
    np.testing.assert_array_equal(first.weights, second.weights)
    assert first.steps == second.steps


def test_steps_are_told_of_and_gaps_fall() -> None:
    features, labels = sparse_problem(2)
    problem = make_problem(features, labels, 0.1 * largest_penalty(features, labels))
    told: list = []
    solution = solve(problem, on_step=told.append)
    assert told == solution.steps
    gaps = [step.relative_gap for step in told]
    assert gaps[-1] <= 1e-8
    assert gaps == sorted(gaps, reverse=True)
    assert 0 < told[0].working_set < problem.num_features


def test_a_limit_on_steps_is_no_convergence_but_still_a_proof() -> None:
    problem, best = optimum(2)
    solution = solve(problem, 1e-12, max_steps=1)
    assert not solution.converged
    assert solution.relative_gap > 1e-12
    assert solution.objective * (1 - solution.relative_gap) <= best.objective


def test_separable_data_with_a_tiny_penalty_ends() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(20, 30))
    labels = np.where(features[:, 0] > 0, 1, -1)
    problem = make_problem(features, labels, 1e-4 * largest_penalty(features, labels))
    solution = solve(problem)
    assert solution.converged
    assert solution.objective == pytest.approx(scikit_learn(problem)[1], rel=1e-7)


def test_the_benchmark_reports_both_solvers_and_the_ratio() -> None:
    features, labels = sparse_problem(3)
    results = compare(features, labels, 0.3, rounds=1)
    text = report(results)
    assert {"working sets", "plain"} == set(results)
    assert all(timed.solution.converged for timed in results.values())
    assert "times faster" in text
    assert "times fewer visits" in text
