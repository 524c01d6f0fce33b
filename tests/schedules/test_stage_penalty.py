"""The penalty to the start of a stage, against loops in float64 and against its definition."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from statistics_of import stats_of

from adaoptax import skip_nonfinite, stats_from_groups
from adaoptax.schedules import add_stage_penalty, apply_stage_prox, sebs

pytestmark = pytest.mark.sampled

STAGES = [(0, 16), (40, 32), (100, 48), (160, 48), (161, 64)]
SIZES = [16, 16, 16, 32, 32, 48, 1, 64, 64]  # seen before: 0 16 32 48 80 112 160 161 225
STAGE_OF_STEP = [0, 0, 0, 1, 1, 2, 3, 4, 4]


def gradient(w):
    """Of a quadratic with curvatures 1 and 3, whose minimum is at (1, -2)."""
    return np.array([1.0, 3.0]) * (w - np.array([1.0, -2.0]))


def run(tx, w=(4.0, 4.0), sizes=SIZES, dtype=jnp.float32):
    """All parameters, and the state, of steps on the quadratic."""
    w = jnp.asarray(w, dtype)
    state, seen = tx.init(w), []
    update = jax.jit(tx.update)
    for size in sizes:
        grads = jnp.asarray(gradient(np.asarray(w, np.float64)), dtype)
        updates, state = update(grads, state, w, stats=stats_of(size, dtype))
        w = optax.apply_updates(w, updates)
        seen.append(np.asarray(w, np.float64))
    return np.array(seen), state


def by_hand(step, gamma=None, w=(4.0, 4.0)):
    """The same in float64: `step` takes (w, penalised gradient, stage start) and returns w."""
    w, seen, last = np.array(w), [], -1
    for stage in STAGE_OF_STEP:
        if stage != last:
            start, last = w, stage
        g = gradient(w)
        w = step(w, g if gamma is None else g + (w - start) / gamma, start)
        seen.append(w)
    return np.array(seen)


def test_sgd_on_the_penalised_loss():
    seen, state = run(optax.chain(add_stage_penalty(STAGES, 0.7), optax.sgd(0.1)))
    np.testing.assert_allclose(seen, by_hand(lambda w, g, _: w - 0.1 * g, 0.7), rtol=1e-5)
    np.testing.assert_allclose(state[0].stage_start, seen[6], rtol=1e-6)
    assert int(state[0].stage_index) == 4


def momentum(w, g, trace=0.0):
    trace = 0.9 * trace + g
    return w - 0.02 * trace, trace


def adagrad(w, g, sums=0.1):
    sums = sums + g**2
    return w - 0.5 * g / np.sqrt(sums + 1e-7), sums


@pytest.mark.parametrize(
    ("rule", "optimizer", "gamma"),
    [(momentum, optax.sgd(0.02, momentum=0.9), 2.0), (adagrad, optax.adagrad(0.5), 1.5)],
)
def test_optimizers_with_a_state_on_the_penalised_loss(rule, optimizer, gamma):
    state = ()

    def step(w, g, _):
        nonlocal state
        w, *state = rule(w, g, *state)
        return w

    seen, _ = run(optax.chain(add_stage_penalty(STAGES, gamma), optimizer))
    np.testing.assert_allclose(seen, by_hand(step, gamma), rtol=1e-5)


def test_the_proximal_step_is_the_argmin_of_its_definition():
    """argmin |w - (w_t - eta g)|^2 / (2 eta) + |w - start|^2 / (2 gamma), by a linear system."""
    eta, gamma = 0.2, 0.5

    def step(w, g, start):
        system = np.eye(2) * (1 / eta + 1 / gamma)
        return np.linalg.solve(system, (w - eta * g) / eta + start / gamma)

    seen, _ = run(optax.chain(optax.sgd(eta), apply_stage_prox(STAGES, gamma, eta)))
    np.testing.assert_allclose(seen, by_hand(step), rtol=1e-5)


def test_the_proximal_step_takes_a_schedule_over_examples():
    schedule = lambda examples: 0.3 / (1 + examples / 50)
    tx = optax.chain(optax.scale(-1.0), apply_stage_prox(STAGES, 0.5, schedule))
    seen, start = np.array([4.0, 4.0]), np.array([4.0, 4.0])
    w = jnp.asarray(seen, jnp.float32)
    state = tx.init(w)
    for before, stage in [(0, 0), (16, 0), (32, 0), (48, 1)]:
        if stage:
            start = seen
        eta = schedule(before)
        g = gradient(seen)
        updates, state = tx.update(
            jnp.asarray(g, jnp.float32), state, jnp.asarray(seen, jnp.float32), stats=stats_of(16)
        )
        expected = (0.5 * -g + eta * (start - seen)) / (0.5 + eta)
        np.testing.assert_allclose(updates, expected, rtol=1e-5)
        seen = seen + expected


@pytest.mark.parametrize("optimizer", [optax.sgd(0.1, momentum=0.9), optax.adagrad(0.3)])
def test_without_end_gamma_is_the_optimizer_alone_bit_for_bit(optimizer):
    alone, _ = run(optax.with_extra_args_support(optimizer))
    first, _ = run(optax.chain(add_stage_penalty(STAGES, np.inf), optimizer))
    last, _ = run(optax.chain(optimizer, apply_stage_prox(STAGES, np.inf, 0.1)))
    np.testing.assert_array_equal(first, alone)
    np.testing.assert_array_equal(last, alone)


@pytest.mark.parametrize("gamma", [0.3, 3.0])
def test_each_stage_converges_to_the_proximal_point_of_its_start(gamma):
    """Each stage alone: w* + (start - w*) / (1 + gamma h), coordinate by coordinate."""
    stages = [(0, 1), (60, 1), (120, 1)]
    for tx in (
        optax.chain(add_stage_penalty(stages, gamma), optax.sgd(0.2)),
        optax.chain(optax.sgd(0.2), apply_stage_prox(stages, gamma, 0.2)),
    ):
        seen, _ = run(tx, sizes=[1] * 180)
        best, start = np.array([1.0, -2.0]), np.array([4.0, 4.0])
        for end in (59, 119, 179):
            start = best + (start - best) / (1 + gamma * np.array([1.0, 3.0]))
            np.testing.assert_allclose(seen[end], start, rtol=1e-4)


def test_the_stage_moves_at_the_exact_example_beyond_float32():
    far = 2**40 + 3
    tx = add_stage_penalty([(0, 8), (far, 16)], 1.0)
    w = jnp.zeros(1)
    state = tx.init(w)
    chunk = 2**24 - 1  # the largest odd number of examples that one float32 holds
    clock = state.examples_clock._replace(whole=jnp.int32(2**24 - 256))
    state = state._replace(examples_clock=clock)  # 2^40 - 2^24 examples
    for seen, stage in [(chunk, 0), (1, 0), (2, 0), (1, 0), (1, 1)]:
        _, state = tx.update(w, state, w, stats=stats_of(seen))
        assert int(state.stage_index) == stage


def test_a_stage_that_one_batch_jumps_over_is_left_out():
    tx = add_stage_penalty([(0, 8), (10, 16), (20, 32)], 1.0)
    w = jnp.zeros(1)
    state = tx.init(w)
    for seen, param, stage, start in [(64, 1.0, 0, 1.0), (64, 2.0, 2, 2.0), (64, 3.0, 2, 2.0)]:
        _, state = tx.update(w, state, jnp.full(1, param), stats=stats_of(seen))
        assert (int(state.stage_index), float(state.stage_start[0])) == (stage, start)


def test_more_examples_than_any_clock_counts_are_never_reached():
    state = run(add_stage_penalty([(0, 8), (10**16, 16)], 1.0), sizes=[8] * 3)[1]
    assert int(state.stage_index) == 0


@pytest.mark.topic("resumes")
def test_a_resume_in_the_middle_of_a_stage_goes_on_as_before():
    tx = optax.chain(add_stage_penalty(STAGES, 0.7), optax.sgd(0.1))
    expected, _ = run(tx)
    half, state = run(tx, sizes=SIZES[:5])
    leaves, treedef = jax.tree.flatten(state)
    saved = json.loads(json.dumps([np.asarray(leaf).tolist() for leaf in leaves]))
    state = jax.tree.unflatten(
        treedef, [jnp.asarray(x, leaf.dtype) for x, leaf in zip(saved, leaves, strict=True)]
    )
    w = jnp.asarray(half[-1], jnp.float32)
    for size, right in zip(SIZES[5:], expected[5:], strict=True):
        grads = jnp.asarray(gradient(np.asarray(w, np.float64)), jnp.float32)
        updates, state = tx.update(grads, state, w, stats=stats_of(size))
        w = optax.apply_updates(w, updates)
        np.testing.assert_allclose(w, right, rtol=1e-6)


def test_no_recompilation_at_a_change_of_stage(compilations):
    tx = optax.chain(add_stage_penalty(STAGES, 0.7), optax.sgd(0.1))
    w, every = jnp.ones(2), [stats_of(size) for size in SIZES]
    update, state = jax.jit(tx.update), tx.init(w)
    _, state = update(w, state, w, stats=every[0])
    compilations.reset()
    for stats in every:
        _, state = update(w, state, w, stats=stats)
    assert compilations.count == 0
    assert int(state[0].stage_index) == 4


def test_a_bad_step_counts_its_examples_and_leaves_the_start():
    tx = optax.chain(add_stage_penalty(STAGES, 0.7), skip_nonfinite(optax.sgd(0.1)))
    w = jnp.full(1, 2.0)
    state = tx.init(w)
    grads, stats = stats_from_groups(jnp.full((2, 1), jnp.nan), 10)
    for _ in range(2):
        updates, state = tx.update(grads, state, w, stats=stats)
        assert float(updates[0]) == 0
    good = stats_of(20)
    _, state = tx.update(jnp.ones(1), state, w + 1, stats=good)
    assert (int(state[0].stage_index), float(state[0].stage_start[0])) == (1, 3.0)


def test_only_the_masked_parameters_are_pulled():
    tx = optax.masked(add_stage_penalty(STAGES, 0.5), {"a": True, "b": False})
    w = {"a": jnp.ones(2), "b": jnp.ones(3)}
    state = tx.init(w)
    zero = jax.tree.map(jnp.zeros_like, w)
    _, state = tx.update(zero, state, w, stats=stats_of(8))
    updates, state = tx.update(zero, state, jax.tree.map(lambda x: 3 * x, w), stats=stats_of(8))
    np.testing.assert_allclose(updates["a"], [4.0, 4.0])
    np.testing.assert_array_equal(updates["b"], np.zeros(3))


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.complex64])
def test_updates_and_starts_keep_their_dtype(dtype):
    for tx in (add_stage_penalty(STAGES, 0.5), apply_stage_prox(STAGES, 0.5, 0.1)):
        w = jnp.full(2, 3, dtype)
        updates, state = tx.update(w, tx.init(w), w, stats=stats_of(8))
        assert updates.dtype == state.stage_start.dtype == dtype
        np.testing.assert_array_equal(state.stage_start, w)


def test_the_stages_of_sebs_are_taken_as_they_are():
    batch_sizes, rate = sebs(16, 0.1, rho=2, first_stage=32, num_stages=3)
    assert batch_sizes.stages == ((0, 16), (32, 32), (96, 64))
    state = run(add_stage_penalty(batch_sizes, 1.0), sizes=[16, 16, 32, 32, 64])[1]
    assert int(state.stage_index) == 2
    tx = apply_stage_prox(batch_sizes, 1.0, rate)
    assert tx.init(jnp.ones(2)).stage_index.dtype == jnp.int32


def test_params_are_required():
    tx = add_stage_penalty(STAGES, 1.0)
    w = jnp.ones(1)
    with pytest.raises(ValueError, match="Expected add_stage_penalty to be given params, got"):
        tx.update(w, tx.init(w), stats=stats_of(8))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: add_stage_penalty(STAGES, 0.0), "gamma > 0, got gamma=0.0.*inf for no penalty"),
        (lambda: add_stage_penalty(STAGES, -1), "gamma > 0, got gamma=-1"),
        (lambda: apply_stage_prox(STAGES, np.nan, 0.1), "gamma > 0, got gamma=nan"),
        (lambda: apply_stage_prox(STAGES, 1.0, -0.1), "learning_rate > 0 and finite, got"),
        (lambda: add_stage_penalty(lambda n: 8, 1.0), "batch_sizes of stages, got <function"),
        (lambda: add_stage_penalty([(5, 8)], 1.0), "first threshold to be 0"),
    ],
)
def test_what_makes_no_sense_is_refused(make, message):
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)
