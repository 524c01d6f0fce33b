"""What optimizer states hold: counts that stay exact, and debiased averages."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adaoptax.averages import debiased, init_averages, update_averages
from adaoptax.clock import Clock, init_clock


def exact(clock):
    return int(clock.whole) + Fraction(float(clock.fraction))


def run_for(gain, steps):
    body = lambda _, clock: clock.advance(gain)
    return jax.jit(lambda: jax.lax.fori_loop(0, steps, body, init_clock(jnp.float32)))()


@pytest.mark.parametrize("gain", [1.0, 1.1, 1.6180339, 2.5, 7.3, 100.25])
def test_two_million_steps_of_a_gain_above_one_are_exact(gain):
    """Gains of at least 1 are multiples of 2^-23, and so is every fraction: nothing is rounded."""
    gain = np.float32(gain)
    clock = run_for(gain, 2_000_000)
    expected = 2_000_000 * Fraction(float(gain))
    assert clock.whole.dtype == jnp.int32
    assert int(clock.whole) == expected // 1
    assert exact(clock) == expected
    np.testing.assert_allclose(clock.value(), float(expected), rtol=1e-7)


def test_gains_below_one_drift_less_than_their_roundings():
    steps, gain = 200_000, np.float32(0.3)
    error = exact(run_for(gain, steps)) - steps * Fraction(float(gain))
    assert abs(error) <= steps * Fraction(1, 2**25)  # half an ulp of a number below one, each step


@pytest.mark.parametrize(("least", "rounding"), [(0, Fraction(1, 2**24)), (1, 0)])
@settings(max_examples=50)
@given(data=st.data())
def test_each_step_rounds_at_most_the_fraction_and_none_above_one(least, rounding, data):
    amounts = data.draw(st.lists(st.floats(least, 1000, width=32), max_size=40))
    clock = init_clock(jnp.float32)
    for amount in amounts:
        clock = clock.advance(jnp.float32(amount))
        assert 0 <= float(clock.fraction) < 1
    assert abs(exact(clock) - sum(map(Fraction, amounts))) <= len(amounts) * rounding


def test_a_fraction_just_below_one_never_becomes_one():
    almost = np.nextafter(np.float32(1), np.float32(0))
    clock = Clock(jnp.int32(5), jnp.float32(almost)).advance(jnp.float32(2**-26))
    assert 0 <= float(clock.fraction) < 1
    assert abs(exact(clock) - (5 + Fraction(float(almost)))) <= Fraction(1, 2**24)


def test_whole_numbers_are_exact_beyond_float32():
    clock = Clock(jnp.int32(2**24), jnp.float32(0.25))
    for _ in range(3):
        clock = clock.advance(jnp.float32(1))
    assert (int(clock.whole), float(clock.fraction)) == (2**24 + 3, 0.25)
    assert exact(clock.advance(jnp.float32(1.875))) == 2**24 + 5 + Fraction(1, 8)


@pytest.mark.usefixtures("float64")
def test_clock_in_float64():
    clock = init_clock(jnp.float64)
    for _ in range(10):
        clock = clock.advance(jnp.float64(0.1))
    assert (clock.whole.dtype, clock.fraction.dtype) == (jnp.int32, jnp.float64)
    assert abs(float(clock.value()) - 1) < 1e-15


def test_clock_keeps_its_types():
    clock = init_clock(jnp.float32)
    later = jax.jit(Clock.advance)(clock, 1.5)
    for x in (*clock, *later):
        assert not x.weak_type
    assert [x.dtype for x in later] == [x.dtype for x in clock]


# Averages.


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9, 0.999])
def test_average_is_the_debiased_geometric_mean_of_weights(decay):
    samples = np.random.default_rng(0).normal(3, 1, (20, 2))
    with jax.enable_x64(True):
        averages = init_averages({"a": jnp.zeros(2)}, jnp.float64)
        for t, sample in enumerate(samples, start=1):
            averages = update_averages(averages, {"a": jnp.asarray(sample)}, 1 - decay)
            weights = decay ** np.arange(t - 1, -1, -1.0)
            expected = weights @ samples[:t] / weights.sum()
            np.testing.assert_allclose(debiased(averages)["a"], expected, rtol=1e-11)
            np.testing.assert_allclose(averages.weight, 1 - decay**t, rtol=1e-11)


def test_average_of_a_constant_is_the_constant_from_the_first_sample_on():
    averages = init_averages(jnp.float32(0), jnp.float32)
    for _ in range(50):
        averages = update_averages(averages, jnp.float32(7), 0.01)
        np.testing.assert_allclose(debiased(averages), 7, rtol=1e-5)


def test_average_of_nothing_is_zero():
    averages = init_averages({"a": jnp.ones(3), "b": jnp.ones([])}, jnp.float32)
    assert float(averages.weight) == 0
    for leaf in jax.tree.leaves(debiased(averages)):
        np.testing.assert_array_equal(leaf, np.zeros(leaf.shape))


def test_average_keeps_dtypes_without_weak_types():
    averages = init_averages({"a": jnp.ones(3), "b": jnp.ones([])}, jnp.float32)
    later = jax.jit(update_averages)(averages, {"a": jnp.ones(3), "b": jnp.ones([])}, 0.1)
    for before, after in zip(jax.tree.leaves(averages), jax.tree.leaves(later), strict=True):
        assert before.dtype == after.dtype == jnp.float32
        assert not before.weak_type
        assert not after.weak_type


def test_a_share_may_be_zero():
    averages = update_averages(init_averages(jnp.float32(0), jnp.float32), jnp.float32(2), 0.5)
    same = update_averages(averages, jnp.float32(9), 0.0)
    np.testing.assert_allclose(same, averages)
