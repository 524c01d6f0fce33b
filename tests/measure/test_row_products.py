"""Inner products of all examples with one direction: the numbers, and how they are computed."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_reference import flat, mlp, mlp_loss, regression, regression_loss, rows_by_jax

from adaoptax import signal, stats_from_groups
from adaoptax.measure import leave_one_out, per_example_moments
from adaoptax.measure.loss import describe_loss
from adaoptax.measure.row_products import products_of_rows

ROWS = 6
MASK = np.array([1, 0, 1, 1, 0, 1], bool)
RNG = np.random.default_rng(3)


def along(loss_fn, params, batch, direction, *args, mask=None, **description):
    """The moments of every example along `direction`."""
    measure = per_example_moments(loss_fn, ("inner",), **description)
    return measure(params, batch, *args, mask=mask, direction=direction)[2]


def products_along(*args, **options):
    return along(*args, **options).inner_products


def some_direction(params):
    return jax.tree.map(lambda p: RNG.normal(size=np.shape(p)).astype(np.float32), params)


@pytest.fixture(scope="module")
def network():
    params, batch = mlp(ROWS)
    return params, batch, rows_by_jax(mlp_loss, params, batch)[1]


def test_any_direction(network):
    params, batch, row_grads = network
    product = jax.jit(lambda direction: products_along(mlp_loss, params, batch, direction))
    gradient = jax.grad(mlp_loss)(params, batch)
    for direction in (gradient, some_direction(params), jax.tree.map(jnp.zeros_like, params)):
        expected = row_grads @ flat(direction)
        scale = np.linalg.norm(row_grads, axis=1).max() * np.linalg.norm(flat(direction))
        np.testing.assert_allclose(product(direction), expected, rtol=1e-5, atol=1e-6 * scale)


def test_along_the_gradient_they_average_to_its_square(network):
    params, batch, row_grads = network
    gradient = jax.grad(mlp_loss)(params, batch)
    products = products_along(mlp_loss, params, batch, gradient)
    mean = row_grads.mean(axis=0)
    np.testing.assert_allclose(np.mean(products), mean @ mean, rtol=1e-5)


@pytest.mark.parametrize("garbage", [np.nan, np.inf, 3e38])
def test_padding_has_the_product_zero(garbage, network):
    params, batch, row_grads = network
    direction = some_direction(params)
    batch = {"x": np.where(MASK[:, None], batch["x"], garbage).astype(np.float32),
             "y": np.where(MASK, batch["y"], -(2**31)).astype(np.int32)}  # fmt: skip
    product = jax.jit(lambda mask: products_along(mlp_loss, params, batch, direction, mask=mask))
    got = np.asarray(product(MASK))
    np.testing.assert_allclose(got, MASK * (row_grads @ flat(direction)), rtol=1e-4, atol=1e-5)
    assert (got[~MASK] == 0).all()
    np.testing.assert_array_equal(product(np.zeros(ROWS, bool)), 0)


def test_random_keys_make_the_draw_of_a_plain_call():
    def loss_fn(w, x, scale, key):
        factors = jax.random.uniform(key, x.shape)
        return scale * jnp.mean((x * factors) @ w), factors

    x = RNG.normal(size=(ROWS, 3)).astype(np.float32)
    options: Any = {"has_aux": True, "key_argnums": 3}
    args = (jnp.ones(3), x, 2.0, jax.random.key(1))
    factors = loss_fn(*args)[1]
    direction = np.array([1.0, -2.0, 0.5], np.float32)
    products = products_along(loss_fn, *args[:2], direction, *args[2:], **options)
    np.testing.assert_allclose(products, 2 * (x * factors) @ direction, rtol=1e-5)


def test_complex_parameters_have_the_real_part_of_the_hermitian_product():
    draw = lambda *shape: np.asarray(RNG.normal(size=shape) + 1j * RNG.normal(size=shape), "c8")
    w, x, direction = draw(3), draw(ROWS, 3), draw(3)
    loss_fn = lambda w, x: jnp.mean(jnp.abs(x @ w - 1) ** 2)
    residual = x.astype("c16") @ w - 1
    gradients = 2 * np.conj(residual)[:, None] * x  # as jax.grad returns them
    np.testing.assert_allclose(jax.grad(loss_fn)(w, x), gradients.mean(0), rtol=1e-5)
    expected = np.real(gradients @ np.conj(direction))
    np.testing.assert_allclose(products_along(loss_fn, w, x, direction), expected, rtol=1e-4)


@pytest.mark.parametrize(("dtype", "rtol"), [("bfloat16", 3e-2), ("float32", 1e-5)])
def test_products_are_float32(dtype, rtol):
    params, batch = regression(ROWS)
    params = jax.tree.map(lambda p: jnp.asarray(p, dtype), params)
    direction = jax.tree.map(lambda p: jnp.ones(p.shape, jnp.float32), params)
    products = products_along(regression_loss, params, batch, direction)
    assert products.dtype == jnp.float32
    rows = rows_by_jax(regression_loss, params, batch)[1]
    np.testing.assert_allclose(products, rows.sum(axis=1), rtol=rtol, atol=rtol)


def test_float64(float64):
    params, batch = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), regression(ROWS))
    products = products_along(regression_loss, params, batch, params)
    assert products.dtype == jnp.float64
    expected = rows_by_jax(regression_loss, params, batch)[1] @ flat(params)
    np.testing.assert_allclose(products, expected, rtol=1e-13)


def test_no_example_has_a_product_of_matrices_of_its_own():
    """Every matrix product is one of the whole batch with parameters that all examples share."""
    params, batch = mlp(ROWS)
    products = lambda p, b, v: products_of_rows(describe_loss(mlp_loss), p, b, v, (), None)
    jaxpr = str(jax.make_jaxpr(products)(params, batch, params))
    dots = re.findall(r"= dot_general\[\s*dimension_numbers=\(\((.*?)\), \((.*?)\)\)", jaxpr)
    assert len(dots) == 5  # x W, x dW | h V, h dV, dh V
    assert {batched for _, batched in dots} == {"[], []"}


def test_errors(network):
    params, batch, _ = network
    with pytest.raises(ValueError, match=r"direction to be shaped like params.*\(7, 3\).*\(3, 7\)"):
        products_along(mlp_loss, params, batch, {**params, "out": params["out"].T})
    with pytest.raises(ValueError, match="direction to be shaped like params"):
        products_along(mlp_loss, params, batch, {"in": params["in"]})
    with pytest.raises(ValueError, match=r"mask of shape \(6,\)"):
        products_along(mlp_loss, params, batch, params, mask=np.ones(5, bool))
    with pytest.raises(ValueError, match='statistics with "inner" for a direction'):
        per_example_moments(mlp_loss)(params, batch, direction=params)


def test_variance_along_a_direction_with_padding():
    x = RNG.normal(size=(7, 3)).astype(np.float32)
    direction = RNG.normal(size=3).astype(np.float32)
    loss_fn = lambda w, x: jnp.mean(x @ w)
    got = along(loss_fn, jnp.ones(3), x, direction).inner_product_variance
    assert float(got) == pytest.approx(np.var(x @ direction, ddof=1), rel=1e-5)
    mask = np.array([1, 1, 0, 1, 1, 0, 1], bool)
    x[~mask] = np.nan
    got = along(loss_fn, jnp.ones(3), x, direction, mask=mask).inner_product_variance
    assert float(got) == pytest.approx(np.var((x @ direction)[mask], ddof=1), rel=1e-5)
    one = np.arange(7) == 0
    assert np.isnan(along(loss_fn, jnp.ones(3), x, direction, mask=one).inner_product_variance)


def test_without_a_direction_the_products_are_with_the_mean_gradient(network):
    params, batch, row_grads = network
    moments: Any = per_example_moments(mlp_loss, ("inner",))(params, batch)[2]
    products = row_grads @ row_grads.mean(axis=0)
    np.testing.assert_allclose(moments.inner_products, products, rtol=1e-4, atol=1e-6)
    variance = np.var(products, ddof=1)
    assert float(moments.inner_product_variance) == pytest.approx(variance, rel=1e-4)


@pytest.mark.parametrize("mask", [np.ones(ROWS, bool), MASK])
def test_leave_one_out_by_enumeration(mask):
    rows = RNG.normal(size=(ROWS, 4))
    mean = rows[mask].mean(axis=0)
    expected = np.zeros(ROWS)
    for i in np.flatnonzero(mask):
        expected[i] = rows[i] @ rows[mask & (np.arange(ROWS) != i)].mean(axis=0)
    products, squares = (rows @ mean).astype("f4"), (rows**2).sum(1).astype("f4")
    got = leave_one_out(products, squares, mask=mask)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    if mask.all():
        np.testing.assert_array_equal(leave_one_out(products, squares), got)
        stats = stats_from_groups(rows.astype("f4"), 1)[1]
        np.testing.assert_allclose(np.mean(got), signal(stats), rtol=1e-4)


def test_leave_one_out_without_others():
    pair = jnp.array([1.0, 2.0])
    np.testing.assert_array_equal(
        leave_one_out(pair, pair, mask=np.array([True, False])), [np.nan, 0]
    )
    with pytest.raises(ValueError, match="at least 2 examples, got 1"):
        leave_one_out(pair[:1], pair[:1])
    with pytest.raises(ValueError, match=r"shapes \(2,\) and \(1,\)"):
        leave_one_out(pair, pair[:1])
