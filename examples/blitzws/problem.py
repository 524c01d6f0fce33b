"""The problem: checked data, the objective, and the penalty from which on the solution is zero."""

from typing import Any, NamedTuple

import numpy as np
import scipy.sparse


class L1Logistic(NamedTuple):
    """L1-regularised logistic regression without intercept; make it with `make_problem`.

    Attributes:
        columns: Features times the label of their row, diag(y)·X, as float64 CSC [examples,
            features]: its products with weights are margins.
        penalty: λ, the weight of ‖w‖₁ beside the **mean** loss.
        norms: Euclidean norm of each column.
    """

    columns: scipy.sparse.csc_array
    penalty: float
    norms: np.ndarray

    @property
    def num_examples(self) -> int:
        """Number of rows."""
        return self.columns.shape[0]

    @property
    def num_features(self) -> int:
        """Number of columns."""
        return self.columns.shape[1]


def make_problem(features: Any, labels: Any, penalty: float) -> L1Logistic:
    """Checks the data and brings them in the form that the solvers read.

    Args:
        features: Matrix [examples, features], a NumPy array or any SciPy sparse matrix.
        labels: One label for each example, -1 and 1 or 0 and 1.
        penalty: λ > 0, beside the mean loss. The C of scikit-learn, which weighs the **sum** of
            losses, is 1/(examples · λ).

    Returns:
        An `L1Logistic`.

    Raises:
        ValueError: If the shapes do not fit, labels have other values, something is NaN or
            infinite, or the penalty is not above zero.

    Examples:
        >>> from blitzws import make_problem, solve
        >>> problem = make_problem([[1.0, 0.0], [0.5, 1.0], [-1.0, 0.5]], [1, 1, 0], penalty=0.1)
        >>> solution = solve(problem)
        >>> solution.weights.round(3).tolist(), solution.relative_gap <= 1e-8
        ([2.312, 0.0], True)
    """
    if not scipy.sparse.issparse(features):
        features = np.asarray(features, np.float64)
    if features.ndim != 2 or 0 in features.shape:
        raise ValueError(
            f"Expected features to be a matrix [examples, features], got shape {features.shape}:"
            " pass one row for each example."
        )
    matrix = scipy.sparse.csc_array(features, dtype=np.float64, copy=True)
    signs = _signs(labels)
    if len(signs) != matrix.shape[0]:
        raise ValueError(
            f"Expected one label for each of the {matrix.shape[0]} rows of features, got"
            f" {len(signs)} labels: this usually means that one of them was split or filtered;"
            " pass rows and labels of the same examples."
        )
    if not np.isfinite(matrix.data).all():
        raise ValueError(
            "Expected finite features, got NaN or inf: this usually means missing values; fill"
            " them in or leave those rows out."
        )
    if not (isinstance(penalty, (int, float, np.floating)) and 0 < penalty < np.inf):
        raise ValueError(
            f"Expected penalty > 0 and finite, got penalty={penalty!r}: it is λ beside the mean"
            " loss; pass a fraction of largest_penalty, such as 0.1 of it."
        )
    matrix.sum_duplicates()
    matrix.data *= signs[matrix.indices]
    matrix.eliminate_zeros()
    norms = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=0)).ravel())
    return L1Logistic(matrix, float(penalty), norms)


def _signs(labels: Any) -> np.ndarray:
    """Labels as -1 and 1."""
    given = np.asarray(labels)
    if given.ndim != 1:
        raise ValueError(
            f"Expected labels to be one row of numbers, got shape {given.shape}: pass labels"
            " [examples], not one-hot."
        )
    values = set(np.unique(given).tolist())
    if not (values <= {-1, 1} or values <= {0, 1}):
        raise ValueError(
            f"Expected labels -1 and 1, or 0 and 1, got {sorted(values, key=str)[:5]}: logistic"
            " regression knows two classes; pass (labels == positive_class)."
        )
    return np.where(given == 1, 1.0, -1.0)


def objective(problem: L1Logistic, weights: np.ndarray, margins: np.ndarray) -> float:
    """P(w) = mean log(1 + exp(-margin)) + λ‖w‖₁, without overflow."""
    return float(np.logaddexp(0, -margins).mean() + problem.penalty * np.abs(weights).sum())


def correlations(columns: scipy.sparse.csc_array, theta: np.ndarray) -> np.ndarray:
    """Aᵀθ/n, one number a column: minus the gradient of the loss, if θ is `sigmoid_of` margins."""
    return columns.T @ theta / len(theta)


def sigmoid_of(margins: np.ndarray) -> np.ndarray:
    """θ = σ(-margin): how wrong the model is about each example, in (0, 1)."""
    return np.exp(-np.logaddexp(0, margins))


def largest_penalty(features: Any, labels: Any) -> float:
    """λ_max = ‖Xᵀy‖_∞/(2n): from this penalty on all weights are zero.

    Args:
        features: As in `make_problem`.
        labels: As in `make_problem`.

    Returns:
        A float; zero if no feature goes along with the labels.

    Examples:
        >>> from blitzws.problem import largest_penalty
        >>> largest_penalty([[1.0, 0.0], [0.0, 4.0]], [1, -1])
        1.0
    """
    problem = make_problem(features, labels, 1.0)
    half = np.full(problem.num_examples, 0.5)
    return float(np.abs(correlations(problem.columns, half)).max())
