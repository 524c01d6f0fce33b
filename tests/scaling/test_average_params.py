"""Averages of the parameters with a half-life in examples."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from changing_batches import stats

from adaoptax.scaling import average_params, averaged_params, half_life_of_decay

pytestmark = pytest.mark.sampled

SIZES = (32, 32, 64, 128, 16, 512)


def test_the_average_is_the_sum_of_half_lives():
    tx = optax.chain(optax.sgd(0.1), average_params(100.0))
    params = jnp.array([1.0, -2.0])
    state, update = tx.init(params), jax.jit(tx.update)
    visited = []
    for seed, size in enumerate(SIZES):
        updates, state = update(jnp.sin(seed + params), state, params, stats=stats(size))
        params = optax.apply_updates(params, updates)
        visited.append(np.asarray(params, np.float64))
        after = [sum(SIZES[i + 1 : seed + 1]) for i in range(seed + 1)]
        weights = [
            (1 - 0.5 ** (b / 100)) * 0.5 ** (a / 100)
            for b, a in zip(SIZES[: seed + 1], after, strict=True)
        ]
        expected = np.average(visited, axis=0, weights=weights)
        np.testing.assert_allclose(averaged_params(state), expected, rtol=1e-6)


def test_at_a_constant_batch_it_is_the_debiased_average_of_optax():
    tx, ema = average_params(half_life_of_decay(0.99, 64)), optax.ema(0.99)
    params = jnp.array([1.0, 3.0])
    state, ema_state = tx.init(params), ema.init(params)
    for seed in range(30):
        step = jnp.cos(seed + params)
        _, state = tx.update(step, state, params, stats=stats(64))
        params = params + step
        expected, ema_state = ema.update(params, ema_state)
        np.testing.assert_allclose(averaged_params(state), expected, rtol=1e-4)


def test_the_same_examples_have_the_same_weight_at_every_batch_size():
    # Parameters 1 for 128 examples, then 0 for 256, in batches of any size.
    found = []
    for size in (16, 64, 128):
        tx, zero = average_params(200.0), jnp.zeros(1)
        state = tx.init(zero)
        for step in range(384 // size):
            at = jnp.ones(1) if step * size < 128 else zero
            _, state = tx.update(zero, state, at, stats=stats(size))
        found.append(float(averaged_params(state)[0]))
    expected = (1 - 0.5 ** (128 / 200)) * 0.5 ** (256 / 200) / (1 - 0.5 ** (384 / 200))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_parameters_in_bfloat16_are_averaged_in_float32():
    tx, params = average_params(1e5), {"w": jnp.full(2, 1.0, jnp.bfloat16)}
    state = tx.init(params)
    step = {"w": jnp.full(2, 2.0**-7, jnp.bfloat16)}
    for _ in range(4):
        updates, state = tx.update(step, state, params, stats=stats(1))
        params = optax.apply_updates(params, updates)
    average = averaged_params(state)["w"]
    assert average.dtype == jnp.float32
    np.testing.assert_allclose(average, 1 + 2.5 / 128, rtol=1e-5)


def test_a_step_that_did_not_happen_leaves_the_average():
    tx, params = average_params(100.0), jnp.ones(2)
    _, state = tx.update(params, tx.init(params), params, stats=stats(32))
    for bad in (stats(32, sq_norm=jnp.nan), stats(0)):
        updates, after = tx.update(jnp.full(2, jnp.nan), state, params, stats=bad)
        assert np.isnan(updates).all()  # passes through: whoever is before decides
        np.testing.assert_array_equal(averaged_params(after), averaged_params(state))
        assert int(after.averaged_steps_skipped) == 1


@pytest.mark.parametrize("half_life", [0, -1.0, float("inf"), float("nan")])
def test_a_half_life_must_be_positive(half_life):
    with pytest.raises(ValueError, match="half_life"):
        average_params(half_life)


def test_what_is_missing_is_said():
    tx = average_params(100.0)
    with pytest.raises(ValueError, match="Expected params, got params=None"):
        tx.update(jnp.ones(1), tx.init(jnp.ones(1)), stats=stats(32))
    for state in (optax.EmptyState(), (tx.init(jnp.ones(1)), tx.init(jnp.ones(1)))):
        with pytest.raises(ValueError, match="one average_params, got"):
            averaged_params(state)
