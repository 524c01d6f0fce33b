"""Names of what public functions take, for annotations."""

from typing import Any

import jax
import numpy as np

ArrayTree = Any  # a pytree of arrays: JAX itself has no narrower type, since users add kinds of it
Scalar = float | np.integer | np.floating | np.ndarray | jax.Array  # a real number, traced or not

__all__ = ["ArrayTree", "Scalar"]
