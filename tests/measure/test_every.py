"""Measuring at every n-th step: what a step between returns, and what it costs."""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy_reference import assert_measured, flat, mlp, mlp_loss, reference, rows_by_jax

import adaoptax
from adaoptax import value_grad_and_stats
from adaoptax.measure import every, groups, inner_products, per_example
from adaoptax.stats import is_measured

pytestmark = pytest.mark.sampled

ROWS = 8
METHODS = [
    per_example(statistics=("norm", "inner", "coordinate")),
    groups(4, statistics=("norm", "coordinate")),
    inner_products(groups(2)),
]
methods = pytest.mark.parametrize("method", METHODS, ids=str)


@pytest.fixture(scope="module")
def network():
    params, batch = mlp(ROWS)
    return params, batch, rows_by_jax(mlp_loss, params, batch)


def assert_unmeasured(stats, expected):
    """No noise; the examples and the norm of the gradient as ever."""
    assert not is_measured(stats)
    assert float(stats.num_groups) == 0
    np.testing.assert_allclose(stats.num_examples, expected.num_examples, rtol=1e-6)
    np.testing.assert_allclose(stats.sq_norm, expected.sq_norm, rtol=1e-5)
    for name in ("variance", "inner_product_variance", "coordinate_variance"):
        for leaf in jax.tree.leaves(getattr(stats, name)):
            assert np.isnan(leaf).all(), name


def assert_plain(out, expected):
    """Loss and gradient of the whole batch, and no noise."""
    loss, grads, stats = out
    np.testing.assert_allclose(loss, expected.loss, rtol=1e-5)
    np.testing.assert_allclose(flat(grads), expected.grads, rtol=1e-5, atol=1e-6)
    assert_unmeasured(stats, expected)


def kinds(tree):
    """Structure, shapes, dtypes and shardings."""
    return jax.tree.map(lambda x: (str(jax.typeof(x)), jax.typeof(x).weak_type), tree)


def test_which_steps():
    method = every(3, groups(2))
    assert [method.due(step) for step in range(7)] == [True, False, False] * 2 + [True]
    assert all(type(method.due(step)) is bool for step in (0, np.int64(4)))  # a static argument
    traced = jax.jit(jax.vmap(method.due))(jnp.arange(7))
    assert traced.tolist() == [method.due(step) for step in range(7)]


@methods
def test_a_measured_step_is_that_of_the_method(method, network):
    params, batch, _ = network
    alone = jax.jit(value_grad_and_stats(mlp_loss, method))(params, batch)
    fn = jax.jit(value_grad_and_stats(mlp_loss, every(2, method)), static_argnames="due")
    jax.tree.map(np.testing.assert_array_equal, fn(params, batch, due=True), alone)


@pytest.mark.parametrize("static", [True, False])
@methods
def test_a_step_between_is_a_plain_one(method, static, network):
    params, batch, rows = network
    fn = value_grad_and_stats(mlp_loss, every(2, method))
    fn = jax.jit(fn, static_argnames="due" if static else ())
    due, rest = fn(params, batch, due=True), fn(params, batch, due=False)
    assert_plain(rest, reference(rows, ROWS))
    assert is_measured(due[2])
    assert kinds(rest) == kinds(due)


