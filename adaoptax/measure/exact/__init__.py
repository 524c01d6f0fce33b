"""Exact per-example statistics at about the price of the gradient."""

from adaoptax.measure.exact.method import PerExampleMoments, exact, per_example_moments

__all__ = ["PerExampleMoments", "exact", "per_example_moments"]
