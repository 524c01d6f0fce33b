"""Convolutions in loops: all in the order that XLA:CPU is fast at, wherever they are hidden."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_reference import assert_measured, reference, rows_by_jax

from adaoptax import value_grad_and_stats
from adaoptax.measure import groups, micro_steps, per_example
from adaoptax.measure.programs.convolutions import channels_last, count_convolutions

pytestmark = pytest.mark.sampled

ALL = ("norm", "inner", "coordinate")
ROWS = 8
FAST = re.compile(r"\[b, ([\d, ]*)f\]x\[([\d, ]*)i, o\]->\[b, ([\d, ]*)f\]")


def draw(seed, *shape):
    return np.asarray(np.random.default_rng(seed).normal(size=shape), np.float32)


def orders(fn, *args, platform="cpu"):
    """``dim_numbers`` of every convolution in the StableHLO that `fn` lowers to."""
    text = jax.jit(fn).trace(*args).lower(lowering_platforms=(platform,)).as_text()
    return re.findall(r"dim_numbers = (\[.*?\]x\[.*?\]->\[.*?\])", text)


def is_fast(order):
    """Rows, space in order, channels; kernels of space in order, channels in, channels out."""
    match = FAST.fullmatch(order)
    if match is None:
        return False
    space = "".join(f"{i}, " for i in range(match[1].count(",")))
    return match.groups() == (space,) * 3


def convolve(x, w, axes=("NHWC", "HWIO", "NHWC"), strides=(1, 1), padding="SAME", **how):
    return jax.lax.conv_general_dilated(x, w, strides, padding, dimension_numbers=axes, **how)


KINDS: dict[str, Any] = {
    "strided": ((4, 7, 6, 3), (3, 3, 3, 5), {"strides": (2, 1)}),
    "channels first": ((4, 3, 7, 6), (5, 3, 3, 2), {"axes": ("NCHW", "OIHW", "NCHW")}),
    "any order": ((7, 3, 4, 6), (3, 3, 5, 2), {"axes": ("HCNW", "IHOW", "WNCH")}),
    "one axis": ((4, 9, 3), (5, 3, 2), {"axes": ("NWC", "WIO", "NWC"), "strides": (1,)}),
    "three axes": (
        (2, 3, 4, 5, 2),
        (2, 1, 3, 2, 3),
        {"axes": ("NDHWC", "DHWIO", "NDHWC"), "strides": (1, 2, 1)},
    ),
    "no axis": ((4, 3), (3, 5), {"axes": ("NC", "IO", "NC"), "strides": (), "padding": ()}),
    "dilated": ((4, 7, 6, 3), (3, 3, 3, 5), {"rhs_dilation": (2, 1)}),
    "transposed": ((4, 3, 3, 3), (3, 3, 3, 5), {"lhs_dilation": (2, 2), "padding": [(1, 2)] * 2}),
    "grouped": ((4, 7, 6, 4), (3, 3, 2, 6), {"feature_group_count": 2}),
    "depthwise": ((4, 7, 6, 4), (3, 3, 1, 4), {"feature_group_count": 4}),
    "batch groups": ((4, 7, 6, 3), (3, 3, 3, 4), {"batch_group_count": 2}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_convolution(kind):
    """Value and both gradients are those of the convolution as it was written."""
    x_shape, w_shape, how = KINDS[kind]
    x, w = draw(0, *x_shape), draw(1, *w_shape)

    def fn(x, w):
        return convolve(x, w, **how), jax.grad(
            lambda x, w: jnp.sum(jnp.sin(convolve(x, w, **how))), (0, 1)
        )(x, w)

    assert not all(map(is_fast, orders(fn, x, w)))
    assert all(map(is_fast, orders(channels_last(fn), x, w)))
    assert_same(jax.jit(channels_last(fn))(x, w), jax.jit(fn)(x, w))


def first(x, w):
    """A convolution with channels first, whose value is slow in a loop already."""
    return convolve(x, w, ("NCHW", "OIHW", "NCHW"))


@jax.custom_vjp
def with_own_gradient(x, w):
    return first(x, w)


with_own_gradient.defvjp(
    lambda x, w: (first(x, w), (x, w)),
    lambda saved, d: jax.vjp(first, *saved)[1](3 * d),
)


@jax.custom_jvp
def with_own_tangent(x, w):
    return first(x, w)


with_own_tangent.defjvp(lambda x, dx: jax.jvp(first, x, jax.tree.map(lambda d: 3 * d, dx)))


def in_scan(x, w, fn=first):
    return jax.lax.scan(lambda x, _: (fn(x, w), None), x, None, length=2)[0]


def in_while(x, w):
    turn = lambda state: (state[0] + 1, first(state[1], w))
    return jax.lax.while_loop(lambda state: state[0] < 2, turn, (0, x))[1]


HIDDEN: dict[str, Any] = {
    "jit": jax.jit(first),
    "jit in jit": jax.jit(lambda x, w: jax.jit(first)(x, w) + 1),
    "remat": jax.checkpoint(first),
    "scan": in_scan,
    "remat in scan": lambda x, w: in_scan(x, w, jax.checkpoint(first)),
    "cond": lambda x, w: jax.lax.cond(jnp.sum(x) > 0, first, lambda x, w: -first(x, w), x, w),
    "vmap": lambda x, w: jax.vmap(first, (0, None))(x[:, None], w),
    "custom_vjp": with_own_gradient,
    "custom_jvp": with_own_tangent,
    "named": jax.named_call(first, name="layer"),
}


@pytest.mark.parametrize("where", HIDDEN)
def test_gradients_are_found_wherever_they_hide(where):
    x, w = draw(0, 4, 3, 5, 5), draw(1, 3, 3, 3, 3) / 3
    gradient = jax.grad(lambda x, w: jnp.sum(jnp.sin(HIDDEN[where](x, w))), (0, 1))
    assert_all_fast(gradient, x, w)


@pytest.mark.parametrize("fn", [in_while, with_own_gradient, with_own_tangent, *HIDDEN.values()])
def test_values_are_found_wherever_they_hide(fn):
    """Without a gradient, rules of custom derivatives are still part of the equations."""
    assert_all_fast(fn, draw(0, 4, 3, 5, 5), draw(1, 3, 3, 3, 3) / 3)


def assert_all_fast(fn, x, w):
    assert count_convolutions(fn, x, w) >= 1
    assert not all(map(is_fast, orders(fn, x, w)))
    assert all(map(is_fast, orders(channels_last(fn), x, w)))
    assert_same(jax.jit(channels_last(fn))(x, w), jax.jit(fn)(x, w))


def assert_same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("copies", "count"), [(0, 0), (1, 3), (2, 6)])
def test_count(copies, count):
    """A convolution, its input gradient and its kernel gradient."""
    x, w = draw(0, 4, 3, 5, 5), draw(1, 3, 3, 3, 3)

    def loss(x, w):
        for _ in range(copies):
            x = jax.jit(first)(x, w)
        return jnp.sum(x * w.sum())

    assert count_convolutions(jax.grad(loss, (0, 1)), x, w) == count


def test_nothing_to_do_changes_nothing():
    """No convolution, or one in order already: the very same equations."""
    dense = jax.value_and_grad(lambda x: jnp.sum(jax.jit(jnp.sin)(x) @ x))
    for fn, args in (
        (dense, (draw(0, 3, 3),)),
        (convolve, (draw(0, 2, 5, 5, 3), draw(1, 3, 3, 3, 2))),
    ):
        assert str(jax.make_jaxpr(channels_last(fn))(*args)) == str(jax.make_jaxpr(fn)(*args))


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_other_platforms_keep_the_order_of_the_model(platform):
    x, w = draw(0, 4, 3, 5, 5), draw(1, 3, 3, 3, 3)
    fn = jax.grad(lambda x, w: jnp.sum(jnp.sin(first(x, w))), (0, 1))
    expected = orders(fn, x, w, platform=platform)
    assert sorted(orders(channels_last(fn), x, w, platform=platform)) == sorted(expected)


# In the engine.


def cnn_loss(params, batch):
    """Mean cross-entropy of two convolutions, one of them channels first, and a dense layer."""
    x = batch["x"].astype(params["one"].dtype)
    x = jnp.tanh(convolve(x, params["one"], strides=(2, 2)))
    x = jnp.tanh(first(x.transpose(0, 3, 1, 2), params["two"]))
    scores = jax.nn.log_softmax(x.mean(axis=(2, 3)) @ params["dense"])
    return -jnp.mean(jnp.take_along_axis(scores, batch["y"][:, None], axis=1))


@pytest.fixture(scope="module")
def cnn():
    """``(params, batch, float64 rows)``."""
    params = {"one": draw(0, 3, 3, 2, 4), "two": draw(1, 3, 4, 3, 3), "dense": draw(2, 3, 3)}
    labels = np.random.default_rng(4).integers(0, 3, ROWS).astype(np.int32)
    batch = {"x": draw(3, ROWS, 6, 6, 2), "y": labels}
    return params, batch, rows_by_jax(cnn_loss, params, batch)


METHODS: dict[str, Any] = {
    "groups": (groups(4, statistics=("norm", "coordinate")), 4),
    "per_example": (per_example(statistics=ALL), ROWS),
    "chunks": (per_example(3, statistics=ALL), ROWS),
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("real", [None, 5])
def test_a_convolutional_network(name, real, cnn):
    params, batch, rows = cnn
    method, n = METHODS[name]
    measure = value_grad_and_stats(cnn_loss, method)
    mask = None if real is None else np.arange(ROWS) < real
    measured = jax.jit(measure)(params, batch, mask=mask)
    assert_measured(measured, reference(rows, n, weight=mask))
    found = orders(lambda *args: measure(*args, mask=mask), params, batch)
    assert found
    assert all(map(is_fast, found))


def test_micro_steps_in_a_loop_of_the_user(cnn):
    params, batch, _ = cnn
    steps = micro_steps(cnn_loss)
    found = orders(steps.add, steps.init(params, batch), params, batch)
    assert found
    assert all(map(is_fast, found))
