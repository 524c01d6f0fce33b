"""Gradient transformations that adapt the step to the batch."""

from adaoptax.scaling import rules
from adaoptax.scaling.adagrad import (
    ScaleByAdaGradNormState,
    adadagrad,
    adadagrad_norm,
    adagrad_norm,
    scale_by_adagrad_norm,
)
from adaoptax.scaling.adam import ScaleByAdamWithBatchState, scale_by_adam_with_batch
from adaoptax.scaling.adam_hyperparams import (
    AdamHyperparams,
    adam_hyperparams,
    decay_of_half_life,
    half_life_of_decay,
)
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
from adaoptax.scaling.lipschitz import LipschitzDescentState, lipschitz_descent
from adaoptax.scaling.relative_error import optimal_rate, optimal_step_size
from adaoptax.scaling.skip import SkipNonfiniteState, skip_nonfinite

__all__ = [
    "AdamHyperparams",
    "AddDecayedWeightsWithBatchState",
    "AverageParamsState",
    "BatchScaledSchedule",
    "BatchScaledScheduleState",
    "LipschitzDescentState",
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
    "lipschitz_descent",
    "optimal_rate",
    "optimal_step_size",
    "rules",
    "scale_by_adagrad_norm",
    "scale_by_adam_with_batch",
    "scale_by_adascale",
    "scale_by_batch",
    "skip_nonfinite",
]
