"""Checks of arguments: one function a condition, one sentence an error; and numbers of the host.

What raises judges plain numbers only: a traced value (for example under
``optax.inject_hyperparams``) has no value yet and passes.
"""

import math
import operator
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np


def is_number(value: Any) -> bool:
    """Whether `value` is a plain Python or NumPy number, whose value can be judged now."""
    number = isinstance(value, (int, float, np.integer, np.floating))
    return number and not isinstance(value, bool)


def positive(name: str, value: Any, meaning: str, *, above: float = 0) -> None:
    """Raises ValueError unless the number `value` is above zero (or `above`) and finite."""
    if is_number(value) and not above < value < float("inf"):
        raise ValueError(f"Expected {name} > {above} and finite, got {name}={value!r}: {meaning}")


def base_batch_size(value: Any, tuned: str) -> None:
    """Raises ValueError unless the number `value` can be the batch size for which `tuned` was."""
    positive("base_batch_size", value, f"it is the batch size {tuned} was tuned for.")


def has_params(params: Any, meaning: str, call: str = "stats=stats") -> None:
    """Raises ValueError where an `update` that needs the parameters did not get them."""
    if params is None:
        raise ValueError(
            f"Expected params, got params=None: {meaning}; call"
            f" tx.update(grads, state, params, {call})."
        )


def at_least(name: str, value: Any, minimum: float, meaning: str) -> None:
    """Raises ValueError unless the number `value` is at least `minimum`."""
    if is_number(value) and not value >= minimum:
        raise ValueError(f"Expected {name} >= {minimum}, got {name}={value!r}: {meaning}")


def count(name: str, value: Any, minimum: int, meaning: str) -> None:
    """Raises ValueError unless the number `value` is whole and at least `minimum`."""
    if is_number(value) and not (value >= minimum and value % 1 == 0):
        raise ValueError(
            f"Expected {name} to be a whole number >= {minimum}, got {name}={value!r}: {meaning}"
        )


def fraction(name: str, value: Any, meaning: str) -> None:
    """Raises ValueError unless the number `value` lies in [0, 1)."""
    if is_number(value) and not 0 <= value < 1:
        raise ValueError(f"Expected 0 <= {name} < 1, got {name}={value!r}: {meaning}")


def one_of(name: str, value: Any, choices: Sequence[str]) -> None:
    """Raises ValueError unless `value` is one of the `choices`."""
    if value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"Expected {name} to be one of {listed}; got {name}={value!r}.")


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
