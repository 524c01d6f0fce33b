"""Every formula for products, wherever their axes lie: each must give the same statistics."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import row_gradients, statistics

from adaoptax import measure, value_grad_and_stats
from adaoptax.measure.exact import cost
from adaoptax.measure.programs.equations import all_equations

RNG = np.random.default_rng(11)
B, T, D, HEADS, SIZE = 4, 5, 6, 2, 3
X = RNG.normal(size=(B, T, D)).astype(np.float32)
W = {
    "in": RNG.normal(size=(D, 3, HEADS, SIZE)).astype(np.float32),
    "out": RNG.normal(size=(SIZE, D, HEADS)).astype(np.float32),
}


def heads(params, x):
    """Kernels shaped as heads, contracted in another order than the data has them."""
    q, k, v = jnp.moveaxis(jnp.einsum("btd,dchs->btchs", x, params["in"]), 2, 0)
    return jnp.mean(jnp.einsum("bths,sdh->btd", q * jnp.tanh(k) + v, params["out"]) ** 2)


def parameter_first(params, x):
    """The parameter on the left, so that results have its axes first."""
    h = jnp.einsum("dchs,btd->chsbt", params["in"], x)
    return jnp.mean(jnp.einsum("sdh,hsbt->dtb", params["out"], jnp.tanh(h.sum(0))) ** 2)


def merged(params, x):
    """Examples and positions on one axis, once with the examples in the middle."""
    w = params["in"].reshape(D, -1)
    h = jnp.tanh(x.reshape(-1, D) @ w).reshape(*x.shape[:2], 3, -1)
    h = jnp.moveaxis(h, 2, 0).reshape(-1, HEADS * SIZE)
    return jnp.mean((h @ params["out"].swapaxes(1, 2).reshape(HEADS * SIZE, D)) ** 2)


def experts(params, x):
    """A product for each of several experts, with the examples in front of them or behind."""
    h = jnp.einsum("btd,dchs->cbths", x, params["in"])
    each = jnp.einsum("hdcs,cbthd->htbcs", jnp.einsum("dchs->hdcs", params["in"][:SIZE]), h)
    return jnp.mean(jnp.tanh(each) ** 2) + jnp.mean(each * params["out"].mean())


def backwards(params, x):
    """Contracted axes of the data in descending order, as the parameter has them."""
    h = jnp.tanh(jnp.tensordot(x, params["in"][:, 0], axes=((2,), (0,))))  # [B, T, HEADS, SIZE]
    return jnp.mean(jnp.tensordot(h, params["out"], axes=((3, 2), (0, 2))) ** 2)


def backwards_without_sequence(params, x):
    return backwards(params, x[:, :1])


def without_sequence(params, x):
    """T = 1, with heads."""
    h = jnp.tanh(jnp.einsum("bd,dchs->chbs", x[:, 0], params["in"]))
    return jnp.mean(jnp.einsum("chbs,sdh->dbh", h, params["out"]) ** 2)


def scanned(params, x):
    """Turns of a scan are positions, too."""

    def turn(h, entry):
        h = jnp.tanh(jnp.einsum("db,dchs->shb", entry, params["in"]) + h)
        return h, jnp.einsum("shb,sdh->db", h, params["out"])

    carry = jnp.zeros((SIZE, HEADS, B))
    return jnp.mean(jax.lax.scan(turn, carry, jnp.moveaxis(x, (0, 1, 2), (2, 0, 1)))[1] ** 2)


LOSSES = (
    heads, parameter_first, merged, experts, backwards, backwards_without_sequence,
    without_sequence, scanned,
)  # fmt: skip


@functools.cache
def expected(loss_fn):
    rows = row_gradients(loss_fn, W, X)
    return rows.mean_grad, statistics(rows)


@pytest.mark.parametrize("formula", ["gram", "batched", "scan"])
@pytest.mark.parametrize("loss_fn", LOSSES, ids=lambda f: f.__name__)
def test_every_formula_gives_the_same(loss_fn, formula, monkeypatch):
    def choose(sizes, want, platform):
        taken = "scan" if formula == "gram" and want.coordinate else formula
        return cost.Choice("factors" if sizes.t == 1 else taken, 0.0, 0.0)

    monkeypatch.setattr(cost, "choose", choose)
    for names in (("norm",), ("norm", "inner"), ("norm", "inner", "coordinate")):
        _, grads, stats = value_grad_and_stats(loss_fn, measure.exact(names))(W, X)
        mean_grad, by_definition = expected(loss_fn)
        compare = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
        jax.tree.map(compare, grads, mean_grad)
        compare(stats.variance, by_definition.variance)
        if "inner" in names:
            compare(stats.inner_product_variance, by_definition.inner_product_variance)
        if "coordinate" in names:
            jax.tree.map(compare, stats.coordinate_variance, by_definition.coordinate_variance)


def test_operands_are_not_rearranged(monkeypatch):
    """On an accelerator a copy of an operand costs as much as the product."""
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")

    def moves(fn):
        program: Any = jax.make_jaxpr(fn)(W, X)
        moved = [
            eqn for eqn, _ in all_equations(program.jaxpr) if eqn.primitive.name == "transpose"
        ]
        shapes: list[Any] = [eqn.outvars[0].aval for eqn in moved]
        return sum({B, T} <= {*shape.shape} for shape in shapes)

    measured = value_grad_and_stats(heads, measure.exact(("norm",)))
    assert moves(measured) == moves(jax.value_and_grad(heads))
