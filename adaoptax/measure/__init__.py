"""Ways of measuring: loss → (loss, gradient, `GradientStats`), one file a way."""

from adaoptax.measure.devices import devices
from adaoptax.measure.exact import PerExampleMoments, exact, per_example_moments
from adaoptax.measure.fsdp import fsdp, gather
from adaoptax.measure.groups import groups
from adaoptax.measure.per_example import per_example

__all__ = [
    "PerExampleMoments",
    "devices",
    "exact",
    "fsdp",
    "gather",
    "groups",
    "per_example",
    "per_example_moments",
]
