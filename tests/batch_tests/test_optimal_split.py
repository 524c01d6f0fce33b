"""The optimal split: both requirements agree, and no other split asks for less."""

import hypothesis
import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import strategies as st
from one_step import required

import adaoptax
from adaoptax.batch_tests import optimal_split, split_tolerances

pytestmark = pytest.mark.sampled

KINDS = ("plug-in", "debiased")
ROWS = hnp.arrays(np.float64, (6, 3), elements=st.floats(-3, 3))


def clear(rows):
    """Rows with a signal that float32 can tell from zero."""
    g = rows.mean(axis=0)
    scatter = ((rows - g) ** 2).sum() / 5
    return rows + 1.5, scatter


@pytest.mark.parametrize("kind", KINDS)
@hypothesis.given(rows=ROWS, epsilon=st.floats(0.05, 2))
@hypothesis.settings(max_examples=60)
def test_both_requirements_agree_and_every_other_split_asks_for_more(
    kind, rows, epsilon, numpy_stats
):
    rows, scatter = clear(rows)
    g = rows.mean(axis=0)
    hypothesis.assume(scatter > 0.05)
    hypothesis.assume(g @ g > 0.05 + 1.5 * scatter / 6)
    grads, stats = numpy_stats(rows, dtype=np.float32)
    hypothesis.assume(float(stats.inner_product_variance) > 1e-3)
    hypothesis.assume(float(adaoptax.orthogonal_variance(stats)) > 1e-3)
    split = required(optimal_split(epsilon, signal=kind), grads, stats)
    theta, nu = (float(x) for x in split_tolerances(stats, epsilon, signal=kind))
    assert theta**2 + nu**2 == pytest.approx(epsilon**2, rel=1e-5)
    inner = required(adaoptax.inner_product_test(theta, signal=kind), grads, stats)
    both = required(adaoptax.augmented_inner_product_test(theta, nu, signal=kind), grads, stats)
    assert inner == pytest.approx(split, rel=1e-3)
    assert both == pytest.approx(split, rel=1e-3)
    for angle in (0.2, 0.7, 1.2):
        other = adaoptax.augmented_inner_product_test(
            epsilon * np.cos(angle), epsilon * np.sin(angle), signal=kind
        )
        assert required(other, grads, stats) >= split * (1 - 1e-3)
    norm = required(adaoptax.norm_test(epsilon, signal=kind), grads, stats)
    if kind == "plug-in":
        assert split == pytest.approx(norm, rel=1e-4)
    else:
        assert split >= norm * (1 - 1e-4)


def test_the_fixture_by_hand(rows, numpy_stats):
    grads, stats = numpy_stats(rows)
    plug_in = optimal_split(0.25, signal="plug-in")
    assert required(plug_in, grads, stats) == pytest.approx(40 / 3, rel=1e-6)
    # σ∥ = (8/3)/(19/6) = 16/19, σ⊥ = 8/3, over ε² · 19/6
    expected = (16 / 19 + 8 / 3) / (0.25**2 * 19 / 6)
    assert required(optimal_split(0.25), grads, stats) == pytest.approx(expected, rel=1e-6)
    theta, nu = split_tolerances(stats, 1.0, signal="plug-in")
    assert (float(theta) ** 2, float(nu) ** 2) == pytest.approx((0.2, 0.8), rel=1e-6)


def test_the_published_pair_is_one_tolerance_of_5_9():
    # 5.908942376 stands in the authors' own code.
    assert np.hypot(0.9, 5.84) == pytest.approx(5.908942376, rel=1e-9)


def test_without_signal_or_noise_the_tolerances_are_nan(numpy_stats):
    _, noise = numpy_stats(np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -0.6]]))
    _, alike = numpy_stats(np.array([[1.0, 2.0]] * 4))
    for stats in (noise, alike):
        assert np.isnan(split_tolerances(stats, 0.5)).all()
