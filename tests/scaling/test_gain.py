"""The closed form of the gain: published tables, hand values, bounds."""

import hypothesis
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import strategies as st

import adaoptax
from adaoptax.scaling import adascale_gain

pytestmark = pytest.mark.sampled


@pytest.mark.parametrize(
    ("scale", "gain"), [(1, 1), (2, 5 / 3), (4, 2.5), (8, 10 / 3), (16, 4), (np.inf, 5)]
)
def test_stationary_example(scale, gain):
    assert float(adascale_gain(4.0, 1.0, scale)) == pytest.approx(gain, rel=1e-6)


def test_table_of_adaptdl():
    # var = [1, 0, 2] and sqr = [-1, -1, 1]; its second row, without any statistics, is 0/0 here.
    variance, signal = jnp.array([1.0, 1.0, 2.0]), jnp.array([-1.0, 0.0, 1.0])
    table: dict[float, list[float]] = {
        0.5: [0.5, 0.5, 0.6],
        1: [1, 1, 1],
        2: [2, 2, 1.5],
        4: [4, 4, 2],
        10: [10, 10, 2.5],
    }
    for scale, gains in table.items():
        np.testing.assert_allclose(adascale_gain(variance, signal, scale), gains, rtol=1e-6)
    assert np.isnan(adascale_gain(0.0, 0.0, 4.0))
    assert np.isnan(adascale_gain(0.0, -1.0, 4.0))
    assert float(adascale_gain(3.0, 1.0, 3.0)) == pytest.approx(2.0, rel=1e-6)


def test_noise_scale_form():
    # S (φ + B₀)/(φ + B), with φ = S²/μ² in examples; efficiency is gain/S.
    rng = np.random.default_rng(0)
    per_example, signal, base = rng.uniform(1, 50), rng.uniform(0.1, 3), 32.0
    for size in (16.0, 32.0, 64.0, 4096.0):
        phi, scale = per_example / signal, size / base
        expected = scale * (phi + base) / (phi + size)
        assert float(adascale_gain(per_example / base, signal, scale)) == pytest.approx(
            expected, rel=1e-6
        )


positive = st.floats(2.0**-20, 2.0**20, width=32)


@hypothesis.given(positive, positive, st.floats(1, 4096, width=32))
@hypothesis.settings(max_examples=100)
def test_gain_lies_between_one_and_the_scale(variance, signal, scale):
    gain = float(adascale_gain(variance, signal, scale))
    assert 1 - 1e-6 <= gain <= scale * (1 + 1e-6)
    assert gain <= (1 + variance / signal) * (1 + 1e-6)  # S → ∞


@hypothesis.given(
    positive, positive, st.floats(0.0625, 1024, width=32), st.floats(1.125, 16, width=32)
)
@hypothesis.settings(max_examples=100)
def test_gain_increases_with_the_scale(variance, signal, scale, more):
    here, there = (float(adascale_gain(variance, signal, s)) for s in (scale, scale * more))
    assert there >= here * (1 - 1e-6)
    if variance / signal > 1e-3:
        assert there > here
    assert (here < 1) == (scale < 1) or here == pytest.approx(1, abs=1e-6)


# fairscale's own tests: two microbatches of Linear(2, 2) with loss = sum of outputs, S = 2.
FAIRSCALE_ROWS = [
    ([1, 0], [0, 1], 4 / 3),
    ([-1, 1], [1, -1], 2.0),
    ([1, 4], [5, 0.5], 1.4688796680497926),
    ([-0.2, 3], [5, 0.5], 1.8472893901708),
    ([-0.2, 3.3], [5.2, 0.7], 1.79822),
]


def linear_gradients(*inputs: list[float]) -> dict[str, np.ndarray]:
    """Gradients of the sum of outputs of Linear(2, 2): each row of W gets x, the bias ones."""
    x = np.array(inputs, np.float32)
    return {"w": np.stack([x, x], axis=1), "b": np.ones([len(x), 2], np.float32)}


def gains(convention, numpy_stats, batches, base_batch_size=1, group_size=1):
    tx = adaoptax.scale_by_adascale(base_batch_size, convention=convention)
    state, found = None, []
    for rows in batches:
        grads, stats = numpy_stats(rows, group_size)
        state = tx.init(grads) if state is None else state
        _, state = tx.update(grads, state, stats=stats)
        found.append(float(state.gain))
    return found


