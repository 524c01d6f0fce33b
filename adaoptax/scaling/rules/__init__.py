"""Rules that move the learning rate with the batch, one file a rule.

A rule is a function ``rule(batch_size, base_batch_size, ...)`` that returns the factor by which the
learning rate tuned at the base batch is multiplied: 1 when the two sizes are equal.
`scale_by_batch` makes any of them a gradient transformation, `BatchScaledSchedule` a
hyperparameter.
"""

from adaoptax.scaling.rules.adascale import adascale
from adaoptax.scaling.rules.legw import legw
from adaoptax.scaling.rules.linear import linear
from adaoptax.scaling.rules.mccandlish import mccandlish
from adaoptax.scaling.rules.sqrt import sqrt
from adaoptax.scaling.rules.surge import surge
from adaoptax.scaling.rules.surge_exact import SurgeConstants, surge_constants, surge_exact

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
