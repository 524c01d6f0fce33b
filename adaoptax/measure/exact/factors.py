"""Per-example gradients of one parameter that are never formed: their factors, and sums.

Every rule brings the gradients g_b of a parameter, seen as [N, I, O], in one of these forms:

    Outer     g_b[n] = X_b[n]ᵀ D_b[n]     rules/dense.py: inputs X, output cotangents D
    Patches   the same, X_b being cut     rules/convolution.py
              out of an image when needed
    Rows      g_b[id_t] += D_b[t]         rules/embedding.py
    Full      g_b = D_b                   here: biases, scales, unknown operations

The cotangents of complex parameters are not conjugated, so that ⟨a, b⟩ is Re Σ a b*.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp

from adaoptax import _tree
from adaoptax.measure.varying import vary_like


class Want(NamedTuple):
    """Which statistics to compute."""

    norm: bool
    inner: bool
    coordinate: bool

    @classmethod
    def of(cls, statistics: Sequence[str]) -> Self:
        """Those that are named."""
        return cls(*(name in statistics for name in cls._fields))

    @property
    def squares(self) -> bool:
        """Whether any sum of squares is wanted."""
        return self.norm or self.coordinate


class FactorSums(NamedTuple):
    """Sums over examples b of their gradients of one parameter.

    Attributes:
        total: Σ g_b, [N, I, O].
        sq_norms: [B], ‖g_b‖², or None.
        squares: Σ c_b |g_b|², [N, I, O], or None.
    """

    total: jax.Array
    sq_norms: jax.Array | None
    squares: jax.Array | None


class Factor:
    """Gradients of B examples (or groups of them), on axis 0 of every array that is `in_order`.

    By default axis 1 holds parts whose gradients add up, such as the positions of a sequence.
    """

    def gradient(self) -> jax.Array:
        """[N, I, O]: the gradient of one example, from a factor without the leading axis."""
        raise NotImplementedError

    def in_order(self) -> "Factor":
        """The same with the examples on axis 0 of every array, if they may be elsewhere."""
        return self

    def turned(self) -> Self:
        """The sums over the turns of a scan, which are stacked on axis 0 before the examples."""
        join = lambda x: jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1, *x.shape[3:])
        return jax.tree.map(join, self)

    def merged(self, size: int) -> Self:
        """The gradients of groups of `size` examples in a row, summed."""
        return jax.tree.map(lambda x: x.reshape(-1, size * x.shape[1], *x.shape[2:]), self)

    def scaled(self, weight: jax.Array) -> Self:
        """Every g_b times its `weight` [B], or times one number []."""
        factor: Any = self
        return dataclasses.replace(factor, d=rows_times(weight, factor.d))

    def first(self, number: int) -> Self:
        """The first `number` examples."""
        return jax.tree.map(lambda x: x[:number], self)

    def total(self) -> jax.Array:
        """Σ g_b."""
        raise NotImplementedError

    def sums(self, want: Want, weight: jax.Array) -> FactorSums:
        """Sums over examples, with the weights [B] of their squares."""
        if not want.squares:
            return FactorSums(self.total(), None, None)
        return self.square_sums(want, weight)

    def square_sums(self, want: Want, weight: jax.Array) -> FactorSums:
        """`sums` where squares are wanted; by default with one gradient alive at a time."""
        return sum_over_examples(self, want, weight)

    def inner(self, other: jax.Array) -> jax.Array:
        """[B], Re⟨g_b, other⟩ for a fixed [N, I, O]."""
        return jax.lax.map(lambda one: real_dot(one.gradient(), other), self)

    def inner_with_total(self, total: jax.Array) -> jax.Array:
        """[B], Re⟨g_b, Σ g⟩, where that is cheaper than for any other direction."""
        return self.inner(total)


def sum_over_examples(factor: Factor, want: Want, weight: jax.Array) -> FactorSums:
    """Forms one gradient after the other: the work of Σ g_b, and one buffer of its size."""
    one = jax.eval_shape(lambda f: f.gradient(), jax.tree.map(lambda x: x[0], factor))
    real = jnp.finfo(one.dtype).dtype
    zeros = lambda dtype: vary_like(jnp.zeros(one.shape, dtype), one)

    def step(sums: tuple, xs: tuple) -> tuple[tuple, Any]:
        total, squares = sums
        one, share = xs
        gradient = one.gradient()
        square = _tree.squared_modulus(gradient)
        if want.coordinate:
            squares = squares + share * square
        return (total + gradient, squares), jnp.sum(square) if want.norm else None

    start = (zeros(one.dtype), zeros(real) if want.coordinate else None)
    (total, squares), sq_norms = jax.lax.scan(step, start, (factor, weight))
    return FactorSums(total, sq_norms, squares)


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

    def total(self) -> jax.Array:
        # A product with ones runs on the matrix unit.
        d = _tree.widen(self.d)
        return (jnp.ones(d.shape[0], d.dtype) @ d)[None, None]

    def merged(self, size: int) -> Self:
        d = _tree.widen(self.d)
        return dataclasses.replace(self, d=d.reshape(-1, size, d.shape[-1]).sum(1))

    def square_sums(self, want: Want, weight: jax.Array) -> FactorSums:
        d = _tree.widen(self.d)
        squares = _tree.squared_modulus(d)
        return FactorSums(
            # Beside the other sums over examples XLA forms no copy for this one.
            jnp.sum(d, axis=0)[None, None] if want.coordinate else self.total(),
            jnp.sum(squares, axis=1) if want.norm else None,
            jnp.sum(weight[:, None] * squares, axis=0)[None, None] if want.coordinate else None,
        )

    def inner(self, other: jax.Array) -> jax.Array:
        return jnp.real(_tree.widen(self.d) @ jnp.conj(other[0, 0]))


def wide(x: Any) -> Any:
    """The dtype in which products of `x` are summed: float32 at least."""
    return jnp.promote_types(x.dtype, jnp.float32)


def real_dot(a: jax.Array, b: jax.Array) -> jax.Array:
    """Re Σ a b*."""
    return jnp.real(jnp.sum(_tree.widen(a) * jnp.conj(b)))


def rows_times(weight: jax.Array, x: jax.Array) -> jax.Array:
    """Row b of `x` times weight[b]; the weight itself is not rounded to a narrow dtype."""
    weight = weight.astype(wide(x)).reshape(-1, *(1,) * (x.ndim - 1))
    return (_tree.widen(x) * weight).astype(x.dtype)
