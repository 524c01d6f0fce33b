"""GradientStats: derived quantities, their undefined cases, and the merge of disjoint batches."""

import functools
import itertools
import math
from typing import Any

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from adaoptax import (
    GradientStats,
    merge_stats,
    noise_scale,
    orthogonal_variance,
    signal,
    stats_from_groups,
)
from adaoptax.stats import is_measured

pytestmark = pytest.mark.sampled

ALL = ("norm", "inner", "coordinate")


def make_stats(num_examples=8.0, num_groups=8.0, sq_norm=4.0, variance=2.0, inner=None):
    one = lambda x: jnp.float32(x)
    return GradientStats(
        num_examples=one(num_examples),
        num_groups=one(num_groups),
        sq_norm=one(sq_norm),
        variance=one(variance),
        inner_product_variance=None if inner is None else one(inner),
    )


def pooled(h, sizes):
    """Mean gradient, B, n, S² and coordinate variances of groups [n, d] of `sizes` examples."""
    h, sizes = np.asarray(h, np.float64), np.asarray(sizes, np.float64)
    g = sizes @ h / sizes.sum()
    n = len(sizes)
    coordinates = sizes @ (h - g) ** 2 / (n - 1) if n > 1 else np.full(h.shape[1], np.nan)
    return g, sizes.sum(), n, coordinates.sum(), coordinates


def part(h, sizes):
    """Gradient and statistics of a few groups, even a single one, straight from the formulas."""
    g, num_examples, n, variance, coordinates = pooled(h, sizes)
    narrow = lambda x: jnp.asarray(x, jnp.float32)
    return narrow(g), GradientStats(
        num_examples=narrow(num_examples),
        num_groups=narrow(n),
        sq_norm=narrow(g @ g),
        variance=narrow(variance),
        coordinate_variance=narrow(coordinates),
    )


def merge(a, b):
    (grads_a, stats_a), (grads_b, stats_b) = a, b
    return merge_stats(grads_a, stats_a, grads_b, stats_b)


def assert_pooled(merged, h, sizes, rtol=1e-5):
    g, num_examples, n, variance, coordinates = pooled(h, sizes)
    grads, stats = merged
    np.testing.assert_allclose(grads, g, rtol=rtol, atol=1e-6 * np.abs(h).max())
    np.testing.assert_allclose(stats.num_examples, num_examples)
    np.testing.assert_allclose(stats.num_groups, n)
    np.testing.assert_allclose(stats.sq_norm, g @ g, rtol=rtol, atol=1e-6 * (h**2).sum())
    np.testing.assert_allclose(stats.variance, variance, rtol=rtol)
    assert stats.inner_product_variance is None
    if stats.coordinate_variance is not None:
        np.testing.assert_allclose(stats.coordinate_variance, coordinates, rtol=10 * rtol)


# Derived quantities.


def test_hand_fixture(rows):
    stats: Any
    grads, stats = stats_from_groups(rows, 1, statistics=ALL)
    np.testing.assert_allclose(grads, [2, 0])
    np.testing.assert_allclose(stats.num_examples, 4)
    np.testing.assert_allclose(stats.num_groups, 4)
    np.testing.assert_allclose(stats.sq_norm, 4)
    np.testing.assert_allclose(stats.variance, 10 / 3, rtol=1e-6)
    np.testing.assert_allclose(stats.inner_product_variance, 8 / 3, rtol=1e-6)
    np.testing.assert_allclose(stats.coordinate_variance, [2 / 3, 8 / 3], rtol=1e-6)
    np.testing.assert_allclose(signal(stats), 19 / 6, rtol=1e-6)
    np.testing.assert_allclose(noise_scale(stats), (10 / 3) / (19 / 6), rtol=1e-6)
    np.testing.assert_allclose(orthogonal_variance(stats), 8 / 3, rtol=1e-6)


def test_signal_may_be_negative():
    np.testing.assert_allclose(signal(make_stats(4, 4, sq_norm=1, variance=20)), -4)


