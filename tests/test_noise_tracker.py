"""The tracked noise scale: its window, its interval against the definition, coverage, the gate."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import adaoptax
from adaoptax import GradientStats
from adaoptax.noise_tracker import (
    NUM_BLOCKS,
    NoiseScaleEstimate,
    noise_scale_by_layer,
    noise_scale_estimate,
    track_noise_scale,
)
from adaoptax.ratio_interval import student_quantile


def stats_of(variance: Any, sq_norm: Any, size: Any, groups: Any = 8) -> GradientStats:
    scalar = lambda x: jnp.asarray(x, jnp.float32)
    return GradientStats(scalar(size), scalar(groups), scalar(sq_norm), scalar(variance))


@functools.partial(jax.jit, static_argnames="horizon")
def track(horizon: float, variance: Any, sq_norm: Any, size: Any) -> Any:
    """State after steps [t], for the columns of one run."""
    tx = track_noise_scale(horizon)
    state = tx.init(jnp.ones(1))
    step = lambda state, x: (tx.update(jnp.ones(1), state, stats=stats_of(*x))[1], None)
    return jax.lax.scan(step, state, (variance, sq_norm, size))[0]


def columns(*arrays: Any) -> list[np.ndarray]:
    """Arrays of one shape, as float32."""
    return [np.asarray(x, np.float32) for x in np.broadcast_arrays(*arrays)]


def estimate(horizon: float, variance: Any, signal: Any, size: Any = 10, **kwargs: Any) -> Any:
    """The estimate of one run as floats, from variance and debiased signal."""
    variance, signal, size = np.broadcast_arrays(*map(np.float64, (variance, signal, size)))
    run = columns(variance, signal + variance / size, size)
    found = noise_scale_estimate(track(horizon, *run), **kwargs)
    return NoiseScaleEstimate(*(np.asarray(x).item() for x in found))


def gaussian(
    rng: np.random.Generator, shape: Any, size: int, groups: int, dimensions: int, scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """(S², ‖g‖²) of Gaussian gradients with Σ = (scale/d)·I about a mean of length 1, exactly.

    S² of n groups is χ² with (n − 1)·d degrees of freedom, independent of the mean gradient.
    """
    freedom = (groups - 1) * dimensions
    variance = scale * rng.chisquare(freedom, shape) / freedom
    spread = math.sqrt(scale / dimensions / size)
    along = (1 + spread * rng.standard_normal(shape)) ** 2
    return variance, along + spread**2 * rng.chisquare(dimensions - 1, shape)


def test_the_estimate_is_the_ratio_of_means_of_the_window() -> None:
    rng = np.random.default_rng(0)
    steps = 500
    sizes = rng.integers(4, 40, steps)
    variance, signal = rng.gamma(4, 2, steps), 1 + 0.3 * rng.standard_normal(steps)
    for horizon in (1e6, 3000.0, 400.0):
        found = estimate(horizon, variance, signal, sizes)
        covered = np.cumsum(sizes[::-1])[::-1]
        first = int(np.flatnonzero(covered == found.num_examples)[0])  # the window is whole steps
        rest = slice(first, None)
        expected = (sizes[rest] @ variance[rest]) / (sizes[rest] @ signal[rest])
        assert found.noise_scale == pytest.approx(expected, rel=1e-5)
        if horizon == 1e6:
            assert first == 0
        elif horizon == 3000:  # to within a block and a batch
            assert horizon * 31 / 32 - 40 <= found.num_examples <= horizon + 40
        else:  # batches are larger than a block of 12.5 examples, mostly: a step each
            assert steps - first >= NUM_BLOCKS - 1


@pytest.mark.parametrize("steps", [8, 13, 32])
def test_the_ends_are_t_standard_errors_of_the_jackknife_away(steps: int) -> None:
    rng = np.random.default_rng(steps)
    variance, signal = rng.gamma(4, 2, steps), 1.5 + rng.standard_normal(steps)
    found = estimate(1e6, variance, signal, level=0.9)  # every block holds one step
    assert found.known
    for end in (found.low, found.high):
        difference = variance - end * signal
        left_out = np.array([np.delete(difference, k).mean() for k in range(steps)])
        error = math.sqrt((steps - 1) / steps * ((left_out - left_out.mean()) ** 2).sum())
        quantile = student_quantile(0.9, steps - 1, np)
        assert abs(difference.mean()) / error == pytest.approx(quantile, rel=1e-3)
    assert found.low < found.noise_scale < found.high


def test_blocks_that_were_merged_are_sums_of_neighbours() -> None:
    state = track(1e6, *columns(np.arange(1, 34), 100, 10))
    assert int(state.blocks_used) == NUM_BLOCKS // 2 + 1
    pairs = [10 * (i + i + 1) for i in range(1, 33, 2)]
    np.testing.assert_allclose(state.noise_sums[:17, 0], [*pairs, 330])
    np.testing.assert_allclose(state.block_examples[:17], [20] * 16 + [10])
    assert int(state.noise_steps) == 33


def test_what_is_older_than_the_horizon_is_forgotten() -> None:
    variance = np.repeat([8.0, 2.0], [3000, 120])
    assert estimate(1000.0, variance, 1.0).noise_scale == pytest.approx(2, rel=1e-5)
    partly = estimate(10_000.0, variance, 1.0).noise_scale
    assert 6 < partly < 8


def test_larger_batches_than_a_block_leave_the_last_steps() -> None:
    found = estimate(100.0, np.arange(1.0, 101), 1.0, 1000)
    assert found.num_examples in (31_000, 32_000)
    assert found.noise_scale > 69


@settings(max_examples=20)
@given(st.integers(0, 1000), st.sampled_from([1e-24, 1e-12, 3.0, 1e12]))
def test_the_units_of_the_loss_do_not_matter(seed: int, unit: float) -> None:
    rng = np.random.default_rng(seed)
    variance, signal = rng.gamma(4, 2, 12), 1 + 0.5 * rng.standard_normal(12)
    one, other = estimate(1e6, variance, signal), estimate(1e6, unit * variance, unit * signal)
    np.testing.assert_allclose(other[:3], one[:3], rtol=1e-3)


def test_no_number_before_eight_blocks_nor_for_a_signal_in_the_noise() -> None:
    for steps in range(1, 10):
        found = estimate(1e6, 6.0, np.full(steps, 2.0))
        assert found.known == (steps >= 8)
        assert math.isnan(found.noise_scale) == (steps < 8)
    for signal in (np.tile([-1.0, 1.2], 10), np.full(20, -1.0)):
        found = estimate(1e6, 6.0, signal)
        assert not found.known
        assert all(math.isnan(x) for x in found[:3])


def test_gradients_without_noise_have_a_noise_scale_of_zero() -> None:
    assert estimate(1e6, np.zeros(10), 2.0)[:4] == (0.0, 0.0, 0.0, True)


# (group size, groups): sd(S²)/S², sd(signal)/signal, share below zero, of the reference table.
TABLE = {
    (1, 32): (0.036, 2.73, 0.38),
    (8, 4): (0.115, 3.06, 0.39),
    (16, 2): (0.20, 3.67, 0.39),
    (1, 256): (0.013, 0.47, 0.01),
    (64, 4): (0.115, 0.51, 0.01),
}


@pytest.mark.parametrize(("group", "number"), TABLE)
def test_the_table_of_the_reference(group: int, number: int) -> None:
    size, dimensions, scale, draws = group * number, 50, 400.0, 200_000
    rng = np.random.default_rng(size + number)
    variance, square = gaussian(rng, draws, size, number, dimensions, scale)
    signal = square - variance / size
    sd_noise, sd_signal, negative = TABLE[group, number]
    assert variance.std() / scale == pytest.approx(sd_noise, rel=0.04)  # two digits there
    assert sd_noise == pytest.approx(math.sqrt(2 / ((number - 1) * dimensions)), rel=0.04)
    assert signal.std() == pytest.approx(sd_signal, rel=0.03)
    both = 2 * scale**2 / dimensions / size**2
    closed = math.sqrt(4 * scale / dimensions / size + both + both / (number - 1))
    assert sd_signal == pytest.approx(closed, rel=0.02)
    assert (signal < 0).mean() == pytest.approx(negative, abs=0.01)
    found = noise_scale_estimate(track(1e9, *columns(variance, square, size)))
    # The standard error of the ratio is sd_signal/√draws: 0.6 % to 0.8 % at B = 32.
    assert float(found.noise_scale) == pytest.approx(400, rel=0.02)
    assert found.low < 400 < found.high


@functools.partial(jax.jit, static_argnames="horizon")
def intervals(horizon: float, variance: Any, square: Any, size: Any) -> Any:
    """Estimates of many runs [r], from columns [r, t]."""
    one = lambda v, s: noise_scale_estimate(track(horizon, v, s, jnp.broadcast_to(size, v.shape)))
    return jax.vmap(one)(variance, square)


@pytest.mark.parametrize("dimensions", [5, 200])
@pytest.mark.parametrize("share", [0.05, 0.5, 5.0])  # batch size over noise scale
@pytest.mark.parametrize("steps", [10, 200, pytest.param(1000, marks=pytest.mark.slow)])
def test_the_interval_covers_the_noise_scale(share: float, dimensions: int, steps: int) -> None:
    # 2000 runs: the standard error of a coverage of 95 % is half a point; the bound leaves 2.
    size, runs = 16, 2000
    truth = size / share
    rng = np.random.default_rng(int(100 * share) + dimensions + steps)
    variance, square = gaussian(rng, (runs, steps), size, size, dimensions, truth)
    found = intervals(16 * 500.0, *columns(variance, square), np.float32(size))
    known = np.asarray(found.known)
    wrong = known & ~((np.asarray(found.low) <= truth) & (truth <= np.asarray(found.high)))
    assert wrong.mean() <= 0.07
    if share >= 0.5 and steps > 10:  # neither is it wider than it says
        assert known.mean() > 0.9
        assert wrong.mean() >= 0.03


def test_the_gate_opens_on_pure_noise_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    variance = 50 * rng.chisquare(150, (4000, 100)) / 150
    square = 50 / 16 * rng.chisquare(10, (4000, 100)) / 10
    found = intervals(1600.0, *columns(variance, square), np.float32(16))
    # One-sided 2.5 %: the standard error of 4000 runs is a quarter of a point.
    assert np.asarray(found.known).mean() <= 0.035
    assert np.isnan(found.noise_scale).mean() >= 0.965


def test_steps_without_evidence_are_counted_and_change_nothing_else() -> None:
    tx = track_noise_scale(1000)
    state = tx.init(jnp.ones(1))
    for variance in (6.0, 5.0):
        _, state = tx.update(jnp.ones(1), state, stats=stats_of(variance, 2.0, 10))
    bad = [
        stats_of(math.nan, 2.0, 10, groups=1),
        stats_of(math.nan, math.nan, 10),
        stats_of(math.inf, math.inf, 10),
        stats_of(0.0, 0.0, 10),
        stats_of(6.0, 2.0, 0.0, groups=0),  # padding only
    ]
    for count, stats in enumerate(bad, start=1):
        updates, after = tx.update(jnp.full(1, 3.0), state, stats=stats)
        assert float(updates[0]) == 3
        expected = state._replace(noise_steps_undefined=jnp.int32(count))
        jax.tree.map(np.testing.assert_array_equal, after, expected)
        state = after


def test_every_layer_is_tracked_by_itself() -> None:
    rng = np.random.default_rng(3)
    tx = track_noise_scale(1e6, per_layer=True)
    params = {"w": jnp.ones((2, 3)), "b": jnp.ones(2)}
    state = tx.init(params)
    samples: dict[str, list[Any]] = {"w": [], "b": []}
    for _ in range(12):
        host = {k: rng.normal(size=(6, *np.shape(p))) + 2 for k, p in params.items()}
        grads, stats = adaoptax.stats_from_groups(
            jax.tree.map(jnp.asarray, host), group_size=1, statistics=("norm", "coordinate")
        )
        _, state = tx.update(grads, state, params, stats=stats)
        for k, x in host.items():
            variance = x.var(axis=0, ddof=1).sum()
            samples[k].append((variance, (x.mean(axis=0) ** 2).sum() - variance / 6))
    layers = jax.jit(noise_scale_by_layer)(state, params)
    for k, pairs in samples.items():
        noise, signal = np.mean(pairs, axis=0)
        assert float(layers[k].noise_scale) == pytest.approx(noise / signal, rel=1e-4)
        assert layers[k].low < layers[k].noise_scale < layers[k].high
    noise, signal = np.sum([np.mean(pairs, axis=0) for pairs in samples.values()], axis=0)
    whole = noise_scale_estimate(state)
    assert float(whole.noise_scale) == pytest.approx(noise / signal, rel=1e-4)


def test_layers_that_are_masked_have_no_column() -> None:
    rows = {"w": jnp.arange(8.0).reshape(4, 2), "b": jnp.array([[1.0], [3.0], [2.0], [2.0]])}
    grads, stats = adaoptax.stats_from_groups(rows, group_size=1, statistics=("norm", "coordinate"))
    tx = optax.masked(track_noise_scale(1e6, per_layer=True), {"w": False, "b": True})
    state = tx.init(grads)
    for _ in range(8):
        _, state = tx.update(grads, state, stats=stats)
    (only,) = noise_scale_by_layer(state, [grads["b"]])
    variance = 2 / 3
    assert float(only.noise_scale) == pytest.approx(variance / (4 - variance / 4), rel=1e-5)


def test_it_is_found_in_any_optimizer() -> None:
    params = {"w": jnp.ones(2), "b": jnp.ones(1)}
    inner = optax.chain(track_noise_scale(100), optax.adam(0.1))
    inject = optax.inject_hyperparams(track_noise_scale)(horizon=100.0)
    labels = {"w": "a", "b": "b"}
    for tx in (
        inner,
        optax.partition({"a": inner, "b": optax.sgd(0.1)}, labels),
        optax.chain(inject, optax.sgd(0.1)),
        adaoptax.skip_nonfinite(inner),
    ):
        state = tx.init(params)
        for _ in range(8):
            _, state = tx.update(params, state, params, stats=stats_of(6.0, 2.6, 10))
        found = jax.jit(noise_scale_estimate)(state)
        assert float(found.noise_scale) == pytest.approx(3, rel=1e-5)


def test_wrong_arguments_are_refused_in_one_sentence() -> None:
    with pytest.raises(ValueError, match="Expected horizon > 0"):
        track_noise_scale(0)
    tx = track_noise_scale(100)
    state = tx.init(jnp.ones(2))
    with pytest.raises(ValueError, match="Expected 0 < level < 1"):
        noise_scale_estimate(state, level=1.0)
    with pytest.raises(ValueError, match="Expected one noise-scale tracker in opt_state, got 0"):
        noise_scale_estimate(optax.sgd(0.1).init(jnp.ones(2)))
    with pytest.raises(ValueError, match="got 2"):
        noise_scale_estimate((state, state))
    with pytest.raises(ValueError, match="per_layer=True"):
        noise_scale_by_layer(state, jnp.ones(2))
    layers = track_noise_scale(100, per_layer=True)
    with pytest.raises(ValueError, match=r"Expected stats\.coordinate_variance, got None"):
        layers.update(jnp.ones(2), layers.init(jnp.ones(2)), stats=stats_of(1.0, 1.0, 8))
