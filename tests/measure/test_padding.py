"""Masks: padding counts nowhere, whatever it holds; unequal groups; no work for it."""

import itertools

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
)

from adaoptax import signal, value_grad_and_stats
from adaoptax.measure import exact, groups, per_example

pytestmark = [pytest.mark.sampled, pytest.mark.topic("padding")]

ALL = ("norm", "inner", "coordinate")
ROWS = 12
METHODS = [
    *[
        pytest.param(per_example(chunk, statistics=ALL), ROWS, id=f"per_example-{chunk}")
        for chunk in (None, 1, 3, 5)
    ],
    *[
        pytest.param(groups(n, statistics=("norm", "coordinate")), n, id=f"groups-{n}")
        for n in (2, 4, ROWS)
    ],
]
MASKS = {
    "full": [1] * 12,
    "tail": [1] * 7 + [0] * 5,
    "tail of whole groups": [1] * 6 + [0] * 6,
    "head": [0] * 4 + [1] * 8,
    "middle": [1, 1, 1] + [0] * 6 + [1, 1, 1],
    "scattered": [0, 1, 1, 0, 0, 1, 0, 0, 0, 1, 1, 0],
    "two": [0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 0, 0],
}
GARBAGE = {"nan": (np.nan, -1), "inf": (np.inf, 2**31 - 1), "large": (3e38, -(2**31))}


def spoil(batch, mask, garbage):
    """Puts garbage in the rows of padding: a number in float leaves, another in integer ones."""
    real, (number, integer) = np.asarray(mask) > 0, GARBAGE[garbage]

    def leaf(x):
        x = x.copy()
        x[~real] = number if np.issubdtype(x.dtype, np.floating) else integer
        return x

    return jax.tree.map(leaf, batch)


@pytest.fixture(scope="module")
def network():
    params, batch = mlp(ROWS)
    return params, batch, rows_by_jax(mlp_loss, params, batch)


@pytest.mark.parametrize(("method", "n"), METHODS)
def test_padding_never_counts(method, n):
    params, batch = regression(ROWS)
    rows = regression_rows(params, batch)
    measure = jax.jit(value_grad_and_stats(regression_loss, method))
    for mask, garbage in itertools.product(MASKS.values(), GARBAGE):
        expected = reference(rows, n, weight=mask)
        spoiled = spoil(batch, mask, garbage)
        assert_measured(measure(params, spoiled, mask=np.array(mask, bool)), expected)


@pytest.mark.parametrize(
    ("method", "n"),
    [(per_example(5, statistics=ALL), ROWS), (groups(4), 4)],
    ids=["rows", "groups"],
)
def test_padding_never_counts_in_a_network(method, n, network):
    """Integer labels of padding rows are garbage, too."""
    params, batch, rows = network
    measure = jax.jit(value_grad_and_stats(mlp_loss, method))
    for mask, garbage in itertools.product(MASKS.values(), GARBAGE):
        measured = measure(params, spoil(batch, mask, garbage), mask=np.array(mask, bool))
        assert_measured(measured, reference(rows, n, weight=mask))


@pytest.mark.parametrize("chunk_size", [None, 1, 5])
def test_masked_rows_equal_the_real_rows_alone(chunk_size, network):
    params, batch, _ = network
    real = np.array(MASKS["scattered"], bool)
    measure = jax.jit(value_grad_and_stats(mlp_loss, per_example(chunk_size, statistics=ALL)))
    masked = measure(params, spoil(batch, real, "nan"), mask=real)
    alone = measure(params, jax.tree.map(lambda x: x[real], batch))
    for a, b in zip(jax.tree.leaves(masked), jax.tree.leaves(alone), strict=True):
        # Four units of rounding of the terms, which cancel in some coordinates.
        rounding = 4 * np.finfo(np.float32).eps * np.abs(b).max()
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=rounding)


