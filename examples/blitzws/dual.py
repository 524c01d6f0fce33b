r"""The dual problem: points that are feasible, and the gap that proves how good weights are.

.. math:: \max_\theta D(\theta) = \frac1n \sum_i H(\theta_i) \quad \text{subject to} \quad
    |c_j| \le \lambda, \quad c_j = \tfrac1n \langle A_j, \theta \rangle, \quad
    H(t) = -t \log t - (1-t) \log(1-t)

At the optimum θ = σ(-margins). D ≤ P everywhere (weak duality), so P(w) - D(θ) bounds how far
either is from the optimum. H'' ≤ -4 makes -D strongly convex with modulus 4/n.
"""

from typing import NamedTuple

import numpy as np
import scipy.special

from blitzws.problem import L1Logistic


class DualPoint(NamedTuple):
    """A feasible point of the dual.

    Attributes:
        theta: θ [examples], in [0, 1].
        correlations: c [features], within ±λ.
        value: D(θ).
    """

    theta: np.ndarray
    correlations: np.ndarray
    value: float


def strong_convexity(problem: L1Logistic) -> float:
    """γ = 4/n of -D, since the binary entropy has H'' = -1/(t(1-t)) ≤ -4."""
    return 4.0 / problem.num_examples


def dual_value(theta: np.ndarray) -> float:
    """D(θ) in nats."""
    return float((scipy.special.entr(theta) + scipy.special.entr(1 - theta)).mean())


def scaled(problem: L1Logistic, theta: np.ndarray, correlations: np.ndarray) -> DualPoint:
    """θ shrunk towards zero until every constraint holds; zero itself is always feasible."""
    largest = np.abs(correlations).max(initial=0.0)
    factor = min(1.0, problem.penalty / largest) if largest > 0 else 1.0
    # Rounding must not leave the largest one above λ.
    bounded = np.clip(factor * correlations, -problem.penalty, problem.penalty)
    theta = factor * theta
    return DualPoint(theta, bounded, dual_value(theta))


# Two points on the same boundary differ there by rounding, which must not stop the search.
SLACK = 1e-12


def towards(
    problem: L1Logistic, start: DualPoint, theta: np.ndarray, correlations: np.ndarray
) -> DualPoint:
    """The last feasible point on the way from a feasible point to θ: Blitz's line search."""
    move = correlations - start.correlations
    room = (1 + SLACK) * problem.penalty - np.sign(move) * start.correlations
    with np.errstate(divide="ignore", invalid="ignore"):
        steps = np.where(move != 0, room / np.abs(move), np.inf)
    step = min(1.0, max(0.0, steps.min(initial=1.0)))
    return scaled(
        problem,
        start.theta + step * (theta - start.theta),
        start.correlations + step * move,
    )


def better(a: DualPoint, b: DualPoint) -> DualPoint:
    """The one that proves more."""
    return a if a.value >= b.value else b
