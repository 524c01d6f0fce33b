"""AdamW that follows the batch: Optax's own at the base batch, the same decay per example."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from changing_batches import RULES, SIZES, assert_bits, beside_optax, bits, stats, tree

from adaoptax.scaling import (
    adamw_with_batch,
    add_decayed_weights_with_batch,
    rules,
    scale_by_adam_with_batch,
)

pytestmark = pytest.mark.sampled


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("weight_decay", [0.0, 1e-4, 0.1])
@pytest.mark.parametrize("mask", [None, {"w": True, "b": False}])
def test_adamw_is_that_of_optax_while_the_batch_never_changes(rule, weight_decay, mask):
    ours = adamw_with_batch(3e-3, 48, weight_decay=weight_decay, mask=mask, rule=rule)
    theirs = optax.adamw(3e-3, weight_decay=weight_decay, mask=mask)
    # One operation at a time: what a compiler fuses is not ours to promise.
    for updates, expected, _, _ in beside_optax(ours, theirs, 6):
        assert_bits(updates, expected)


def test_compiled_adamw_agrees_with_optax_to_the_last_bits():
    schedule = optax.warmup_cosine_decay_schedule(0.0, 3e-3, 10, 60)
    ours, theirs = adamw_with_batch(schedule, 48), optax.adamw(schedule)
    for updates, expected, _, _ in beside_optax(ours, theirs, 60, compiled=True):
        for a, b in zip(bits(updates), bits(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-11)


def test_weight_decay_and_schedule_follow_the_examples():
    schedule = optax.linear_schedule(1e-2, 0.0, 50)
    tx = adamw_with_batch(
        schedule, 32, weight_decay=0.1, learning_rate_rule=rules.surge, noise_scale=100.0
    )
    adam = scale_by_adam_with_batch(32)
    params, tau = tree(0), 0.0
    state, adam_state = tx.init(params), adam.init(params)
    for seed, size in enumerate(SIZES):
        updates, state = tx.update(tree(seed), state, params, stats=stats(size))
        step, adam_state = adam.update(tree(seed), adam_state, stats=stats(size))
        factor, kappa = float(rules.surge(size, 32, 100.0)), size / 32
        rate = 1e-2 * (1 - tau / 50)
        expected = -rate * (factor * step["w"] + 0.1 * kappa * params["w"])
        np.testing.assert_allclose(updates["w"], expected, rtol=1e-4, atol=1e-8)
        tau += kappa


@pytest.mark.parametrize("rule", RULES)
def test_decay_per_example_does_not_depend_on_the_batch(rule):
    # With a zero gradient AdamW only decays: the same parameters after the same examples.
    found = []
    for size in (16, 64, 256):
        tx = adamw_with_batch(1e-3, 32, weight_decay=0.1, rule=rule)
        params = {"w": jnp.ones(2)}
        state, update = tx.init(params), jax.jit(tx.update)
        for _ in range(256 // size):
            zero = jax.tree.map(jnp.zeros_like, params)
            updates, state = update(zero, state, params, stats=stats(size))
            params = optax.apply_updates(params, updates)
        found.append(float(params["w"][0]))
    np.testing.assert_allclose(found, (1 - 1e-4) ** 8, rtol=1e-6)


def test_the_learning_rate_follows_its_rule():
    grads = {"w": jnp.ones(1)}
    for rule, learning_rate_rule, factor in (
        ("half-life", None, 1),
        ("marek", None, 1),
        ("malladi", None, 2),
        ("half-life", rules.sqrt, 2),
        ("malladi", rules.linear, 4),
    ):
        tx = adamw_with_batch(
            1e-2, 32, rule=rule, weight_decay=0, learning_rate_rule=learning_rate_rule
        )
        updates, state = tx.update(grads, tx.init(grads), grads, stats=stats(128))
        assert float(updates["w"][0]) == pytest.approx(-1e-2 * factor, rel=1e-5)
        assert float(optax.tree.get(state, "batch_factor")) == factor


def test_a_nonfinite_gradient_does_not_decay_the_weights():
    tx = adamw_with_batch(1e-2, 32, weight_decay=0.1)
    params = tree(0)
    bad = stats(48, sq_norm=np.nan)
    updates, state = tx.update(tree(1), tx.init(params), params, stats=bad)
    assert all((leaf == 0).all() for leaf in bits(updates))
    assert int(optax.tree.get(state, "decays_skipped")) == 1


def test_weight_decay_says_what_it_lacks():
    with pytest.raises(ValueError, match="weight_decay=-1"):
        add_decayed_weights_with_batch(-1, 32)
    tx = adamw_with_batch(0.1, 32)
    with pytest.raises(ValueError, match="Expected params, got params=None"):
        tx.update(tree(0), tx.init(tree(0)), stats=stats(32))
    with pytest.raises(ValueError, match=r"rules.surge, got None"):
        adamw_with_batch(0.1, 32, learning_rate_rule=rules.surge)