@pytest.mark.parametrize(
    ("sq_norm", "variance", "expected"),
    [
        pytest.param(4, 2, 2 / 3.75, id="defined"),
        pytest.param(4, 0, 0, id="no noise"),
        pytest.param(0.25, 2, math.inf, id="signal exactly zero"),
        pytest.param(0.125, 2, math.inf, id="signal negative"),
        pytest.param(0, 2, math.inf, id="no gradient"),
        pytest.param(0, 0, math.nan, id="nothing at all"),
        pytest.param(4, math.nan, math.nan, id="one group"),
        pytest.param(math.nan, 2, math.nan, id="nan gradient"),
        pytest.param(math.inf, math.nan, math.nan, id="inf gradient"),
        pytest.param(math.nan, 0, math.nan, id="nan gradient without noise"),
    ],
)
def test_noise_scale_outcomes(sq_norm, variance, expected):
    stats = make_stats(sq_norm=sq_norm, variance=variance)
    np.testing.assert_allclose(noise_scale(stats), expected, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(noise_scale)(stats), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("sq_norm", "variance", "inner", "expected"),
    [
        pytest.param(4, 3, 8, 1, id="defined"),
        pytest.param(4, 3, 12, 0, id="all along"),
        pytest.param(4, 3, 12.5, 0, id="rounding never makes it negative"),
        pytest.param(0, 3, 0, 3, id="no direction"),
        pytest.param(4, math.nan, math.nan, math.nan, id="one group"),
    ],
)
def test_orthogonal_variance_outcomes(sq_norm, variance, inner, expected):
    stats = make_stats(sq_norm=sq_norm, variance=variance, inner=inner)
    np.testing.assert_allclose(orthogonal_variance(stats), expected, rtol=1e-6)


def test_orthogonal_variance_names_the_methods_that_measure_inner_products():
    with pytest.raises(ValueError, match=r"inner_product_variance.*per_example.*stats_from_groups"):
        orthogonal_variance(make_stats())


finite = st.floats(-8, 8).map(lambda x: round(x, 3))


@settings(max_examples=60)
@given(
    rows=hnp.arrays(np.float64, st.sampled_from([(2, 1), (4, 3), (7, 2)]), elements=finite),
    data=st.data(),
)
def test_variance_is_that_along_plus_that_across(rows, data):
    """S² = V_ip/‖g‖² + V_or, with V_or from its own definition, for any sizes of groups."""
    n = len(rows)
    sizes = np.array(data.draw(st.lists(st.integers(1, 9), min_size=n, max_size=n)), np.float64)
    g = sizes @ rows / sizes.sum()
    assume(g @ g > 1e-3)
    across = rows - np.outer(rows @ g / (g @ g), g)
    expected = sizes @ (across**2).sum(axis=1) / (n - 1)
    stats: Any
    with jax.enable_x64(True):
        _, stats = stats_from_groups(jnp.asarray(rows), sizes)
        tolerance = 1e-9 * (1 + float(stats.variance))
        assert abs(float(orthogonal_variance(stats)) - expected) <= tolerance
        along = float(stats.inner_product_variance / stats.sq_norm)
    assert abs(float(stats.variance) - along - expected) <= tolerance


# Merging.


@pytest.mark.parametrize("sizes", [[3] * 6, [1, 4, 2, 8, 1, 5]], ids=["equal", "unequal"])
def test_any_split_merges_to_the_pooled_statistics(sizes):
    h = np.random.default_rng(0).normal(1, 2, (6, 4)).astype(np.float32)
    sizes = np.array(sizes)
    jitted = jax.jit(merge)
    for count in range(1, 6):
        for chosen in itertools.combinations(range(6), count):
            a = np.isin(np.arange(6), chosen)
            merged = jitted(part(h[a], sizes[a]), part(h[~a], sizes[~a]))
            assert_pooled(merged, h, sizes)


