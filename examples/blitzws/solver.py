"""The outer loop of the working-set solver, and the plain solver that it is compared with."""

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.sparse

from blitzws.dual import DualPoint, better, scaled, towards
from blitzws.newton import Inner, Subproblem
from blitzws.problem import L1Logistic, correlations, objective, sigmoid_of
from blitzws.progress import critical_progress
from blitzws.scheduler import Plan, Scheduler

FEATURE_COST = 256  # entries of a column that take as long as visiting the column (measured)


class Step(NamedTuple):
    """One outer iteration.

    Attributes:
        seconds: Since the start.
        relative_gap: (P - D)/P after it.
        working_set: Features in the subproblem.
        screened: Features ruled out so far.
        progress: ξ that was promised.
        accuracy: ε of the subproblem.
    """

    seconds: float
    relative_gap: float
    working_set: int
    screened: int
    progress: float
    accuracy: float


class Solution(NamedTuple):
    """Weights, and the proof of how good they are.

    Attributes:
        weights: w [features].
        objective: P(w).
        relative_gap: (P(w) - D(θ))/P(w) with a dual point that is feasible for **all** features:
            P(w) is at most this share of itself above the minimum.
        dual_point: That θ [examples].
        screened: Which features were proved to have no weight in any solution.
        steps: What the outer iterations did.
        visits: Coordinates visited by all sweeps: the work, whatever the machine.
        converged: Whether the tolerance was reached.
    """

    weights: np.ndarray
    objective: float
    relative_gap: float
    dual_point: np.ndarray
    screened: np.ndarray
    steps: list[Step]
    visits: int
    converged: bool


def solve(
    problem: L1Logistic,
    tolerance: float = 1e-8,
    *,
    max_steps: int = 200,
    clock: Callable[[], float] = time.perf_counter,
    on_step: Callable[[Step], None] | None = None,
) -> Solution:
    """Minimises P by working sets whose size is scheduled.

    Args:
        problem: From `make_problem`.
        tolerance: Relative duality gap to reach.
        max_steps: Outer iterations at most.
        clock: Seconds; what the scheduler measures by.
        on_step: Is told of each outer iteration.

    Returns:
        A `Solution`; ``converged=False`` where `max_steps` or rounding ended it. With a penalty of
        at least `largest_penalty` the weights are zero, and no iteration is made.

    Raises:
        ValueError: If the tolerance is not above zero.
    """
    _check(tolerance)
    started = clock()
    everything = np.arange(problem.num_features)
    weights, margins = np.zeros(problem.num_features), np.zeros(problem.num_examples)
    alive, columns = everything, problem.columns
    theta = sigmoid_of(margins)
    theta_c = correlations(columns, theta)
    point = scaled(problem, theta, theta_c)
    primal = objective(problem, weights, margins)
    scheduler, visits = Scheduler(), 0
    steps: list[Step] = []

    while len(steps) < max_steps:
        gap = primal - point.value
        if gap <= tolerance * primal:
            if len(alive) == len(everything):
                break
            full = scaled(problem, point.theta, correlations(problem.columns, point.theta))
            if primal - full.value <= tolerance * primal:
                break
            # Features proved away need not keep the dual point feasible: bring them back for it.
            alive, columns, point = everything, problem.columns, full
            theta_c = correlations(columns, theta)
            continue
        began = clock()
        support = weights[alive] != 0
        critical = critical_progress(problem, problem.norms[alive], point, theta, theta_c, primal)
        sizes = 1 + np.diff(columns.indptr) / FEATURE_COST
        plan = scheduler.choose(critical, sizes, support)
        chosen = np.flatnonzero((critical <= plan.progress) | support)
        inside = alive[chosen]
        subproblem = Subproblem(problem, columns[:, chosen])
        solving = clock()
        inner = subproblem.solve(weights[inside], margins, plan.accuracy * gap)
        solved = clock()
        weights[inside], margins, primal = inner.weights, inner.margins, inner.primal
        visits += inner.visits

        alive, columns, point, theta_c = _screen(
            (critical <= 1) | support, alive, columns, point, theta_c
        )
        point = _improve(problem, columns, point, inner)
        theta = sigmoid_of(margins)
        theta_c = correlations(columns, theta)
        after = primal - point.value
        scheduler.learn(
            plan, gap, after, float(sizes[chosen].sum()), solved - solving,
            (solving - began) + (clock() - solved),
        )  # fmt: skip
        steps.append(_step(clock() - started, after / primal, chosen, alive, problem, plan))
        if on_step:
            on_step(steps[-1])
        if not (inner.proved or after < gap):
            break  # rounding is all that is left
    screened = np.ones(problem.num_features, bool)
    screened[alive] = False
    return _certified(problem, weights, point.theta, screened, steps, visits, tolerance)


