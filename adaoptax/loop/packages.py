"""Objects of other packages, known by the names of their classes so that nothing is imported."""

import functools
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def is_a(value: Any, name: str) -> bool:
    """Whether `value` is an instance of the class ``module.Class``, or of one derived from it."""
    return name in _names(value.__class__)


def is_of_package(value: Any, package: str, name: str) -> bool:
    """Whether `value` is an instance of a class `name` that any module of `package` defines."""
    return any(
        known.partition(".")[0] == package and known.rpartition(".")[2] == name
        for known in _names(value.__class__)
    )


@functools.lru_cache(256)
def _names(cls: Any) -> frozenset[str]:
    return frozenset(f"{base.__module__}.{base.__qualname__}" for base in cls.__mro__)


def is_array(leaf: Any) -> bool:
    """Whether `leaf` is an array of NumPy, JAX or torch."""
    return isinstance(leaf, (np.ndarray, jax.Array)) or is_a(leaf, "torch.Tensor")


def to_host(leaf: Any) -> np.ndarray:
    """A leaf as a NumPy array; from a device by an explicit transfer."""
    if isinstance(leaf, jax.Array):
        leaf = jax.device_get(leaf)
    elif is_a(leaf, "torch.Tensor"):
        return _torch_to_host(leaf)
    return np.asarray(leaf)


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
