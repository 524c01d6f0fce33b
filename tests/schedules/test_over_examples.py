"""Schedules counted in examples: the same curve over the data, whatever the batch size."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from statistics_of import stats_of

import adaoptax
from adaoptax import scale_by_schedule_over_examples

SIZES = [16, 16, 48, 48, 7, 128, 1, 333]


def examples(state):
    """Examples in the clock, exactly: both parts are whole multiples of 2^-16."""
    clock = state.examples_clock
    return int(clock.whole) * 65536 + float(clock.fraction) * 65536


@pytest.mark.parametrize(
    "schedule",
    [
        optax.linear_schedule(1.0, 0.0, 500),
        optax.warmup_cosine_decay_schedule(0.0, 0.3, 100, 700),
        optax.piecewise_constant_schedule(1.0, {64: 0.5, 200: 0.1}),
        optax.constant_schedule(0.25),
        lambda count: 1.0 / (1.0 + count),
    ],
    ids=["linear", "cosine", "piecewise", "constant", "own"],
)
def test_rate_is_the_schedule_of_examples_seen(schedule):
    tx = scale_by_schedule_over_examples(schedule)
    grads = {"a": jnp.arange(3.0), "b": jnp.float32(-2)}
    state = tx.init(grads)
    update = jax.jit(tx.update)
    seen = 0
    for size in SIZES:
        updates, state = update(grads, state, stats=stats_of(size))
        rate = float(schedule(jnp.float32(seen)))
        for u, g in zip(jax.tree.leaves(updates), jax.tree.leaves(grads), strict=True):
            np.testing.assert_allclose(u, -rate * np.asarray(g), rtol=1e-6)
        seen += size
        assert examples(state) == seen


def test_the_same_data_in_other_batches_ends_at_the_same_rate():
    tx = scale_by_schedule_over_examples(optax.linear_schedule(1.0, 0.0, 1000))
    rates = []
    for size in (10, 60, 300):
        state = tx.init(jnp.ones(1))
        for _ in range(600 // size):
            _, state = tx.update(jnp.ones(1), state, stats=stats_of(size))
        rates.append(tx.update(jnp.ones(1), state, stats=stats_of(size))[0][0])
    np.testing.assert_allclose(rates, [-0.4] * 3, rtol=1e-6)


def test_count_stays_exact_beyond_float32():
    """2^24 + 1 is no float32: a plain count would stand still at batches of one."""
    tx = scale_by_schedule_over_examples(lambda count: count)
    state = tx.init(jnp.ones(1))
    _, state = tx.update(jnp.ones(1), state, stats=stats_of(2**24))

    @jax.jit
    def run(state, size):
        step = lambda state, _: (tx.update(jnp.ones(1), state, stats=stats_of(size))[1], None)
        return jax.lax.scan(step, state, length=100_001)[0]

    state = run(state, 1)
    assert examples(state) == 2**24 + 100_001
    state = run(state, 8191)
    seen = 2**24 + 100_001 * 8192
    assert examples(state) == seen
    updates, _ = tx.update(jnp.ones(1), state, stats=stats_of(1))
    np.testing.assert_allclose(updates, [-seen], rtol=1e-7)


def test_fractional_numbers_of_examples_count():
    """As fractional weights give them."""
    tx = scale_by_schedule_over_examples(optax.constant_schedule(1.0))
    state = tx.init(jnp.ones(1))
    for _ in range(64):
        _, state = tx.update(jnp.ones(1), state, stats=stats_of(2.75))
    assert examples(state) == 64 * 2.75


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32, jnp.complex64])
def test_updates_keep_their_dtype(dtype):
    tx = scale_by_schedule_over_examples(optax.linear_schedule(0.5, 0.0, 100))
    grads = {"a": jnp.full(2, 3, dtype), "none": None}
    updates, state = tx.update(grads, tx.init(grads), stats=stats_of(50))
    assert updates["a"].dtype == dtype
    np.testing.assert_allclose(np.asarray(updates["a"], np.complex64), [-1.5, -1.5])
    for leaf, kind in zip(jax.tree.leaves(state), (jnp.int32, jnp.float32), strict=True):
        assert leaf.dtype == kind
        assert not leaf.weak_type


def test_the_rate_is_formed_in_float32_for_float16_updates():
    """60000 · 2^-20 examples of progress: neither factor may be rounded to float16 first."""
    tx = scale_by_schedule_over_examples(lambda count: count * 2.0**-20)
    grads = jnp.full(1, 1024, jnp.float16)
    state = tx.init(grads)
    _, state = tx.update(grads, state, stats=stats_of(120_001))
    updates, _ = tx.update(grads, state, stats=stats_of(1))
    np.testing.assert_array_equal(updates, [np.float16(-1024 * 120_001 * 2.0**-20)])


@pytest.mark.usefixtures("float64")
def test_float64():
    tx = scale_by_schedule_over_examples(lambda count: 1 / (1 + count))
    grads = jnp.ones(1, jnp.float64)
    state = tx.init(grads)
    for size in SIZES:
        updates, state = tx.update(grads, state, stats=stats_of(size, jnp.float64))
    assert updates.dtype == state.examples_clock.fraction.dtype == jnp.float64
    np.testing.assert_allclose(updates, [-1 / (1 + sum(SIZES[:-1]))], rtol=1e-15)


def test_no_recompilation_while_the_batch_changes(compilations):
    tx = scale_by_schedule_over_examples(optax.cosine_decay_schedule(1.0, 1000))
    grads = jnp.ones(3)
    update = jax.jit(tx.update)
    every = [stats_of(size) for size in SIZES]
    _, state = update(grads, tx.init(grads), stats=every[0])
    compilations.reset()
    for stats in every:
        _, state = update(grads, state, stats=stats)
    assert compilations.count == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_step_with_a_bad_gradient_counts_its_examples(bad):
    tx = scale_by_schedule_over_examples(optax.linear_schedule(1.0, 0.0, 100))
    grads, stats = adaoptax.stats_from_groups(jnp.full((2, 1), bad), 25)
    _, state = tx.update(grads, tx.init(grads), stats=stats)
    updates, _ = tx.update(jnp.ones(1), state, stats=stats)
    np.testing.assert_allclose(updates, [-0.5], rtol=1e-6)


def test_in_a_chain_beside_arguments_of_others():
    tx = optax.chain(
        optax.scale_by_adam(), scale_by_schedule_over_examples(optax.linear_schedule(0.1, 0.0, 64))
    )
    reference = optax.scale_by_adam()
    grads = jnp.array([1.0, -2.0])
    state, expected_state = tx.init(grads), reference.init(grads)
    for step in range(3):
        updates, state = tx.update(grads, state, grads, stats=stats_of(16), value=1.0)
        expected, expected_state = reference.update(grads, expected_state)
        np.testing.assert_allclose(updates, -0.1 * (1 - step / 4) * expected, rtol=1e-6)


def test_statistics_are_required():
    tx = scale_by_schedule_over_examples(optax.constant_schedule(1.0))
    state = tx.init(jnp.ones(1))
    with pytest.raises(TypeError, match="stats"):
        tx.update(jnp.ones(1), state)
    with pytest.raises(TypeError, match="stats"):
        tx.update(jnp.ones(1), state, stats=jnp.float32(16))
