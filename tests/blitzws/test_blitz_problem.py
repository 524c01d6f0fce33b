"""What the solver takes and refuses, and the penalty from which on there is nothing to do."""

import doctest
from typing import Any

import blitzws.problem
import numpy as np
import pytest
import scipy.sparse
from blitz_problems import primal_by_definition, random_problem
from blitzws import make_problem, solve, solve_plain
from blitzws.problem import largest_penalty, objective

X = np.array([[1.0, 0.0], [0.5, 1.0], [-1.0, 0.5]])


@pytest.mark.parametrize(
    ("features", "labels", "penalty", "message"),
    [
        (X, [1, -1], 0.1, "one label for each of the 3 rows"),
        (X, [1, 2, 3], 0.1, "labels -1 and 1, or 0 and 1"),
        (X, [-1, 0, 1], 0.1, "labels -1 and 1, or 0 and 1"),
        (X, [1, np.nan, -1], 0.1, "labels -1 and 1, or 0 and 1"),
        (X, [[1], [0], [1]], 0.1, "one row of numbers"),
        (X * [np.nan, 1], [1, 0, 1], 0.1, "NaN or inf"),
        (X * [np.inf, 1], [1, 0, 1], 0.1, "NaN or inf"),
        (X, [1, 0, 1], 0.0, "penalty > 0"),
        (X, [1, 0, 1], np.nan, "penalty > 0"),
        (X, [1, 0, 1], [0.1, 0.2], "penalty > 0"),
        (X[:0], [], 0.1, "a matrix"),
        (X[0], [1, 0], 0.1, "a matrix"),
    ],
)
def test_bad_input_is_one_clear_sentence(
    features: Any, labels: Any, penalty: Any, message: str
) -> None:
    with np.errstate(invalid="ignore"), pytest.raises(ValueError, match=message) as error:
        make_problem(features, labels, penalty)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("tolerance", [0.0, -1.0, np.nan, 1.0])
def test_a_tolerance_that_means_nothing_is_refused(tolerance: float) -> None:
    problem = random_problem(0)
    for solver in (solve, solve_plain):
        with pytest.raises(ValueError, match="0 < tolerance < 1"):
            solver(problem, tolerance)


def test_labels_and_matrices_of_all_kinds_give_the_same_problem() -> None:
    signs = np.array([1, -1, 1])
    expected = signs[:, None] * X
    for labels in (signs, signs > 0, (signs > 0).astype(float), signs.astype(np.int8)):
        for matrix in (X, X.tolist(), scipy.sparse.csr_matrix(X), scipy.sparse.coo_array(X)):
            problem = make_problem(matrix, labels, 0.1)
            np.testing.assert_array_equal(problem.columns.toarray(), expected)
            np.testing.assert_allclose(problem.norms, np.linalg.norm(X, axis=0))


def test_the_users_matrix_is_left_as_it_was() -> None:
    matrix = scipy.sparse.csc_array(X)
    make_problem(matrix, [1, -1, -1], 0.1)
    np.testing.assert_array_equal(matrix.toarray(), X)


def test_the_objective_is_the_definition_and_does_not_overflow() -> None:
    problem = random_problem(3)
    weights = np.random.default_rng(0).normal(size=problem.num_features)
    got = objective(problem, weights, problem.columns @ weights)
    assert got == pytest.approx(primal_by_definition(problem, weights), rel=1e-13)
    assert np.isfinite(objective(problem, weights, np.full(problem.num_examples, -1e4)))


@pytest.mark.parametrize("factor", [1.0, 1.5, 1e6])
def test_from_the_largest_penalty_on_zero_is_returned_at_once(factor: float) -> None:
    signs = np.where(np.arange(40) % 3, 1, -1)
    features = np.random.default_rng(1).normal(size=(40, 7))
    solution = solve(make_problem(features, signs, factor * largest_penalty(features, signs)))
    assert solution.steps == []
    assert solution.converged
    assert not solution.weights.any()
    assert solution.objective == pytest.approx(np.log(2), rel=1e-15)


def test_just_below_the_largest_penalty_a_weight_appears() -> None:
    signs = np.where(np.arange(40) % 3, 1, -1)
    features = np.random.default_rng(1).normal(size=(40, 7))
    solution = solve(make_problem(features, signs, 0.999 * largest_penalty(features, signs)))
    assert solution.converged
    assert np.count_nonzero(solution.weights) == 1


def test_columns_without_entries_get_no_weight() -> None:
    features = np.random.default_rng(2).normal(size=(30, 5))
    features[:, [1, 4]] = 0
    signs = np.where(features[:, 0] > 0, 1, -1)
    for solver in (solve, solve_plain):
        solution = solver(make_problem(features, signs, 0.01))
        assert solution.converged
        assert solution.weights[0] > 0
        assert not solution.weights[[1, 4]].any()


def test_one_class_only_is_solved_like_any_other() -> None:
    solution = solve(make_problem(np.abs(X), [1, 1, 1], 0.05))
    assert solution.converged
    assert (solution.weights >= 0).all()
    assert solution.weights.any()


def test_the_examples_of_the_docstrings_run() -> None:
    done = doctest.testmod(blitzws.problem)
    assert done.attempted >= 4
    assert done.failed == 0
