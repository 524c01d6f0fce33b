"""A count that may be fractional and grow for ever, kept to the last bit of what is added.

A single float32 is coarse: at a million one ulp is 1/16, as large as what is to be added. A count
is therefore a whole int32 and a float fraction in [0, 1).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Clock(NamedTuple):
    """A count: whole + fraction.

    Attributes:
        whole: int32, the whole part.
        fraction: The rest, in [0, 1).
    """

    whole: jax.Array
    fraction: jax.Array

    def advance(self, amount: jax.Array) -> "Clock":
        """The count, `amount` later."""
        floor = jnp.floor(amount)
        fraction = self.fraction + (amount - floor)
        carry = jnp.floor(fraction)
        whole = self.whole + (floor + carry).astype(jnp.int32)
        return Clock(whole, (fraction - carry).astype(self.fraction.dtype))

    def value(self) -> jax.Array:
        """The count as one float, for schedules."""
        return self.whole.astype(self.fraction.dtype) + self.fraction


def init_clock(dtype: Any) -> Clock:
    """A count of zero."""
    return Clock(jnp.zeros([], jnp.int32), jnp.zeros([], dtype))
