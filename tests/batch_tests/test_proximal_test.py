"""What the complete-step tests require, against hand values, identities and known problems."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from one_step import required

import adaoptax
from adaoptax import prox, required_batch_size
from adaoptax.batch_tests import (
    ProximalTestState,
    proximal_inner_product_test,
    proximal_test,
)

pytestmark = pytest.mark.sampled


def along(rows: Any) -> Any:
    """Variance of the rows along a direction, from the definition."""
    return lambda v: jnp.var(jnp.asarray(rows) @ v, ddof=1)


@pytest.mark.parametrize("kind", ["plug-in", "debiased"])
@pytest.mark.parametrize("learning_rate", [1.0, 0.1, 3.0])
def test_after_plain_descent_they_are_the_norm_and_the_inner_product_test(
    kind, learning_rate, rows, numpy_stats
):
    grads, stats = numpy_stats(rows)
    options: Any = {"learning_rate": learning_rate, "signal": kind}
    sgd = optax.sgd(learning_rate)
    complete = required(optax.chain(sgd, proximal_test(0.25, **options)), grads, stats)
    expected = {"plug-in": 13.3333, "debiased": 16.8421}[kind]  # of the fixture, by hand
    assert complete == pytest.approx(expected, rel=1e-5)
    inner = optax.chain(sgd, proximal_inner_product_test(0.1, **options))
    expected = {"plug-in": 16.6667, "debiased": 26.5928}[kind]
    assert required(inner, grads, stats, variance_fn=along(rows)) == pytest.approx(
        expected, rel=1e-5
    )


def test_alone_they_take_the_update_for_a_gradient(rows, numpy_stats):
    grads, stats = numpy_stats(rows)
    tx = proximal_test(0.25, signal="plug-in", dataset_size=20)
    assert required(tx, grads, stats) == pytest.approx(8, rel=1e-6)
    updates, _ = tx.update(grads, tx.init(grads), stats=stats)
    assert updates is grads


def test_they_measure_the_projected_step(rows, numpy_stats):
    # From (1, 0) the gradient (2, 0) leads to (0.9, 0) at 0.05, and to the bound 0.95 at most.
    grads, stats = numpy_stats(rows)
    start = jnp.array([1.0, 0.0])
    pair = lambda test: optax.chain(prox.proximal_gradient(prox.box(lower=0.95, upper=1e9), 0.05),
                                    test)  # fmt: skip
    with pytest.raises(ValueError, match="feasible"):  # the second coordinate is below
        required(pair(proximal_test(0.25, learning_rate=0.05)), grads, stats, start)
    start = jnp.array([1.0, 1.0])
    complete = pair(proximal_test(0.25, learning_rate=0.05, signal="plug-in"))
    assert required(complete, grads, stats, start) == pytest.approx(  # ‖u/α‖ = 1 instead of 2
        (10 / 3) / (0.25**2 * 1), rel=1e-4
    )
    inner = pair(proximal_inner_product_test(0.1, learning_rate=0.05, signal="plug-in"))
    expected = (2 / 3) / (0.1**2 * 1)  # Var of the first coordinate, step (−1, 0)
    assert required(inner, grads, stats, start, variance_fn=along(rows)) == pytest.approx(
        expected, rel=1e-4
    )


def test_theta_of_the_optimizer_writes_the_learning_rate_once(rows, numpy_stats):
    grads, stats = numpy_stats(rows)
    start = jnp.array([1.0, 1.0])
    schedule = optax.linear_schedule(0.2, 0.1, 2)
    for rate in (0.05, schedule):
        together = prox.proximal_gradient(prox.l1(0.3), rate, theta=0.4)
        apart = optax.chain(
            prox.proximal_gradient(prox.l1(0.3), rate), proximal_test(0.4, learning_rate=rate)
        )
        states = [together.init(start), apart.init(start)]
        for _ in range(3):
            both = [tx.update(grads, s, start, stats=stats) for tx, s in
                    zip((together, apart), states, strict=True)]  # fmt: skip
            states = [state for _, state in both]
            assert float(required_batch_size(states[0])) == float(required_batch_size(states[1]))


def test_a_schedule_is_read_at_the_step_of_the_chain_also_between_measurements(rows, numpy_stats):
    grads, stats = numpy_stats(rows)
    schedule = lambda count: 0.5 / (1 + count)
    tx = optax.chain(optax.sgd(schedule), proximal_test(0.25, learning_rate=schedule))
    state = tx.init(grads)
    between = stats._replace(num_groups=jnp.float32(0), variance=jnp.float32(jnp.nan))
    for each in (stats, between, between, stats):
        _, state = tx.update(grads, state, stats=each)
        assert float(required_batch_size(state)) == pytest.approx(16.8421, rel=1e-4)
    assert isinstance(state[1], ProximalTestState)
    assert int(state[1].complete_steps) == 4
    assert int(state[1].test.steps_seen) == 2


def test_a_step_of_no_length_is_noise_and_a_learning_rate_of_zero_is_no_evidence(rows, numpy_stats):
    grads, stats = numpy_stats(rows)
    start = jnp.zeros(2)
    stays = optax.chain(
        prox.proximal_gradient(prox.box(0.0, 0.0), 0.1), proximal_test(0.5, learning_rate=0.1)
    )
    _, state = stays.update(grads, stays.init(start), start, stats=stats)
    assert float(required_batch_size(state)) == np.inf
    assert bool(state[1].noise_dominated)
    zero = lambda count: 0.0 * count
    tx = optax.chain(optax.sgd(zero), proximal_test(0.5, learning_rate=zero))
    _, state = tx.update(grads, tx.init(grads), stats=stats)
    assert bool(state[1].test.undefined)
    assert float(required_batch_size(state)) == 4  # the size at hand


@pytest.mark.parametrize("signal", ["plug-in", "debiased"])
def test_along_a_step_of_no_length_the_size_must_grow_unless_there_is_no_noise(
    signal, rows, numpy_stats
):
    grads, stats = numpy_stats(rows)
    start = jnp.zeros(2)
    tx = optax.chain(
        prox.proximal_gradient(prox.box(0.0, 0.0), 0.1),
        proximal_inner_product_test(0.5, learning_rate=0.1, signal=signal),
    )
    along = lambda direction: jnp.float32(0)
    _, state = tx.update(grads, tx.init(start), start, stats=stats, variance_fn=along)
    assert float(required_batch_size(state)) == np.inf
    assert bool(state[1].noise_dominated)
    same = stats._replace(variance=jnp.float32(0))
    _, state = tx.update(grads, tx.init(start), start, stats=same, variance_fn=along)
    assert bool(state[1].undefined)


def test_short_learning_rates_do_not_underflow(rows, numpy_stats):
    grads, stats = numpy_stats(rows)
    tx = optax.chain(optax.sgd(1e-25), proximal_test(0.25, learning_rate=1e-25))
    assert required(tx, grads, stats) == pytest.approx(16.8421, rel=1e-4)


def test_between_two_intervals_no_inner_product_is_computed(rows, numpy_stats):
    grads, stats = numpy_stats(rows)
    calls = []

    def variance_fn(direction: Any) -> Any:
        jax.debug.callback(lambda: calls.append(1))
        return along(rows)(direction)

    tx = proximal_inner_product_test(0.5, interval=3)
    update = jax.jit(lambda state: tx.update(grads, state, stats=stats, variance_fn=variance_fn)[1])
    state = tx.init(grads)
    for _ in range(6):
        state = update(state)
    jax.effects_barrier()
    assert len(calls) == 2


def test_a_dropped_variance_fn_is_a_type_error(rows, numpy_stats):
    grads, stats = numpy_stats(rows)
    for rate in (1.0, lambda count: 1.0 + count):
        tx = optax.chain(proximal_inner_product_test(0.5, learning_rate=rate))
        with pytest.raises(TypeError, match="variance_fn"):
            tx.update(grads, tx.init(grads), stats=stats)


@pytest.mark.parametrize("make", [proximal_test, proximal_inner_product_test])
@pytest.mark.parametrize(
    ("theta", "options", "match"),
    [
        (0.0, {}, "theta=0.0"),
        (0.5, {"learning_rate": 0.0}, "learning_rate=0.0"),
        (0.5, {"learning_rate": -1}, "learning_rate=-1"),
        (0.5, {"signal": "plugin"}, "signal='plugin'"),
    ],
)
def test_arguments_out_of_range(make, theta, options, match):
    with pytest.raises(ValueError, match=match):
        make(theta, **options)


def test_at_a_constrained_solution_the_complete_step_asks_for_more_than_the_gradient():
    """Where the gradient stays large and the step vanishes (the reason for this test)."""
    rng = np.random.default_rng(1)
    target = np.array([2.0, 0.5])  # outside of x ≤ 1 in the first coordinate
    noise = rng.normal(size=(64, 2)).astype(np.float32)
    noise -= noise.mean(axis=0)
    x = jnp.array([1.0, 0.45])  # at the bound, and near the solution otherwise
    rows = jnp.asarray(x - target + 0.3 * noise)
    grads, stats = adaoptax.stats_from_groups(rows, group_size=1)
    step = prox.proximal_gradient(prox.box(upper=1.0), 0.5)
    complete = required(
        optax.chain(step, proximal_test(0.5, learning_rate=0.5, signal="plug-in")), grads, stats, x
    )
    gradient = required(adaoptax.norm_test(0.5, signal="plug-in"), grads, stats)
    assert complete / gradient == pytest.approx((1 + 0.05**2) / 0.05**2, rel=1e-3)
