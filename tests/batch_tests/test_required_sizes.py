"""What the norm and inner-product tests require, against hand values, numpy and identities."""

import functools
import math
from fractions import Fraction
from typing import Any, NamedTuple

import hypothesis
import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from one_step import required as require

import adaoptax

pytestmark = pytest.mark.sampled

KINDS = ("plug-in", "debiased")
MAKE: dict[str, Any] = {
    "norm": adaoptax.norm_test,
    "inner": adaoptax.inner_product_test,
    "augmented": adaoptax.augmented_inner_product_test,
    "coordinate": functools.partial(adaoptax.coordinate_test, coverage=1.0),
}
TOLERANCES: dict[str, tuple[float, ...]] = {
    "norm": (0.25,),
    "inner": (0.1,),
    "augmented": (0.3, 0.2),
    "coordinate": (0.25,),
}


class Moments(NamedTuple):
    """float64, from the definitions in section 1 of the papers."""

    size: float
    mean: np.ndarray
    total: float
    along: float
    across: float
    each: np.ndarray


def moments(rows: Any, group_size: int = 1) -> Moments:
    h = np.asarray(rows, np.float64).reshape(len(rows), -1)
    g = h.mean(axis=0)
    scale = group_size / (len(h) - 1)
    products = h @ g
    projected = h - np.outer(products / (g @ g), g)  # residuals across g: their mean is zero
    return Moments(
        size=len(h) * group_size,
        mean=g,
        total=scale * ((h - g) ** 2).sum(),
        along=scale * ((products - g @ g) ** 2).sum(),
        across=scale * (projected**2).sum(),
        each=scale * ((h - g) ** 2).sum(axis=0),
    )


def oracle(name: str, m: Moments, tolerances: tuple[float, ...], kind: str) -> float:
    square = m.mean @ m.mean - (m.total / m.size if kind == "debiased" else 0.0)
    if name == "norm":
        return m.total / (tolerances[0] ** 2 * square)
    if name == "inner":
        return m.along / (tolerances[0] ** 2 * square**2)
    if name == "augmented":
        return max(
            m.along / (tolerances[0] ** 2 * square**2), m.across / (tolerances[1] ** 2 * square)
        )
    squares = m.mean**2 - (m.each / m.size if kind == "debiased" else 0.0)
    held = squares > 0
    return (m.each[held] / (tolerances[0] ** 2 * squares[held])).max()


def random_rows(seed: int, n: int = 12, d: int = 7) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) * rng.uniform(0.2, 1, d) + rng.uniform(1, 2, d)


# g = (2, 0), S² = 10/3, V_ip = V_or = 8/3, signal 19/6; coordinate 1: v = 2/3, g² − v/4 = 23/6.
BY_HAND = [
    (adaoptax.norm_test, (0.25,), {"signal": "plug-in"}, Fraction(40, 3), 14),
    (adaoptax.norm_test, (0.25,), {}, Fraction(320, 19), 17),
    (adaoptax.norm_test, (0.25,), {"signal": "plug-in", "dataset_size": 20}, Fraction(8), 8),
    (adaoptax.norm_test, (0.25,), {"dataset_size": 20}, Fraction(320 * 20, 320 + 19 * 20), 10),
    (adaoptax.inner_product_test, (0.1,), {"signal": "plug-in"}, Fraction(50, 3), 17),
    (adaoptax.inner_product_test, (0.1,), {}, Fraction(800 * 12, 361), 27),
    (adaoptax.augmented_inner_product_test, (10, 0.25), {"signal": "plug-in"}, Fraction(32, 3), 11),
    (adaoptax.augmented_inner_product_test, (10, 0.25), {}, Fraction(256, 19), 14),
    (adaoptax.augmented_inner_product_test, (0.1, 9), {"signal": "plug-in"}, Fraction(50, 3), 17),
    (adaoptax.augmented_inner_product_test, (0.1, 9), {}, Fraction(9600, 361), 27),
    (adaoptax.coordinate_test, (0.25,), {"signal": "plug-in"}, Fraction(8, 3), 3),
    (adaoptax.coordinate_test, (0.25,), {}, Fraction(64, 23), 3),
]


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize(("make", "tolerances", "options", "expected", "size"), BY_HAND)
def test_values_by_hand(make, tolerances, options, expected, size, jit, rows, numpy_stats):
    grads, stats = numpy_stats(rows)
    tx = make(*tolerances, **options)
    update = jax.jit(tx.update) if jit else tx.update
    _, state = update(grads, tx.init(grads), stats=stats)
    required = float(state.required_batch_size)
    assert required == pytest.approx(float(expected), rel=1e-6)
    assert math.ceil(required - 1e-5) == size