MASKS = {
    "tail": np.arange(ROWS) < 5,
    "scattered": np.array([0, 1, 1, 0, 0, 1, 0, 1], bool),
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("static", [True, False])
def test_padding_never_counts(mask, static, network):
    params, batch, rows = network
    weight = MASKS[mask]
    batch = {**batch, "x": np.where(weight[:, None] > 0, batch["x"], np.nan).astype("f4")}
    fn = value_grad_and_stats(mlp_loss, every(2, per_example()))
    fn = jax.jit(fn, static_argnames="due" if static else ())
    expected = reference(rows, ROWS, weight)
    assert_measured(fn(params, batch, mask=weight, due=True), expected)
    assert_plain(fn(params, batch, mask=weight, due=False), expected)


def test_padding_only(network):
    params, batch, _ = network
    batch = {**batch, "x": np.full_like(batch["x"], np.nan)}
    fn = jax.jit(value_grad_and_stats(mlp_loss, every(2, per_example())), static_argnames="due")
    loss, grads, stats = fn(params, batch, mask=np.zeros(ROWS, bool), due=False)
    assert np.isnan(loss)
    np.testing.assert_array_equal(flat(grads), 0)
    assert float(stats.num_examples) == 0
    assert is_measured(stats)  # an empty batch is undefined, and counted as such


@pytest.mark.parametrize("mask", [None, np.arange(ROWS) < 6], ids=["whole", "masked"])
def test_aux_and_random_keys(mask):
    def loss_fn(w, batch, key):
        factors = jax.random.uniform(key, batch.shape)
        rows = (batch * factors) @ w
        return jnp.mean(rows), {
            "rows": factors,
            "mean": jnp.mean(rows),
            "count": jnp.int32(len(rows)),
        }

    x = np.random.default_rng(0).normal(1, 1, (ROWS, 3)).astype(np.float32)
    method = every(2, per_example())
    fn = value_grad_and_stats(loss_fn, method, has_aux=True, key_argnums=2)
    for call in (jax.jit(fn, static_argnames="due"), jax.jit(fn)):
        results = [call(jnp.ones(3), x, jax.random.key(0), mask=mask, due=d) for d in (True, False)]
        assert kinds(results[0]) == kinds(results[1])
        for (loss, aux), grads, _ in results:
            factors = np.asarray(aux["rows"], np.float64)
            assert len(np.unique(factors)) == factors.size  # rows differ in their draw
            row_grads = factors * x
            expected = reference((row_grads.sum(1), row_grads), ROWS, mask)
            np.testing.assert_allclose(grads, expected.grads, rtol=1e-5)
            np.testing.assert_allclose([loss, aux["mean"]], expected.loss, rtol=1e-5)
            assert int(aux["count"]) == expected.num_examples


def test_between_fills_the_gaps(network):
    params, batch, rows = network
    method = every(2, per_example(statistics=("norm",)), between=groups(4))
    fn = value_grad_and_stats(mlp_loss, method)
    for call in (jax.jit(fn, static_argnames="due"), jax.jit(fn)):
        assert_measured(call(params, batch, due=True), reference(rows, ROWS))
        assert_measured(call(params, batch, due=False), reference(rows, 4))


def test_between_must_measure_as_much(network):
    fn = value_grad_and_stats(mlp_loss, every(2, per_example(), between=groups(4)))
    with pytest.raises(ValueError, match=r"between=.*without inner_product_variance"):
        fn(*network[:2], due=False)


# One program or two.


def convolution_loss(params, batch):
    image = batch.reshape(-1, 4, 4, 1)
    out = jax.checkpoint(lambda x: jax.nn.relu(jax.lax.conv(x, params, (1, 1), "SAME")))(image)
    return jnp.mean(out**2)


CONVOLUTION = (
    np.ones((4, 4, 3, 3), "f4"),
    np.random.default_rng(0).normal(size=(4, 16)).astype("f4"),
)


@pytest.mark.parametrize(
    ("loss_fn", "arguments"), [(mlp_loss, mlp(4)), (convolution_loss, CONVOLUTION)]
)
def test_branches(loss_fn, arguments):
    method = every(2, per_example(statistics=("norm",)))
    fn = value_grad_and_stats(loss_fn, method)
    program = lambda due: str(jax.make_jaxpr(fn)(*arguments, due=due))
    branches = lambda text: text.count("= cond[") - text.count("platform_index")
    assert branches(program(jnp.bool_(True))) == 1
    for due in (True, False):
        text = str(jax.make_jaxpr(functools.partial(fn, due=due))(*arguments))
        assert branches(text) == 0
    expected = jax.jit(jax.value_and_grad(loss_fn))(*arguments)
    got = jax.jit(fn)(*arguments, due=False)
    np.testing.assert_allclose(got[0], expected[0], rtol=1e-6)
    np.testing.assert_allclose(flat(got[1]), flat(expected[1]), rtol=1e-5, atol=1e-7)
    assert not is_measured(got[2])


def test_convolutions_in_a_branch_have_the_order_that_is_fast_there():
    """Rows, space, channels; XLA:CPU takes up to 73 times as long for any other in a branch."""
    fn = value_grad_and_stats(convolution_loss, every(2, per_example()))
    text = jax.jit(fn).lower(*CONVOLUTION, due=True).as_text()
    orders = re.findall(r"dim_numbers = (\[.*?\]x\[.*?\]->\[.*?\])", text)
    assert orders
    assert set(orders) == {"[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]"}


def test_the_program_between_is_the_plain_one(network):
    """The FLOPs of value_and_grad, and of a norm of the gradient."""
    params, batch, _ = network
    cost: Any = lambda fn, *args: jax.jit(fn).lower(*args).compile().cost_analysis()
    flops = lambda fn, *args: cost(fn, *args)["flops"]
    fn = value_grad_and_stats(mlp_loss, every(16, per_example()))
    plain = flops(jax.value_and_grad(mlp_loss), params, batch)
    norm = 2 * flat(params).size
    assert flops(functools.partial(fn, due=False), params, batch) <= plain + norm + 10
    assert flops(functools.partial(fn, due=True), params, batch) > plain + 2 * norm


def training(method, static, params, batch):
    """``(step, params, state)`` of SGD behind tests, compiled with `due` as said."""
    tx = optax.chain(
        adaoptax.norm_test(0.5, decay=0.5),
        adaoptax.inner_product_test(0.5, interval=2),
        adaoptax.adascale(0.01, 4, momentum=0.9),
    )
    fn = value_grad_and_stats(mlp_loss, method)

    @functools.partial(jax.jit, static_argnames=("due",) if static else ())
    def step(params, state, batch, due):
        _, grads, stats = fn(params, batch, due=due)
        updates, state = tx.update(grads, state, params, stats=stats)
        return optax.apply_updates(params, updates), state

    params = jax.tree.map(jnp.asarray, params)
    return step, params, tx.init(params)


def test_two_programs_and_no_more(network, compilations):
    method = every(4, per_example())
    step, params, state = training(method, True, *network[:2])
    for number in range(20):
        params, state = step(params, state, network[1], due=method.due(number))
        if number == 1:
            compilations.reset()  # both are there
    assert compilations.count == 0
    assert step._cache_size() == 2


def test_a_run_in_one_program_is_that_in_two(network):
    method = every(3, per_example())
    two, params, state = training(method, True, *network[:2])
    one, *start = training(method, False, *network[:2])
    for number in range(7):
        params, state = two(params, state, network[1], due=method.due(number))

    def body(carry, number):
        return one(*carry, network[1], due=method.due(number)), None

    scanned = jax.jit(lambda carry: jax.lax.scan(body, carry, jnp.arange(7))[0])(tuple(start))
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7),
        scanned,
        (params, state),
    )
    assert [int(test.steps_seen) for test in state[:2]] == [3, 3]
    assert [int(test.tests_run) for test in state[:2]] == [3, 2]
    assert [int(test.tests_undefined) for test in state[:2]] == [0, 0]


