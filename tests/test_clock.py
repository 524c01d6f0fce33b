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


def test_two_million_steps_of_a_fractional_gain_are_exact():
    """1.1 in float32 is a multiple of 2^-23, and so are all sums below 2: nothing is rounded."""
    steps, gain = 2_000_000, np.float32(1.1)

    @jax.jit
    def run(amount):
        clock = (init_clock(jnp.float32), jnp.float32(0))
        step = lambda carry, _: ((carry[0].advance(amount), carry[1] + amount), None)
        return jax.lax.scan(step, clock, length=steps)[0]

    clock, naive = run(gain)
    expected = steps * Fraction(float(gain))
    assert clock.whole.dtype == jnp.int32
    assert int(clock.whole) == expected // 1
    assert exact(clock) == expected
    np.testing.assert_allclose(clock.value(), float(expected), rtol=1e-7)
    assert abs(float(naive) - float(expected)) > 1000  # what a single float32 makes of it


@settings(max_examples=50)
@given(st.lists(st.floats(0, 1000, width=32), max_size=30))
def test_each_step_rounds_at_most_the_fraction(amounts):
    clock = init_clock(jnp.float32)
    for amount in amounts:
        clock = clock.advance(jnp.float32(amount))
        assert 0 <= float(clock.fraction) < 1
    total = sum(map(Fraction, amounts))
    assert abs(exact(clock) - total) <= len(amounts) * Fraction(1, 2**24)


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
