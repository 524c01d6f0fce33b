"""A schedule over examples as one over steps: the examples before a step, in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_schedules import micro_batch_sizes, stages
from real_loader import run_loader

from adaoptax import GradientStats, scale_by_schedule_over_examples
from adaoptax.schedules import BatchSizeSchedule, over_examples, plan

pytestmark = pytest.mark.sampled

identity = lambda count: count


def examples_before(pairs, micro_batch_size, step):
    """The recursion of a loader in Python's whole numbers, a stage at a time for speed."""
    examples = 0
    while step:
        size = [size for threshold, size in pairs if threshold <= examples][-1]
        size = -(-size // micro_batch_size) * micro_batch_size
        later = [threshold for threshold, _ in pairs if threshold > examples]
        steps = min([step, *(-(-(threshold - examples) // size) for threshold in later)])
        step, examples = step - steps, examples + steps * size
    return examples


@given(stages(), micro_batch_sizes)
def test_it_is_the_schedule_of_the_examples_that_a_real_loader_has_seen(pairs, micro):
    schedule = BatchSizeSchedule(pairs)
    seen = [step.before for step in run_loader(schedule, pairs[-1][0] + 150, micro)]
    decay = optax.cosine_decay_schedule(0.3, 1500)
    every = jnp.arange(2048)  # of one length, and not jitted: no compilations but the first ones
    counted = over_examples(identity, schedule, micro)(every)
    np.testing.assert_array_equal(counted[: len(seen)], seen)
    rates = over_examples(decay, schedule, micro)(every)
    np.testing.assert_array_equal(rates, decay(counted))


@given(
    stages(largest_step=10**11), st.integers(1, 10**6), micro_batch_sizes, st.integers(0, 2**31 - 1)
)
def test_huge_numbers_are_off_by_one_rounding_at_most(pairs, factor, micro, step):
    pairs = [(threshold, size * factor) for threshold, size in pairs]
    exact = examples_before(pairs, micro, step)
    counted = float(over_examples(identity, pairs, micro)(step))
    if exact < 2**47:
        assert abs(counted - exact) <= exact * 2.0**-24
    else:
        assert 2**46 < counted <= 2**47


@pytest.mark.usefixtures("float64")
@given(stages(largest_step=10**11), st.integers(1, 10**4), st.integers(0, 2**31 - 1))
def test_with_float64_it_is_exact(pairs, factor, step):
    pairs = [(threshold, size * factor) for threshold, size in pairs]
    exact = examples_before(pairs, 1, step)
    counted = over_examples(identity, pairs)(step)
    assert counted.dtype == jnp.float64
    if exact < 2**47:
        assert float(counted) == exact


def test_no_step_is_off_where_the_batch_grows_at_250_billion_examples():
    """Far beyond float32 the step of the change is exact; only what is passed on is rounded."""
    boundary = -(-250 * 10**9 // 768)
    rate = jax.jit(over_examples(identity, "0:768 250B:1536"))
    for step in range(boundary - 2, boundary + 3):
        exact = 768 * min(step, boundary) + 1536 * max(step - boundary, 0)
        assert float(rate(step)) == float(np.float32(exact))


@pytest.mark.usefixtures("optimised")
def test_it_agrees_bit_for_bit_with_the_clock_of_the_statistics():
    sizes = BatchSizeSchedule.parse("0:96 10K:50000 300K:1048576")
    decay = optax.warmup_cosine_decay_schedule(0.0, 0.3, 100_000, 60_000_000)
    tx = scale_by_schedule_over_examples(decay)
    known = optax.scale_by_learning_rate(over_examples(decay, sizes))
    one = lambda x: jnp.asarray(x, jnp.float32)
    grads = jnp.ones(1)

    @jax.jit
    def update(state, known_state, num_examples):
        stats = GradientStats(num_examples, one(2), one(1), one(1))
        updates, state = tx.update(grads, state, stats=stats)
        expected, known_state = known.update(grads, known_state)
        return updates, expected, state, known_state

    state, known_state = tx.init(grads), known.init(grads)
    seen = 0
    for _ in range(160):
        updates, expected, state, known_state = update(state, known_state, one(sizes(seen)))
        np.testing.assert_array_equal(updates, expected)
        seen += sizes(seen)
    assert seen > 40_000_000


def test_tokens_scale_the_count_and_not_the_clock():
    in_tokens = over_examples(identity, "0:32 64:64", tokens_per_example=2048)
    assert [float(in_tokens(step)) for step in range(4)] == [0, 65536, 131072, 262144]
    tx = scale_by_schedule_over_examples(identity, tokens_per_example=2048)
    stats = GradientStats(*(jnp.float32(x) for x in (32, 2, 1, 1)))
    _, state = tx.update(jnp.ones(1), tx.init(jnp.ones(1)), stats=stats)
    updates, _ = tx.update(jnp.ones(1), state, stats=stats)
    assert float(updates[0]) == -65536
    assert float(state.examples_clock.fraction) * 65536 == 32


def test_it_drives_any_optimizer_without_recompiling(compilations):
    rate = over_examples(optax.linear_schedule(1.0, 0.0, 256), "0:32 64:64")
    plain = optax.sgd(rate)
    injected = optax.inject_hyperparams(optax.sgd)(learning_rate=rate)
    params = jnp.zeros(1)
    for tx in (plain, injected):
        update = jax.jit(tx.update)
        grads = jnp.ones(1)
        state = jax.jit(tx.init)(params)
        taken = []
        for step in range(5):
            if step == 1:
                compilations.reset()
            with jax.transfer_guard("disallow"):
                updates, state = update(grads, state, params)
            taken.append(float(jax.device_get(updates)[0]))
        assert compilations.count == 0
        assert taken == [-1.0, -0.875, -0.75, -0.5, -0.25]


def test_a_function_is_planned_first():
    grow = BatchSizeSchedule(lambda examples: 8 + examples // 10)
    with pytest.raises(ValueError, match=r"no closed form; pass .*plan\("):
        over_examples(identity, grow, 4)
    planned = over_examples(identity, plan(grow, 500, micro_batch_size=4).batch_sizes, 4)
    seen = [step.before for step in run_loader(grow, 500, 4)]
    assert [float(planned(step)) for step in range(len(seen))] == seen


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0.1, 32), TypeError, "function of examples, got 0.1"),
        ((identity, 0), ValueError, "batch_size >= 1"),
        ((identity, 2**31), ValueError, "below 2\\^31, got 2147483648"),
        ((identity, 32, 0), ValueError, "micro_batch_size >= 1"),
        ((identity, "0:8 5"), ValueError, "'5'"),
    ],
)
def test_bad_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        over_examples(*arguments)


@pytest.mark.parametrize("tokens", [0, -1, float("nan"), float("inf")])
def test_bad_lengths_are_refused(tokens):
    with pytest.raises(ValueError, match="tokens_per_example > 0"):
        over_examples(identity, 32, tokens_per_example=tokens)
    with pytest.raises(ValueError, match="tokens_per_example > 0"):
        scale_by_schedule_over_examples(identity, tokens_per_example=tokens)


def test_a_rate_in_the_place_of_the_schedule_is_refused_at_once():
    with pytest.raises(TypeError, match=r"function of examples, got 0\.1"):
        scale_by_schedule_over_examples(0.1)
