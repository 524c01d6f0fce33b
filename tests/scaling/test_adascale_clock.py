"""The scale-invariant step count of AdaScale, and schedules that run on it."""

import math
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adaoptax


def exact(whole: Any, fraction: Any) -> Fraction:
    assert 0 <= float(fraction) < 1
    return int(whole) + Fraction(float(fraction))


def tau(state: Any) -> Fraction:
    assert state.scale_invariant_count.dtype == jnp.int32
    return exact(state.scale_invariant_count, state.scale_invariant_fraction)


def test_the_transformation_keeps_the_clock_through_a_long_run():
    # σ² = 4, μ² = 1 at S = 4, 100 000 steps in one scan: τ is the exact sum of the gains.
    tx, stats = adaoptax.scale_by_adascale(8), constant_gain_stats(4)
    step = lambda state, _: ((s := tx.update(jnp.ones(2), state, stats=stats)[1]), s.gain)
    run = jax.jit(lambda: jax.lax.scan(step, tx.init(jnp.ones(2)), length=100_000))
    state, gains = run()
    assert tau(state) == sum(map(Fraction, np.asarray(gains, float).tolist()))
    assert float(tau(state)) == pytest.approx(250_000, rel=1e-5)


def constant_gain_stats(scale: float, base: float = 8.0) -> Any:
    """σ² = 4 and μ² = 1 at every scale."""
    return adaoptax.GradientStats(
        *(jnp.float32(x) for x in (scale * base, 4, 1 + 4 / scale, 4 * base))
    )


def test_constant_gain_compresses_the_schedule():
    # S = 4: r = 2.5, so that after k steps τ = 2.5 k and lr(τ) is the base schedule at 2.5 k.
    schedule = optax.exponential_decay(1.0, transition_steps=10, decay_rate=0.5)
    tx = adaoptax.scale_by_adascale(8, learning_rate=schedule)
    state, stats = tx.init(jnp.ones(2)), constant_gain_stats(4)
    update = jax.jit(tx.update)
    for k in range(30):
        updates, state = update(jnp.ones(2), state, stats=stats)
        np.testing.assert_allclose(updates, -2.5 * 0.5 ** (2.5 * k / 10), rtol=2e-6)
        assert float(tau(state)) == pytest.approx(2.5 * (k + 1), rel=1e-6)


def test_the_paper_evaluates_the_schedule_at_whole_steps():
    steps_of = lambda count: jnp.asarray(1.0 + count, jnp.float32)  # lr(τ) tells τ
    found = {}
    for convention in ("paper", "fairscale", "adaoptax"):
        tx = adaoptax.scale_by_adascale(8, learning_rate=steps_of, convention=convention)
        state, stats = tx.init(jnp.ones([])), constant_gain_stats(4)
        rates, gains = [], []
        for _ in range(8):
            updates, state = tx.update(jnp.ones([]), state, stats=stats)
            gains.append(float(state.gain))
            rates.append(-float(updates) / gains[-1])
        found[convention] = rates
        taus = np.concatenate([[0], np.cumsum(gains)[:-1]])
        expected = 1 + (np.floor(taus + 1e-4) if convention == "paper" else taus)
        np.testing.assert_allclose(rates, expected, rtol=1e-5)
    assert found["paper"] != found["fairscale"]


def test_total_of_steps_lies_between_the_extremes():
    # T_SI base steps take between T_SI/S (all noise) and T_SI (no noise) steps: reference 1.2.
    rng = np.random.default_rng(0)
    tx, scale, total = adaoptax.scale_by_adascale(8), 4.0, 100
    update, state, steps = jax.jit(tx.update), tx.init(jnp.ones(2)), 0
    while tau(state) < total:
        variance, signal = rng.gamma(2.0), rng.normal(1, 0.5)
        stats = constant_gain_stats(scale)._replace(
            variance=jnp.float32(8 * variance), sq_norm=jnp.float32(signal + variance / scale)
        )
        _, state = update(jnp.ones(2), state, stats=stats)
        steps += 1
    assert math.ceil(total / scale) <= steps <= total


def test_scale_one_counts_steps_whole():
    tx = adaoptax.scale_by_adascale(8)
    state, stats = tx.init(jnp.ones(2)), constant_gain_stats(1)
    for step in range(20):
        assert tau(state) == step
        _, state = tx.update(jnp.ones(2), state, stats=stats)


@pytest.mark.usefixtures("float64")
def test_float64_clock():
    tx, one = adaoptax.scale_by_adascale(8), jnp.ones(2, jnp.float64)
    stats = jax.tree.map(lambda x: x.astype(jnp.float64), constant_gain_stats(16 / 9))
    update, state = jax.jit(tx.update), tx.init(one)
    for _ in range(1000):
        _, state = update(one, state, stats=stats)
    assert state.scale_invariant_fraction.dtype == jnp.float64
    gain = 5 / (4 * 9 / 16 + 1)
    assert float(tau(state)) == pytest.approx(1000 * gain, rel=1e-6)  # float32 statistics
