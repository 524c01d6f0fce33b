"""Descent by an estimated Lipschitz constant: the rule, the search, and what goes wrong."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adaoptax
from adaoptax import GradientStats
from adaoptax.scaling import lipschitz_descent

pytestmark = pytest.mark.sampled

CURVATURE = jnp.array([6.0, 1.0, 0.5])
value_fn = lambda w: 0.5 * jnp.sum(CURVATURE * w**2)


def stats_of(grads: Any, noise: float, size: float = 4.0) -> GradientStats:
    """Noise S²/B as a multiple of ‖g‖²."""
    sq_norm = jnp.sum(grads**2)
    number = lambda x: jnp.asarray(x, jnp.float32)
    return GradientStats(
        number(size), number(size), number(sq_norm), number(noise * size * sq_norm)
    )


def step(tx: Any, state: Any, w: Any, noise: float = 0.0, **changes: Any) -> Any:
    grads = jax.grad(value_fn)(w)
    given = {"stats": stats_of(grads, noise), "value": value_fn(w), "value_fn": value_fn, **changes}
    return tx.update(grads, state, w, **given)


@pytest.mark.parametrize("noise", [0.0, 0.5, 0.9, 1.0, 30.0])
@pytest.mark.parametrize("start", [0.1, 1.0, 40.0])
@pytest.mark.parametrize("growth", [1.05, 1.5])
def test_the_rule_as_others_code_it(noise, start, growth):
    w = np.array([1.0, -2.0, 3.0])
    curvature = np.asarray(CURVATURE, np.float64)
    loss = lambda w: 0.5 * (curvature * w**2).sum()
    tx = lipschitz_descent(start, growth=growth, max_trials=200)
    state, x = tx.init(jnp.zeros(3)), jnp.asarray(w, jnp.float32)
    lipschitz = start
    for _ in range(5):
        g = curvature * w
        lipschitz /= max(1, 2 / (noise + 1))
        trials = 0
        while loss(w - g / lipschitz) > loss(w) - g @ g / (2 * lipschitz):
            lipschitz, trials = growth * lipschitz, trials + 1
        w = w - g / lipschitz
        updates, state = step(tx, state, x, noise)
        x = optax.apply_updates(x, updates)
        assert float(state.lipschitz) == pytest.approx(lipschitz, rel=1e-4)
        assert int(state.backtracking_trials) == trials
        np.testing.assert_allclose(x, w, rtol=1e-3, atol=1e-5)


def test_it_converges_and_does_not_explode_at_the_solution():
    tx = lipschitz_descent(1.0)

    def once(carry: Any, _: Any) -> Any:
        w, state = carry
        updates, state = step(tx, state, w)
        return (optax.apply_updates(w, updates), state), (value_fn(w), state.lipschitz)

    w = jnp.array([1.0, -2.0, 3.0])
    (w, state), (values, estimates) = jax.lax.scan(once, (w, tx.init(w)), length=400)
    assert float(values[-1]) < 1e-12
    assert float(estimates[:50].max()) < 6 * 1.5
    assert np.isfinite(np.asarray(estimates)).all()
    assert int(state.searches_failed) == 0


def test_rounding_of_a_large_value_does_not_raise_l():
    large = lambda w: 1e4 + value_fn(w)  # one ulp of 1e4 is 1e-3
    tx, w = lipschitz_descent(8.0), jnp.array([1e-3, 1e-3, 1e-3])
    state = tx.init(w)
    for _ in range(20):
        value = jnp.nextafter(large(w), jnp.float32(0))  # summed in another order: one ulp less
        updates, state = step(tx, state, w, noise=2.0, value=value, value_fn=large)
        w = optax.apply_updates(w, updates)
    assert float(state.lipschitz) == 8.0


def test_undefined_noise_keeps_l():
    tx, w = lipschitz_descent(40.0), jnp.ones(3)
    clear = stats_of(jax.grad(value_fn)(w), 0.0)
    nan, one = jnp.float32(jnp.nan), jnp.float32(1)
    for stats in (
        clear._replace(variance=nan),
        clear._replace(num_groups=one),
        clear._replace(num_groups=0 * one, variance=nan),
    ):
        updates, state = step(tx, tx.init(w), w, stats=stats)
        assert float(state.lipschitz) == 40.0
        assert np.any(updates)
    assert float(step(tx, tx.init(w), w, stats=clear)[1].lipschitz) == 20.0


def test_a_failed_search_takes_no_step_and_the_next_goes_on():
    tx, w = lipschitz_descent(1e-6, max_trials=10), jnp.ones(3)
    state = tx.init(w)
    for attempt in range(1, 4):
        updates, state = step(tx, state, w, noise=2.0)
        assert (np.asarray(updates) == 0).all()
        assert float(state.lipschitz) == pytest.approx(1e-6 * 1.5 ** (10 * attempt), rel=1e-4)
        assert int(state.searches_failed) == attempt
    updates, state = step(tx, state, w, noise=2.0)
    assert np.any(updates)
    assert int(state.searches_failed) == 3


def test_l_never_becomes_infinite():
    tx, w = lipschitz_descent(1.0, growth=1e9, max_trials=40), jnp.ones(3)
    state = tx.init(w)
    rising = lambda p: jnp.where(jnp.all(p == w), 0.0, 1.0)
    _, state = step(tx, state, w, value=jnp.float32(0), value_fn=rising)
    assert np.isfinite(float(state.lipschitz))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinity_take_no_step(bad):
    tx, w = lipschitz_descent(2.0), jnp.ones(3)
    updates, state = step(tx, tx.init(w), w, value=jnp.float32(bad))
    assert (np.asarray(updates) == 0).all()
    grads = jnp.array([bad, 0.0, 1.0], jnp.float32)
    stats = stats_of(grads, 0.0)
    updates, state = tx.update(grads, state, w, stats=stats, value=value_fn(w), value_fn=value_fn)
    assert (np.asarray(updates) == 0).all()
    assert (int(state.steps_skipped), int(state.searches_failed)) == (2, 0)
    assert float(state.lipschitz) == 2.0


def test_a_value_of_nan_on_the_way_is_too_long_a_step():
    barrier = lambda w: value_fn(w) - 1e-3 * jnp.sum(jnp.log(w))
    tx, w = lipschitz_descent(0.5), jnp.ones(3)
    updates, state = step(tx, tx.init(w), w, value=barrier(w), value_fn=barrier)
    assert bool(jnp.all(w + updates > 0))
    assert int(state.backtracking_trials) > 0


def test_a_zero_gradient_gives_a_zero_update_and_keeps_l():
    tx, w = lipschitz_descent(2.0), jnp.zeros(3)
    updates, state = step(tx, tx.init(w), w)
    assert (np.asarray(updates) == 0).all()
    assert float(state.lipschitz) == 2.0


def test_value_fn_receives_the_extra_arguments_that_it_names():
    loss_fn = lambda w, x: jnp.mean(jnp.sum((w - x) ** 2, axis=1))
    x, w = jnp.array([[1.0, 2.0], [2.0, 1.0], [1.0, 1.0]]), jnp.zeros(2)
    measure = adaoptax.value_grad_and_stats(loss_fn, adaoptax.measure.per_example())
    tx = optax.chain(adaoptax.norm_test(0.5), lipschitz_descent(2.0))
    value, grads, stats = measure(w, x)
    closed = lambda w: loss_fn(w, x)
    named, _ = tx.update(
        grads, tx.init(w), w, stats=stats, value=value, value_fn=loss_fn, x=x, foreign=3
    )
    plain, _ = tx.update(grads, tx.init(w), w, stats=stats, value=value, value_fn=closed)
    np.testing.assert_array_equal(named, plain)


@pytest.mark.parametrize("missing", ["value", "value_fn", "stats"])
def test_dropped_arguments_are_type_errors(missing):
    tx, w = lipschitz_descent(), jnp.ones(3)
    given = {"stats": stats_of(w, 0.0), "value": value_fn(w), "value_fn": value_fn}
    del given[missing]
    with pytest.raises(TypeError, match=missing):
        tx.update(w, tx.init(w), w, **given)
    with pytest.raises(ValueError, match="params=None"):
        tx.update(w, tx.init(w), stats=stats_of(w, 0.0), value=value_fn(w), value_fn=value_fn)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"initial_lipschitz": 0.0}, "initial_lipschitz=0.0"),
        ({"growth": 1.0}, "growth=1.0"),
        ({"growth": float("nan")}, "growth=nan"),
        ({"max_trials": 0}, "max_trials=0"),
    ],
)
def test_arguments_out_of_range(options, match):
    with pytest.raises(ValueError, match=match):
        lipschitz_descent(**options)
