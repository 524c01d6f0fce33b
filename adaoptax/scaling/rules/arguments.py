"""What all rules check and convert before they compute."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adaoptax import _validate


def sizes(batch_size: Any, base_batch_size: Any) -> tuple[jax.Array, jax.Array]:
    """Both batch sizes as floats of one dtype."""
    tuned = "it is the batch size the learning rate was tuned for."
    _validate.at_least("batch_size", batch_size, 1e-30, "it counts the examples of a gradient.")
    _validate.at_least("base_batch_size", base_batch_size, 1e-30, tuned)
    dtype = float_dtype(batch_size, base_batch_size)
    return jnp.asarray(batch_size, dtype), jnp.asarray(base_batch_size, dtype)


def float_dtype(*values: Any) -> Any:
    """At least float32, float64 where an array is; that of Python numbers without any array."""
    arrays = [x.dtype for x in values if isinstance(x, (jax.Array, np.ndarray))]
    floats = [dtype for dtype in arrays if jnp.issubdtype(dtype, jnp.floating)]
    return jnp.promote_types(jnp.result_type(*floats or [float]), jnp.float32)


def required_noise_scale(noise_scale: Any, rule: str, meaning: str) -> Any:
    """`noise_scale`, or a ValueError that says what it is and where it comes from."""
    if noise_scale is None:
        raise ValueError(
            f"Expected noise_scale for rules.{rule}, got None: the rule bends where the batch "
            f"reaches it; pass {meaning}"
        )
    _validate.at_least("noise_scale", noise_scale, 0, "it counts examples.")
    return noise_scale
