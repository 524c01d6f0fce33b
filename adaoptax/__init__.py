"""Gradient noise, adaptive batch sizes and AdaScale for JAX and Optax.

Measure (`value_grad_and_stats`, `measure`), decide (`norm_test`, ..., `required_batch_size`), adapt
the step (`adascale`, ...), act on the host (`GrowthPolicy`, `BatchLoader`).
"""

from adaoptax import measure
from adaoptax.batch_tests import (
    BatchTestState,
    augmented_inner_product_test,
    coordinate_test,
    inner_product_test,
    norm_test,
    required_batch_size,
)
from adaoptax.extra_args import bind_extra_args
from adaoptax.loop import (
    AccumulatedStep,
    AdaptiveLoop,
    Batch,
    BatchLoader,
    GrowthPolicy,
    JsonLines,
    Record,
    accumulate,
    check_same_everywhere,
    data_process,
    global_batch,
    noise_windows,
    read_json_lines,
)
from adaoptax.measure.devices import stats_from_axis
from adaoptax.measure.stacked import stats_from_groups
from adaoptax.measure.value_grad_and_stats import value_grad_and_stats
from adaoptax.measure.varying import vary
from adaoptax.observables import observables
from adaoptax.scaling import (
    AdamHyperparams,
    AddDecayedWeightsWithBatchState,
    AverageParamsState,
    BatchScaledSchedule,
    BatchScaledScheduleState,
    RuleEvidence,
    ScaleByAdaGradNormState,
    ScaleByAdamWithBatchState,
    ScaleByAdaScaleState,
    ScaleByBatchState,
    SkipNonfiniteState,
    adadagrad,
    adadagrad_norm,
    adagrad_norm,
    adam_hyperparams,
    adamw_with_batch,
    adascale,
    adascale_gain,
    add_decayed_weights_with_batch,
    average_params,
    averaged_params,
    decay_of_half_life,
    half_life_of_decay,
    rules,
    scale_by_adagrad_norm,
    scale_by_adam_with_batch,
    scale_by_adascale,
    scale_by_batch,
    skip_nonfinite,
)
from adaoptax.schedules import (
    BatchSizeSchedule,
    ScaleByScheduleOverExamplesState,
    SizesAndRate,
    StagePenaltyState,
    add_stage_penalty,
    apply_stage_prox,
    over_examples,
    plan,
    scale_by_schedule_over_examples,
    sebs,
    seesaw,
)
from adaoptax.stats import (
    GradientStats,
    measured,
    merge_stats,
    noise_scale,
    orthogonal_variance,
    signal,
)

__version__ = "0.1.0"

__all__ = [
    # Statistics
    "GradientStats",
    "measured",
    "merge_stats",
    "noise_scale",
    "orthogonal_variance",
    "signal",
    # Measuring
    "measure",
    "stats_from_axis",
    "stats_from_groups",
    "vary",
    "value_grad_and_stats",
    # Deciding
    "BatchTestState",
    "augmented_inner_product_test",
    "coordinate_test",
    "inner_product_test",
    "norm_test",
    "required_batch_size",
    # Adapting the step
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
    "ScaleByScheduleOverExamplesState",
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
    "scale_by_schedule_over_examples",
    "skip_nonfinite",
    # Schedules over examples
    "BatchSizeSchedule",
    "SizesAndRate",
    "StagePenaltyState",
    "add_stage_penalty",
    "apply_stage_prox",
    "over_examples",
    "plan",
    "sebs",
    "seesaw",
    # Acting on the host
    "AccumulatedStep",
    "AdaptiveLoop",
    "Batch",
    "BatchLoader",
    "GrowthPolicy",
    "accumulate",
    "check_same_everywhere",
    "data_process",
    "global_batch",
    "observables",
    # Seeing what happened
    "JsonLines",
    "Record",
    "noise_windows",
    "read_json_lines",
    # For trainers that pass nothing extra
    "bind_extra_args",
]  # fmt: skip
