"""Dense layers: a product of a parameter and data, with or without sequence and batch axes.

Covers `x @ w`, `einsum` with weights of each head, expert layers, and LSTM cells in a scan, whose
turns are so many entries of a sequence.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from adaoptax import _tree
from adaoptax.measure.exact import cost
from adaoptax.measure.exact.axes import Axis
from adaoptax.measure.exact.factors import (
    Factor,
    FactorSums,
    Want,
    rows_times,
    sum_over_examples,
    wide,
)
from adaoptax.measure.exact.rules.rule import Rule
from adaoptax.measure.programs import descriptions as read
from adaoptax.measure.programs.describe import describe

_ALL = Want(True, True, True)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Outer(Factor):
    """g_b[n] = x_b[n]ᵀ d_b[n].

    Attributes:
        x: [B, N, T, I].
        d: [B, N, T, O].
    """

    x: jax.Array
    d: jax.Array

    @property
    def sizes(self) -> cost.Sizes:
        """Of the product."""
        b, n, t, i = self.x.shape
        return cost.Sizes(b, n, t, i, self.d.shape[-1])

    def gradient(self) -> jax.Array:
        return _product("nti,nto->nio", self.x, self.d)

    def merged(self, size: int) -> Self:
        return self._along_sequence(lambda x: x.reshape(-1, size, *x.shape[1:]).swapaxes(0, 1))

    def turned(self) -> Self:
        """Turns of a scan, stacked on axis 0, become entries of the sequence."""
        return self._along_sequence(lambda x: x)

    def _along_sequence(self, lead: Any) -> Self:
        def join(x: jax.Array) -> jax.Array:
            x = jnp.moveaxis(lead(x), 0, 2)  # [B, N, turns, T, ...]
            return x.reshape(*x.shape[:2], -1, x.shape[-1])

        return jax.tree.map(join, self)

    def joined(self, others: Sequence["Outer"]) -> "Outer":
        """The sums of the gradients of several products with one parameter."""
        return jax.tree.map(lambda *xs: jnp.concatenate(xs, axis=2), self, *others)

    def swapped(self) -> "Outer":
        """The gradient of the transposed parameter."""
        return Outer(self.d, self.x)

    def total(self) -> jax.Array:
        if (flat := self._flat()) is not None:
            return _product("ri,ro->io", *flat)[None]
        return _product("bnti,bnto->nio", self.x, self.d)

    def _flat(self) -> tuple[jax.Array, jax.Array] | None:
        """``(x, d)`` as [B·T, ...] if N = 1: plain matrices, which no backend has to rearrange."""
        if self.sizes.n > 1:
            return None
        return self.x.reshape(-1, self.sizes.i), self.d.reshape(-1, self.sizes.o)

    def square_sums(self, want: Want, weight: jax.Array) -> FactorSums:
        formula = cost.choose(self.sizes, want, jax.default_backend()).formula
        by = {"factors": _by_factors, "gram": _by_gram, "batched": _batched}
        return by.get(formula, sum_over_examples)(self, want, weight)

    def inner(self, other: jax.Array) -> jax.Array:
        formula = cost.choose(self.sizes, _ALL, jax.default_backend()).formula
        if formula == "batched":  # XLA forms the gradients once, for this and for the moments
            flat = _gradients(self).reshape(self.sizes.b, -1)
            return jnp.real(flat @ jnp.conj(other).reshape(-1))
        if formula == "scan":
            return super().inner(other)
        if (flat_pair := self._flat()) is not None:
            along = _product("ri,io->ro", flat_pair[0], jnp.conj(other[0])) * flat_pair[1]
        else:
            along = _product("bnti,nio->bnto", self.x, jnp.conj(other)) * self.d
        return jnp.real(jnp.sum(along.reshape(self.sizes.b, -1), axis=1))

    def inner_with_total(self, total: jax.Array) -> jax.Array:
        b, _, t, i, o = self.sizes
        flat = self._flat()
        if flat is None or t > 1 or b * (i + o) > i * o:
            return self.inner(total)
        inputs, outputs = (_product("bi,ci->bc", x, jnp.conj(x)) for x in flat)
        return jnp.real(jnp.sum(inputs * outputs, axis=1))


def _product(formula: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(formula, a, b, preferred_element_type=jnp.promote_types(wide(a), wide(b)))


def _by_factors(outer: Outer, want: Want, weight: jax.Array) -> FactorSums:
    lengths = lambda x: jnp.sum(_tree.squared_modulus(x), axis=-1)
    sq_norms = jnp.sum(lengths(outer.x) * lengths(outer.d), (1, 2)) if want.norm else None
    squares = _squares_by_factors(outer, weight) if want.coordinate else None
    return FactorSums(outer.total(), sq_norms, squares)


def _squares_by_factors(outer: Outer, weight: jax.Array) -> jax.Array:
    """Σ w_b |x_b|²ᵀ|d_b|² for T = 1."""
    x, d = _tree.widen(outer.x), rows_times(jnp.sqrt(weight), _tree.widen(outer.d))
    # Squares of small cotangents would underflow. And since the inputs' squares now wait for the
    # cotangents, they are not alive during the whole backward pass.
    largest = jnp.max(jnp.abs(d))
    scale = jnp.where(largest > 0, largest, 1)
    return Outer(_tree.squared_modulus(x * scale), _tree.squared_modulus(d / scale)).total()


def _by_gram(outer: Outer, want: Want, weight: jax.Array) -> FactorSums:
    inputs = _product("bnti,bnsi->bnts", outer.x, jnp.conj(outer.x))
    outputs = _product("bnto,bnso->bnts", outer.d, jnp.conj(outer.d))
    return FactorSums(outer.total(), jnp.sum(jnp.real(inputs * outputs), (1, 2, 3)), None)


def _gradients(outer: Outer) -> jax.Array:
    """[B, N, I, O]: all gradients at once."""
    return _product("bnti,bnto->bnio", outer.x, outer.d)


def _batched(outer: Outer, want: Want, weight: jax.Array) -> FactorSums:
    gradients = _gradients(outer)
    flat = gradients.reshape(gradients.shape[0], -1)
    # Sums over examples as products with vectors: BLAS reads the gradients once for each.
    total = (jnp.ones(flat.shape[0], flat.dtype) @ flat).reshape(gradients.shape[1:])
    sq_norms = squares = None
    if want.norm:
        sq_norms = jnp.real(jax.vmap(jnp.vdot)(flat, flat))
    if want.coordinate:
        squares = (weight @ _tree.squared_modulus(flat)).reshape(gradients.shape[1:])
    return FactorSums(total, sq_norms, squares)


@dataclasses.dataclass(frozen=True, eq=False)
class Dense(Rule):
    """`dot_general` of a parameter and data."""

    name = "dense"

    @property
    def _axes(self) -> tuple[list[int], list[int], list[int], list[int], list[int], list[int]]:
        """Batch, contracted and free axes of the data, then of the parameter."""
        does, w, x = self.does, self.position, 1 - self.position
        axes = lambda side, aval: (
            list(does.batch[side]),
            list(does.contract[side]),
            does.free(side, len(aval.shape)),
        )
        return (*axes(x, self.data), *axes(w, self.parameter))

    @property
    def _sizes(self) -> tuple[int, int, int, int]:
        """N, T, I, O."""
        _, _, x_free, batch, contract, free = self._axes
        size = lambda aval, axes: math.prod(aval.shape[axis] for axis in axes)
        w = self.parameter
        return size(w, batch), size(self.data, x_free), size(w, contract), size(w, free)

    def canonical(self, w: Any) -> Any:
        _, _, _, batch, contract, free = self._axes
        n, _, i, o = self._sizes
        return w.transpose(batch + contract + free).reshape(n, i, o)

    def restore(self, w: jax.Array) -> jax.Array:
        _, _, _, batch, contract, free = self._axes
        order = batch + contract + free
        shape = [self.parameter.shape[axis] for axis in order]
        return w.reshape(shape).transpose(np.argsort(order))

    def of_rows(self, x: jax.Array, d: jax.Array) -> Outer:
        batch, contract, x_free, *_ = self._axes
        n, t, i, o = self._sizes
        b = x.shape[0]
        order = [0, *(1 + axis for axis in batch + x_free + contract)]
        x = x.transpose(order).reshape(b, n, t, i)
        if self.position == 0:  # the result is [batch, parameter's free axes, data's free axes]
            d = d.reshape(b, n, o, t).swapaxes(2, 3)
        return Outer(x, d.reshape(b, n, t, o))

    def choice(self, num_examples: int, want: Want, turns: int) -> cost.Choice:
        n, t, i, o = self._sizes
        return cost.choose(
            cost.Sizes(num_examples, n, turns * t, i, o), want, jax.default_backend()
        )


def match(eqn: Any, position: int, data: Axis, result: Axis, num_rows: int) -> Dense | None:
    """The rule for `eqn`, if it is a product."""
    does = describe(eqn)
    if not isinstance(does, read.Product):
        return None
    return Dense(eqn, does, position, data, result, num_rows)
