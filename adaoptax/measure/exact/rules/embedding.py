"""Embeddings: a gather of whole rows of a table."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp

from adaoptax import _tree
from adaoptax.measure.exact import cost
from adaoptax.measure.exact.axes import Axis
from adaoptax.measure.exact.factors import Factor, FactorSums, Want, rows_times, wide
from adaoptax.measure.exact.rules.dense import Outer
from adaoptax.measure.exact.rules.rule import Rule
from adaoptax.measure.programs import descriptions as read
from adaoptax.measure.programs.describe import describe


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows(Factor):
    """Gradients that touch some rows of a table.

    Attributes:
        ids: [B, T], the row that entry t reads.
        d: [B, T, R], its cotangent.
        num_rows: Rows V of the table, which is seen as [1, V, R].
    """

    ids: jax.Array
    d: jax.Array
    num_rows: int = dataclasses.field(metadata={"static": True})

    def gradient(self) -> jax.Array:
        table = jnp.zeros((1, self.num_rows, self.d.shape[-1]), wide(self.d))
        return table.at[0, self.ids].add(self.d.astype(table.dtype))

    def joined(self, others: Sequence["Rows"]) -> Self:
        """The sums of the gradients of several uses of one table."""
        join = lambda *xs: jnp.concatenate(xs, axis=1)
        return jax.tree.map(join, self, *others)

    def total(self) -> jax.Array:
        flat = Rows(self.ids.reshape(-1), self.d.reshape(-1, self.d.shape[-1]), self.num_rows)
        return flat.gradient()

    def square_sums(self, want: Want, weight: jax.Array) -> FactorSums:
        d = _tree.widen(self.d)
        same = (self.ids[:, :, None] == self.ids[:, None, :]).astype(d.dtype)
        # Entry t of an example now holds the whole cotangent of the row that it reads.
        summed = jnp.einsum("bts,bsr->btr", same, d)
        squares = None
        if want.coordinate:
            once = _tree.squared_modulus(summed) / jnp.real(jnp.sum(same, -1))[..., None]
            squares = Rows(self.ids, rows_times(weight, once), self.num_rows).total()
        sq_norms = jnp.real(jnp.sum(summed * jnp.conj(d), (1, 2))) if want.norm else None
        return FactorSums(self.total(), sq_norms, squares)

    def inner(self, other: jax.Array) -> jax.Array:
        return jnp.real(jnp.sum(jnp.conj(other[0][self.ids]) * self.d, (1, 2)))


@dataclasses.dataclass(frozen=True, eq=False)
class Embedding(Rule):
    """`gather` of whole rows, by indices that are data."""

    name = "embedding"

    def canonical(self, w: Any) -> Any:
        return w.reshape(1, w.shape[0], -1)

    def restore(self, w: jax.Array) -> jax.Array:
        return w.reshape(self.parameter.shape)

    def of_rows(self, x: jax.Array, d: jax.Array) -> Rows:
        num_rows = self.parameter.shape[0]
        ids = x.reshape(x.shape[0], -1).astype(jnp.int32)
        which = [axis for axis in range(d.ndim - 1) if axis not in self.does.offsets]
        d = d.transpose(0, *(1 + axis for axis in (*which, *self.does.offsets)))
        d = d.reshape(*ids.shape, -1)
        # Out of bounds a gather reads the nearest row or, by its mode, none at all.
        if not self.does.clips:
            d = jnp.where(((ids >= 0) & (ids < num_rows))[..., None], d, 0)
        return Rows(jnp.clip(ids, 0, num_rows - 1), d, num_rows)

    def choice(self, num_examples: int, want: Want, turns: int) -> cost.Choice:
        row = math.prod(self.parameter.shape[1:])
        t = turns * math.prod(self.data.shape)
        same = 2.0 * num_examples * t * t * row if want.squares else 0.0
        return cost.Choice("rows", same, 4 * num_examples * t * (t + row) * bool(same))


def match(eqn: Any, position: int, data: Axis, result: Axis, num_rows: int) -> Embedding | None:
    """The rule for `eqn`, if it takes whole rows of a parameter."""
    does, table = describe(eqn), eqn.invars[0].aval
    if not isinstance(does, read.Gather) or position != 0 or table.shape[0] >= 2**24:
        return None
    row = (does.collapsed, does.indexed, does.batch, does.sizes)
    if row != ((0,), (0,), (), (1, *table.shape[1:])):
        return None
    return Embedding(eqn, does, position, data, result, num_rows)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tied(Factor):
    """An embedding table [1, V, R] that is the output layer too: two gradients, and their product.

    Attributes:
        rows: Of the embedding.
        outer: Of the product, with the V rows as its inputs and R as its outputs.
    """

    rows: Rows
    outer: Outer

    def gradient(self) -> jax.Array:
        return self.rows.gradient() + self.outer.gradient()

    def merged(self, size: int) -> Self:
        return dataclasses.replace(self, rows=self.rows.merged(size), outer=self.outer.merged(size))

    def scaled(self, weight: jax.Array) -> Self:
        return dataclasses.replace(
            self, rows=self.rows.scaled(weight), outer=self.outer.scaled(weight)
        )

    def total(self) -> jax.Array:
        return self.rows.total() + self.outer.total()

    def square_sums(self, want: Want, weight: jax.Array) -> FactorSums:
        rows, outer = self.rows.sums(want, weight), self.outer.sums(want, weight)
        total = rows.total + outer.total
        # What the product adds to the row that entry t of the embedding reads: [B, T, R].
        ids = self.rows.ids[:, None]
        picked = jnp.take_along_axis(self.outer.x[:, 0], ids, axis=2)
        added = jnp.einsum("bst,bsr->btr", picked, self.outer.d[:, 0])
        cross = jnp.real(self.rows.d * jnp.conj(_tree.widen(added)))
        sq_norms = squares = None
        if want.norm:
            assert rows.sq_norms is not None
            assert outer.sq_norms is not None
            sq_norms = rows.sq_norms + outer.sq_norms + 2 * jnp.sum(cross, (1, 2))
        if want.coordinate:
            twice = Rows(self.rows.ids, rows_times(2 * weight, cross), self.rows.num_rows)
            assert rows.squares is not None
            assert outer.squares is not None
            squares = rows.squares + outer.squares + twice.total()
        return FactorSums(total, sq_norms, squares)

    def inner(self, other: jax.Array) -> jax.Array:
        return self.rows.inner(other) + self.outer.inner(other)
