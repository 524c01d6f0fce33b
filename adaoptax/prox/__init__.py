"""Proximal operators (L1, box, simplex, balls), and the gradient step that applies them."""

from adaoptax.prox.gradient import ProximalGradientState, proximal_gradient
from adaoptax.prox.operators import Prox, box, l1, l1_ball, l2_ball, projection, simplex

__all__ = [
    "Prox",
    "ProximalGradientState",
    "box",
    "l1",
    "l1_ball",
    "l2_ball",
    "projection",
    "proximal_gradient",
    "simplex",
]
