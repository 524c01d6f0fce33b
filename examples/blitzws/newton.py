r"""The solver of one subproblem: proximal Newton steps by coordinate descent.

At margins z the loss is replaced by its quadratic model with curvatures D_i = θ_i(1-θ_i)/n, and

.. math:: \min_u \; \langle g, A(u-w) \rangle + \tfrac12 (u-w)^T A^T D A (u-w)
    + \lambda \lVert u \rVert_1

is solved by sweeps over coordinates, u_j ← S(u_j - q_j/h_j, λ/h_j), with h_j = ‖A_j‖²_D, the
gradient q_j of the model, and the soft threshold S. A backtracking line search on P follows.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse

from blitzws.columns import blocks
from blitzws.dual import scaled
from blitzws.problem import L1Logistic, correlations, objective, sigmoid_of

MAX_SWEEPS = 10  # of one Newton step
SWEEP_ACCURACY = 0.01  # of the largest change of the model, against the first sweep
# A decrease below this share of P drowns in rounding, long before the gap is 1e-8 of P: the gap is
# of first order in the error of the weights, and P of second. The step is then taken untested.
MEASURABLE = 1e-12
CHUNK = 64  # columns; divides SMALLEST_COUNT
PATIENCE = 5  # such steps in a row that do not improve the gap


class Inner(NamedTuple):
    """Where a subproblem ended.

    Attributes:
        weights: Weights of the working set.
        margins: A·w.
        primal: P(w).
        theta: Dual point, feasible for the working set; its gap is the subproblem's.
        visits: Coordinates visited, in all sweeps.
        proved: Whether the accuracy asked for was reached.
    """

    weights: np.ndarray
    margins: np.ndarray
    primal: float
    theta: np.ndarray
    visits: int
    proved: bool


@jax.jit
def _prepare(rows: jax.Array, values: jax.Array, curvature: jax.Array) -> Any:
    """D·A_j on the entries of each column, and h_j."""
    weighted = values * curvature[rows]
    return weighted, jnp.sum(values * weighted, axis=1)


@jax.jit
def _sweep(
    rows: jax.Array,
    values: jax.Array,
    weighted: jax.Array,
    curvatures: jax.Array,
    num_chunks: jax.Array,
    penalty: jax.Array,
    weights: jax.Array,
    slope: jax.Array,
) -> Any:
    """One pass over the first chunks of columns; `slope` [examples] is the model's, g + D·A(u-w).

    In chunks, because XLA copies the weights at every turn of the loop that writes into them.
    """
    chunked = lambda x: x.reshape(-1, CHUNK, *x.shape[1:])
    columns = (chunked(rows), chunked(values), chunked(weighted), chunked(curvatures))

    def visit(carry: Any, column: Any) -> Any:
        slope, largest = carry
        (at, value, change_of_slope, h), weight = column
        safe = jnp.where(h > 0, h, 1)
        target = weight - value @ slope[at] / safe
        moved = jnp.sign(target) * jnp.maximum(jnp.abs(target) - penalty / safe, 0)
        # h = 0: padding, or margins so large that the curvature is lost to rounding; stay.
        change = jnp.where(h > 0, moved - weight, 0)
        slope = slope.at[at].add(change_of_slope * change)
        return (slope, jnp.maximum(largest, h * change**2)), weight + change

    def visit_chunk(i: jax.Array, carry: Any) -> Any:
        weights, slope, largest = carry
        chunk = (tuple(x[i] for x in columns), weights[i])
        (slope, largest), moved = jax.lax.scan(visit, (slope, largest), chunk)
        return weights.at[i].set(moved), slope, largest

    start = (chunked(weights), slope, jnp.zeros([], slope.dtype))
    weights, slope, largest = jax.lax.fori_loop(0, num_chunks, visit_chunk, start)
    return weights.reshape(-1), slope, largest


def _line_search(
    problem: L1Logistic,
    weights: np.ndarray,
    margins: np.ndarray,
    direction: np.ndarray,
    moved: np.ndarray,
    primal: float,
    promised: float,
) -> float:
    """The first of 1, 1/2, 1/4, … that decreases P by a share of what was promised (Armijo)."""
    length = 1.0
    while -promised * length > MEASURABLE * primal:
        there = objective(problem, weights + length * direction, margins + length * moved)
        if there <= primal + 1e-4 * length * promised:
            break
        length /= 2
    return length


class Subproblem:
    """A working set on the device, compiled; `solve` takes Newton steps."""

    def __init__(self, problem: L1Logistic, columns: scipy.sparse.csc_array) -> None:
        self._problem, self._columns = problem, columns
        with jax.enable_x64(True):
            self._blocks = blocks(columns)
            # Compiles now, so that the scheduler times the work alone.
            none = np.zeros(columns.shape[1])
            self._minimise_model(none, np.zeros(columns.shape[0]), np.zeros(columns.shape[0]), 1)

    def solve(
        self, weights: np.ndarray, margins: np.ndarray, gap: float, max_steps: int = 100
    ) -> Inner:
        """Newton steps until the subproblem's duality gap is at most `gap`."""
        problem, columns = self._problem, self._columns
        primal = objective(problem, weights, margins)
        visits, stalled, best, best_theta = 0, 0, -np.inf, np.zeros_like(margins)
        for step in range(max_steps + 1):
            theta = sigmoid_of(margins)
            c = correlations(columns, theta)
            point = scaled(problem, theta, c)
            stalled = 0 if point.value > best else stalled + 1
            if point.value > best:
                best, best_theta = point.value, point.theta
            if primal - best <= gap or step == max_steps or stalled > PATIENCE:
                break
            with jax.enable_x64(True):
                target, sweeps = self._minimise_model(
                    weights, theta * (1 - theta) / len(theta), -theta / len(theta)
                )
            visits += sweeps * len(weights)
            direction = target - weights
            moved = columns @ direction
            promised = -c @ direction + problem.penalty * (
                np.abs(target).sum() - np.abs(weights).sum()
            )
            length = _line_search(problem, weights, margins, direction, moved, primal, promised)
            weights = target if length == 1 else weights + length * direction
            margins = margins + length * moved
            primal = objective(problem, weights, margins)
        return Inner(weights, margins, primal, best_theta, visits, primal - best <= gap)

    def _minimise_model(
        self,
        weights: np.ndarray,
        curvature: np.ndarray,
        slope: np.ndarray,
        max_sweeps: int = MAX_SWEEPS,
    ) -> tuple[np.ndarray, int]:
        """The weights that minimise the quadratic model, and the sweeps that it took."""
        put = jax.device_put
        curvature, q = put(np.asarray(curvature)), put(np.asarray(slope))
        penalty, parts = put(np.float64(self._problem.penalty)), []
        for block in self._blocks:
            start = np.zeros(block.rows.shape[0])
            start[: len(block.places)] = weights[block.places]
            prepared = _prepare(block.rows, block.values, curvature)
            parts.append(
                [block, prepared, put(np.int32(-(-len(block.places) // CHUNK))), put(start)]
            )
        first, taken = 0.0, 0
        while taken < max_sweeps:
            largest = 0.0
            for part in parts:
                block, prepared, count, current = part
                part[3], q, change = _sweep(
                    block.rows, block.values, *prepared, count, penalty, current, q
                )
                largest = max(largest, float(jax.device_get(change)))
            taken += 1
            first = max(first, largest)
            if largest <= SWEEP_ACCURACY**2 * first:
                break
        result = np.array(weights)
        for block, _, _, current in parts:
            result[block.places] = jax.device_get(current)[: len(block.places)]
        return result, taken
