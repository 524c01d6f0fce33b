"""Ways of measuring: loss → (loss, gradient, `GradientStats`), one file a way."""

from adaoptax.measure.devices import devices
from adaoptax.measure.groups import groups
from adaoptax.measure.per_example import per_example

__all__ = ["devices", "groups", "per_example"]
