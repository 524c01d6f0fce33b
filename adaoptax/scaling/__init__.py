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
from adaoptax.scaling.skip import SkipNonfiniteState, skip_nonfinite

__all__ = [
    "ScaleByAdaGradNormState",
    "ScaleByAdaScaleState",
    "SkipNonfiniteState",
    "adadagrad",
    "adadagrad_norm",
    "adagrad_norm",
    "adascale",
    "adascale_gain",
    "scale_by_adagrad_norm",
    "scale_by_adascale",
    "skip_nonfinite",
]
