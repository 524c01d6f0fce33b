"""`per_example` and `groups` against closed forms and float64 gradients of single rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_reference import (
    assert_measured,
    flat,
    mlp,
    mlp_loss,
    reference,
    regression,
    regression_loss,
    regression_rows,
    rows_by_jax,
    same_structure,
)

from adaoptax import orthogonal_variance, signal, value_grad_and_stats
from adaoptax.measure import groups, per_example

pytestmark = pytest.mark.sampled

ALL = ("norm", "inner", "coordinate")
ROWS = 12
PER_EXAMPLE = [per_example(chunk, statistics=ALL) for chunk in (None, 1, 3, 5, ROWS, 99)]
GROUPS = {n: groups(n, statistics=("norm", "coordinate")) for n in (2, 3, 4, 6, ROWS)}
METHODS = [
    *[pytest.param(method, ROWS, id=f"per_example-{method.chunk_size}") for method in PER_EXAMPLE],
    *[pytest.param(method, n, id=f"groups-{n}") for n, method in GROUPS.items()],
]


@pytest.fixture(scope="module")
def network():
    params, batch = mlp(ROWS)
    return params, batch, rows_by_jax(mlp_loss, params, batch)


@pytest.mark.parametrize(("method", "n"), METHODS)
def test_linear_regression_in_closed_form(method, n):
    params, batch = regression(ROWS)
    measured = jax.jit(value_grad_and_stats(regression_loss, method))(params, batch)
    assert_measured(measured, reference(regression_rows(params, batch), n))


@pytest.mark.parametrize(("method", "n"), METHODS)
def test_network_against_float64(method, n, network):
    params, batch, rows = network
    measured = jax.jit(value_grad_and_stats(mlp_loss, method))(params, batch)
    assert_measured(measured, reference(rows, n))
    loss, grads, _ = measured
    plain_loss, plain_grads = jax.value_and_grad(mlp_loss)(params, batch)
    np.testing.assert_allclose(loss, plain_loss, rtol=1e-6)
    np.testing.assert_allclose(flat(grads), flat(plain_grads), rtol=1e-6, atol=1e-6)
    assert same_structure(grads, params)


def test_order_of_rows_matters_to_groups_only(network):
    params, batch, rows = network
    in_groups = jax.jit(value_grad_and_stats(mlp_loss, groups(6)))
    in_rows = jax.jit(value_grad_and_stats(mlp_loss, per_example()))
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(ROWS)
        shuffled = jax.tree.map(lambda x, order=order: x[order], batch)
        expected = reference((rows[0][order], rows[1][order]), 6)
        assert_measured(in_groups(params, shuffled), expected)
        assert_measured(in_rows(params, shuffled), reference(rows, ROWS))


def test_groups_are_contiguous_rows(rows):
    measure = jax.jit(value_grad_and_stats(lambda w, x: (x @ w).mean(), groups(2)))
    found = [
        float(measure(jnp.ones(2), rows[list(order)])[2].variance)
        for order in ((0, 1, 2, 3), (0, 2, 1, 3), (0, 3, 1, 2))
    ]
    np.testing.assert_allclose(found, [0, 5, 5], atol=1e-6)


def test_variance_is_that_along_plus_that_across(network):
    params, batch, (_, grads) = network
    _, _, stats = jax.jit(value_grad_and_stats(mlp_loss, per_example()))(params, batch)
    g = grads.mean(axis=0)
    across = grads - np.outer(grads @ g / (g @ g), g)
    np.testing.assert_allclose(
        orthogonal_variance(stats), (across**2).sum() / (ROWS - 1), rtol=1e-4
    )


@pytest.mark.parametrize("method", [per_example(), per_example(3), groups(4)], ids=str)
def test_rescaling_the_loss(method, network):
    params, batch, _ = network
    rescaled = lambda params, batch: 64 * mlp_loss(params, batch)
    stats = jax.jit(value_grad_and_stats(mlp_loss, method))(params, batch)[2]
    scaled = jax.jit(value_grad_and_stats(rescaled, method))(params, batch)[2]
    np.testing.assert_allclose(scaled.variance, 4096 * stats.variance, rtol=1e-5)
    np.testing.assert_allclose(signal(scaled), 4096 * signal(stats), rtol=1e-4)


@pytest.mark.parametrize(
    "method", [per_example(), per_example(16), per_example(1), groups(64)], ids=str
)
def test_a_large_mean_does_not_cancel(method):
    """A mean gradient 1e4 times the noise in float32, in one go and in running moments."""
    x = np.random.default_rng(0).normal(1e4, 1, (64, 16)).astype(np.float32)
    stats = value_grad_and_stats(lambda w, x: jnp.mean(x @ w), method)(jnp.zeros(16), x)[2]
    wide = x.astype(np.float64)
    exact = ((wide - wide.mean(axis=0)) ** 2).sum() / 63
    np.testing.assert_allclose(stats.variance, exact, rtol=1e-3)


@pytest.mark.parametrize("method", [per_example(), per_example(16)], ids=str)
def test_a_large_mean_does_not_cancel_in_inner_products(method):
    x = np.random.default_rng(5).normal(1e4, 1, (64, 4096)).astype(np.float32)
    measure = jax.jit(value_grad_and_stats(lambda w, x: jnp.mean(x @ w), method))
    stats = measure(jnp.zeros(4096), x)[2]
    wide = x.astype(np.float64)
    g = wide.mean(axis=0)
    exact = (((wide - g) @ g) ** 2).sum() / 63
    np.testing.assert_allclose(stats.inner_product_variance, exact, rtol=1e-3)


@pytest.mark.parametrize("n", [2, 4, 8])
def test_groups_are_unbiased_over_many_draws(n):
    """20000 batches of 8 rows with tr Σ = 14.25; the mean is within four standard errors."""
    draws, scales = 20_000, np.array([1.0, 2.0, 0.5, 3.0])
    x = (np.random.default_rng(n).normal(size=(draws, 8, 4)) * scales + 1).astype(np.float32)
    measure = value_grad_and_stats(lambda w, x: jnp.mean(x @ w), groups(n))
    stats = jax.jit(jax.vmap(measure, in_axes=(None, 0)))(jnp.zeros(4), x)[2]
    for samples, expected in ((stats.variance, 14.25), (signal(stats), 4.0)):
        samples = np.asarray(samples, np.float64)
        error = 4 * samples.std() / np.sqrt(draws)
        assert error < 0.05 * expected
        assert abs(samples.mean() - expected) < error


@pytest.mark.parametrize(
    ("num_rows", "expected"), [(2, 2), (3, 3), (8, 8), (12, 6), (16, 8), (14, 7), (100, 5)]
)
def test_default_method_is_the_largest_number_of_groups_up_to_eight(num_rows, expected):
    params, batch = regression(num_rows)
    measured = value_grad_and_stats(regression_loss)(params, batch)
    assert float(measured[2].num_groups) == expected
    assert_measured(measured, reference(regression_rows(params, batch), expected))


def test_statistics_that_were_not_asked_for_are_none():
    params, batch = regression(ROWS)
    shapes = lambda method: jax.eval_shape(
        value_grad_and_stats(regression_loss, method), params, batch
    )[2]
    assert shapes(per_example(statistics=("norm",)))[4:] == (None, None, None)
    assert shapes(groups(2))[4:] == (None, None, None)
    default = shapes(per_example(5))
    assert default.inner_product_variance is not None
    assert default.coordinate_variance is None
