"""What AdaScale does to the step: placement, SGD at S = 1, bad steps, options."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from changing_batches import assert_bits, tau

import adaoptax

pytestmark = pytest.mark.sampled

CONVENTIONS = ("adaoptax", "paper", "fairscale")
BASE = 4
SCHEDULE = optax.warmup_cosine_decay_schedule(0.0, 0.3, 5, 40)


def closed_form(rows: np.ndarray, group_size: float) -> float:
    """Gain of a first step, from the per-step samples of the paper (clamped)."""
    n, g = len(rows), rows.mean(axis=0)
    per_example = group_size * ((rows - g) ** 2).sum() / (n - 1)
    signal = max(g @ g - per_example / (n * group_size), 0)
    return (per_example / BASE + signal) / (per_example / (n * group_size) + signal)


def batches(seed: int, steps: int, n: int = 4, d: int = 6) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return list((rng.normal(size=(steps, n, d)) * 0.5 + 0.4).astype(np.float32))


def run(tx: Any, params: Any, story: list[Any], numpy_stats: Any, group_size: float = 1) -> Any:
    """(params, state, states after each step, updates of each step)."""
    state, update = tx.init(params), jax.jit(tx.update)
    states, all_updates = [], []
    for rows in story:
        grads, stats = numpy_stats(rows, group_size)
        updates, state = update(grads, state, params, stats=stats)
        params = optax.apply_updates(params, updates)
        states.append(state)
        all_updates.append(updates)
    return params, state, states, all_updates


@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("learning_rate", [0.1, SCHEDULE], ids=["constant", "schedule"])
@pytest.mark.parametrize(
    "options", [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}], ids=str
)
def test_scale_one_is_sgd_bit_for_bit(options, learning_rate, convention, numpy_stats):
    story = batches(0, 30)  # four examples: S = 1
    params = jnp.linspace(-1, 1, 6)
    tx = adaoptax.adascale(learning_rate, BASE, convention=convention, **options)
    plain = adaoptax.bind_extra_args(optax.sgd(learning_rate, **options))
    mine, state, _, _ = run(tx, params, story, numpy_stats)
    theirs, *_ = run(plain, params, story, numpy_stats)
    np.testing.assert_array_equal(mine, theirs)
    assert not np.array_equal(mine, params)
    assert int(optax.tree.get(state, "scale_invariant_count")) == 30
    assert float(optax.tree.get(state, "scale_invariant_fraction")) == 0


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("weight_decay", [None, 0.02])
def test_gain_comes_after_momentum_and_multiplies_weight_decay(weight_decay, nesterov, numpy_stats):
    # Δw = −lr · r · (momentum buffer + wd · w), as fairscale and adaptdl do through lr.
    story, lr, beta = batches(1, 12), 0.05, 0.9
    params = jnp.linspace(-1, 1, 6)
    tx = adaoptax.adascale(lr, BASE, momentum=beta, nesterov=nesterov, weight_decay=weight_decay)
    _, _, states, updates = run(tx, params, story, numpy_stats, group_size=8)  # S = 8
    w, buffer = np.asarray(params, float), np.zeros(6)
    for rows, state, update in zip(story, states, updates, strict=True):
        g = rows.astype(float).mean(axis=0)
        buffer = g + beta * buffer
        direction = g + beta * buffer if nesterov else buffer
        gain = float(optax.tree.get(state, "gain"))
        assert 1 < gain < 8
        expected = -lr * gain * (direction + (weight_decay or 0) * w)
        np.testing.assert_allclose(update, expected, rtol=2e-6, atol=1e-7)
        w = w + expected
    assert float(optax.tree.get(states[0], "gain")) == pytest.approx(
        closed_form(story[0].astype(float), 8), rel=1e-5
    )


def test_gain_in_front_of_momentum_would_be_another_algorithm(numpy_stats):
    story, params = batches(2, 6), jnp.zeros(6)
    right = adaoptax.adascale(0.1, BASE, momentum=0.9)
    wrong = optax.chain(adaoptax.scale_by_adascale(BASE), optax.sgd(0.1, momentum=0.9))
    mine, *_ = run(right, params, story, numpy_stats, 8)
    other, *_ = run(wrong, params, story, numpy_stats, 8)
    assert np.abs(np.asarray(mine) - np.asarray(other)).max() > 1e-3


def test_weight_decay_mask(numpy_stats):
    rows = {"w": batches(3, 1)[0], "b": batches(4, 1)[0]}
    params = {"w": jnp.full(6, 5.0), "b": jnp.full(6, 5.0)}
    masked = adaoptax.adascale(0.1, BASE, weight_decay=0.1, mask={"w": True, "b": False})
    plain = adaoptax.adascale(0.1, BASE)
    _, state, _, (updates,) = run(masked, params, [rows], numpy_stats)
    _, _, _, (without,) = run(plain, params, [rows], numpy_stats)
    np.testing.assert_array_equal(updates["b"], without["b"])
    gain = float(optax.tree.get(state, "gain"))
    np.testing.assert_allclose(updates["w"], without["w"] - 0.1 * gain * 0.1 * 5, rtol=1e-5)


@pytest.mark.parametrize("exponent", [0.5, 0.25, 1, 1.0])
def test_exponent_changes_the_step_and_not_the_clock(exponent, numpy_stats):
    rows, ones = batches(5, 1)[0], jnp.ones(6)
    _, stats = numpy_stats(rows, 16)
    tx = adaoptax.scale_by_adascale(BASE, exponent=exponent)
    updates, state = tx.update(ones, tx.init(ones), stats=stats)
    gain = closed_form(rows.astype(float), 16)
    assert gain > 1.5
    np.testing.assert_allclose(updates, gain**exponent, rtol=1e-5)
    assert float(state.gain) == pytest.approx(gain, rel=1e-5)
    assert tau(state) == pytest.approx(gain, rel=1e-5)


def test_without_learning_rate_the_sign_is_kept_and_with_one_it_is_flipped(numpy_stats):
    grads, stats = numpy_stats(batches(6, 1)[0], 8)
    alone = adaoptax.scale_by_adascale(BASE)
    with_rate = adaoptax.scale_by_adascale(BASE, learning_rate=0.25)
    up, state = alone.update(grads, alone.init(grads), stats=stats)
    down, _ = with_rate.update(grads, with_rate.init(grads), stats=stats)
    np.testing.assert_allclose(up, float(state.gain) * grads, rtol=1e-6)
    np.testing.assert_allclose(down, -0.25 * up, rtol=1e-6)


def test_constant_schedule_is_the_constant(numpy_stats):
    story, params = batches(7, 8), jnp.zeros(6)
    one, *_ = run(adaoptax.adascale(0.1, BASE, momentum=0.5), params, story, numpy_stats, 8)
    constant = optax.constant_schedule(0.1)
    two, *_ = run(adaoptax.adascale(constant, BASE, momentum=0.5), params, story, numpy_stats, 8)
    np.testing.assert_allclose(one, two, rtol=1e-6)


def bad_rows(kind: str) -> np.ndarray:
    rows = batches(8, 1)[0].copy()
    rows[1, 2] = {"nan": np.nan, "inf": np.inf, "-inf": -np.inf}[kind]
    return rows


@pytest.mark.parametrize("kind", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("position", [0, 1, 5])
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_a_nonfinite_step_never_happened(convention, position, kind, numpy_stats):
    story, params = batches(9, 8), jnp.linspace(-1, 1, 6)
    tx = adaoptax.adascale(SCHEDULE, BASE, momentum=0.9, weight_decay=0.01, convention=convention)
    spoiled = [*story[:position], bad_rows(kind), *story[position:]]
    clean_params, clean, _, _ = run(tx, params, story, numpy_stats, 8)
    found_params, found, states, updates = run(tx, params, spoiled, numpy_stats, 8)
    np.testing.assert_array_equal(updates[position], np.zeros(6))
    np.testing.assert_array_equal(found_params, clean_params)
    assert int(optax.tree.get(states[position], "steps_skipped")) == 1
    assert int(optax.tree.get(found, "steps_skipped")) == 1
    assert int(optax.tree.get(found, "nonfinite_skipped")) == 1
    reset = lambda s: optax.tree.set(s, steps_skipped=0, nonfinite_skipped=0)
    assert_bits(reset(found), reset(clean))


def test_nan_forever_leaves_everything_finite(numpy_stats):
    tx = adaoptax.adascale(0.1, BASE, momentum=0.9)
    params, state, *_ = run(tx, jnp.ones(6), [bad_rows("nan")] * 5, numpy_stats)
    np.testing.assert_array_equal(params, np.ones(6))
    for leaf in jax.tree.leaves(state):
        assert np.isfinite(np.asarray(leaf, float)).all()
    assert float(optax.tree.get(state, "gain")) == 1


def test_overflowing_gradients_are_skipped_like_infinite_ones(numpy_stats):
    tx = adaoptax.scale_by_adascale(BASE)
    big = jnp.full(6, 1e30)
    stats = adaoptax.GradientStats(*map(jnp.float32, (16, 4, np.inf, np.inf)))
    updates, state = tx.update(big, tx.init(big), stats=stats)
    np.testing.assert_array_equal(updates, np.zeros(6))
    assert int(state.steps_skipped) == 1


def test_an_infinite_variance_alone_is_not_averaged(numpy_stats):
    # The gradient is fine, its variance overflowed: the step is taken, the average is left alone.
    tx = adaoptax.scale_by_adascale(BASE)
    ones = jnp.ones(6)
    stats = adaoptax.GradientStats(*map(jnp.float32, (16, 4, 6, np.inf)))
    updates, state = tx.update(ones, tx.init(ones), stats=stats)
    np.testing.assert_array_equal(updates, ones)
    assert int(state.gain_samples) == 0
    assert bool(state.gain_undefined)
    assert int(state.steps_skipped) == 0


def test_an_empty_batch_changes_nothing(numpy_stats):
    tx = adaoptax.scale_by_adascale(BASE)
    state = tx.init(jnp.ones(6))
    stats = adaoptax.GradientStats(*map(jnp.float32, (0, 0, 0, np.nan)))
    updates, after = tx.update(jnp.zeros(6), state, stats=stats)
    np.testing.assert_array_equal(updates, np.zeros(6))
    assert int(after.steps_skipped) == 1
    assert_bits(after._replace(steps_skipped=0), state)


def test_same_bound_at_every_scale_on_a_noisy_quadratic():
    # F(w) = ‖w‖²/2 with gradient noise: at equal τ the same bound holds, whatever S (Theorem 2).
    rate, total, sd = 0.02, 200, 3.0
    tx = adaoptax.adascale(rate, 1)

    def loss_at(scale: int) -> np.ndarray:
        # Two half base batches make one: groups of half an example each.
        noise = np.random.default_rng(0).normal(size=(64, total, 2 * scale, 8)) * sd

        def run(noise: Any) -> Any:
            def step(carry: Any, noise: Any) -> Any:
                w, state = carry
                rows = w + noise
                g = rows.mean(axis=0)
                variance = 0.5 * jnp.sum((rows - g) ** 2) / (len(rows) - 1)
                stats = adaoptax.GradientStats(
                    jnp.float32(scale), jnp.float32(len(rows)), jnp.sum(g**2), variance
                )
                updates, new_state = tx.update(g, state, stats=stats)
                new = (optax.apply_updates(w, updates), new_state)
                done = state.scale_invariant_count >= total
                return jax.tree.map(lambda a, b: jnp.where(done, a, b), carry, new), done

            start = jnp.full(8, 2.0)
            (w, _), done = jax.lax.scan(step, (start, tx.init(start)), noise)
            return 0.5 * jnp.sum(w**2), jnp.sum(~done)

        losses, steps = jax.jit(jax.vmap(run))(jnp.asarray(noise, jnp.float32))
        assert (np.asarray(steps) >= total / scale).all()
        if scale > 1:
            assert np.asarray(steps).mean() < 0.5 * total  # it did go faster
        return np.asarray(losses)

    # Theorem 2 with α = β = 1, V = 8 · 9/2 and γ = η (2 − η): the same bound whatever S is.
    gamma = rate * (2 - rate)
    bound = 16 * np.exp(-gamma * total) + rate**2 * 36 / (2 * gamma)
    for scale in (1, 4, 16):
        losses = loss_at(scale)
        four_errors = 4 * losses.std(ddof=1) / np.sqrt(len(losses))
        assert four_errors < 0.3 * bound
        assert losses.mean() < bound + four_errors
        if scale == 1:  # SGD on a quadratic attains it
            assert losses.mean() > bound - four_errors
        assert losses.mean() > 0.4 * bound  # and nothing else was made smaller by mistake


@pytest.mark.parametrize("bad", [0, -1, float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("base_batch_size", adaoptax.scale_by_adascale),
        ("base_batch_size", lambda bad: adaoptax.adascale(0.1, bad)),
        ("exponent", lambda bad: adaoptax.scale_by_adascale(8, exponent=bad)),
        ("exponent", lambda bad: adaoptax.adascale(0.1, 8, momentum=0.9, exponent=bad)),
    ],
)
def test_sizes_and_exponents_are_positive(name, make, bad):
    with pytest.raises(ValueError, match=rf"Expected {name} > 0 and finite, got {name}={bad!r}"):
        make(bad)


@pytest.mark.parametrize("bad", [1, 1.5, -0.1, float("nan")])
def test_decay_is_a_share(bad):
    with pytest.raises(ValueError, match=rf"Expected 0 <= decay < 1, got decay={bad!r}"):
        adaoptax.scale_by_adascale(8, decay=bad)


def test_unknown_convention_lists_the_choices():
    with pytest.raises(ValueError, match=r"'adaoptax', 'paper', 'fairscale'.*'adaptdl'"):
        adaoptax.adascale(0.1, 8, convention="adaptdl")


@pytest.mark.parametrize(
    "make", [lambda: adaoptax.scale_by_adascale(8), lambda: adaoptax.adascale(0.1, 8, momentum=0.9)]
)
def test_missing_or_wrong_stats_are_type_errors(make):
    tx, ones = make(), jnp.ones(2)
    with pytest.raises(TypeError, match="stats"):
        tx.update(ones, tx.init(ones))
    with pytest.raises(TypeError, match="Expected stats to be a GradientStats, got float"):
        tx.update(ones, tx.init(ones), stats=1.0)


def test_inject_hyperparams_keeps_the_schedule_on_its_clock_when_static(numpy_stats):
    schedule = lambda count: 1 / (1 + count)
    static = ("learning_rate", "convention")
    tx = optax.inject_hyperparams(adaoptax.adascale, static_args=static)(schedule, BASE)
    noise = np.array([[1.0], [-1.0], [1.0], [-1.0]], np.float32)  # gain S = 8 at 32 examples
    grads, stats = numpy_stats(noise, 8)
    state = tx.init(grads)
    ones = jax.tree.map(jnp.ones_like, grads)
    for step in range(3):
        updates, state = tx.update(ones, state, stats=stats)
        np.testing.assert_allclose(updates, -8 / (1 + 8 * step), rtol=1e-6)


def test_a_missing_stats_is_reported_under_the_public_name():
    for tx, name in [
        (adaoptax.scale_by_adascale(BASE), "scale_by_adascale"),
        (adaoptax.norm_test(0.5), "norm_test"),
    ]:
        with pytest.raises(TypeError, match=rf"{name}.*'stats'"):
            tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
