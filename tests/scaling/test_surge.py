"""The surge rule against the exact optimum, on the toy of 200 coordinates."""

import functools
import math
from typing import Any

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from adaoptax.scaling import rules

pytestmark = pytest.mark.sampled

SIZES = (1, 16, 256, 1024, 4096, 16384, 65536, 1e6, 1e8)


@functools.cache
def toy() -> dict[str, np.ndarray]:
    """μ ~ 0.01 N(0, 1), σ = 1, H = I + 50 vvᵀ with v along μ."""
    mean = 0.01 * np.random.RandomState(0).normal(size=200)
    along = mean / np.linalg.norm(mean)
    return {
        "mean": mean,
        "deviation": np.ones(200),
        "hessian": np.eye(200) + 50 * np.outer(along, along),
    }


def best_rate(size: float, mean: Any, deviation: Any, hessian: Any) -> float:
    """Equation 9, from the definition, in float64."""
    sign = np.array([math.erf(math.sqrt(size / 2) * z) for z in mean / deviation])
    covariance = np.diag(1 - sign**2)
    return sign @ mean / (np.trace(hessian @ covariance) + sign @ hessian @ sign)


@pytest.fixture
def constants(float64: None) -> rules.SurgeConstants:
    return rules.surge_constants(**toy())


def exact_curve(sizes: Any) -> np.ndarray:
    relative = jax.vmap(lambda size: rules.surge_exact(size, 1.0, **toy()))(jnp.asarray(sizes))
    return np.asarray(relative) * best_rate(1, **toy())


def test_the_curve_is_equation_9(float64):
    sizes = np.array([*SIZES])
    expected = [best_rate(size, **toy()) for size in sizes]
    np.testing.assert_allclose(exact_curve(sizes), expected, rtol=1e-9)


def test_the_curve_is_the_optimum_of_a_simulated_step(float64):
    # E[loss change] = −ε E[V]ᵀμ + ε²/2 E[VᵀHV] with V the sign of a mean of B Gaussians.
    rng = np.random.default_rng(0)
    mean, deviation = np.array([0.3, -0.1]), np.array([1.0, 0.5])
    hessian = np.array([[2.0, -0.8], [-0.8, 1.0]])
    problem = {"mean": mean, "deviation": deviation, "hessian": hessian}
    optimum = {}
    for size in (4, 32):
        noise = rng.normal(size=(200_000, 2)) * deviation / math.sqrt(size)
        sign = np.sign(mean + noise)
        curvature = np.einsum("ni,ij,nj->n", sign, hessian, sign).mean()
        optimum[size] = (sign.mean(axis=0) @ mean) / curvature
    ratio = optimum[32] / optimum[4]
    assert float(rules.surge_exact(32, 4, **problem)) == pytest.approx(ratio, rel=0.02)


def test_the_peak_is_at_392_where_the_formula_says_379(constants):
    curve = exact_curve(np.arange(1.0, 2000.0))
    assert int(curve.argmax()) + 1 == 392
    assert round(float(constants.noise_scale)) == 379
    assert curve.max() == pytest.approx(6.515e-4, rel=1e-4)
    assert float(constants.largest_learning_rate) == pytest.approx(6.515e-4, rel=1e-4)
    assert float(constants.limit) == pytest.approx(2.412e-4, rel=1e-4)
    assert exact_curve([1e12])[0] == pytest.approx(float(constants.limit), rel=1e-4)


def test_the_noise_scale_of_the_gradient_is_another_number(constants):
    # trΣ/|G|² of the same toy: 25 times as large.
    simple = float(np.sum(toy()["deviation"] ** 2) / np.sum(toy()["mean"] ** 2))
    assert simple / float(constants.noise_scale) > 20


def test_there_is_no_surge_without_coupling(float64):
    flat = {**toy(), "hessian": np.eye(200)}
    found = rules.surge_constants(**flat)
    assert float(found.noise_scale) == math.inf
    sizes = np.geomspace(1, 1e8, 200)
    relative = jax.vmap(lambda size: rules.surge_exact(size, 1.0, **flat))(jnp.asarray(sizes))
    curve = np.asarray(relative) * best_rate(1, **flat)
    assert (np.diff(curve) >= 0).all()
    assert curve[0] == pytest.approx(8e-5, rel=0.1)
    assert curve[-1] == pytest.approx(8.44e-3, rel=1e-3)
    # The rule then is the square root, the form of the curve far below the coordinates' noise.
    assert float(rules.surge(16, 1, found.noise_scale)) == pytest.approx(4)
    assert curve[np.searchsorted(sizes, 16)] / curve[0] == pytest.approx(4, rel=0.05)


