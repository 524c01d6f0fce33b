"""Gradient transformations that adapt the step to the batch, one file a rule."""

from adaoptax.scaling.adagrad import (
    ScaleByAdaGradNormState,
    adadagrad,
    adadagrad_norm,
    adagrad_norm,
    scale_by_adagrad_norm,
)
from adaoptax.scaling.adascale import ScaleByAdaScaleState, adascale, scale_by_adascale
from adaoptax.scaling.gain import adascale_gain
from adaoptax.scaling.lipschitz import LipschitzDescentState, lipschitz_descent
from adaoptax.scaling.relative_error import optimal_rate, optimal_step_size
from adaoptax.scaling.skip import SkipNonfiniteState, skip_nonfinite

__all__ = [
    "LipschitzDescentState",
    "ScaleByAdaGradNormState",
    "ScaleByAdaScaleState",
    "SkipNonfiniteState",
    "adadagrad",
    "adadagrad_norm",
    "adagrad_norm",
    "adascale",
    "adascale_gain",
    "lipschitz_descent",
    "optimal_rate",
    "optimal_step_size",
    "scale_by_adagrad_norm",
    "scale_by_adascale",
    "skip_nonfinite",
]
