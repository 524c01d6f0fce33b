"""Numbers on the host: whole numbers, real numbers, and multiples of a size."""

import math
import operator
from typing import Any

import jax
import numpy as np

from adaoptax._validate import at_least


def whole_number(name: str, value: Any, minimum: int, meaning: str) -> int:
    """Returns `value` as a plain int, or raises ValueError where it is not one >= `minimum`."""
    number = None if isinstance(value, (bool, np.bool_)) else _index(value)
    if number is None:
        raise ValueError(
            f"Expected {name} to be a whole number, got {name}={value!r}: {meaning} "
            "Pass an int (round a real number first)."
        )
    at_least(name, number, minimum, meaning)
    return number


def _index(value: Any) -> int | None:
    try:
        return operator.index(value)
    except TypeError:
        return None


def real_number(name: str, value: Any) -> float:
    """Returns one number (Python, NumPy or JAX) as a plain float, which may be inf or NaN."""
    # An explicit transfer, so that loops under `jax.transfer_guard("disallow")` run.
    value = jax.device_get(value)
    if np.shape(value) != ():
        raise ValueError(
            f"Expected {name} to be one number, got an array of shape {np.shape(value)}: "
            "this usually means that devices or groups were not reduced yet; take the maximum."
        )
    return float(value)


def round_up(number: float, multiple: int) -> int:
    """Smallest multiple of `multiple` that is at least the finite `number`."""
    return -(-math.ceil(number) // multiple) * multiple


def round_down(number: float, multiple: int) -> int:
    """Largest multiple of `multiple` that is at most the finite `number`."""
    return math.floor(number) // multiple * multiple