def test_tests_are_those_of_a_run_that_saw_only_the_measured_steps(network):
    """The state of a test is that of the measured gradients alone, bit by bit."""
    params, batch, _ = network
    tx = adaoptax.norm_test(0.5, decay=0.9, interval=2)
    method = every(3, per_example())
    fn = jax.jit(value_grad_and_stats(mlp_loss, method), static_argnames="due")
    seldom, alone = tx.init(params), tx.init(params)
    for number in range(13):
        rows = {"x": batch["x"] + np.float32(number / 10), "y": batch["y"]}
        _, grads, stats = fn(params, rows, due=method.due(number))
        seldom = tx.update(grads, seldom, stats=stats)[1]
        if number % 3 == 0:
            alone = tx.update(grads, alone, stats=stats)[1]
    assert int(alone.tests_run) == 3
    jax.tree.map(np.testing.assert_array_equal, seldom, alone)


def test_adascale_goes_on_with_the_gain_that_it_knows(network):
    params, batch, _ = network
    tx = adaoptax.scale_by_adascale(2.0)
    fn = jax.jit(value_grad_and_stats(mlp_loss, every(4, per_example())), static_argnames="due")
    state, clock = tx.init(params), 0.0
    for number in range(4):
        _, grads, stats = fn(params, batch, due=number == 0)
        scaled, state = tx.update(grads, state, stats=stats)
        if number == 0:
            first = state
        clock += float(first.gain)
        np.testing.assert_allclose(flat(scaled), float(first.gain) * flat(grads), rtol=1e-6)
    assert 1 < float(first.gain) < 4
    assert float(state.gain) == float(first.gain)
    jax.tree.map(np.testing.assert_array_equal, state.gain_averages, first.gain_averages)
    assert (int(state.gain_samples), int(state.steps_undefined)) == (1, 0)
    reached = float(state.scale_invariant_count) + float(state.scale_invariant_fraction)
    assert reached == pytest.approx(clock, rel=1e-6)


def test_a_bad_gradient_between_is_skipped_and_a_good_one_is_not(network):
    params, batch, _ = network
    tx = adaoptax.skip_nonfinite(optax.sgd(0.1))
    fn = jax.jit(value_grad_and_stats(mlp_loss, every(4, per_example())), static_argnames="due")
    state = tx.init(params)
    for x, skipped in ((batch["x"], 0), (batch["x"] * np.nan, 1)):
        _, grads, stats = fn(params, {**batch, "x": x}, due=False)
        updates, state = tx.update(grads, state, params, stats=stats)
        assert int(state.nonfinite_skipped) == skipped
        assert np.any(flat(updates)) == (skipped == 0)


# Bad input.


def test_due_is_required(network):
    fn = value_grad_and_stats(mlp_loss, every(5, per_example()))
    with pytest.raises(TypeError, match=r"every\(5, .*got due=None(.|\n)*static_argnames"):
        fn(*network[:2])


def test_other_methods_measure_at_every_step(network):
    fn = value_grad_and_stats(mlp_loss, groups(2))
    assert is_measured(fn(*network[:2], due=False)[2])


@pytest.mark.parametrize("n", [0, -1, 1.5])
def test_steps_that_are_no_count(n):
    with pytest.raises(ValueError, match=f"n={n}"):
        every(n, groups(2))


def test_what_is_not_a_method():
    with pytest.raises(TypeError, match="method to be made by"):
        every(2, groups)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="between to be made by"):
        every(2, groups(2), between=per_example)  # type: ignore[arg-type]