def test_finite_population_of_the_fixture_is_exactly_eight(rows, numpy_stats):
    grads, stats = numpy_stats(rows)
    tx = adaoptax.norm_test(0.25, signal="plug-in", dataset_size=20)
    assert require(tx, grads, stats) == 8.0


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("group_size", [1, 5])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MAKE)
def test_equals_numpy_in_float32(name, kind, group_size, seed, numpy_stats):
    h = random_rows(seed)
    grads, stats = numpy_stats(h, group_size)
    expected = oracle(name, moments(h, group_size), TOLERANCES[name], kind)
    tx = MAKE[name](*TOLERANCES[name], signal=kind)
    assert require(tx, grads, stats) == pytest.approx(expected, rel=1e-5)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MAKE)
def test_equals_numpy_in_float64(name, kind, numpy_stats):
    h = random_rows(7)
    grads, stats = numpy_stats(h, 3, np.float64)
    tx = MAKE[name](*TOLERANCES[name], signal=kind)
    state = tx.update(grads, tx.init(grads), stats=stats)[1]
    assert state.required_batch_size.dtype == jnp.float64
    expected = oracle(name, moments(h, 3), TOLERANCES[name], kind)
    assert float(state.required_batch_size) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MAKE)
def test_finite_population_shrinks_the_requirement_below_both(name, kind, numpy_stats):
    h = random_rows(3)
    grads, stats = numpy_stats(h)
    b0 = oracle(name, moments(h), TOLERANCES[name], kind)
    for population in (1, 12, 100, 10**4, 10**9):
        tx = MAKE[name](*TOLERANCES[name], signal=kind, dataset_size=population)
        required = require(tx, grads, stats)
        assert required == pytest.approx(b0 * population / (b0 + population), rel=1e-5)
        assert required <= min(b0, population) * (1 + 1e-6)
    assert required == pytest.approx(b0, rel=1e-5)  # N → ∞


def test_finite_population_caps_an_infinite_requirement_at_the_data_set(numpy_stats):
    grads, stats = numpy_stats(np.array([[1.0, 0], [-1, 0], [0, 1], [0, -0.6]]))
    tx = adaoptax.norm_test(0.5, dataset_size=50_000)
    state = tx.update(grads, tx.init(grads), stats=stats)[1]
    assert float(state.required_batch_size) == 50_000
    assert bool(state.noise_dominated)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["norm", "inner", "coordinate"])
def test_a_tighter_tolerance_asks_for_more(name, kind, numpy_stats):
    grads, stats = numpy_stats(random_rows(4))
    sizes = [require(MAKE[name](eta, signal=kind), grads, stats) for eta in (0.05, 0.1, 0.5, 2, 9)]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == len(sizes)
    assert sizes[0] / sizes[1] == pytest.approx(4, rel=1e-5)  # tolerances enter squared


@pytest.mark.parametrize("kind", KINDS)
def test_a_tighter_tolerance_of_the_augmented_test_never_asks_for_less(kind, numpy_stats):
    grads, stats = numpy_stats(random_rows(4))
    make = lambda theta, nu: adaoptax.augmented_inner_product_test(theta, nu, signal=kind)
    grid = [0.02, 0.1, 0.5, 2.0]
    table = np.array([[require(make(t, n), grads, stats) for n in grid] for t in grid])
    assert (np.diff(table, axis=0) <= 0).all()
    assert (np.diff(table, axis=1) <= 0).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("name", "units"),
    [(n, u) for n in ("norm", "coordinate") for u in (1e-12, 1e-6, 1e6, 1e12)]
    + [(n, u) for n in ("inner", "augmented") for u in (1e-8, 1e-4, 1e4, 1e8)],
)
def test_units_of_the_loss_change_nothing(name, units, kind, numpy_stats):
    # ‖g‖⁴ of the inner-product tests spans half the range that ‖g‖² does.
    h = random_rows(5)
    tx = MAKE[name](*TOLERANCES[name], signal=kind)
    here = require(tx, *numpy_stats(h))
    there = require(tx, *numpy_stats(units * h))
    assert there == pytest.approx(here, rel=2e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MAKE)
