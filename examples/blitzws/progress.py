r"""Which features a promised progress needs, and which no optimum can use.

A feature j is a constraint |c_j| ≤ λ on the dual point. With the feasible point y, the weights w,
θ̂ = σ(-margins), the gap Δ = P(w) - D(y) and γ = 4/n of `dual.py`, let x be the dual optimum of the
subproblem that knows a working set only (it holds the support of w). Strong convexity of -D, and of
the minorant of -D that w gives (its minimum -P(w) lies at θ̂), bound where x can be:

.. math:: \lVert x - y \rVert^2 + \lVert x - \hat\theta \rVert^2 \le R^2 = 2\Delta/\gamma
    \iff \Bigl\lVert x - \tfrac{y + \hat\theta}{2} \Bigr\rVert^2 \le \rho^2
    = \tfrac{R^2}{2} - \tfrac14 \lVert \hat\theta - y \rVert^2 .

The optimum of the whole problem obeys the same bound. So a constraint that the ball does not touch
never binds, and its weight is zero: safe screening.

Going from y towards x as far as feasible leaves a gap of at most (1-a)(Δ - γ/2 · a · ‖x-y‖²) after
the share a of the way. It is at most (1-ξ)Δ if no constraint outside of the working set stops us

- within the distance (1 - √(1-ξ))·R of y (the distance to a constraint is (λ-|c_j|)/(‖A_j‖/n)), or
- within the share ξ of the way to any point of the ball.

One of the two suffices, for each constraint by itself. **ξ_j below is the promised progress at
which feature j has to enter the working set**; ξ_j > 1 says never.

BlitzWS takes a capsule for the same purpose. The two conditions above were derived for this file
and are checked by its tests; they are not the constants of the paper.
"""

import numpy as np

from blitzws.dual import DualPoint, strong_convexity
from blitzws.problem import L1Logistic

# P and D are sums of rounded numbers: their difference may be too small by this share of P.
ROUNDING = 1e-13


def critical_progress(
    problem: L1Logistic,
    norms: np.ndarray,
    point: DualPoint,
    theta: np.ndarray,
    correlations: np.ndarray,
    primal: float,
) -> np.ndarray:
    """ξ_j, the promised share of the gap at which each feature has to be in the working set.

    Args:
        problem: The problem.
        norms: ‖A_j‖ of the features asked about.
        point: Feasible dual point y with the correlations of those features.
        theta: θ̂ = σ(-margins) of the weights.
        correlations: The correlations of θ̂ with those features.
        primal: P(w).

    Returns:
        Numbers in [0, inf], one a feature; above 1 its weight is zero in every solution.
    """
    gap = max(primal - point.value, 0.0) + ROUNDING * primal
    reach = 2 * gap / strong_convexity(problem)  # R²
    apart = np.sum((theta - point.theta) ** 2)
    radius = np.sqrt(max(reach / 2 - apart / 4, 0.0))
    norms = norms / problem.num_examples

    room = problem.penalty - np.abs(point.correlations)
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = np.where(norms > 0, room / norms, np.inf) / np.sqrt(reach)
        near = np.where(distance < 1, 1 - (1 - np.minimum(distance, 1)) ** 2, np.inf)
        # In each direction, c grows at most by this over the whole way.
        half = (correlations - point.correlations) / 2
        along = np.full(len(norms), np.inf)
        for sign in (1, -1):
            growth = sign * half + radius * norms
            room = problem.penalty - sign * point.correlations
            along = np.minimum(along, np.where(growth > 0, room / growth, np.inf))
    return np.maximum(near, along)
