"""Ways of measuring: loss → (loss, gradient, `GradientStats`), one file a way."""

from adaoptax.measure.devices import devices
from adaoptax.measure.exact import (
    Explanation,
    PerExampleMoments,
    exact,
    explain,
    per_example_moments,
)
from adaoptax.measure.fsdp import fsdp, gather
from adaoptax.measure.groups import groups
from adaoptax.measure.per_example import per_example

__all__ = [
    "Explanation",
    "PerExampleMoments",
    "devices",
    "exact",
    "explain",
    "fsdp",
    "gather",
    "groups",
    "per_example",
    "per_example_moments",
]