def test_any_order_of_merging_gives_the_pooled_statistics():
    h = np.random.default_rng(1).normal(1, 2, (4, 3)).astype(np.float32)
    sizes = np.array([2, 1, 5, 3])
    parts = [part(h[i : i + 1], sizes[i : i + 1]) for i in range(4)]  # all of one group
    jitted = jax.jit(merge)
    for order in itertools.permutations(range(4)):
        chosen = [parts[i] for i in order]
        left = functools.reduce(jitted, chosen)
        right = functools.reduce(lambda a, b: jitted(b, a), reversed(chosen))
        pairs = jitted(jitted(chosen[0], chosen[1]), jitted(chosen[2], chosen[3]))
        for merged in (left, right, pairs):
            assert_pooled(merged, h, sizes)


def test_parts_of_one_group_have_no_scatter_of_their_own():
    h = np.array([[1.0, 0.0], [3.0, 2.0]], np.float32)
    (g_a, a), (g_b, b) = part(h[:1], [2]), part(h[1:], [2])
    assert math.isnan(float(a.variance))
    grads, stats = merge_stats(g_a, a, g_b, b)
    np.testing.assert_allclose(grads, [2, 1])
    np.testing.assert_allclose(stats.variance, 2 * (1 + 1 + 1 + 1))


@pytest.mark.parametrize("empty_first", [True, False])
def test_a_batch_of_padding_only_changes_nothing(empty_first):
    h = np.random.default_rng(2).normal(size=(3, 2)).astype(np.float32)
    some = part(h, [1, 2, 3])
    nan = jnp.full([2], jnp.nan)
    none = (
        jnp.zeros(2),
        make_stats(0, 0, sq_norm=0, variance=math.nan)._replace(coordinate_variance=nan),
    )
    merged = merge(none, some) if empty_first else merge(some, none)
    assert_pooled(merged, h, [1, 2, 3])


def test_two_batches_of_padding_only_stay_undefined():
    none = (jnp.zeros(2), make_stats(0, 0, sq_norm=0, variance=math.nan))
    grads, stats = merge(none, none)
    np.testing.assert_array_equal(grads, [0, 0])
    assert float(stats.num_examples) == float(stats.num_groups) == float(stats.sq_norm) == 0
    assert math.isnan(float(stats.variance))


@pytest.mark.parametrize("examples", [0.0, 8.0])
@pytest.mark.parametrize("groups", [0.0, 1.0, 4.0])
def test_measured_says_whether_noise_was_asked_for(examples, groups):
    """No groups of some examples: not asked. One group, or no examples: asked and undefined."""
    assert bool(is_measured(make_stats(examples, groups))) == (groups > 0 or examples == 0)


def not_measured(h, size):
    """A gradient of `size` examples whose noise was not measured."""
    grads, stats = part(h[None], [size])
    return grads, stats._replace(num_groups=jnp.float32(0))


@pytest.mark.parametrize("first", [True, False])
def test_a_gradient_without_noise_is_one_group_beside_measured_ones(first):
    h = np.random.default_rng(4).normal(1, 2, (4, 3)).astype(np.float32)
    some, alone = part(h[:3], [2, 1, 5]), not_measured(h[3], 4)
    merged = merge(alone, some) if first else merge(some, alone)
    assert_pooled(merged, h, [2, 1, 5, 4])


def test_gradients_without_noise_stay_without():
    h = np.random.default_rng(5).normal(1, 2, (2, 3)).astype(np.float32)
    grads, stats = merge(not_measured(h[0], 2), not_measured(h[1], 6))
    np.testing.assert_allclose(grads, (h[0] + 3 * h[1]) / 4, rtol=1e-6)
    assert not is_measured(stats)
    assert (float(stats.num_examples), float(stats.num_groups)) == (8, 0)
    assert math.isnan(float(stats.variance))
    for derived in (signal, noise_scale):
        assert math.isnan(float(derived(stats)))


