"""Leaves of other libraries as NumPy arrays on the host."""

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adaoptax.loop.kinds import is_a


def to_host(leaf: Any) -> np.ndarray:
    """A leaf as a NumPy array; from a device by an explicit transfer."""
    if isinstance(leaf, jax.Array):
        leaf = jax.device_get(leaf)
    elif is_a(leaf, "torch.Tensor"):
        return _torch_to_host(leaf)
    return np.asarray(leaf)


def is_array(leaf: Any) -> bool:
    """Whether `leaf` is an array of NumPy, JAX or torch."""
    return isinstance(leaf, (np.ndarray, jax.Array)) or is_a(leaf, "torch.Tensor")


def _torch_to_host(tensor: Any) -> np.ndarray:
    """A tensor as an array of the same type and bits; torch itself does not convert bfloat16."""
    try:
        if str(tensor.dtype) == "torch.bfloat16":
            bits = tensor.view(sys.modules["torch"].int16)
            return bits.numpy(force=True).view(jnp.bfloat16)
        return tensor.numpy(force=True)
    except (TypeError, RuntimeError) as error:
        raise TypeError(
            f"Expected dense torch tensors of a type that NumPy has, or of bfloat16, got one of "
            f"{tensor.dtype} with {tensor.layout}: convert it in the dataset, for example with "
            ".to_dense() or .float()."
        ) from error
