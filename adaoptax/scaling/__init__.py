"""Gradient transformations that adapt the step to the batch, one file a rule."""

from adaoptax.scaling import rules
from adaoptax.scaling.adagrad import (
    ScaleByAdaGradNormState,
    adadagrad,
    adadagrad_norm,
    adagrad_norm,
    scale_by_adagrad_norm,
)
from adaoptax.scaling.adam import ScaleByAdamWithBatchState, scale_by_adam_with_batch
from adaoptax.scaling.adam_hyperparams import AdamHyperparams, adam_hyperparams
from adaoptax.scaling.adamw import (
    AddDecayedWeightsWithBatchState,
    adamw_with_batch,
    add_decayed_weights_with_batch,
)
from adaoptax.scaling.adascale import ScaleByAdaScaleState, adascale, scale_by_adascale
from adaoptax.scaling.average_params import AverageParamsState, average_params, averaged_params
from adaoptax.scaling.by_batch import (
    BatchScaledSchedule,
    BatchScaledScheduleState,
    ScaleByBatchState,
    scale_by_batch,
)
from adaoptax.scaling.evidence import RuleEvidence
from adaoptax.scaling.gain import adascale_gain
from adaoptax.scaling.half_life import decay_of_half_life, half_life_of_decay
from adaoptax.scaling.skip import SkipNonfiniteState, skip_nonfinite

__all__ = [
    "AdamHyperparams",
    "AddDecayedWeightsWithBatchState",
    "AverageParamsState",
    "BatchScaledSchedule",
    "BatchScaledScheduleState",
    "RuleEvidence",
    "ScaleByAdaGradNormState",
    "ScaleByAdaScaleState",
    "ScaleByAdamWithBatchState",
    "ScaleByBatchState",
    "SkipNonfiniteState",
    "adadagrad",
    "adadagrad_norm",
    "adagrad_norm",
    "adam_hyperparams",
    "adamw_with_batch",
    "adascale",
    "adascale_gain",
    "add_decayed_weights_with_batch",
    "average_params",
    "averaged_params",
    "decay_of_half_life",
    "half_life_of_decay",
    "rules",
    "scale_by_adagrad_norm",
    "scale_by_adam_with_batch",
    "scale_by_adascale",
    "scale_by_batch",
    "skip_nonfinite",
]
