"""The variance of inner products by one jvp, beside every other way of measuring."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from device_problem import BATCH, PARAMS, loss_fn, over_shard_map, per_row_gradients
from device_problem import ROWS as DEVICE_ROWS
from numpy_reference import flat, mlp, mlp_loss, reference, rows_by_jax

import adaoptax
from adaoptax import value_grad_and_stats
from adaoptax.measure import devices, groups, inner_products, per_example

pytestmark = pytest.mark.sampled

ROWS = 8
METHODS = [None, groups(4), per_example(3, statistics=("norm", "coordinate"))]
MASKS = {
    "whole": None,
    "masked": np.array([1, 1, 0, 1, 0, 0, 1, 1], bool),
    "two": np.array([0, 0, 0, 1, 0, 0, 1, 0], bool),
}


@pytest.fixture(scope="module")
def network():
    params, batch = mlp(ROWS)
    return params, batch, rows_by_jax(mlp_loss, params, batch)


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("case", MASKS)
def test_variance_of_all_examples_beside_the_rest(method, case, network):
    params, batch, rows = network
    mask = MASKS[case]
    if mask is not None:
        batch = {**batch, "x": np.where(mask[:, None], batch["x"], np.nan).astype("f4")}
    fn = jax.jit(value_grad_and_stats(mlp_loss, inner_products(method)))
    loss, grads, stats = fn(params, batch, mask=mask)
    expected = reference(rows, ROWS, mask)
    np.testing.assert_allclose(
        stats.inner_product_variance, expected.inner_product_variance, rtol=1e-4
    )
    np.testing.assert_allclose(loss, expected.loss, rtol=1e-5)
    np.testing.assert_allclose(flat(grads), expected.grads, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(stats.sq_norm, expected.sq_norm, rtol=1e-5)
    assert float(stats.num_examples) == pytest.approx(expected.num_examples)
    if method is None:
        assert float(stats.num_groups) == expected.num_groups
        assert np.isnan(stats.variance)
    else:
        alone = jax.jit(value_grad_and_stats(mlp_loss, method))(params, batch, mask=mask)[2]
        np.testing.assert_allclose(stats.variance, alone.variance, rtol=1e-6)


@pytest.mark.parametrize("method", [None, groups(4)], ids=str)
def test_fewer_than_two_examples(method, network):
    params, batch, _ = network
    fn = jax.jit(value_grad_and_stats(mlp_loss, inner_products(method)))
    garbage = jax.tree.map(lambda x: np.full_like(x, np.nan) if x.dtype == "f4" else x, batch)
    for mask, data in ((np.arange(ROWS) == 3, batch), (np.zeros(ROWS, bool), garbage)):
        loss, grads, stats = fn(params, data, mask=mask)
        assert np.isnan(stats.inner_product_variance)
        assert np.isnan(loss) == (not mask.any())
        assert np.isfinite(flat(grads)).all()
    with pytest.raises(ValueError, match="at least 2 examples, got 1"):
        fn(params, jax.tree.map(lambda x: x[:1], batch))


def test_gradient_and_products_are_of_one_draw():
    """With random keys, those that `per_example` takes."""

    def loss_fn(w, x, key):
        factors = jax.random.uniform(key, x.shape)
        return jnp.mean((x * factors) @ w), factors

    x = np.random.default_rng(0).normal(1, 1, (ROWS, 3)).astype(np.float32)
    fn = value_grad_and_stats(loss_fn, inner_products(None), has_aux=True, key_argnums=2)
    (loss, factors), grads, stats = jax.jit(fn)(jnp.ones(3), x, jax.random.key(0))
    row_grads = np.asarray(factors, np.float64) * x
    expected = reference((row_grads.sum(1), row_grads), ROWS)
    np.testing.assert_allclose(grads, expected.grads, rtol=1e-5)
    np.testing.assert_allclose(
        stats.inner_product_variance, expected.inner_product_variance, rtol=1e-4
    )
    np.testing.assert_allclose(loss, expected.loss, rtol=1e-5)


@pytest.mark.parametrize("check_vma", [True, False])
def test_pooled_over_devices(check_vma):
    """On 8 devices with 8 rows each: the variance of all 64, equal everywhere."""
    method = inner_products(devices("data"))
    _, _, stats = over_shard_map(method, check_vma=check_vma)
    rows = per_row_gradients()
    expected = reference((np.zeros(DEVICE_ROWS), rows), DEVICE_ROWS)
    np.testing.assert_allclose(
        stats.inner_product_variance, expected.inner_product_variance, rtol=1e-4
    )
    assert float(stats.num_groups) == 8


def test_pooled_over_devices_with_unequal_masks():
    mask = np.arange(DEVICE_ROWS) % 8 < np.arange(DEVICE_ROWS) // 8  # 0 to 7 rows a device
    in_parts = lambda x: x.reshape(8, 8, *x.shape[1:])
    fn = value_grad_and_stats(loss_fn, inner_products(devices("data")))
    mapped = jax.vmap(lambda b, m: fn(PARAMS, b, mask=m), axis_name="data")
    stats = jax.jit(mapped)(jax.tree.map(in_parts, BATCH), in_parts(mask))[2]
    expected = reference((np.zeros(DEVICE_ROWS), per_row_gradients()), DEVICE_ROWS, mask)
    np.testing.assert_allclose(
        stats.inner_product_variance, [expected.inner_product_variance] * 8, rtol=1e-4
    )


def test_serves_the_plug_in_inner_product_test_and_no_test_that_needs_more(network):
    params, batch, rows = network
    _, grads, stats = value_grad_and_stats(mlp_loss, inner_products(None))(params, batch)
    expected = reference(rows, ROWS)
    tx = adaoptax.inner_product_test(0.5, signal="plug-in")
    state = tx.update(grads, tx.init(params), stats=stats)[1]
    required = expected.inner_product_variance / (0.25 * expected.sq_norm**2)
    np.testing.assert_allclose(state.required_batch_size, required, rtol=1e-4)
    for test in (adaoptax.inner_product_test(0.5), adaoptax.norm_test(0.5)):
        state = test.update(grads, test.init(params), stats=stats)[1]
        assert bool(state.undefined)
        assert float(state.required_batch_size) == ROWS


def test_not_a_method():
    with pytest.raises(TypeError, match="variance to be made by"):
        inner_products(groups)  # type: ignore[arg-type]