@pytest.mark.parametrize("convention", ["adaoptax", "fairscale"])
@pytest.mark.parametrize(("first", "second", "gain"), FAIRSCALE_ROWS)
def test_hand_checkable_gains_of_fairscale(first, second, gain, convention, numpy_stats):
    rows = linear_gradients(first, second)
    squares = [2 * np.dot(x, x) + 2 for x in (first, second)]
    mean = 2 * np.dot(np.add(first, second) / 2, np.add(first, second) / 2) + 2
    assert gain == pytest.approx(min(2, np.mean(squares) / mean), rel=2e-6)  # r of single steps
    assert gains(convention, numpy_stats, [rows]) == pytest.approx([gain], rel=2e-6)


def test_two_steps_of_fairscale(numpy_stats):
    batches = [
        linear_gradients([-0.2, 3.3], [5.2, 0.7]),
        linear_gradients([1, 4], [3.1, 0.1]),
    ]
    found = gains("fairscale", numpy_stats, batches)
    assert found[1] == pytest.approx(1.6720968158031417, rel=1e-5)


def test_identical_gradients_gain_exactly_one(numpy_stats):
    rows = linear_gradients([1, 1], [1, 1])
    assert gains("adaoptax", numpy_stats, [rows] * 3) == [1.0] * 3
    floor = (1e-6 + 6) / (0.5e-6 + 6)  # fairscale's absolute floor on the variance
    assert gains("fairscale", numpy_stats, [rows]) == pytest.approx([floor], rel=1e-6)


@pytest.mark.parametrize("convention", ["adaoptax", "fairscale"])
@pytest.mark.parametrize("base", [4, 3, 2, 1])
def test_orthogonal_gradients_gain_the_scale(base, convention, numpy_stats):
    # Linear(4, 2) without bias on e1..e4, each group of one example: S = 4/B₀.
    rows = {"w": np.stack([np.eye(4), np.eye(4)], axis=1)}
    found = gains(convention, numpy_stats, [rows], base_batch_size=base)
    assert found == pytest.approx([4 / base], rel=1e-6)


def test_orthogonal_groups_of_any_norm_gain_the_scale(numpy_stats):
    rows = np.diag([0.5, 3.0, 7.0, 1.25])
    assert gains("adaoptax", numpy_stats, [rows], 8, group_size=8) == pytest.approx([4], rel=1e-6)


def test_growing_scale_of_fairscale_without_its_defect(numpy_stats):
    # Orthogonal pair at scale 2, then k identical gradients (0, 1, 0, 1)/k at scale k; averages
    # are in base-batch units, so that nothing is rescaled: 2.331998, 4.326642, 6.317241.
    pair = np.array([[1.0, 0, 1, 0], [0, 1, 0, 1]])
    for k, expected in [(3, 2.331998), (6, 4.326642), (9, 6.317241)]:
        same = np.tile(np.array([[0.0, 1, 0, 1]]) / k, (k, 1))
        batches = [{"w": np.stack([x, x], axis=1)} for x in (pair, same)]
        assert gains("fairscale", numpy_stats, batches)[1] == pytest.approx(expected, rel=2e-5)


def test_number_of_groups_and_scale_are_independent(numpy_stats):
    # σ² = S²/B₀ and μ² = ‖g‖² − S²/B, whatever the groups: six groups of 8 over B₀ = 16 (S = 3).
    h = np.random.default_rng(0).normal(size=[6, 10]) * 0.3 + 0.4
    g = h.mean(axis=0)
    per_example = 8 * ((h - g) ** 2).sum() / 5
    signal = g @ g - per_example / 48
    expected = (per_example / 16 + signal) / (per_example / 48 + signal)
    assert gains("adaoptax", numpy_stats, [h], 16, group_size=8) == pytest.approx(
        [expected], rel=1e-5
    )


def test_gain_is_found_by_name(numpy_stats):
    grads, stats = numpy_stats(np.eye(4), 32)
    tx = optax.chain(optax.scale_by_adam(), adaoptax.scale_by_adascale(32, learning_rate=0.1))
    _, state = tx.update(grads, tx.init(grads), stats=stats)
    assert float(optax.tree.get(state, "gain")) == pytest.approx(4.0, rel=1e-6)
    assert int(optax.tree.get(state, "scale_invariant_count")) in (3, 4)
