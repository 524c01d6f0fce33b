"""Ways of measuring: loss → (loss, gradient, `GradientStats`), one file a way."""

from adaoptax.measure.devices import devices
from adaoptax.measure.fsdp import fsdp, gather
from adaoptax.measure.groups import groups
from adaoptax.measure.micro_steps import MicroSteps, MicroStepsState, micro_steps
from adaoptax.measure.per_example import per_example

__all__ = [
    "MicroSteps",
    "MicroStepsState",
    "devices",
    "fsdp",
    "gather",
    "groups",
    "micro_steps",
    "per_example",
]
