"""Errors of the exact method's own arguments: each names the argument, its value and a way out."""

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import io_callback

from adaoptax import value_grad_and_stats
from adaoptax.measure import exact
from adaoptax.measure.exact.arguments import (
    check_effects,
    check_group_size,
    check_params,
    check_probe_size,
)
from adaoptax.measure.rows import check_two

pytestmark = pytest.mark.topic("mixing losses")


@pytest.mark.parametrize(
    ("leaf", "dtype"),
    [
        pytest.param(jnp.arange(3), "int32", id="integers"),
        pytest.param(7, "int32", id="Python integer"),
        pytest.param(jnp.ones(2, bool), "bool", id="bools"),
        pytest.param(jax.random.key(0), "key<fry>", id="random key"),
    ],
)
def test_parameters_that_have_no_gradient(leaf, dtype):
    params = {"w": jnp.ones(2), "state": [1.0, leaf]}
    with pytest.raises(ValueError, match=rf"dtype {dtype} at params\['state'\]\[1\].*extra arg"):
        check_params(params)
    with pytest.raises(ValueError, match=rf"dtype {dtype} at params:"):
        check_params(leaf)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16, jnp.complex64])
def test_parameters_that_have_a_gradient(dtype):
    check_params({"w": jnp.ones(2, dtype), "python": 1.0, "none": None})


@pytest.mark.parametrize("params", [{}, None, {"layer": ()}])
def test_no_parameters_at_all(params):
    measured = value_grad_and_stats(lambda p, x: jnp.mean(x), exact())
    with pytest.raises(ValueError, match="params to hold at least one array, got params="):
        measured(params, jnp.ones((4, 2)))


@pytest.mark.parametrize(
    ("loss", "found"),
    [
        pytest.param(lambda w, x: x @ w, r"float32\[4\]", id="no mean"),
        pytest.param(lambda w, x: jnp.mean(x @ w)[None], r"float32\[1\]", id="one entry"),
        pytest.param(lambda w, x: jnp.mean(x * w, axis=0), r"float32\[2\]", id="mean of rows"),
        pytest.param(lambda w, x: jnp.mean(x @ w) + 0j, r"complex64\[\]", id="complex"),
    ],
)
@pytest.mark.parametrize("jit", [jax.jit, lambda fn: fn], ids=["jit", "eager"])
def test_a_loss_that_is_no_number(loss, found, jit):
    measured = jit(value_grad_and_stats(loss, exact()))
    with pytest.raises(TypeError, match=rf"one real number.*got {found}: this"):
        measured(jnp.ones(2), jnp.ones((4, 2)))


def ignore(x):
    """A callback that does nothing."""


def with_effect(act):
    def loss(x):
        act(x)
        return jnp.mean(x)

    return loss


unordered = with_effect(lambda x: io_callback(ignore, None, x))
ordered = with_effect(lambda x: io_callback(ignore, None, x, ordered=True))
ordered_print = with_effect(lambda x: jax.debug.print("{}", x, ordered=True))
in_scan = lambda x: jax.lax.scan(lambda c, _: (c, unordered(x)), 0.0, None, length=2)[1].sum()


@pytest.mark.parametrize(
    ("loss", "primitive"),
    [
        pytest.param(unordered, "IOEffect of io_callback", id="io_callback"),
        pytest.param(ordered, "OrderedIOEffect of io_callback", id="ordered io_callback"),
        pytest.param(ordered_print, "OrderedDebugEffect of debug_print", id="ordered print"),
        pytest.param(jax.jit(jax.jit(unordered)), "IOEffect of io_callback", id="inside jit"),
        pytest.param(in_scan, "IOEffect of io_callback", id="inside scan"),
    ],
)
def test_a_loss_with_side_effects(loss, primitive):
    traced = jax.make_jaxpr(loss)(jnp.ones(3))
    with pytest.raises(ValueError, match=rf"{primitive} at .*test_exact_arguments\.py:\d+.*aux"):
        check_effects(traced)


def test_a_loss_that_writes_to_state_outside():
    state = jax.new_ref(jnp.zeros(3))

    def loss(x):
        state[...] = x
        return jnp.mean(x)

    with pytest.raises(ValueError, match="WriteEffect of swap"):
        check_effects(jax.make_jaxpr(loss)(jnp.ones(3)))


@pytest.mark.parametrize(
    "act",
    [
        pytest.param(lambda x: jax.debug.print("{}", x), id="print"),
        pytest.param(lambda x: jax.debug.callback(ignore, x), id="debug callback"),
        pytest.param(lambda x: jax.pure_callback(lambda y: y, x, x), id="pure callback"),
        pytest.param(lambda x: jax.new_ref(x), id="state inside"),
        pytest.param(lambda x: None, id="none"),
    ],
)
def test_harmless_effects_pass(act):
    check_effects(jax.make_jaxpr(with_effect(act))(jnp.ones(3)))


@pytest.mark.parametrize("num_rows", [0, 1])
def test_a_batch_of_one(num_rows):
    with pytest.raises(ValueError, match=rf"at least 2 examples, got {num_rows}"):
        check_two(num_rows)
    check_two(2)


@pytest.mark.parametrize(("group_size", "num_rows"), [(3, 8), (8, 8), (16, 8), (5, 4)])
def test_groups_that_do_not_divide_the_batch(group_size, num_rows):
    with pytest.raises(ValueError, match=rf"group_size={group_size}, got {num_rows} examples"):
        check_group_size(group_size, num_rows)


@pytest.mark.parametrize(("group_size", "num_rows"), [(1, 2), (4, 8), (2, 8)])
def test_groups_that_divide_the_batch(group_size, num_rows):
    check_group_size(group_size, num_rows)


@pytest.mark.parametrize(
    ("probe_size", "group_size", "message"),
    [
        (9, 1, r"2 <= probe_size <= 8, .*got probe_size=9"),
        (1, 1, r"2 <= probe_size <= 8, .*got probe_size=1"),
        (0, 1, r"2 <= probe_size <= 8, .*got probe_size=0"),
        (2, 2, r"4 <= probe_size <= 8, .*multiple of group_size=2, got probe_size=2"),
        (5, 2, r"multiple of group_size=2, got probe_size=5"),
    ],
)
def test_probes_out_of_range(probe_size, group_size, message):
    with pytest.raises(ValueError, match=message):
        check_probe_size(probe_size, 8, group_size)


@pytest.mark.parametrize(("probe_size", "group_size"), [(2, 1), (8, 1), (7, 1), (4, 2), (8, 4)])
def test_probes_in_range(probe_size, group_size):
    check_probe_size(probe_size, 8, group_size)
