"""The variance of inner products with the mean of the other examples, and the test by it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adaoptax
from adaoptax import required_batch_size, stats_from_groups, value_grad_and_stats
from adaoptax.measure import every, exact, groups, micro_steps, per_example

pytestmark = pytest.mark.sampled

ASKED = ("norm", "inner", "leave-one-out")


def variance_of(stats: Any) -> Any:
    return stats.leave_one_out_variance


def by_definition(h: Any, sizes: Any) -> float:
    """Float64, every mean of the others formed in full."""
    h, sizes = np.asarray(h, np.float64), np.asarray(sizes, np.float64)
    h, sizes = h[sizes > 0].reshape((sizes > 0).sum(), -1), sizes[sizes > 0]
    products = []
    for j in range(len(h)):
        others = np.arange(len(h)) != j
        products.append(h[j] @ (sizes[others] @ h[others] / sizes[others].sum()))
    mean = sizes @ np.array(products) / sizes.sum()
    return sizes @ (np.array(products) - mean) ** 2 / (len(h) - 1)


def test_the_fixture_by_hand(rows):
    grads, stats = stats_from_groups(jnp.asarray(rows), group_size=1, statistics=ASKED)
    assert float(variance_of(stats)) == pytest.approx(41 / 27, rel=1e-6)
    for theta in (0.1, 0.5):
        tx = adaoptax.inner_product_test(theta, leave_one_out=True)
        _, state = tx.update(grads, tx.init(grads), stats=stats)
        expected = 4 * 0.0378578 / theta**2  # 0.0378578 is published for one batch of four
        assert float(required_batch_size(state)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("chunk_size", [None, 1, 2, 4])
@pytest.mark.parametrize("masked", [False, True])
def test_per_example_in_chunks_and_with_padding(chunk_size, masked):
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(7, 5)) + 0.4).astype(np.float32)
    mask = np.array([1, 1, 0, 1, 1, 1, 0], bool) if masked else None
    real = x if mask is None else x[mask]
    if mask is not None:
        x[~mask] = np.nan
    measure = value_grad_and_stats(
        lambda w, x: jnp.mean(x @ w), per_example(chunk_size, statistics=ASKED)
    )
    stats = jax.jit(lambda x: measure(jnp.ones(5), x, mask=mask)[2])(x)
    expected = by_definition(real, np.ones(len(real)))
    assert float(variance_of(stats)) == pytest.approx(expected, rel=1e-5)
    inner = np.var(real.astype(np.float64) @ real.mean(axis=0), ddof=1)
    assert float(stats.inner_product_variance) == pytest.approx(inner, rel=1e-5)


def test_alone_it_leaves_the_in_sample_products_out():
    h = jnp.asarray(np.random.default_rng(1).normal(size=(5, 3)))
    _, stats = stats_from_groups(h, group_size=2, statistics=("norm", "leave-one-out"))
    assert stats.inner_product_variance is None
    expected = by_definition(h, 2 * np.ones(5))
    assert float(variance_of(stats)) == pytest.approx(expected, rel=1e-5)
    assert stats_from_groups(h, group_size=2)[1].leave_one_out_variance is None


def test_unequal_groups_and_groups_of_padding():
    rng = np.random.default_rng(2)
    h, sizes = rng.normal(size=(5, 3)).astype(np.float32), np.array([3.0, 1.0, 0.0, 4.0, 2.0])
    expected = by_definition(h, sizes)
    h[2] = np.nan
    _, stats = stats_from_groups(jnp.asarray(h), sizes, statistics=ASKED)
    assert float(variance_of(stats)) == pytest.approx(expected, rel=1e-5)


def test_one_real_group_is_undefined():
    h = jnp.ones((3, 2))
    _, stats = stats_from_groups(h, np.array([2.0, 0.0, 0.0]), statistics=ASKED)
    assert np.isnan(variance_of(stats))


def test_a_large_common_gradient_does_not_drown_it():
    rng = np.random.default_rng(3)
    h = 1000 + rng.normal(size=(16, 8)).astype(np.float32)
    _, stats = stats_from_groups(jnp.asarray(h), 1, statistics=ASKED)
    expected = by_definition(h, np.ones(16))
    assert float(variance_of(stats)) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("ratio", [0.01, 0.1])
def test_it_is_within_15_percent_of_the_truth_where_noise_is_a_tenth_of_signal(ratio):
    """Published by the reference (section 3.3): d = 20000, B = 32, medians."""
    rng, d, size = np.random.default_rng(4), 20_000, 32
    gradient = np.full(d, 1 / np.sqrt(d))
    sd = np.sqrt(ratio * size / d)
    statistics = []
    for _ in range(20):
        h = gradient + sd * rng.normal(size=(size, d))
        _, stats = stats_from_groups(jnp.asarray(h, jnp.float32), 1, statistics=ASKED)
        statistics.append(variance_of(stats) / adaoptax.signal(stats) ** 2 / size)
    oracle = sd**2 / size  # variance along the true gradient of length one
    assert np.median(statistics) == pytest.approx(oracle, rel=0.2)


def test_on_pure_noise_the_plug_in_form_passes_and_leave_one_out_does_not():
    rng, d, size = np.random.default_rng(5), 5000, 32
    passed = {False: 0, True: 0}
    for _ in range(20):
        h = jnp.asarray(rng.normal(size=(size, d)), jnp.float32)
        grads, stats = stats_from_groups(h, 1, statistics=ASKED)
        for leave_one_out, kind in ((False, "plug-in"), (True, "debiased")):
            tx = adaoptax.inner_product_test(0.5, leave_one_out=leave_one_out, signal=kind)
            state = tx.update(grads, tx.init(grads), stats=stats)[1]
            passed[leave_one_out] += int(state.test_passed)
    assert passed[False] == 20
    assert passed[True] <= 5  # by a signal that is large by luck


def test_the_augmented_test_takes_it_along_and_the_rest_across(rows):
    grads, stats = stats_from_groups(jnp.asarray(rows), group_size=1, statistics=ASKED)
    for theta, nu in ((0.1, 9.0), (9.0, 0.1)):
        tx = adaoptax.augmented_inner_product_test(theta, nu, leave_one_out=True)
        required = float(tx.update(grads, tx.init(grads), stats=stats)[1].required_batch_size)
        along = (41 / 27) / (theta**2 * (19 / 6) ** 2)
        across = (8 / 3) / (nu**2 * 19 / 6)
        assert required == pytest.approx(max(along, across), rel=1e-5)


def test_missing_statistics_name_what_measures_them(rows, numpy_stats):
    grads, stats = numpy_stats(rows)
    tx = adaoptax.inner_product_test(0.5, leave_one_out=True)
    message = r"leave_one_out_variance, got None.*per_example.*leave-one-out"
    with pytest.raises(ValueError, match=message):
        tx.update(grads, tx.init(grads), stats=stats)


def test_steps_between_have_the_same_fields():
    method = every(2, per_example(statistics=ASKED))
    measure = value_grad_and_stats(lambda w, x: jnp.mean(x @ w), method)
    x = jnp.eye(3)
    run = jax.jit(lambda step: measure(jnp.ones(3), x, due=method.due(step))[2])
    assert np.isfinite(run(0).leave_one_out_variance)
    assert np.isnan(run(1).leave_one_out_variance)


@pytest.mark.parametrize("make", [exact, lambda s: groups(2, statistics=s)])
def test_methods_without_stacked_gradients_refuse_it(make):
    with pytest.raises(ValueError, match=r"Expected statistics.*leave-one-out"):
        make(ASKED)


def test_micro_steps_cannot_merge_it():
    with pytest.raises(ValueError, match="inner products"):
        micro_steps(lambda w, x: jnp.mean(x @ w), per_example(statistics=("norm", "leave-one-out")))