def test_merged_coordinate_variance_needs_both():
    h = np.random.default_rng(3).normal(size=(4, 2)).astype(np.float32)
    a, b = part(h[:2], [1, 1]), part(h[2:], [1, 1])
    without = (b[0], b[1]._replace(coordinate_variance=None))
    assert merge(a, b)[1].coordinate_variance is not None
    assert merge(a, without)[1].coordinate_variance is None
    assert merge(without, a)[1].coordinate_variance is None


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_merge_keeps_the_dtype_of_gradients_and_counts_in_float32(dtype):
    h = np.random.default_rng(4).normal(300, 2, (4, 8)).astype(dtype)  # 300² overflows float16
    grads, stats = merge(_measured(h[:2]), _measured(h[2:]))
    assert grads.dtype == dtype
    assert {x.dtype for x in jax.tree.leaves(stats)} == {jnp.dtype(jnp.float32)}
    # The parts hand over gradients rounded to `dtype`: the reference merges those.
    parts = np.stack([np.asarray(_measured(x)[0], np.float64) for x in (h[:2], h[2:])])
    within = sum(((x - x.mean(axis=0)) ** 2).sum() for x in np.split(h.astype(np.float64), 2))
    between = ((parts[1] - parts[0]) ** 2).sum()  # B_a B_b / B = 1
    np.testing.assert_allclose(stats.variance, (within + between) / 3, rtol=1e-5)
    np.testing.assert_allclose(stats.sq_norm, (parts.mean(axis=0) ** 2).sum(), rtol=1e-6)


def _measured(h):
    return stats_from_groups(jnp.asarray(h), 1)


@pytest.mark.usefixtures("float64")
def test_merge_in_float64():
    h = np.random.default_rng(5).normal(1e6, 1e-3, (6, 3))
    merged = merge(_measured(h[:2]), _measured(h[2:]))
    assert {x.dtype for x in jax.tree.leaves(merged)} == {jnp.dtype(jnp.float64)}
    assert_pooled(merged, h, [1] * 6, rtol=1e-6)


def test_merge_of_trees_with_complex_leaves():
    rng = np.random.default_rng(6)
    z = (rng.normal(size=(5, 2)) + 1j * rng.normal(size=(5, 2))).astype(np.complex64)
    tree: Any = {"z": z, "r": [rng.normal(size=(5, 3)).astype(np.float32), None]}
    first = jax.tree.map(lambda x: x[:2], tree)
    last = jax.tree.map(lambda x: x[2:], tree)
    grads, stats = merge(stats_from_groups(first, 4), stats_from_groups(last, 4))
    real = np.concatenate([z.real, z.imag, tree["r"][0]], axis=1)
    g, _, _, variance, _ = pooled(real, [4] * 5)
    assert grads["z"].dtype == jnp.complex64
    np.testing.assert_allclose(grads["z"], z.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(stats.sq_norm, g @ g, rtol=1e-5)
    np.testing.assert_allclose(stats.variance, variance, rtol=1e-5)


def test_merge_of_a_large_mean_does_not_cancel():
    """A mean 1e4 times the noise: float32 stays with float64 where Σ‖h‖² − n‖g‖² is lost."""
    h = np.random.default_rng(7).normal(1e4, 1, (64, 16)).astype(np.float32)
    parts = [_measured(x) for x in np.split(h, 8)]
    _, stats = functools.reduce(merge, parts)
    exact = pooled(h, [1] * 64)[3]
    np.testing.assert_allclose(stats.variance, exact, rtol=1e-3)
    naive = (np.sum(h * h) - 64 * np.sum(h.mean(axis=0) ** 2)) / np.float32(63)
    assert abs(naive - exact) > 0.1 * exact


def test_statistics_pass_through_jax():
    stats = stats_from_groups(jnp.eye(3), 1, statistics=ALL)[1]
    leaves, treedef = jax.tree.flatten(stats)
    assert len(leaves) == 6
    assert jax.tree.unflatten(treedef, leaves) == stats
    assert jax.vmap(signal)(jax.tree.map(lambda x: jnp.stack([x, x]), stats)).shape == (2,)
