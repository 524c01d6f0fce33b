"""Ways of measuring: loss → (loss, gradient, `GradientStats`), one file a way."""

from adaoptax.measure.check_loss import LossCheck, check_loss
from adaoptax.measure.devices import devices
from adaoptax.measure.every import every
from adaoptax.measure.exact.explain import explain
from adaoptax.measure.exact.method import PerExampleMoments, exact, per_example_moments
from adaoptax.measure.fsdp import fsdp, gather
from adaoptax.measure.groups import groups
from adaoptax.measure.inner_products import inner_products
from adaoptax.measure.loss import Loss, Method
from adaoptax.measure.micro_steps import MicroSteps, MicroStepsState, micro_steps
from adaoptax.measure.per_example import per_example
from adaoptax.measure.preconditioner import adam_preconditioner
from adaoptax.measure.programs.equations import UnknownEquationError
from adaoptax.measure.row_products import leave_one_out

__all__ = [
    "Loss",
    "LossCheck",
    "Method",
    "MicroSteps",
    "MicroStepsState",
    "PerExampleMoments",
    "UnknownEquationError",
    "adam_preconditioner",
    "check_loss",
    "devices",
    "every",
    "exact",
    "explain",
    "fsdp",
    "gather",
    "groups",
    "inner_products",
    "leave_one_out",
    "micro_steps",
    "per_example",
    "per_example_moments",
]
