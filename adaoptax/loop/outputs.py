"""The scalars that a step returns, on their way from the device into a record."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Number = bool | int | float

# What the loop itself writes into a record.
RESERVED = frozenset(
    ("step", "examples", "epoch", "batch_size", "decision", "next_batch_size", "examples_per_s")
)


def start_reading(output: Any) -> dict[str, Any]:
    """Checks the names of `output` and asks the device to send it, without waiting."""
    if hasattr(output, "_asdict"):
        output = output._asdict()
    if not isinstance(output, Mapping) or not all(isinstance(name, str) for name in output):
        raise TypeError(
            f"Expected output to be a dict of scalars by name, got {type(output).__name__}: return "
            "adaoptax.observables(loss, stats, opt_state) from the train step."
        )
    if taken := sorted(RESERVED & output.keys()):
        raise ValueError(
            f"Expected names of your own in output, got {taken[0]!r}: the loop writes it into "
            "every record; choose another name."
        )
    for name, value in output.items():
        if np.shape(value) != ():
            raise ValueError(
                f"Expected output[{name!r}] to be one number, got an array of shape "
                f"{np.shape(value)}: this usually means that devices or rows were not reduced yet; "
                "return its mean or its maximum."
            )
        dtype = getattr(value, "dtype", None) or np.asarray(value).dtype
        if not any(jnp.issubdtype(dtype, kind) for kind in (bool, jnp.integer, jnp.floating)):
            raise ValueError(
                f"Expected output[{name!r}] to be one real number, got {value!r}: records and "
                "checkpoints hold numbers; leave it out where there is none."
            )
        if isinstance(value, jax.Array):
            value.copy_to_host_async()
    return dict(output)


def finish_reading(output: Mapping[str, Any]) -> dict[str, Number]:
    """Waits for the scalars; each becomes a plain bool, int or float."""
    return {name: np.asarray(value).item() for name, value in jax.device_get(dict(output)).items()}
