"""Group gradients that the user already has: every formula, unbiasedness, units, rounding."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_reference import flat, flat_rows, same_structure

import adaoptax
from adaoptax import orthogonal_variance, signal

pytestmark = pytest.mark.sampled

stats_from_groups: Any = adaoptax.stats_from_groups  # optional fields, as the tests ask for them
ALL = ("norm", "inner", "coordinate")


def two_pass(h, sizes):
    """S², V_ip and coordinate variances by the textbook, in float64."""
    h, sizes = np.asarray(h, np.float64), np.asarray(sizes, np.float64)
    g = sizes @ h / sizes.sum()
    n = len(sizes)
    return (
        sizes @ ((h - g) ** 2).sum(axis=1) / (n - 1),
        sizes @ ((h - g) @ g) ** 2 / (n - 1),
        sizes @ (h - g) ** 2 / (n - 1),
    )


def set_partitions(rows, sizes):
    """All ways to deal `rows` into groups of the given sizes, as tuples of index tuples."""
    if not sizes:
        yield ()
        return
    for first in itertools.combinations(rows, sizes[0]):
        rest = [i for i in rows if i not in first]
        for others in set_partitions(rest, sizes[1:]):
            yield (first, *others)


@pytest.mark.parametrize(
    ("pairing", "variance"), [((0, 1, 2, 3), 0), ((0, 2, 1, 3), 5), ((0, 3, 1, 2), 5)]
)
def test_three_pairings_by_hand(rows, pairing, variance):
    h = rows[list(pairing)].reshape(2, 2, 2).mean(axis=1)
    _, stats = stats_from_groups(h, 2)
    np.testing.assert_allclose(stats.variance, variance, atol=1e-6)
    np.testing.assert_allclose(stats.num_examples, 4)
    np.testing.assert_allclose(stats.num_groups, 2)
    np.testing.assert_allclose(stats.sq_norm, 4)


@pytest.mark.parametrize(
    "sizes",
    [[1] * 6, [2] * 3, [3, 3], [1, 2, 3], [5, 1], [1, 1, 4], [2, 4], [1, 1, 1, 3]],
    ids=str,
)
@pytest.mark.usefixtures("float64")
def test_unbiased_over_all_groupings(sizes):
    """The mean over every way to deal six rows into groups is the per-example statistic."""
    rows = np.random.default_rng(0).normal(1, 2, (6, 3))
    groupings = list(set_partitions(range(6), sizes))
    h = np.array([[rows[list(group)].mean(axis=0) for group in each] for each in groupings])
    measure = lambda x: stats_from_groups(x, np.array(sizes), statistics=ALL)[1]
    stats = jax.vmap(measure)(jnp.asarray(h))
    variance, inner, coordinate = two_pass(rows, np.ones(6))
    np.testing.assert_allclose(stats.variance.mean(), variance, rtol=1e-12)
    np.testing.assert_allclose(stats.inner_product_variance.mean(), inner, rtol=1e-12)
    np.testing.assert_allclose(stats.coordinate_variance.mean(axis=0), coordinate, rtol=1e-12)
    np.testing.assert_allclose(
        signal(stats).mean(), (rows.mean(axis=0) ** 2).sum() - variance / 6, rtol=1e-12
    )


@pytest.mark.parametrize("sizes", [[4, 4, 4], [1, 3, 8, 2], [1, 1]], ids=str)
def test_unbiased_over_many_draws(sizes):
    """20000 batches of known covariance; the mean lies within four standard errors of tr Σ."""
    draws, scales = 20_000, np.array([1.0, 2.0, 0.5, 3.0], np.float32)
    rng = np.random.default_rng(1)
    h = np.stack(
        [rng.normal(0, 1, (draws, 4)) * scales / np.sqrt(size) + 1 for size in sizes], axis=1
    )
    measure = lambda x: stats_from_groups(x, np.array(sizes), statistics=ALL)[1]
    stats = jax.jit(jax.vmap(measure))(h.astype(np.float32))

    def assert_mean(samples, expected):
        samples = np.asarray(samples, np.float64)
        error = 4 * samples.std() / np.sqrt(draws)
        assert error < 0.1 * expected
        assert abs(samples.mean() - expected) < error

    assert_mean(stats.variance, (scales**2).sum())
    assert_mean(signal(stats), 4.0)  # ‖∇F‖² = 1 + 1 + 1 + 1
    for i, scale in enumerate(scales):
        assert_mean(stats.coordinate_variance[:, i], scale**2)


@pytest.mark.parametrize("sizes", [1, 7, [3, 1, 4, 1, 5]], ids=str)
def test_against_the_two_pass_formula(sizes):
    rng = np.random.default_rng(2)
    tree = {
        "a": rng.normal(1, 1, (5, 2, 3)).astype(np.float32),
        "b": (rng.normal(size=(5,)).astype(np.float32), None, {}),
    }
    grads, stats = stats_from_groups(tree, sizes, statistics=ALL)
    sizes = np.broadcast_to(sizes, 5)
    h = flat_rows(tree)
    variance, inner, coordinate = two_pass(h, sizes)
    assert same_structure(grads, tree)
    assert grads["a"].shape == stats.coordinate_variance["a"].shape == (2, 3)
    np.testing.assert_allclose(flat(grads), sizes @ h / sizes.sum(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(stats.num_examples, sizes.sum())
    np.testing.assert_allclose(stats.num_groups, 5)
    np.testing.assert_allclose(stats.variance, variance, rtol=1e-5)
    np.testing.assert_allclose(stats.inner_product_variance, inner, rtol=1e-4)
    np.testing.assert_allclose(flat(stats.coordinate_variance), coordinate, rtol=1e-4)


def test_only_what_is_asked_for_is_computed(rows):
    _, norm = stats_from_groups(rows, 1, statistics=("norm",))
    assert norm.inner_product_variance is None
    assert norm.coordinate_variance is None
    _, default = stats_from_groups(rows, 1)
    assert default.inner_product_variance is not None
    assert default.coordinate_variance is None
    _, empty = stats_from_groups(rows, 1, statistics=())
    np.testing.assert_allclose(empty.variance, norm.variance)


def test_units_order_and_layout_do_not_matter():
    h = np.random.default_rng(3).normal(0.3, 1, (8, 6)).astype(np.float32)
    sizes = np.array([1, 2, 3, 4, 4, 3, 2, 1])
    _, stats = stats_from_groups(h, sizes)

    _, scaled = stats_from_groups(h * 1024, sizes)  # a power of two: exact
    np.testing.assert_allclose(scaled.variance, stats.variance * 2.0**20, rtol=1e-6)
    np.testing.assert_allclose(scaled.sq_norm, stats.sq_norm * 2.0**20, rtol=1e-6)
    np.testing.assert_allclose(
        scaled.inner_product_variance, stats.inner_product_variance * 2.0**40, rtol=1e-6
    )
    np.testing.assert_allclose(
        orthogonal_variance(scaled), orthogonal_variance(stats) * 2.0**20, rtol=1e-6
    )

    order = np.random.default_rng(4).permutation(8)
    _, permuted = stats_from_groups(h[order], sizes[order])
    _, split = stats_from_groups([h[:, :2], {"rest": h[:, 2:].reshape(8, 2, 2)}], sizes)
    for other in (permuted, split):
        for a, b in zip(other, stats, strict=True):
            if a is not None:
                np.testing.assert_allclose(a, b, rtol=2e-5)


def test_a_large_mean_does_not_cancel():
    """A mean 1e4 times the noise: float32 stays with float64 where Σ‖h‖² − n‖g‖² is lost."""
    h = np.random.default_rng(5).normal(1e4, 1, (64, 16)).astype(np.float32)
    exact = two_pass(h, np.ones(64))
    _, stats = stats_from_groups(h, 1, statistics=ALL)
    np.testing.assert_allclose(stats.variance, exact[0], rtol=1e-3)
    np.testing.assert_allclose(stats.coordinate_variance, exact[2], rtol=1e-3)
    naive = (np.sum(h * h) - 64 * np.sum(h.mean(axis=0) ** 2)) / np.float32(63)
    assert abs(naive - exact[0]) > 0.1 * exact[0]


def test_a_large_mean_does_not_cancel_in_inner_products():
    """Centred before the product: ⟨h, g⟩ itself has no digits left for 4096 coordinates."""
    h = np.random.default_rng(5).normal(1e4, 1, (64, 4096)).astype(np.float32)
    _, stats = stats_from_groups(h, 1)
    np.testing.assert_allclose(stats.inner_product_variance, two_pass(h, np.ones(64))[1], rtol=1e-3)


def test_no_noise_is_exactly_zero():
    h = np.tile(np.array([[0.1, 0.7, -3.3]], np.float32), (8, 1))
    _, stats = stats_from_groups(h, 1)
    np.testing.assert_allclose(stats.variance, 0, atol=1e-12)
    np.testing.assert_allclose(stats.inner_product_variance, 0, atol=1e-10)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_low_precision_gradients_are_squared_in_float32(dtype):
    """Against float64 on the same rounded rows; 300² overflows float16."""
    h = np.random.default_rng(6).normal(300, 20, (8, 32)).astype(dtype)
    grads, stats = stats_from_groups(jnp.asarray(h), 4, statistics=ALL)
    variance, inner, coordinate = two_pass(h, np.full(8, 4))
    mean = np.asarray(h, np.float64).mean(axis=0)
    assert grads.dtype == dtype
    assert {x.dtype for x in jax.tree.leaves(stats)} == {jnp.dtype(jnp.float32)}
    np.testing.assert_allclose(
        np.asarray(grads, np.float64), mean, rtol=float(jnp.finfo(dtype).eps)
    )
    np.testing.assert_allclose(stats.sq_norm, mean @ mean, rtol=1e-5)
    np.testing.assert_allclose(stats.variance, variance, rtol=1e-5)
    np.testing.assert_allclose(stats.inner_product_variance, inner, rtol=1e-4)
    np.testing.assert_allclose(stats.coordinate_variance, coordinate, rtol=1e-4)


@pytest.mark.usefixtures("float64")
def test_float64_gradients_give_float64_statistics():
    h = np.random.default_rng(7).normal(1e5, 1e-4, (8, 3))
    tree = {"wide": h, "narrow": h.astype(np.float32)}
    grads, stats = stats_from_groups(tree, 1, statistics=ALL)
    assert (grads["wide"].dtype, grads["narrow"].dtype) == (jnp.float64, jnp.float32)
    scalars = stats._replace(coordinate_variance=None)
    assert {x.dtype for x in jax.tree.leaves(scalars)} == {jnp.dtype(jnp.float64)}
    _, alone = stats_from_groups(h, 1)
    np.testing.assert_allclose(alone.variance, two_pass(h, np.ones(8))[0], rtol=1e-6)


def test_complex_gradients_count_by_squared_modulus():
    rng = np.random.default_rng(8)
    z = (rng.normal(size=(6, 3)) + 1j * rng.normal(size=(6, 3))).astype(np.complex64)
    r = rng.normal(1, 1, (6, 2)).astype(np.float32)
    grads, stats = stats_from_groups({"z": z, "r": r}, 2, statistics=ALL)
    variance, inner, coordinate = two_pass(np.concatenate([z.real, z.imag, r], 1), np.full(6, 2))
    assert grads["z"].dtype == jnp.complex64
    assert {x.dtype for x in jax.tree.leaves(stats)} == {jnp.dtype(jnp.float32)}
    np.testing.assert_allclose(stats.variance, variance, rtol=1e-5)
    np.testing.assert_allclose(stats.inner_product_variance, inner, rtol=1e-4)
    np.testing.assert_allclose(
        stats.coordinate_variance["z"], coordinate[:3] + coordinate[3:6], rtol=1e-4
    )


# Groups without examples, and what is not defined.


@pytest.mark.parametrize("garbage", [np.nan, np.inf, 1e30])
@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_a_group_without_examples_does_not_count(garbage, dtype):
    h = np.random.default_rng(9).normal(1, 1, (5, 3)).astype(np.float32)
    h[[1, 4]] = garbage
    grads, stats = stats_from_groups(h, np.array([2, 0, 3, 1, 0], dtype), statistics=ALL)
    _, expected = stats_from_groups(h[[0, 2, 3]], np.array([2, 3, 1]), statistics=ALL)
    variance, inner, coordinate = two_pass(h[[0, 2, 3]], [2, 3, 1])
    np.testing.assert_allclose(grads, np.array([2, 3, 1]) @ h[[0, 2, 3]] / 6, rtol=1e-5)
    np.testing.assert_allclose(stats.num_examples, 6)
    np.testing.assert_allclose(stats.num_groups, 3)
    np.testing.assert_allclose(stats.variance, variance, rtol=1e-5)
    np.testing.assert_allclose(stats.inner_product_variance, inner, rtol=1e-4)
    np.testing.assert_allclose(stats.coordinate_variance, coordinate, rtol=1e-4)
    np.testing.assert_allclose(stats.sq_norm, expected.sq_norm, rtol=1e-6)


def test_one_real_group_tells_nothing_about_noise():
    grads, stats = stats_from_groups(jnp.ones((3, 2)), np.array([0, 4, 0]), statistics=ALL)
    np.testing.assert_allclose(grads, [1, 1])
    assert (float(stats.num_examples), float(stats.num_groups)) == (4, 1)
    np.testing.assert_allclose(stats.sq_norm, 2)
    assert np.isnan(stats.variance)
    assert np.isnan(stats.inner_product_variance)
    assert np.isnan(stats.coordinate_variance).all()


def test_no_real_group():
    grads, stats = stats_from_groups(jnp.full((3, 2), jnp.nan), np.zeros(3))
    np.testing.assert_array_equal(grads, [0, 0])
    assert float(stats.num_examples) == float(stats.num_groups) == float(stats.sq_norm) == 0
    assert np.isnan(stats.variance)
    assert np.isnan(stats.inner_product_variance)


def test_nan_in_a_real_group_shows():
    grads, stats = stats_from_groups(jnp.ones((3, 2)).at[1, 0].set(jnp.nan), 1)
    np.testing.assert_array_equal(np.isnan(grads), [True, False])
    assert np.isnan(stats.sq_norm)
    assert np.isnan(stats.variance)
    assert np.isnan(stats.inner_product_variance)


def test_traced_group_sizes(rows):
    measure = jax.jit(lambda h, sizes: stats_from_groups(h, sizes, statistics=ALL))
    for sizes in (np.float32(3), np.array([1, 2, 3, 4]), np.array([1.0, 0.0, 2.0, 1.0])):
        for a, b in zip(
            jax.tree.leaves(measure(rows, sizes)),
            jax.tree.leaves(stats_from_groups(rows, sizes, statistics=ALL)),
            strict=True,
        ):
            np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize(
    ("group_grads", "group_size", "message"),
    [
        pytest.param(np.ones((1, 2)), 4, "at least 2 groups, got 1", id="one group"),
        pytest.param(np.ones((3, 2)), -1, "group_size=-1", id="negative"),
        pytest.param(np.ones((3, 2)), np.array([1, -2, 1]), r"-2", id="one negative"),
        pytest.param(np.ones((3, 2)), np.ones(2), r"shape \(3,\), got shape \(2,\)", id="short"),
        pytest.param(np.ones((3, 2)), np.ones(1), r"shape \(3,\), got shape \(1,\)", id="of one"),
        pytest.param(np.ones((3, 2)), np.ones((3, 1)), r"\(3, 1\)", id="column"),
        pytest.param(
            {"a": np.ones((3, 2)), "b": np.ones(4)},
            1,
            r"group_grads.*\['a'\]: 3.*\['b'\]: 4",
            id="unequal leaves",
        ),
        pytest.param({}, 1, "group_grads", id="no leaf"),
        pytest.param(np.float32(1), 1, "group_grads", id="scalar"),
    ],
)
def test_errors_name_the_argument(group_grads, group_size, message):
    with pytest.raises(ValueError, match=message):
        stats_from_groups(group_grads, group_size)


@pytest.mark.parametrize("statistics", [("norms",), ("norm", "ortho"), "norm"])
def test_unknown_statistics(statistics):
    with pytest.raises(ValueError, match=r"'norm', 'inner', 'coordinate'.*stats_from_groups"):
        stats_from_groups(np.ones((3, 2)), 1, statistics=statistics)
