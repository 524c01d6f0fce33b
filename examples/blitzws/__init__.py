r"""L1-regularised logistic regression by working sets, after BlitzWS (Johnson and Guestrin).

.. math:: P(w) = \frac1n \sum_i \log(1 + e^{-y_i \langle x_i, w \rangle})
    + \lambda \lVert w \rVert_1

    problem.py     data, their checks, objective, largest useful penalty
    dual.py        dual objective, feasible dual points, the duality gap that proves an optimum
    progress.py    which features a promised progress needs; safe screening
    scheduler.py   how much progress to promise: predicted log-progress per second
    columns.py     sparse columns of one working set, padded for JAX
    newton.py      the solver of one subproblem: proximal Newton, coordinate descent (JAX)
    solver.py      the outer loop, and the plain solver without working sets

Sums over the whole sparse matrix, sorting and scheduling are NumPy and SciPy on the host; the
coordinate descent, which takes the time, is one JAX program in float64. The reference that the
adaptive-sampling example `l1_logistic.py` is judged by.

References:
    Johnson and Guestrin, `Blitz: A Principled Meta-Algorithm for Scaling Sparse Optimization
    <https://proceedings.mlr.press/v37/johnson15.html>`_, 2015, and `A Fast, Principled Working Set
    Algorithm for Exploiting Piecewise Linear Structure in Convex Problems
    <https://arxiv.org/abs/1807.08046>`_, 2018.
"""

from blitzws.problem import L1Logistic, make_problem
from blitzws.solver import Solution, Step, solve, solve_plain

__all__ = ["L1Logistic", "Solution", "Step", "make_problem", "solve", "solve_plain"]
