"""How Adam's numbers move with the batch: tables, maps that compose, ranges."""

import math

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from adaoptax.scaling import adam_hyperparams, decay_of_half_life, half_life_of_decay
from adaoptax.scaling.adam_hyperparams import ADAM_RULES, moved_decay

pytestmark = pytest.mark.sampled

kappas = st.floats(2.0**-8, 2.0**8)
decays = st.floats(0.5, 0.9999)
every_rule = pytest.mark.parametrize("rule", list(ADAM_RULES))


def test_the_table_of_second_decays():
    # Half-life of 10 million tokens, sequences of 512 (Marek et al., 30M model).
    table = {
        1: 0.99996,
        4: 0.99986,
        16: 0.99943,
        64: 0.99773,
        256: 0.99096,
        1024: 0.96431,
        4096: 0.86471,
    }
    for size, decay in table.items():
        assert decay_of_half_life(10e6, 512 * size) == pytest.approx(decay, abs=6e-6)
        # The rule from any of them gives all others.
        moved = adam_hyperparams(size, 64, b2=decay_of_half_life(10e6, 512 * 64), rule="marek")
        assert moved.b2 == pytest.approx(decay, abs=6e-6)


def test_the_table_of_first_decays():
    tokens = {1: 40e3, 4: 40e3, 16: 60e3, 64: 200e3, 256: 1e6, 1024: 3e6, 4096: 6e6}
    expected = (0.991, 0.965, 0.910, 0.893, 0.913, 0.886, 0.785)
    for (size, half_life), decay in zip(tokens.items(), expected, strict=True):
        assert decay_of_half_life(half_life, 512 * size) == pytest.approx(decay, abs=6e-4)


def test_the_second_decay_of_a_batch_of_512_at_a_batch_of_one():
    assert adam_hyperparams(1, 512, b2=0.95).b2 == pytest.approx(0.99990, abs=5e-6)
    sizes = (32, 64, 128, 256, 512, 1024)  # a recipe of another team, from 0.999 at 32
    found = [adam_hyperparams(size, 32).b2 for size in sizes]
    np.testing.assert_allclose(found, [0.999, 0.998, 0.996, 0.992, 0.984, 0.9685], atol=1.3e-4)


@hypothesis.given(decays, kappas)
@hypothesis.settings(max_examples=50)
def test_half_life_and_decay_are_inverses(decay, batch_size):
    half_life = half_life_of_decay(decay, batch_size)
    assert decay_of_half_life(half_life, batch_size) == pytest.approx(decay, rel=1e-12)
    assert decay ** (half_life / batch_size) == pytest.approx(0.5)
    traced = jax.jit(half_life_of_decay)(decay, batch_size)
    assert float(traced) == pytest.approx(half_life, rel=1e-3)


@every_rule
@hypothesis.given(decays, decays, kappas, kappas)
@hypothesis.settings(max_examples=50)
def test_two_moves_are_one(rule, b1, b2, first, second):
    if rule == "malladi":  # within its range
        limit = 0.99 / (1 - min(b1, b2))
        first = min(first, limit)
        second = min(second, limit / first)
    between = adam_hyperparams(first, 1, b1, b2, 1e-8, 1e-12, rule=rule)
    twice = adam_hyperparams(first * second, first, *between[:4], rule=rule)
    once = adam_hyperparams(first * second, 1, b1, b2, 1e-8, 1e-12, rule=rule)
    for name in ("b1", "b2", "eps", "eps_root"):
        assert getattr(twice, name) == pytest.approx(getattr(once, name), rel=1e-9, abs=1e-12)
    for name in ("learning_rate_factor", "weight_decay_factor"):
        product = getattr(between, name) * getattr(twice, name)
        assert product == pytest.approx(getattr(once, name), rel=1e-12)


@every_rule
def test_nothing_moves_at_the_base_batch(rule):
    same = adam_hyperparams(96, 96, 0.9, 0.999, 1e-8, 1e-6, rule=rule)
    assert same[:3] == pytest.approx((0.9, 0.999, 1e-8), rel=1e-15)
    assert same[3:] == (1e-6, 1, 1)


