"""The scale-invariant step count τ: how many steps of the base batch a run is worth so far.

A single float32 is coarse (one ulp is 1/16 at a million, as large as the changes of the gain), so
τ is a whole int32 and a float fraction in [0, 1).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class ScaleInvariantClock(NamedTuple):
    """τ = whole + fraction.

    Attributes:
        scale_invariant_count: int32, the whole part.
        scale_invariant_fraction: The rest, in [0, 1).
    """

    scale_invariant_count: jax.Array
    scale_invariant_fraction: jax.Array

    def advance(self, steps: jax.Array) -> "ScaleInvariantClock":
        """τ + steps."""
        whole = jnp.floor(steps)
        fraction = self.scale_invariant_fraction + (steps - whole)
        carry = jnp.floor(fraction)
        added = (whole + carry).astype(jnp.int32)
        return ScaleInvariantClock(
            self.scale_invariant_count + added,
            (fraction - carry).astype(self.scale_invariant_fraction.dtype),
        )

    def value(self) -> jax.Array:
        """τ as one float, for schedules."""
        fraction = self.scale_invariant_fraction
        return self.scale_invariant_count.astype(fraction.dtype) + fraction


def init_clock(dtype: Any) -> ScaleInvariantClock:
    """τ = 0."""
    return ScaleInvariantClock(jnp.zeros([], jnp.int32), jnp.zeros([], dtype))