def test_order_of_examples_and_cutting_a_tensor_change_nothing(name, kind):
    h = random_rows(6, n=10, d=12).astype(np.float32)
    shuffled = h[np.random.default_rng(0).permutation(len(h))]
    cut = {"a": h[:, :5], "b": [h[:, 5:8].reshape(10, 3, 1), h[:, 8:]]}
    tx = MAKE[name](*TOLERANCES[name], signal=kind)
    sizes = [
        require(tx, *adaoptax.stats_from_groups(r, 1, statistics=("norm", "inner", "coordinate")))
        for r in (h, shuffled, cut)
    ]
    expected = oracle(name, moments(h), TOLERANCES[name], kind)
    np.testing.assert_allclose(sizes, expected, rtol=1e-5)


@hypothesis.given(
    hnp.arrays(
        np.int32, st.tuples(st.integers(2, 9), st.integers(1, 6)), elements=st.integers(-8, 8)
    ),
    st.integers(1, 4),
)
@hypothesis.settings(max_examples=60)
def test_variance_splits_in_along_and_across(numpy_stats, h, group_size):
    hypothesis.assume(np.any(h.mean(axis=0) != 0))
    m = moments(h, group_size)
    square = m.mean @ m.mean
    np.testing.assert_allclose(m.total, m.along / square + m.across, rtol=1e-12, atol=1e-12)
    _, stats = numpy_stats(h, group_size)
    across = float(adaoptax.orthogonal_variance(stats))
    assert across >= 0
    np.testing.assert_allclose(across, m.across, rtol=1e-5, atol=1e-6 * m.total)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(4))
def test_augmented_is_the_larger_of_along_and_across(seed, kind, numpy_stats):
    h = random_rows(seed)
    grads, stats = numpy_stats(h)
    theta, nu = np.random.default_rng(seed).uniform(0.05, 0.6, 2).tolist()
    both = require(adaoptax.augmented_inner_product_test(theta, nu, signal=kind), grads, stats)
    along = require(adaoptax.inner_product_test(theta, signal=kind), grads, stats)
    m = moments(h)
    square = m.mean @ m.mean - (m.total / m.size if kind == "debiased" else 0)
    across = m.across / (nu**2 * square)
    assert both == pytest.approx(max(along, across), rel=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_the_best_split_of_one_tolerance_makes_all_three_sizes_agree(seed, numpy_stats):
    h = random_rows(seed)
    grads, stats = numpy_stats(h)
    m = moments(h)
    eps, parallel = 0.3, m.along / (m.mean @ m.mean)
    theta = eps * math.sqrt(parallel / (parallel + m.across))
    nu = math.sqrt(eps**2 - theta**2)
    options: dict[str, Any] = {"signal": "plug-in"}
    norm = require(adaoptax.norm_test(eps, **options), grads, stats)
    inner = require(adaoptax.inner_product_test(theta, **options), grads, stats)
    both = require(adaoptax.augmented_inner_product_test(theta, nu, **options), grads, stats)
    across = require(adaoptax.augmented_inner_product_test(1e3, nu, **options), grads, stats)
    np.testing.assert_allclose([inner, both, across], norm, rtol=2e-6)


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float32])
@pytest.mark.parametrize("name", MAKE)
def test_updates_pass_through_bit_for_bit(name, dtype, numpy_stats):
    h = random_rows(8)
    _, stats = numpy_stats({"w": h, "b": h[:, :2]})
    odd = np.array([-0.0, np.nan, np.inf, -np.inf, 1e-7, 6e4, 1 / 3], np.float64)
    grads = {"w": jnp.asarray(odd, dtype), "b": jnp.asarray([-0.0, 2 / 3], dtype)}
    tx = MAKE[name](*TOLERANCES[name], decay=0.5, dataset_size=10)
    for update in (tx.update, jax.jit(tx.update)):
        updates, _ = update(grads, tx.init(grads), stats=stats)
        for key in grads:
            assert updates[key].dtype == grads[key].dtype
            assert np.asarray(updates[key]).tobytes() == np.asarray(grads[key]).tobytes()