def test_the_mean_field_form_stays_within_two_percent_where_equation_2_does_not(constants):
    peak = float(constants.largest_learning_rate)
    exact = exact_curve(SIZES)

    def share(form: str) -> np.ndarray:
        at = lambda size: rules.surge(
            size,
            constants.noise_scale,  # h of the base is 1
            constants.noise_scale,
            form=form,
            **({"saturation": constants.saturation} if form == "mean-field" else {}),
        )
        return np.array([float(at(size)) for size in SIZES]) * peak / exact

    assert np.abs(share("mean-field") - 1).max() < 0.021
    expected = {1024: 0.98, 4096: 0.88, 16384: 0.65, 65536: 0.39, 1e6: 0.10, 1e8: 0.01}
    raw = dict(zip(SIZES, share("raw"), strict=True))
    for size, value in expected.items():
        assert raw[size] == pytest.approx(value, abs=0.011)


def h(size: Any, peak: Any, **options: Any) -> float:
    """h relative to its peak, where it is 1."""
    return float(rules.surge(size, peak, peak, **options))


some_size = st.floats(1, 2.0**20, width=32)
some_share = st.floats(1 / 16, 15 / 16, width=32)


@hypothesis.given(some_size, some_size, some_share)
@hypothesis.settings(max_examples=50)
def test_no_batch_beats_the_peak_and_the_limit_is_the_saturation(size, peak, saturation):
    options = {"saturation": saturation}
    assert h(peak, peak, **options) == pytest.approx(1, abs=1e-6)
    assert h(size, peak, **options) <= 1 + 1e-6
    assert h(1e30, peak, **options) == pytest.approx(saturation, rel=1e-4)


@hypothesis.given(some_size, some_size)
@hypothesis.settings(max_examples=50)
def test_forms_by_equation_2(size, peak):
    second = 2 / (math.sqrt(peak / size) + math.sqrt(size / peak))
    assert h(size, peak, form="raw") == pytest.approx(second, rel=1e-5)
    assert h(size, peak, form="hold") == pytest.approx(second if size < peak else 1, rel=1e-5)
    # A saturation of 0 is equation 2.
    assert h(size, peak, saturation=1e-6) == pytest.approx(second, rel=1e-4)


@hypothesis.given(some_size, some_size, some_share)
@hypothesis.settings(max_examples=50)
def test_the_two_numbers_are_the_mean_field_form(size, peak, saturation):
    beta_n = (1 - math.sqrt(1 - saturation**2)) / saturation
    kappa_sq = 2 * peak * (1 - beta_n**2) / (math.pi * beta_n**2)
    beta = (1 + math.pi * kappa_sq / (2 * size)) ** -0.5
    expected = 2 / (beta_n / beta + beta / beta_n)
    assert h(size, peak, saturation=saturation) == pytest.approx(expected, rel=2e-4)
    # Its trade-off scale lies below the peak by a constant of the noise.
    trade_off = math.pi * kappa_sq * beta_n**2 / (2 * (1 + beta_n**2))
    assert 1 / trade_off - 1 / peak == pytest.approx(4 / (math.pi * kappa_sq), rel=1e-6)
    # The peak found by search is the peak that was asked for.
    sizes = peak * np.geomspace(0.25, 4, 401)
    around = rules.surge(jnp.asarray(sizes), peak, peak, saturation=saturation)
    assert sizes[int(jnp.argmax(around))] == pytest.approx(peak, rel=0.01)


def test_hold_does_not_fall_when_the_base_lies_above_the_peak():
    assert float(rules.surge(4096, 1024, 256, form="hold")) == 1
    assert float(rules.surge(256, 1024, 256, form="hold")) == 1
    assert float(rules.surge(64, 1024, 256, form="hold")) == pytest.approx(0.8)


def test_an_unknown_noise_scale_gives_no_number():
    for unknown in (jnp.float32(jnp.nan), jnp.float32(-1), jnp.float32(0)):
        assert np.isnan(rules.surge(64, 32, unknown))
