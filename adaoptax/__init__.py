"""Gradient noise, adaptive batch sizes and AdaScale for JAX and Optax.

Measure (`value_grad_and_stats`, `measure`), decide (`norm_test`, ..., `required_batch_size`), adapt
the step (`adascale`, ...), act on the host (`GrowthPolicy`, `BatchLoader`).
"""

from adaoptax import batch_tests, loop, measure, prox, scaling, schedules
from adaoptax.batch_tests import (
    augmented_inner_product_test,
    coordinate_test,
    inner_product_test,
    norm_test,
    proximal_test,
    required_batch_size,
)
from adaoptax.extra_args import (
    bind_extra_args,
)
from adaoptax.loop import (
    AdaptiveLoop,
    Batch,
    BatchLoader,
    GrowthPolicy,
    JsonLines,
    accumulate,
    data_process,
    global_batch,
    noise_windows,
    read_json_lines,
)
from adaoptax.measure.devices import (
    stats_from_axis,
)
from adaoptax.measure.stacked import (
    stats_from_groups,
)
from adaoptax.measure.value_grad_and_stats import (
    value_grad_and_stats,
)
from adaoptax.measure.varying import (
    vary,
)
from adaoptax.noise_tracker import (
    noise_scale_estimate,
    track_noise_scale,
)
from adaoptax.observables import (
    observables,
)
from adaoptax.scaling import (
    adadagrad,
    adadagrad_norm,
    adagrad_norm,
    adamw_with_batch,
    adascale,
    average_params,
    averaged_params,
    rules,
    scale_by_adam_with_batch,
    scale_by_adascale,
    scale_by_batch,
    skip_nonfinite,
)
from adaoptax.schedules import (
    BatchSizeSchedule,
    over_examples,
    plan,
    scale_by_schedule_over_examples,
    sebs,
    seesaw,
)
from adaoptax.stats import (
    GradientStats,
    merge_stats,
    noise_scale,
    orthogonal_variance,
    signal,
)

__version__ = "0.1.0"

__all__ = [
    # Statistics
    "GradientStats",
    "merge_stats",
    "noise_scale",
    "orthogonal_variance",
    "signal",
    # Measuring
    "measure",
    "stats_from_axis",
    "stats_from_groups",
    "value_grad_and_stats",
    "vary",
    # Deciding
    "augmented_inner_product_test",
    "batch_tests",
    "coordinate_test",
    "inner_product_test",
    "norm_test",
    "proximal_test",
    "required_batch_size",
    # Adapting the step
    "adadagrad",
    "adadagrad_norm",
    "adagrad_norm",
    "adamw_with_batch",
    "adascale",
    "average_params",
    "averaged_params",
    "prox",
    "rules",
    "scale_by_adam_with_batch",
    "scale_by_adascale",
    "scale_by_batch",
    "scaling",
    "skip_nonfinite",
    # Schedules over examples
    "BatchSizeSchedule",
    "over_examples",
    "plan",
    "scale_by_schedule_over_examples",
    "schedules",
    "sebs",
    "seesaw",
    # Acting on the host
    "AdaptiveLoop",
    "Batch",
    "BatchLoader",
    "GrowthPolicy",
    "accumulate",
    "data_process",
    "global_batch",
    "loop",
    # Seeing what happened
    "JsonLines",
    "noise_scale_estimate",
    "noise_windows",
    "observables",
    "read_json_lines",
    "track_noise_scale",
    # For trainers that pass nothing extra
    "bind_extra_args",
]  # fmt: skip
