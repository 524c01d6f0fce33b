"""The coordinate-wise test: energy quantile by brute force, identities with the norm test."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import strategies as st
from one_step import required as require

import adaoptax
from adaoptax.batch_tests.coordinate import energy_quantile

KINDS = ("plug-in", "debiased")


def brute_force(noise: np.ndarray, square: np.ndarray, coverage: float) -> float:
    """Smallest ratio r such that coordinates with ratio at most r hold the share of the signal."""
    if square.sum() <= 0:
        return np.nan if noise.sum() == square.sum() == 0 else np.inf
    ratios = [n / s for n, s in zip(noise, square, strict=True) if s > 0]
    energies = [s for s in square if s > 0]
    for bound in sorted(set(ratios)):
        held = sum(s for r, s in zip(ratios, energies, strict=True) if r <= bound)
        if held >= coverage * sum(energies):
            return float(bound)
    raise AssertionError("the largest ratio holds everything")


# Small whole numbers and dyadic shares: every sum and comparison is exact in float32.
coordinates = st.lists(
    st.tuples(st.integers(0, 50), st.sampled_from([0, 0, 1, 2, 3, 4, 7, 8, 16, -2, -5])),
    min_size=1,
    max_size=24,
)
quantile = jax.jit(energy_quantile)


@hypothesis.given(coordinates, st.sampled_from([0.25, 0.5, 0.75, 0.875, 1.0]), st.integers(0, 24))
@hypothesis.settings(max_examples=200)
def test_energy_quantile_is_the_brute_force_one_bit_for_bit(pairs, coverage, cut):
    noise, square = np.array(pairs, np.float32).T
    pad = 24 - len(noise)  # a constant shape compiles once; a zero coordinate weighs nothing
    noise, square = (np.concatenate([x, np.zeros(pad, np.float32)]) for x in (noise, square))
    expected = np.float32(brute_force(noise.astype(np.float32), square, coverage))
    flat = quantile(jnp.asarray(noise), jnp.asarray(square), coverage)
    np.testing.assert_array_equal(np.asarray(flat), expected)
    tree = lambda x: {"a": jnp.asarray(x[:7]).reshape(7, 1), "b": [jnp.asarray(x[7:])]}
    np.testing.assert_array_equal(quantile(tree(noise), tree(square), coverage), flat)


@pytest.mark.usefixtures("float64")
def test_energy_quantile_in_float64():
    rng = np.random.default_rng(0)
    noise, square = rng.integers(1, 1000, 50) / 7, rng.integers(1, 1000, 50).astype(float)
    for coverage in (0.5, 0.75, 1.0):
        found = energy_quantile(jnp.asarray(noise), jnp.asarray(square), coverage)
        assert found.dtype == jnp.float64
        assert float(found) == brute_force(noise, square, coverage)


def random_rows(seed: int, n: int = 9, d: int = 30) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) * rng.uniform(0.1, 2, d) + rng.normal(size=d)


@pytest.mark.parametrize("coverage", [0.3, 0.9, 1.0])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_requirement_equals_brute_force_on_real_statistics(seed, kind, coverage, numpy_stats):
    h = random_rows(seed)
    grads, stats = numpy_stats({"w": h[:, :20].reshape(9, 4, 5), "b": h[:, 20:]})
    g, v = h.mean(axis=0), h.var(axis=0, ddof=1)
    square = g**2 - (v / len(h) if kind == "debiased" else 0)
    expected = brute_force(v, square, coverage) / 0.5**2
    tx = adaoptax.coordinate_test(0.5, coverage=coverage, signal=kind)
    assert require(tx, grads, stats) == pytest.approx(expected, rel=1e-5)


def test_full_coverage_is_the_largest_over_coordinates_that_have_a_gradient(numpy_stats):
    h = random_rows(4)
    h[:, 3] = 0  # a dead unit
    h[:, 4] = np.tile([1.0, -1.0, 0.0], 3)  # noise without any gradient
    grads, stats = numpy_stats(h)
    g, v = h.mean(axis=0), h.var(axis=0, ddof=1)
    alive = np.abs(g) > 1e-12
    assert alive.sum() == 28
    tx = adaoptax.coordinate_test(0.5, coverage=1.0, signal="plug-in")
    expected = (v[alive] / (0.25 * g[alive] ** 2)).max()
    assert require(tx, grads, stats) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("coverage", [0.1, 0.9, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_coordinates_without_gradient_weigh_nothing(kind, coverage, numpy_stats):
    h = np.abs(random_rows(5)) + 1
    silent = np.zeros([len(h), 500])
    tx = adaoptax.coordinate_test(0.5, coverage=coverage, signal=kind)
    here = require(tx, *numpy_stats(h))
    there = require(tx, *numpy_stats(np.concatenate([silent, h], axis=1)))
    assert there == pytest.approx(here, rel=1e-6)


def test_more_coverage_asks_for_more(numpy_stats):
    grads, stats = numpy_stats(random_rows(6))
    make = lambda c: adaoptax.coordinate_test(0.5, coverage=c, signal="plug-in")
    sizes = [require(make(c), grads, stats) for c in (0.05, 0.3, 0.6, 0.9, 1.0)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]


@pytest.mark.parametrize("seed", range(3))
def test_the_weighted_mean_of_coordinates_is_the_norm_test(seed, numpy_stats):
    # Σ s_j b_j / Σ s_j = Σ v_j / (η² Σ s_j): the quantile replaces the mean of the same weights.
    h = random_rows(seed)
    grads, stats = numpy_stats(h)
    g, v = h.mean(axis=0), h.var(axis=0, ddof=1)
    weights = g**2
    mean = (weights * v / (0.5**2 * g**2)).sum() / weights.sum()
    assert require(adaoptax.norm_test(0.5, signal="plug-in"), grads, stats) == pytest.approx(
        mean, rel=1e-5
    )


@pytest.mark.parametrize("coverage", [0.01, 0.5, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_equal_coordinates_agree_with_the_norm_test(kind, coverage, numpy_stats):
    one = np.random.default_rng(1).normal(size=[9, 1]) + 2
    signs = np.array([1.0, -1.0, 2.0, -4.0, 0.5])  # v_j and g_j² scale alike
    grads, stats = numpy_stats(one * signs)
    norm = require(adaoptax.norm_test(0.3, signal=kind), grads, stats)
    tx = adaoptax.coordinate_test(0.3, coverage=coverage, signal=kind)
    assert require(tx, grads, stats) == pytest.approx(norm, rel=1e-5)


@pytest.mark.parametrize("decay", [None, 0.5])
@pytest.mark.parametrize("jit", [False, True])
def test_masked_sees_only_its_own_coordinates(jit, decay, numpy_stats):
    h = random_rows(7) + 3
    tree = {"mine": h[:, :10], "other": {"w": h[:, 10:]}}
    grads, stats = numpy_stats(tree)
    mask = {"mine": True, "other": {"w": False}}
    tx = optax.masked(adaoptax.coordinate_test(0.5, coverage=1.0, decay=decay), mask)
    update = jax.jit(tx.update) if jit else tx.update
    state = tx.init(grads)
    for _ in range(2):
        updates, state = update(grads, state, stats=stats)
    np.testing.assert_array_equal(updates["other"]["w"], grads["other"]["w"])
    g, v = h.mean(axis=0)[:10], h.var(axis=0, ddof=1)[:10]
    expected = (v / (g**2 - v / len(h))).max() / 0.5**2
    assert float(adaoptax.required_batch_size(state)) == pytest.approx(expected, rel=1e-5)


def test_single_lucky_coordinates_do_not_hide_pure_noise(numpy_stats):
    # Some g_j² − v_j/B are positive by chance, but their sum is not: nothing but noise.
    rng = np.random.default_rng(0)
    for _ in range(20):
        h = rng.normal(size=(8, 40))
        g, v = h.mean(axis=0), h.var(axis=0, ddof=1)
        if (g**2 - v / 8).sum() < 0:
            break
    assert (g**2 - v / 8).max() > 0
    grads, stats = numpy_stats(h)
    tx = adaoptax.coordinate_test(0.5)
    state = tx.update(grads, tx.init(grads), stats=stats)[1]
    assert float(state.required_batch_size) == np.inf
    assert bool(state.noise_dominated)


def test_low_precision_gradients_are_squared_in_float32(numpy_stats):
    h = 300 * (random_rows(8) + 3)  # the square overflows float16
    grads, stats = numpy_stats(h)
    half = jax.tree.map(lambda g: g.astype(jnp.float16), grads)
    tx = adaoptax.coordinate_test(0.5, signal="plug-in")
    assert require(tx, half, stats) == pytest.approx(require(tx, grads, stats), rel=2e-3)