def test_the_square_root_rules_at_four_base_batches():
    moved = adam_hyperparams(4, 1, 0.9, 0.999, 1e-8, rule="malladi")
    expected = (0.6, 0.996, 5e-9, 0.0, 2.0, 2.0)
    assert tuple(moved) == pytest.approx(expected)
    # The half-life agrees to first order only.
    assert adam_hyperparams(4, 1, 0.9).b1 == pytest.approx(0.6561)
    near = adam_hyperparams(1.01, 1, 0.999, rule="malladi").b1
    assert near == pytest.approx(adam_hyperparams(1.01, 1, 0.999).b1, abs=1e-8)


@every_rule
@hypothesis.given(st.floats(0.1, 9), st.floats(1e-5, 1), st.floats(1e-4, 1))
@hypothesis.settings(max_examples=30)
def test_the_timescale_of_weight_decay_stays_in_examples(rule, kappa, rate, decay):
    batch, dataset = 64.0, 1e6
    moved = adam_hyperparams(kappa * batch, batch, rule=rule)
    before = batch / (rate * decay * dataset)
    new_rate, new_decay = rate * moved.learning_rate_factor, decay * moved.weight_decay_factor
    assert kappa * batch / (new_rate * new_decay * dataset) == pytest.approx(before)


def test_the_square_root_rules_refuse_what_they_cannot_follow():
    assert adam_hyperparams(9.99, 1, rule="malladi").b1 > 0
    for kappa in (10.0001, 64):
        with pytest.raises(ValueError, match=r"below 10 base batches for b1=0.9, got"):
            adam_hyperparams(kappa, 1, rule="malladi")
    with pytest.raises(ValueError, match=r"b2=0\.5"):
        adam_hyperparams(2, 1, 0.99, 0.5, rule="malladi")
    traced = jax.jit(lambda size: adam_hyperparams(size, 1.0, rule="malladi"))(64.0)
    assert np.isnan(traced.b1)
    assert float(traced.b2) == pytest.approx(0.936)


def test_no_first_moment_stays_none():
    for rule in ADAM_RULES:
        assert adam_hyperparams(64, 1, b1=0.0, rule=rule).b1 == 0
        traced = jax.jit(lambda b, r=rule: adam_hyperparams(64.0, 1.0, b1=b, rule=r).b1)(0.0)
        assert float(traced) == 0


@every_rule
@pytest.mark.parametrize("kappa", [1 / 512, 1.0, 3.7, 9.0])
def test_a_step_of_training_moves_by_the_same_maps(rule, kappa):
    moves = ADAM_RULES[rule]
    expected = adam_hyperparams(kappa, 1, rule=rule)
    for name, how, base in (("b1", moves.b1, 0.9), ("b2", moves.b2, 0.999)):
        decay, share = moved_decay(how, base, jnp.float32(kappa))
        exact = getattr(expected, name)
        assert float(decay) == pytest.approx(exact, rel=2e-7, abs=1e-7)
        assert float(share) == pytest.approx(1 - exact, rel=5e-7)  # no 1 − β in float32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"b1": 1.0}, "b1=1.0"),
        ({"b2": -0.1}, "b2=-0.1"),
        ({"eps": -1.0}, "eps=-1.0"),
        ({"eps_root": -1.0}, "eps_root=-1.0"),
        ({"rule": "sqrt"}, "rule='sqrt'"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"base_batch_size": 0}, "base_batch_size=0"),
    ],
)
def test_numbers_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        adam_hyperparams(**{"batch_size": 64, "base_batch_size": 32, **arguments})


def test_half_lives_must_be_positive_and_finite():
    for half_life in (0, -5, math.inf, math.nan):
        with pytest.raises(ValueError, match="half_life"):
            decay_of_half_life(half_life, 32)
    for decay in (0.0, 1.0, -0.5):
        with pytest.raises(ValueError, match="decay"):
            half_life_of_decay(decay, 32)
    with pytest.raises(ValueError, match="batch_size=0"):
        decay_of_half_life(100, 0)
