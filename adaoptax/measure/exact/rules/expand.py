"""The fallback: a parameter repeated for each example, whose cotangents are the gradients.

Exact for any use, whatever the model does with the parameter. XLA fuses the repetition, so that
biases and scales cost nothing; a large parameter costs as many copies as there are examples.
"""

import dataclasses
from typing import Self

import jax
import jax.numpy as jnp

from adaoptax import _tree
from adaoptax.measure.exact.factors import Factor, Moments, Want


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Full(Factor):
    """Gradients as they are.

    Attributes:
        d: [B, P], of a parameter seen as [1, 1, P].
    """

    d: jax.Array

    def gradient(self) -> jax.Array:
        return _tree.widen(self.d)[None, None]

    def turned(self) -> Self:
        """Never needed: a parameter is expanded outside of scans."""
        raise NotImplementedError

    def total(self) -> jax.Array:
        # A product with ones runs on the matrix unit.
        d = _tree.widen(self.d)
        return (jnp.ones(d.shape[0], d.dtype) @ d)[None, None]

    def merged(self, size: int) -> Self:
        d = _tree.widen(self.d)
        return dataclasses.replace(self, d=d.reshape(-1, size, d.shape[-1]).sum(1))

    def moments(self, want: Want, weight: jax.Array) -> Moments:
        d = _tree.widen(self.d)
        squares = _tree.squared_modulus(d)
        return Moments(
            # Beside the other sums over examples XLA forms no copy for this one.
            jnp.sum(d, axis=0)[None, None] if want.coordinate else self.total(),
            jnp.sum(squares, axis=1) if want.norm else None,
            jnp.sum(weight[:, None] * squares, axis=0)[None, None] if want.coordinate else None,
        )

    def inner(self, other: jax.Array) -> jax.Array:
        return jnp.real(_tree.widen(self.d) @ jnp.conj(other[0, 0]))


@jax.custom_vjp
def expand(value: jax.Array, slot: jax.Array) -> jax.Array:
    """`value` for each example of `slot` [B, ...], which receives the cotangents."""
    return jnp.broadcast_to(value, slot.shape)


def _forward(value: jax.Array, slot: jax.Array) -> tuple[jax.Array, jax.Array]:
    return expand(value, slot), value


def _backward(value: jax.Array, cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jnp.zeros_like(value), cotangent


expand.defvjp(_forward, _backward)
