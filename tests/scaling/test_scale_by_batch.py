"""`scale_by_batch` and `BatchScaledSchedule`: rules at work, step by step."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from changing_batches import assert_bits

import adaoptax
from adaoptax import GradientStats
from adaoptax.scaling import BatchScaledSchedule, ScaleByBatchState, rules, scale_by_batch

pytestmark = pytest.mark.sampled

SIZES = (64, 64, 96, 192, 256, 48, 1024)


def some_stats(batch: float, seed: int = 0, groups: float = 4) -> GradientStats:
    rng = np.random.default_rng(seed)
    variance, signal = rng.uniform(50, 150), rng.uniform(0.5, 2)
    return GradientStats(*map(jnp.float32, (batch, groups, signal + variance / batch, variance)))


def factors(tx: Any, story: Any) -> list[float]:
    """Factor of every step."""
    update, state, found = jax.jit(tx.update), tx.init(jnp.ones(3)), []
    for stats in story:
        updates, state = update(jnp.ones(3), state, stats=stats)
        found.append(float(updates[0]))
    return found


@pytest.mark.parametrize(
    ("rule", "noise_scale"),
    [
        (rules.linear, None),
        (rules.sqrt, None),
        (rules.mccandlish, 300.0),
        (rules.surge, 300.0),
        (functools.partial(rules.surge, noise_scale=300.0, form="hold"), None),
        (lambda b, base: (b / base) ** 0.6, None),
    ],
)
def test_each_step_is_multiplied_by_the_rule_at_its_own_batch(rule, noise_scale):
    found = factors(
        scale_by_batch(rule, 64, noise_scale=noise_scale), [some_stats(b) for b in SIZES]
    )
    given = {} if noise_scale is None else {"noise_scale": noise_scale}
    expected = [float(rule(jnp.float32(b), jnp.float32(64), **given)) for b in SIZES]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert found[0] == 1


def test_the_rule_of_adascale_follows_scale_by_adascale():
    story = [some_stats(b, seed) for seed, b in enumerate(SIZES * 3)]
    ours = scale_by_batch(rules.adascale, 64, decay=0.9)
    theirs = adaoptax.scale_by_adascale(64, decay=0.9)
    np.testing.assert_allclose(factors(ours, story), factors(theirs, story), rtol=1e-6)


def test_adascale_averages_noise_and_signal_before_it_divides():
    story = [some_stats(b, seed) for seed, b in enumerate(SIZES)]
    noise = signal = weight = 0.0
    expected = []
    for stats in story:
        kept = 0.9 ** (float(stats.num_examples) / 64)
        noise = kept * noise + (1 - kept) * float(stats.variance)
        signal = kept * signal + (1 - kept) * float(adaoptax.signal(stats))
        weight = kept * weight + (1 - kept)
        at = lambda b: noise / weight / b + signal / weight  # noqa: B023, used at once
        expected.append(at(64) / at(float(stats.num_examples)))
    found = factors(scale_by_batch(rules.adascale, 64, decay=0.9), story)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_legw_counts_the_examples():
    rule = functools.partial(rules.legw, base_warmup_examples=500)
    found = factors(scale_by_batch(rule, 64), [some_stats(b) for b in SIZES])
    seen = np.cumsum([0, *SIZES])
    expected = [
        math.sqrt(b / 64) * min(1, e / (500 * b / 64)) / min(1, e / 500) if e else 1.0
        for b, e in zip(SIZES, seen, strict=False)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_rule_of_ones_own_gets_the_evidence_that_it_names():
    def rule(batch_size, base_batch_size, stats, examples_seen, noise_scale=7.0):
        del batch_size, base_batch_size
        return examples_seen + 1000 * noise_scale + 0 * stats.variance

    story = [some_stats(64), some_stats(32)]
    assert factors(scale_by_batch(rule, 64), story) == [7000, 7064]
    assert factors(scale_by_batch(rule, 64, noise_scale=2.0), story) == [2000, 2064]


def test_averages_hold_no_noise_of_their_own():
    seen: dict[str, Any] = {}

    def rule(batch_size, base_batch_size, stats):
        seen["signal"] = adaoptax.signal(stats)
        return seen["signal"]

    stats = some_stats(64, seed=3)
    tx = scale_by_batch(rule, 64)
    updates, _ = tx.update(jnp.ones(1), tx.init(jnp.ones(1)), stats=stats)
    assert float(updates[0]) == pytest.approx(float(adaoptax.signal(stats)), rel=1e-5)


def test_before_any_evidence_the_factor_is_one_flagged_and_counted():
    tx = scale_by_batch(rules.adascale, 32)
    state = tx.init(jnp.ones(1))
    single = some_stats(128, groups=1)._replace(variance=jnp.float32(jnp.nan))
    for step in range(2):
        updates, state = tx.update(jnp.ones(1), state, stats=single)
        assert float(updates[0]) == 1
        assert bool(state.evidence.factor_undefined)
        assert int(state.evidence.factors_undefined) == step + 1
    updates, state = tx.update(jnp.ones(1), state, stats=some_stats(128))
    assert 1 < float(updates[0]) < 4
    assert not bool(state.evidence.factor_undefined)
    # A step without evidence evaluates what is known at its own batch.
    updates, state = tx.update(
        jnp.ones(1), state, stats=single._replace(num_examples=jnp.float32(32))
    )
    assert float(updates[0]) == pytest.approx(1)
    assert int(state.evidence.factors_undefined) == 2


def test_a_noise_scale_that_is_unknown_gives_one():
    tx = optax.inject_hyperparams(scale_by_batch, static_args="rule")(
        rules.surge, 32.0, noise_scale=float("inf")
    )
    state = tx.init(jnp.ones(1))
    state.hyperparams["noise_scale"] = jnp.float32(jnp.nan)
    updates, state = tx.update(jnp.ones(1), state, jnp.ones(1), stats=some_stats(128))
    assert float(updates[0]) == 1
    assert bool(state.inner_state.evidence.factor_undefined)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_a_nonfinite_gradient_gives_a_zero_update_and_no_evidence(bad):
    tx = scale_by_batch(rules.adascale, 32)
    _, state = tx.update(jnp.ones(2), tx.init(jnp.ones(2)), stats=some_stats(64))
    broken = some_stats(64)._replace(sq_norm=jnp.float32(bad), variance=jnp.float32(bad))
    updates, after = tx.update(jnp.array([bad, 1.0]), state, stats=broken)
    assert updates.tolist() == [0, 0]
    assert int(after.updates_zeroed) == 1
    assert_bits(after.evidence.rule_averages, state.evidence.rule_averages)
    # Its examples count as seen.
    assert float(after.evidence.rule_clock.value()) * 65536 == 128


def test_a_batch_of_padding_changes_nothing_but_a_count():
    tx = scale_by_batch(rules.sqrt, 32)
    _, state = tx.update(jnp.ones(2), tx.init(jnp.ones(2)), stats=some_stats(64))
    empty = GradientStats(*map(jnp.float32, (0, 0, 0, jnp.nan)))
    updates, after = tx.update(jnp.zeros(2), state, stats=empty)
    assert updates.tolist() == [0, 0]
    assert_bits(after.evidence, state.evidence)
    assert int(after.updates_zeroed) == 1


def test_the_units_of_the_loss_do_not_matter():
    story = [some_stats(b, seed) for seed, b in enumerate(SIZES)]
    plain = factors(scale_by_batch(rules.adascale, 64), story)
    for unit in (1e-12, 1e12):
        scaled = [s._replace(sq_norm=unit * s.sq_norm, variance=unit * s.variance) for s in story]
        np.testing.assert_allclose(
            factors(scale_by_batch(rules.adascale, 64), scaled), plain, rtol=1e-4
        )


def test_a_noise_scale_moves_while_training_without_a_compilation(compilations):
    tx = optax.inject_hyperparams(scale_by_batch, static_args="rule")(
        rules.mccandlish, 256.0, noise_scale=1024.0
    )
    update, params = jax.jit(tx.update), jnp.ones(1)
    state, stats = tx.init(params), some_stats(1024)
    scales = [jnp.float32(x) for x in (0.0, 256.0)]
    updates, state = update(params, state, params, stats=stats)
    assert float(updates[0]) == 2.5
    compilations.reset()
    for scale, expected in zip(scales, (1.0, 1.6), strict=True):
        state.hyperparams["noise_scale"] = scale
        updates, state = update(params, state, params, stats=stats)
        assert float(updates[0]) == pytest.approx(expected)
    assert compilations.count == 0


@pytest.mark.parametrize("rule", [rules.sqrt, rules.adascale])
def test_a_hyperparameter_follows_the_batch_as_the_chain_does(rule):
    params = jnp.array([1.0, -2.0, 0.5])
    chained = optax.chain(optax.scale_by_adam(), scale_by_batch(rule, 64), optax.scale(-1e-2))
    # Injected, 0.999 would be a float32, and 1 − 0.999 another number.
    injected = optax.inject_hyperparams(optax.adam, static_args=("b1", "b2"))(
        learning_rate=BatchScaledSchedule(1e-2, rule, 64)
    )
    state, other = chained.init(params), injected.init(params)
    assert float(other.hyperparams["learning_rate"]) == pytest.approx(1e-2)
    update, injected_update = jax.jit(chained.update), jax.jit(injected.update)
    for seed, size in enumerate(SIZES):
        grads, stats = jnp.sin(seed + params), some_stats(size, seed)
        expected, state = update(grads, state, params, stats=stats)
        updates, other = injected_update(grads, other, params, stats=stats)
        np.testing.assert_allclose(updates, expected, rtol=1e-6)
        rate = 1e-2 * float(optax.tree.get(state, "batch_factor"))
        assert float(other.hyperparams["learning_rate"]) == pytest.approx(rate, rel=1e-6)


def test_a_schedule_counts_steps_of_the_base_batch():
    schedule = optax.linear_schedule(1.0, 0.0, 100)
    tx = optax.inject_hyperparams(optax.sgd)(
        learning_rate=BatchScaledSchedule(schedule, rules.sqrt, 64)
    )
    state, steps = tx.init(jnp.ones(1)), 0.0
    for size in SIZES:
        updates, state = tx.update(jnp.ones(1), state, jnp.ones(1), stats=some_stats(size))
        assert float(updates[0]) == pytest.approx(-(1 - steps / 100) * math.sqrt(size / 64))
        steps += size / 64


def test_an_injected_hyperparameter_does_not_compile_again(compilations):
    tx = optax.inject_hyperparams(optax.adam)(
        learning_rate=BatchScaledSchedule(optax.constant_schedule(0.1), rules.adascale, 64)
    )
    params = jnp.ones(2)
    state, update = tx.init(params), jax.jit(tx.update)
    story = [some_stats(b) for b in SIZES]
    _, state = update(params, state, params, stats=story[0])
    compilations.reset()
    with jax.transfer_guard("disallow"):
        for stats in story:
            _, state = update(params, state, params, stats=stats)
    assert compilations.count == 0


def test_an_injected_hyperparameter_refuses_to_lose_its_statistics():
    tx = optax.inject_hyperparams(optax.sgd)(learning_rate=BatchScaledSchedule(0.1, rules.sqrt, 64))
    with pytest.raises(TypeError, match="stats"):
        tx.update(jnp.ones(1), tx.init(jnp.ones(1)), jnp.ones(1))
    with pytest.raises(TypeError, match="GradientStats, got dict"):
        tx.update(jnp.ones(1), tx.init(jnp.ones(1)), jnp.ones(1), stats={})


def test_parts_of_the_parameters_may_have_rules_of_their_own():
    params = {"a": jnp.ones(1), "b": jnp.ones(1), "c": jnp.ones(1)}
    tx = optax.chain(
        optax.partition(
            {"root": scale_by_batch(rules.sqrt, 32), "line": scale_by_batch(rules.linear, 32)},
            {"a": "root", "b": "line", "c": "line"},
        ),
        optax.masked(scale_by_batch(rules.sqrt, 32), {"a": False, "b": False, "c": True}),
    )
    updates, state = tx.update(params, tx.init(params), params, stats=some_stats(128))
    assert {name: float(x[0]) for name, x in updates.items()} == {"a": 2, "b": 4, "c": 8}
    same_again = tx.update(params, state, params, stats=some_stats(128))[0]
    assert float(same_again["c"][0]) == 8


def test_swapping_the_rule_keeps_the_state():
    first, second = scale_by_batch(rules.sqrt, 32), scale_by_batch(rules.adascale, 32)
    _, state = first.update(jnp.ones(1), first.init(jnp.ones(1)), stats=some_stats(128))
    updates, after = second.update(jnp.ones(1), state, stats=some_stats(128))
    assert isinstance(after, ScaleByBatchState)
    assert int(after.evidence.rule_samples) == 2
    assert 1 < float(updates[0]) < 4


FORMS = [scale_by_batch, functools.partial(BatchScaledSchedule, 0.1)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((rules.surge, 64), {}, ValueError, "rules.surge, got None"),
        ((rules.mccandlish, 64), {}, ValueError, "rules.mccandlish, got None"),
        ((rules.legw, 64), {}, ValueError, "needs base_warmup_examples"),
        ((rules.sqrt, 64), {"noise_scale": 100.0}, ValueError, "does not use one"),
        (("sqrt", 64), {}, TypeError, "rule to be a function"),
        ((rules.sqrt, 0), {}, ValueError, "base_batch_size=0"),
        ((rules.adascale, 64), {"decay": 1.0}, ValueError, "decay=1.0"),
        ((lambda b, base: jnp.ones(3) * b, 64), {}, ValueError, r"shape \(3,\) from <lambda>"),
        ((rules.surge, 64), {"noise_scale": -2.0}, ValueError, "noise_scale"),
    ],
)
def test_a_rule_that_cannot_run_is_refused_when_it_is_given(
    form, arguments, options, error, message
):
    with pytest.raises(error, match=message):
        form(*arguments, **options)
