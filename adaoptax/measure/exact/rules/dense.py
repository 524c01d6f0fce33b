"""Dense layers: a product of a parameter and data, with or without sequence and batch axes.

Covers `x @ w`, `einsum` with weights of each head, expert layers, and LSTM cells in a scan, whose
turns are so many entries of a sequence.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

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


class Axes(NamedTuple):
    """Which axes of an operand are whose: the examples, N, T, and its own, which are I or O."""

    b: tuple[int, ...] = (0,)
    n: tuple[int, ...] = (1,)
    t: tuple[int, ...] = (2,)
    own: tuple[int, ...] = (3,)


_IN_ORDER = Axes()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Outer(Factor):
    """g_b[n] = x_b[n]ᵀ d_b[n].

    Both lie as they do in the loss: on an accelerator bringing them to one order costs as much as
    the product. `in_order` does it for those who need it.

    Attributes:
        x: [B, N, T, I] in order; else `x_axes` says which axes these are.
        d: [B, N, T, O], likewise.
    """

    x: jax.Array
    d: jax.Array
    x_axes: Axes = dataclasses.field(default=_IN_ORDER, metadata={"static": True})
    d_axes: Axes = dataclasses.field(default=_IN_ORDER, metadata={"static": True})

    @property
    def sizes(self) -> cost.Sizes:
        """Of the product."""
        b, n, t, i = _sizes_of(self.x, self.x_axes)
        return cost.Sizes(b, n, t, i, _sizes_of(self.d, self.d_axes)[-1])

    def in_order(self) -> "Outer":
        """The same with x [B, N, T, I] and d [B, N, T, O]."""

        def order(x: jax.Array, axes: Axes) -> jax.Array:
            if axes == _IN_ORDER:
                return x
            return x.transpose(sum(axes, ())).reshape(_sizes_of(x, axes))

        return Outer(order(self.x, self.x_axes), order(self.d, self.d_axes))

    def gradient(self) -> jax.Array:
        return _product("nti,nto->nio", self.x, self.d)

    def scaled(self, weight: jax.Array) -> "Outer":
        return super(Outer, self.in_order()).scaled(weight)

    def first(self, number: int) -> "Outer":
        return super(Outer, self.in_order()).first(number)

    def merged(self, size: int) -> "Outer":
        return self._along_sequence(lambda x: x.reshape(-1, size, *x.shape[1:]).swapaxes(0, 1))

    def turned(self) -> "Outer":
        """Turns of a scan, stacked on axis 0, become entries of the sequence."""
        return self._along_sequence(lambda x: x)

    def _along_sequence(self, lead: Any) -> "Outer":
        def join(x: jax.Array) -> jax.Array:
            x = jnp.moveaxis(lead(x), 0, 2)  # [B, N, turns, T, ...]
            return x.reshape(*x.shape[:2], -1, x.shape[-1])

        return jax.tree.map(join, self.in_order())

    def joined(self, others: Sequence["Outer"]) -> "Outer":
        """The sums of the gradients of several products with one parameter."""
        join = lambda *xs: jnp.concatenate(xs, axis=2)
        return jax.tree.map(join, self.in_order(), *(other.in_order() for other in others))

    def swapped(self) -> "Outer":
        """The gradient of the transposed parameter."""
        return Outer(self.d, self.x, self.d_axes, self.x_axes)

    def total(self) -> jax.Array:
        (x, d), (of_x, of_d) = (self.x, self.d), (self.x_axes, self.d_axes)
        summed = ((*of_x.b, *of_x.t), (*of_d.b, *of_d.t))
        total = _dot(x, d, summed, (of_x.n, of_d.n), (of_x.own, of_d.own))
        return total.reshape(self.sizes.n, self.sizes.i, self.sizes.o)

    def square_sums(self, want: Want, weight: jax.Array) -> FactorSums:
        formula = cost.choose(self.sizes, want, jax.default_backend()).formula
        by = {"factors": _by_factors, "gram": _by_gram, "batched": _batched, "scan": _one_by_one}
        return by[formula](self, want, weight)

    def inner(self, other: jax.Array) -> jax.Array:
        formula = cost.choose(self.sizes, _ALL, jax.default_backend()).formula
        if formula == "batched":  # XLA forms the gradients once, for this and for the moments
            flat = _gradients(self).reshape(self.sizes.b, -1)
            return jnp.real(flat @ jnp.conj(other).reshape(-1))
        outer = self.in_order()
        if formula == "scan":
            return super(Outer, outer).inner(other)
        if (flat_pair := outer._flat()) is not None:
            along = _product("ri,io->ro", flat_pair[0], jnp.conj(other[0])) * flat_pair[1]
        else:
            along = _product("bnti,nio->bnto", outer.x, jnp.conj(other)) * outer.d
        return jnp.real(jnp.sum(along.reshape(self.sizes.b, -1), axis=1))

    def inner_with_total(self, total: jax.Array) -> jax.Array:
        b, n, t, i, o = self.sizes
        if n > 1 or t > 1 or b * (i + o) > i * o:
            return self.inner(total)
        flat = self.in_order()._flat()
        assert flat is not None
        inputs, outputs = (_product("bi,ci->bc", x, jnp.conj(x)) for x in flat)
        return jnp.real(jnp.sum(inputs * outputs, axis=1))

    def _flat(self) -> tuple[jax.Array, jax.Array] | None:
        """``(x, d)`` as [B·T, ...] if N = 1: plain matrices, which no backend has to rearrange."""
        if self.sizes.n > 1:
            return None
        return self.x.reshape(-1, self.sizes.i), self.d.reshape(-1, self.sizes.o)


def _sizes_of(x: jax.Array, axes: Axes) -> list[int]:
    return [math.prod(x.shape[axis] for axis in group) for group in axes]


def _product(formula: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(formula, a, b, preferred_element_type=jnp.promote_types(wide(a), wide(b)))


_Pair = tuple[tuple[int, ...], tuple[int, ...]]  # axes of two operands


def _dot(a: jax.Array, b: jax.Array, over: _Pair, along: _Pair, free: _Pair) -> jax.Array:
    """The product over some axes: [along, free of a, free of b], each group in its given order."""
    both = jnp.promote_types(a.dtype, b.dtype)
    a, b = a.astype(both), b.astype(both)
    product = jax.lax.dot_general(a, b, (over, along), preferred_element_type=wide(a))
    order = list(range(len(along[0])))
    for axes in free:  # the product has them as they lie
        order += [len(order) + place for place in np.argsort(np.argsort(axes))]
    return product.transpose(order)


def _by_factors(outer: Outer, want: Want, weight: jax.Array) -> FactorSums:
    sq_norms = squares = None
    if want.norm:
        inputs, outputs = _lengths(outer.x, outer.x_axes), _lengths(outer.d, outer.d_axes)
        sq_norms = jnp.sum(inputs * outputs, axis=1)
    if want.coordinate:
        squares = _squares_by_factors(outer, weight)
    return FactorSums(outer.total(), sq_norms, squares)


def _lengths(x: jax.Array, axes: Axes) -> jax.Array:
    """[B, N], squared lengths for T = 1."""
    squares = jnp.sum(_tree.squared_modulus(x), axis=(*axes.t, *axes.own))
    order = np.argsort(np.argsort((*axes.b, *axes.n)))
    return squares.transpose(order).reshape(x.shape[axes.b[0]], -1)


def _squares_by_factors(outer: Outer, weight: jax.Array) -> jax.Array:
    """Σ w_b |x_b|²ᵀ|d_b|² for T = 1."""
    outer = outer.in_order()
    x, d = _tree.widen(outer.x), rows_times(jnp.sqrt(weight), _tree.widen(outer.d))
    # Squares of small cotangents would underflow. And since the inputs' squares now wait for the
    # cotangents, they are not alive during the whole backward pass.
    largest = jnp.max(jnp.abs(d))
    scale = jnp.where(largest > 0, largest, 1)
    return Outer(_tree.squared_modulus(x * scale), _tree.squared_modulus(d / scale)).total()


def _by_gram(outer: Outer, want: Want, weight: jax.Array) -> FactorSums:
    def gram(x: jax.Array, axes: Axes) -> jax.Array:
        """[B, N, T, T], with as many axes as these have."""
        twice = lambda group: (group, group)
        return _dot(x, jnp.conj(x), twice(axes.own), twice((*axes.b, *axes.n)), twice(axes.t))

    products = gram(outer.x, outer.x_axes) * gram(outer.d, outer.d_axes)
    sq_norms = jnp.sum(jnp.real(products), axis=tuple(range(1, products.ndim)))
    return FactorSums(outer.total(), sq_norms, None)


def _gradients(outer: Outer) -> jax.Array:
    """[B, N, I, O]: all gradients at once."""
    of_x, of_d = outer.x_axes, outer.d_axes
    along = ((*of_x.b, *of_x.n), (*of_d.b, *of_d.n))
    gradients = _dot(outer.x, outer.d, (of_x.t, of_d.t), along, (of_x.own, of_d.own))
    b, n, _, i, o = outer.sizes
    return gradients.reshape(b, n, i, o)


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


def _one_by_one(outer: Outer, want: Want, weight: jax.Array) -> FactorSums:
    return sum_over_examples(outer.in_order(), want, weight)


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

    def factor(self, x: jax.Array, d: jax.Array) -> Outer:
        batch, contract, free, *_, own = self._axes
        ndims = (x.ndim, self.parameter.ndim)[:: -1 if self.position == 0 else 1]
        in_result = lambda side, axes: [self.does.place(side, axis, ndims) for axis in axes]
        data = 1 - self.position
        x, x_axes = self._opened(x, self.data_axis, batch, free, contract)
        d, d_axes = self._opened(
            d,
            self.result_axis,
            in_result(data, batch),
            in_result(data, free),
            in_result(self.position, own),
        )
        return Outer(x, d, x_axes, d_axes)

    def _opened(
        self, x: jax.Array, axis: Axis, n: list[int], t: list[int], own: list[int]
    ) -> tuple[jax.Array, Axes]:
        """An operand whose examples have an axis of their own, which is among `t` at first."""
        place, outer, inner = axis
        parts = [size for size in (outer, None, inner) if size != 1]
        at = place + parts.index(None)
        sizes = [self.num_rows if size is None else size for size in parts]
        x = x.reshape(*x.shape[:place], *sizes, *x.shape[place + 1 :])
        moved = lambda axes: tuple(a + (len(parts) - 1) * (a > place) for a in axes)
        others = tuple(place + i for i in range(len(parts)) if place + i != at)
        before, after = [a for a in t if a < place], [a for a in t if a > place]
        return x, Axes((at,), moved(n), (*before, *others, *moved(after)), moved(own))

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
