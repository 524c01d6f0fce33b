"""The equations that consume parameters, with a second output of their backward pass.

JAX transports cotangents, and nothing says that a cotangent must be a derivative. A tapped equation
computes what it always did. Its backward pass hands on the plain cotangents of the data, and to the
*slots* of its parameters what their roots make statistics of: factors, or the gradients of all
rows. The parameters themselves get nothing here; their gradient comes from the root.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from adaoptax.measure.exact.axes import Axis, of_rows, rows_of
from adaoptax.measure.exact.expressions import Expression, constants_of, evaluate
from adaoptax.measure.exact.plan import Use
from adaoptax.measure.exact.rules.rule import Rule
from adaoptax.measure.programs.evaluate import evaluate_equation
from adaoptax.measure.varying import vary_like


def _is_float(x: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(x), jnp.inexact)


# --- Factors ----------------------------------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def with_factors(rule: Rule, x: jax.Array, w: jax.Array, slot: Any) -> jax.Array:
    """The equation of a rule, whose data operand and cotangent go to `slot`."""
    return rule.forward(x, w)


def _factors_forward(rule: Rule, x: jax.Array, w: jax.Array, slot: Any) -> tuple:
    return rule.forward(x, w), (x, w)


def _factors_backward(rule: Rule, saved: tuple, d: jax.Array) -> tuple:
    x, w = saved
    if not _is_float(x):
        return None, None, (x.astype(jnp.float32), d)
    (dx,) = jax.vjp(lambda x: rule.forward(x, w), x)[1](d)
    return dx, None, (x, d)


with_factors.defvjp(_factors_forward, _factors_backward)


# --- Rows -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Cut:
    """How the cotangent of an operand is cut in rows.

    Attributes:
        axis: Of the operand.
        num_rows: B.
        shape: Of the expression that the operand repeats, or None if it is the operand itself.
        dims: Where the axes of that expression are in the operand.
    """

    axis: Axis
    num_rows: int
    shape: tuple[int, ...] | None
    dims: tuple[int, ...]

    def __call__(self, d: jax.Array) -> jax.Array:
        """[B, ...] from the cotangent of the operand."""
        rows = rows_of(d, self.axis, self.num_rows)
        if self.shape is None:
            return jax.vmap(self._alone)(jnp.arange(self.num_rows), rows)
        new = [1 + a for a in range(d.ndim) if a not in self.dims]
        single = [
            1 + a
            for a, size in zip(self.dims, self.shape, strict=True)
            if size == 1 and rows.shape[1 + a] != 1
        ]
        rows = jnp.sum(rows, axis=tuple(single), keepdims=True)
        return jnp.sum(rows, axis=tuple(new)).reshape(self.num_rows, *self.shape)

    def _alone(self, b: jax.Array, row: jax.Array) -> jax.Array:
        """The cotangent of the operand with the entries of row b alone."""
        here = of_rows(jnp.arange(self.num_rows) == b, self.axis, row.ndim)
        before, after = row.shape[: self.axis.axis], row.shape[self.axis.axis + 1 :]
        x = row.reshape(*before, self.axis.outer, 1, self.axis.inner, *after)
        shape = list(x.shape)
        shape[self.axis.axis + 1] = self.num_rows
        size = self.axis.parts * self.num_rows
        x = jnp.broadcast_to(x, shape).reshape(*before, size, *after)
        return jnp.where(here, x, 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def with_rows(cut: Cut, value: jax.Array, slot: jax.Array) -> jax.Array:
    """`value`, the rows of whose cotangent go to `slot` [B, ...]."""
    return value


def _rows_forward(cut: Cut, value: jax.Array, slot: jax.Array) -> tuple:
    return value, None


def _rows_backward(cut: Cut, saved: None, d: jax.Array) -> tuple:
    return None, cut(d)


with_rows.defvjp(_rows_forward, _rows_backward)


@jax.custom_vjp
def with_cotangent(value: jax.Array, slot: jax.Array) -> jax.Array:
    """`value`, whose cotangent goes to `slot` as it is."""
    return value


with_cotangent.defvjp(lambda value, slot: (value, None), lambda saved, d: (None, d))


@jax.custom_vjp
def with_equal_parts(value: jax.Array, share: jax.Array, slot: jax.Array) -> jax.Array:
    """`value`, of whose cotangent each example gets its `share` [B]."""
    return value


def _equal_forward(value: jax.Array, share: jax.Array, slot: jax.Array) -> tuple:
    return value, share


def _equal_backward(share: jax.Array, d: jax.Array) -> tuple:
    rows = share.reshape(-1, *(1,) * d.ndim) * d[None]
    return None, None, rows.astype(d.dtype)


with_equal_parts.defvjp(_equal_forward, _equal_backward)


@dataclasses.dataclass(frozen=True, eq=False)
class Told:
    """An equation whose results tell the examples apart.

    Attributes:
        eqn: The equation.
        position: Of the parameter among its operands.
        results: The batch axis of each result, or None.
        num_rows: B.
    """

    eqn: Any
    positions: tuple[int, ...]
    results: tuple[Axis | None, ...]
    num_rows: int


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def told_by_results(told: Told, operands: list, slots: list) -> list:
    """The equation; `slots` [B, ...] receive as many backward passes of it as there are rows."""
    return evaluate_equation(told.eqn, operands)


def _told_forward(told: Told, operands: list, slots: list) -> tuple:
    return evaluate_equation(told.eqn, operands), operands


def _told_backward(told: Told, operands: list, ds: list) -> tuple:
    real = [i for i, x in enumerate(operands) if _is_float(x)]
    flowing = [
        i for i, v in enumerate(told.eqn.outvars) if jnp.issubdtype(v.aval.dtype, jnp.inexact)
    ]

    def plain(xs: list) -> list:
        whole = list(operands)
        for i, x in zip(real, xs, strict=True):
            whole[i] = x
        outputs = evaluate_equation(told.eqn, whole)
        return [outputs[i] for i in flowing]

    _, back = jax.vjp(plain, [operands[i] for i in real])
    ds = [ds[i] for i in flowing]
    found = dict(zip(real, back(ds)[0], strict=True))

    def of_row(b: jax.Array) -> list:
        def alone(i: int, d: jax.Array) -> jax.Array:
            axis = told.results[i]
            if axis is None:
                return jnp.zeros_like(d)
            here = of_rows(jnp.arange(told.num_rows) == b, axis, d.ndim)
            return jnp.where(here, d, 0)

        cotangents = dict(
            zip(real, back([alone(i, d) for i, d in zip(flowing, ds, strict=True)])[0], strict=True)
        )
        return [cotangents[i] for i in told.positions]

    rows = jax.vmap(of_row)(jnp.arange(told.num_rows))
    gradients = [None if i in told.positions else found.get(i) for i in range(len(operands))]
    return gradients, rows


told_by_results.defvjp(_told_forward, _told_backward)


def told_by_parts(
    eqn: Any, position: int, operands: list, parts: jax.Array, slot: jax.Array
) -> list:
    """An equation of a sum over the examples, linear in it, with a parameter at `position`.

    Each row of the `slot` receives the gradient of its own of the `parts` [B, ...] of that sum.
    """

    @jax.custom_vjp
    def head(operands: list, parts: jax.Array, slot: jax.Array) -> list:
        return evaluate_equation(eqn, operands)

    def backward(saved: tuple, ds: list) -> tuple:
        operands, parts = saved

        def of_row(part: jax.Array) -> jax.Array:
            def alone(w: jax.Array) -> list:
                return evaluate_equation(eqn, [w, part] if position == 0 else [part, w])

            return jax.vjp(alone, operands[position])[1](ds)[0]

        other = 1 - position

        def of_sum(x: jax.Array) -> list:
            return evaluate_equation(eqn, [operands[0], x] if position == 0 else [x, operands[1]])

        grads: list = [None, None]
        (grads[other],) = jax.vjp(of_sum, operands[other])[1](ds)
        return grads, None, jax.vmap(of_row)(parts)

    head.defvjp(
        lambda operands, parts, slot: (head(operands, parts, slot), (operands, parts)), backward
    )
    return head(operands, jax.lax.stop_gradient(parts), slot)


# --- On the way to the slots ------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Way:
    """From the gradients of an expression to those of what is expanded.

    Attributes:
        expression: Of parameters.
        targets: Expanded expressions inside of it.
        others: Values that it needs beside them.
        num_rows: B.
    """

    expression: Expression
    targets: tuple[Expression, ...]
    others: tuple[Expression, ...]
    num_rows: int


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def way_to(way: Way, targets: list, others: list, slots: list) -> jax.Array:
    """A slot [B, ...] for the rows of an expression, which hands them on to `slots`."""
    aval = way.expression.aval
    return vary_like(jnp.zeros((way.num_rows, *aval.shape), aval.dtype), slots[0])


def _way_forward(way: Way, targets: list, others: list, slots: list) -> tuple:
    return way_to(way, targets, others, slots), (targets, others)


def _way_backward(way: Way, saved: tuple, rows: jax.Array) -> tuple:
    targets, others = saved
    known: Mapping[Any, Any] = dict(zip(way.others, others, strict=True))

    def used(targets: Sequence[jax.Array]) -> jax.Array:
        values = {**known, **dict(zip(way.targets, targets, strict=True))}
        return evaluate([way.expression], values)[0]

    _, back = jax.vjp(used, targets)
    return None, None, jax.vmap(lambda row: back(row)[0])(rows)


way_to.defvjp(_way_forward, _way_backward)


def way(expression: Expression, targets: Sequence[Expression], num_rows: int) -> Way:
    """The way from `expression` to `targets`."""
    others = [*expression.shared, *expression.needs, *constants_of([expression])]
    return Way(expression, tuple(targets), tuple(others), num_rows)


def cut_of(use: Use, num_rows: int) -> Cut:
    """How the cotangent of an aligned operand is cut."""
    assert use.axis is not None
    shape = None if use.repeats is None else use.repeats.aval.shape
    return Cut(use.axis, num_rows, shape, use.dims)
