"""Rules that move the learning rate with the batch.

A rule is a function ``rule(batch_size, base_batch_size, ...)`` that returns the factor by which the
learning rate tuned at the base batch is multiplied: 1 when the two sizes are equal.
`scale_by_batch` makes any of them a gradient transformation, `BatchScaledSchedule` a
hyperparameter.
"""

from adaoptax.scaling.rules.noise_scale import adascale, mccandlish
from adaoptax.scaling.rules.powers import legw, linear, sqrt
from adaoptax.scaling.rules.surge import SurgeConstants, surge, surge_constants, surge_exact

__all__ = [
    "SurgeConstants",
    "adascale",
    "legw",
    "linear",
    "mccandlish",
    "sqrt",
    "surge",
    "surge_constants",
    "surge_exact",
]