def solve_plain(problem: L1Logistic, tolerance: float = 1e-8) -> Solution:
    """The same coordinate descent over all features in every sweep: no working set, no screening.

    Args:
        problem: From `make_problem`.
        tolerance: Relative duality gap to reach.

    Returns:
        A `Solution` without steps.

    Raises:
        ValueError: If the tolerance is not above zero.
    """
    _check(tolerance)
    weights, margins = np.zeros(problem.num_features), np.zeros(problem.num_examples)
    # The minimum is not known yet; the gap is tightened to the objective that was reached.
    target = tolerance * objective(problem, weights, margins)
    subproblem, visits = Subproblem(problem, problem.columns), 0
    while True:
        inner = subproblem.solve(weights, margins, target, max_steps=1000)
        visits += inner.visits
        weights, margins = inner.weights, inner.margins
        if target <= tolerance * inner.primal or not inner.proved:
            break
        target = tolerance * inner.primal
    nothing = np.zeros(problem.num_features, bool)
    return _certified(problem, weights, inner.theta, nothing, [], visits, tolerance)


def _check(tolerance: float) -> None:
    if not 0 < tolerance < 1:
        raise ValueError(
            f"Expected 0 < tolerance < 1, got tolerance={tolerance!r}: it is the duality gap as a"
            " share of the objective; pass 1e-8."
        )


def _screen(
    keep: np.ndarray,
    alive: np.ndarray,
    columns: scipy.sparse.csc_array,
    point: DualPoint,
    theta_c: np.ndarray,
) -> tuple[np.ndarray, scipy.sparse.csc_array, DualPoint, np.ndarray]:
    """Leaves out what no optimum uses; copies the columns only where that saves a tenth of them."""
    if np.count_nonzero(keep) > 0.9 * len(keep):
        return alive, columns, point, theta_c
    point = point._replace(correlations=point.correlations[keep])
    return alive[keep], columns[:, np.flatnonzero(keep)], point, theta_c[keep]


def _improve(
    problem: L1Logistic, columns: scipy.sparse.csc_array, point: DualPoint, inner: Inner
) -> DualPoint:
    """The best of the old point, the line to the subproblem's optimum, and that optimum scaled."""
    c = correlations(columns, inner.theta)
    line = towards(problem, point, inner.theta, c)
    return better(better(line, scaled(problem, inner.theta, c)), point)


def _step(
    seconds: float,
    relative_gap: float,
    chosen: np.ndarray,
    alive: np.ndarray,
    problem: L1Logistic,
    plan: Plan,
) -> Step:
    return Step(seconds, relative_gap, len(chosen), problem.num_features - len(alive), *plan)


def _certified(
    problem: L1Logistic,
    weights: np.ndarray,
    theta: np.ndarray,
    screened: np.ndarray,
    steps: list[Step],
    visits: int,
    tolerance: float,
) -> Solution:
    """Margins, objective and gap computed anew over all features."""
    primal = objective(problem, weights, problem.columns @ weights)
    point = scaled(problem, theta, correlations(problem.columns, theta))
    gap = max(primal - point.value, 0.0) / primal
    return Solution(weights, primal, gap, point.theta, screened, steps, visits, gap <= tolerance)