def test_unequal_groups_by_hand(rows):
    """Groups (1,0) and mean of (2,2), (2,−2): sizes 1 and 2, g = (5/3, 0), S² = 2/3."""
    batch = np.stack([rows[0], np.full(2, np.nan), rows[2], rows[3]]).astype(np.float32)
    measure = value_grad_and_stats(lambda w, x: (x @ w).mean(), groups(2))
    loss, grads, stats = measure(jnp.ones(2), batch, mask=np.array([1, 0, 1, 1], bool))
    np.testing.assert_allclose(loss, (1 + 4 + 0) / 3, rtol=1e-6)
    np.testing.assert_allclose(grads, [5 / 3, 0], rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(stats.variance, (2 / 3) ** 2 + 2 * (1 / 3) ** 2, rtol=1e-6)
    assert (float(stats.num_examples), float(stats.num_groups)) == (3, 2)


@pytest.mark.parametrize("method", [param.values[0] for param in METHODS], ids=str)
def test_padding_only(method):
    params, batch = regression(ROWS)
    none = np.zeros(ROWS, bool)
    measure = jax.jit(value_grad_and_stats(regression_loss, method))
    loss, grads, stats = measure(params, spoil(batch, none, "nan"), mask=none)
    np.testing.assert_array_equal(flat(grads), 0)
    assert np.isnan(loss)
    assert float(stats.num_examples) == float(stats.num_groups) == float(stats.sq_norm) == 0
    assert np.isnan(stats.variance)
    if stats.inner_product_variance is not None:
        assert np.isnan(stats.inner_product_variance)
    if stats.coordinate_variance is not None:
        assert np.isnan(flat(stats.coordinate_variance)).all()


@pytest.mark.parametrize(
    ("method", "real"),
    [
        (per_example(statistics=ALL), [7]),
        (per_example(5, statistics=ALL), [7]),
        (groups(4, statistics=("norm", "coordinate")), [6, 7]),
        (groups(4, statistics=("norm", "coordinate")), [6, 7, 8]),
    ],
    ids=["per_example", "chunked", "part of a group", "one whole group"],
)
def test_one_real_group_tells_nothing_about_noise(method, real):
    params, batch = regression(ROWS)
    losses, grads = regression_rows(params, batch)
    mask = np.isin(np.arange(ROWS), real)
    measure = value_grad_and_stats(regression_loss, method)
    loss, mean, stats = measure(params, spoil(batch, mask, "nan"), mask=mask)
    np.testing.assert_allclose(loss, losses[real].mean(), rtol=1e-5)
    np.testing.assert_allclose(flat(mean), grads[real].mean(axis=0), rtol=1e-5, atol=1e-6)
    assert (float(stats.num_examples), float(stats.num_groups)) == (len(real), 1)
    np.testing.assert_allclose(stats.sq_norm, (grads[real].mean(axis=0) ** 2).sum(), rtol=1e-5)
    assert np.isnan(stats.variance)
    assert stats.inner_product_variance is None or np.isnan(stats.inner_product_variance)
    assert np.isnan(flat(stats.coordinate_variance)).all()


# Expectations.


@pytest.mark.parametrize("method", [per_example(), groups(4), groups(2)], ids=str)
def test_unequal_groups_are_unbiased_over_many_draws(method):
    """20000 batches with tr Σ = 14.25 and one mask; within four standard errors."""
    draws, scales = 20_000, np.array([1.0, 2.0, 0.5, 3.0])
    mask = np.array([1, 1, 0, 1, 0, 1, 1, 1], bool)
    x = (np.random.default_rng(0).normal(size=(draws, 8, 4)) * scales + 1).astype(np.float32)
    measure = value_grad_and_stats(lambda w, x: jnp.mean(x @ w), method)
    each = lambda x: measure(jnp.zeros(4), x, mask=mask)
    _, grads, stats = jax.jit(jax.vmap(each))(x)
    for samples, expected in ((stats.variance, 14.25), (signal(stats), 4.0)):
        samples = np.asarray(samples, np.float64)
        error = 4 * samples.std() / np.sqrt(draws)
        assert error < 0.06 * expected
        assert abs(samples.mean() - expected) < error
    # The mean gradient is as noisy as num_examples says.
    spread = np.asarray(grads, np.float64).var(axis=0).sum()
    np.testing.assert_allclose(spread, 14.25 / float(stats.num_examples[0]), rtol=0.03)
    assert float(stats.num_examples[0]) == 6


# One compiled step, and no work for padding.


@pytest.mark.parametrize(("method", "n"), METHODS)
def test_one_compilation_serves_every_number_of_real_rows(method, n, compilations):
    params, batch = regression(ROWS)
    rows = regression_rows(params, batch)
    measure = jax.jit(value_grad_and_stats(regression_loss, method))
    masks = [np.arange(ROWS) < real for real in range(1, ROWS + 1)]
    measure(params, batch, mask=masks[0])
    compilations.reset()
    measured = [measure(params, spoil(batch, mask, "nan"), mask=mask) for mask in masks]
    assert compilations.count == 0
    for each, mask in list(zip(measured, masks, strict=True))[n == ROWS or ROWS // n :]:
        assert_measured(each, reference(rows, n, weight=mask))


@pytest.mark.parametrize(
    ("method", "mask", "groups_run"),
    [
        pytest.param(groups(6), None, 6, id="no mask"),
        pytest.param(groups(6), [1] * 12, 6, id="full"),
        pytest.param(groups(6), [1] * 6 + [0] * 6, 3, id="half"),
        pytest.param(groups(6), [1] * 2 + [0] * 10, 1, id="one"),
        pytest.param(groups(6), [0] * 12, 0, id="none"),
        pytest.param(groups(6), [1, 1] + [0] * 8 + [1, 1], 2, id="hole"),
        pytest.param(per_example(1, statistics=("norm",)), [1] * 5 + [0] * 7, 5, id="rows"),
    ],
)
def test_groups_of_padding_are_never_computed(method, mask, groups_run):
    calls = []

    def loss_fn(w, x):
        jax.debug.callback(lambda: calls.append(0))  # without operands: once a group, vmap or not
        return jnp.mean(x @ w)

    measure = jax.jit(value_grad_and_stats(loss_fn, method))
    mask = None if mask is None else np.array(mask, bool)
    measured = measure(jnp.ones(2), np.ones((12, 2), np.float32), mask=mask)
    jax.block_until_ready(measured)
    jax.effects_barrier()
    assert len(calls) == groups_run


@pytest.mark.parametrize("shape", [(11,), (12, 1), ()])
def test_mask_of_another_shape(shape):
    params, batch = regression(ROWS)
    measure = value_grad_and_stats(regression_loss, groups(2))
    with pytest.raises(ValueError, match=r"mask of shape \(12,\)"):
        measure(params, batch, mask=np.ones(shape))


@pytest.mark.parametrize("method", [None, exact(), per_example(5), groups(4)], ids=str)
@pytest.mark.parametrize("dtype", ["int32", "float32"])
def test_a_mask_is_boolean(method, dtype):
    params, batch = regression(ROWS)
    mask = np.array(MASKS["scattered"]).astype(dtype)
    with pytest.raises(ValueError, match=f"mask of bools, got {dtype}: .*Pass mask > 0"):
        value_grad_and_stats(regression_loss, method)(params, batch, mask=mask)
