"""Decisions on Gaussian problems whose gradient and covariance are known.

Draws are made by numpy with fixed seeds; a bound is four standard errors over replicas unless a
comment says otherwise. All randomness lies in the statistics, which come from the definitions.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adaoptax

pytestmark = pytest.mark.topic("edge cases")

D, B = 20, 16


def gaussian_stats(
    seed: int, lead: tuple[int, ...], gradient: np.ndarray, sd: np.ndarray, size: int = B
) -> tuple[Any, Any]:
    """Statistics of independent batches of N(gradient, diag(sd²)), stacked along `lead`."""
    rng = np.random.default_rng(seed)
    h = rng.normal(size=(*lead, size, len(sd))).astype(np.float32).astype(float) * sd + gradient
    g = h.mean(axis=-2)
    each = h.var(axis=-2, ddof=1)
    products = np.einsum("...id,...d->...i", h, g)
    full = lambda value: jnp.full(lead, value, jnp.float32)
    stats = adaoptax.GradientStats(
        num_examples=full(size),
        num_groups=full(size),
        sq_norm=jnp.asarray((g**2).sum(-1), jnp.float32),
        variance=jnp.asarray(each.sum(-1), jnp.float32),
        inner_product_variance=jnp.asarray(products.var(axis=-1, ddof=1), jnp.float32),
        coordinate_variance=jnp.asarray(each, jnp.float32),
    )
    return jnp.asarray(g, jnp.float32), stats


def last_states(tx: Any, grads: Any, stats: Any) -> Any:
    """State after the second axis has passed as steps, for each replica of the first."""

    def replica(grads: Any, stats: Any) -> Any:
        step = lambda state, x: (tx.update(x[0], state, stats=x[1])[1], None)
        return jax.lax.scan(step, tx.init(grads[0]), (grads, stats))[0]

    return jax.jit(jax.vmap(replica))(grads, stats)


def assert_mean(values: Any, truth: float, bias: float = 0.0) -> None:
    values = np.asarray(values, float)
    error = values.std(ddof=1) / np.sqrt(len(values))
    assert abs(values.mean() - truth) < 4 * error + bias * truth, (values.mean(), truth, error)
    assert 4 * error + bias * truth < 0.05 * truth  # a bound that can fail


GRADIENT = np.full(D, 1 / np.sqrt(D))  # ‖∇F‖² = 1
REPLICAS, STEPS, DECAY = 24, 600, 0.998


@pytest.mark.parametrize("ratio", [0.1, 1.0, 3.0])  # tr Σ / (B ‖∇F‖²), noise over signal
def test_norm_test_is_right_when_debiased_and_saturates_when_not(ratio):
    sd = np.full(D, np.sqrt(ratio * B / D))
    truth = ratio * B / 0.5**2
    grads, stats = gaussian_stats(0, (REPLICAS, STEPS), GRADIENT, sd)
    debiased = last_states(adaoptax.norm_test(0.5, decay=DECAY), grads, stats)
    plug_in = last_states(adaoptax.norm_test(0.5, decay=DECAY, signal="plug-in"), grads, stats)
    # The ratio of means has bias Var(signal)/signal² ≈ (4 r/D + 2 r²/D)/350 effective steps.
    bias = (4 * ratio / D + 2 * ratio**2 / D) / 350
    assert_mean(debiased.required_batch_size, truth, bias)
    assert_mean(plug_in.required_batch_size, truth / (1 + ratio), bias)  # E‖g‖² = ‖∇F‖² + tr Σ/B


def test_inner_product_and_augmented_tests_meet_their_expectations():
    rng = np.random.default_rng(5)
    sd = rng.uniform(0.5, 1.5, D) * 0.4
    grads, stats = gaussian_stats(1, (REPLICAS, STEPS), GRADIENT, sd)
    # The covariance estimate of a Gaussian is independent of g: E V_ip = G'ΣG + tr Σ²/B.
    along = (GRADIENT**2 * sd**2).sum() + (sd**4).sum() / B
    inner = last_states(adaoptax.inner_product_test(0.3, decay=DECAY), grads, stats)
    assert_mean(inner.required_batch_size, along / 0.3**2, bias=2e-3)

    isotropic = np.full(D, 0.5)
    grads, stats = gaussian_stats(2, (REPLICAS, STEPS), GRADIENT, isotropic)
    both = last_states(adaoptax.augmented_inner_product_test(0.9, 0.3, decay=DECAY), grads, stats)
    assert_mean(both.required_batch_size, 0.25 * (D - 1) / 0.3**2, bias=2e-3)  # across: d − 1


def test_coordinate_test_finds_the_weighted_quantile_of_known_coordinates():
    gradient = np.repeat([1.0, 0.5, 0.0], [5, 5, 10])
    sd = np.repeat([0.5, 1.0, 1.0], [5, 5, 10])
    # b_j η²: 0.25 (holding 80 % of the energy), 4 (20 %), ∞ (nothing).
    grads, stats = gaussian_stats(3, (REPLICAS, 2000), gradient, sd)
    require = lambda coverage: (
        last_states(
            adaoptax.coordinate_test(0.5, coverage=coverage, decay=0.999), grads, stats
        ).required_batch_size
    )
    np.testing.assert_allclose(require(0.7), 0.25 / 0.5**2, rtol=0.15)
    np.testing.assert_allclose(require(0.95), 4 / 0.5**2, rtol=0.5)
    assert np.asarray(require(0.95)).mean() == pytest.approx(4 / 0.5**2, rel=0.25)


def test_zero_signal_is_mostly_called_noise_and_never_a_confident_pass():
    # The debiased signal has mean 0 and is skewed to the right: P(≤ 0) is a little over 1/2.
    sd = np.ones(D)
    grads, stats = gaussian_stats(4, (2000, 1), np.zeros(D), sd)
    state = last_states(adaoptax.norm_test(0.5), grads, stats)
    share = np.asarray(state.noise_dominated).mean()
    signal = np.asarray(stats.sq_norm - stats.variance / B)[:, 0]
    assert share == (signal <= 0).mean()
    assert 0.5 < share < 0.6
    assert not np.asarray(state.test_passed).any()
    assert np.isinf(np.asarray(state.required_batch_size)[signal <= 0]).all()
    assert not np.asarray(state.undefined).any()


@pytest.mark.parametrize(("eta", "factor"), [(0.05, 400), (0.1, 100), (0.25, 16.0), (0.5, 4.03)])
def test_plug_in_grows_by_one_over_eta_squared_on_pure_noise(eta, factor):
    # Published by the reference (section 3.1) for d = 2000, B = 32; medians.
    grads, stats = gaussian_stats(6, (40, 1), np.zeros(2000), np.ones(2000), size=32)
    tx = adaoptax.norm_test(eta, signal="plug-in")
    growth = np.asarray(last_states(tx, grads, stats).required_batch_size) / 32
    assert np.median(growth) == pytest.approx(factor, rel=0.02)


def test_published_augmented_tolerances_hardly_ever_fire_in_high_dimension():
    # (0.9, 5.84) on pure noise: required/current tends to 1/34.1 (section 3.2).
    grads, stats = gaussian_stats(7, (40, 1), np.zeros(2000), np.ones(2000), size=32)
    tx = adaoptax.augmented_inner_product_test(0.9, 5.84, signal="plug-in")
    state = last_states(tx, grads, stats)
    assert np.asarray(state.test_passed).all()
    ratios = np.asarray(state.required_batch_size) / 32
    assert np.median(ratios) == pytest.approx(1 / 34.1, rel=0.03)
