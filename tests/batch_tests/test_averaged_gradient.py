"""The averaged-gradient safeguard: when it looks, at what, and what it changes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adaoptax
from adaoptax import required_batch_size
from adaoptax.batch_tests import (
    AveragedGradientState,
    averaged_gradient,
    optimal_split,
    proximal_inner_product_test,
    proximal_test,
)


def batches(numpy_stats: Any, means: Any, size: int = 4) -> Any:
    """Batches of given mean gradients and the same scatter."""
    noise = np.resize([[0.0, 1.0], [0.0, -1.0]], (size, 2))
    return [numpy_stats(noise + np.asarray(mean)) for mean in means]


def run(tx: Any, steps: Any, state: Any = None) -> Any:
    state = tx.init(jnp.zeros(2)) if state is None else state
    states = []
    for grads, stats in steps:
        _, state = tx.update(grads, state, stats=stats)
        states.append(state)
    return states


ALTERNATING = [[1.0, 0.2], [-1.0, 0.2]] * 3


@pytest.mark.parametrize("kind", ["plug-in", "debiased"])
def test_the_mean_of_a_block_stands_on_the_right_side(kind, numpy_stats):
    tx = averaged_gradient(adaoptax.norm_test(0.5, signal=kind), window=3, gamma=0.9)
    steps = batches(numpy_stats, ALTERNATING)
    states = run(tx, steps)
    plain = run(adaoptax.norm_test(0.5, signal=kind), steps)
    variance = float(steps[0][1].variance)
    for step, state in enumerate(states):
        if step % 3 == 2:  # blocks of three
            block = np.mean(ALTERNATING[step - 2 : step + 1], axis=0)
            signal = block @ block - (variance / 12 if kind == "debiased" else 0)
            expected = variance / (0.25 * signal)
            assert float(required_batch_size(state)) == pytest.approx(expected, rel=1e-5)
        else:
            assert float(required_batch_size(state)) == float(required_batch_size(plain[step]))
    assert int(states[-1].decided_by_average) == 2
    assert int(states[-1].gradients_summed) == 0


def test_gamma_decides_whether_the_mean_is_short_enough(numpy_stats):
    steps = batches(numpy_stats, [[1.0, 0.0], [0.0, 0.0], [1.0, 0.0]])  # mean 2/3 of the last
    for gamma, used in ((0.66, 0), (0.67, 1)):
        tx = averaged_gradient(adaoptax.norm_test(0.5, signal="plug-in"), window=3, gamma=gamma)
        state = run(tx, steps)[-1]
        assert int(state.decided_by_average) == used
        length = 4 / 9 if used else 1
        expected = float(steps[0][1].variance) / (0.25 * length)
        assert float(required_batch_size(state)) == pytest.approx(expected, rel=1e-5)


def test_another_size_starts_a_new_block(numpy_stats):
    tx = averaged_gradient(adaoptax.norm_test(0.5), window=3, gamma=0.9)
    small, large = (batches(numpy_stats, ALTERNATING, size) for size in (4, 6))
    counts = [int(s.gradients_summed) for s in run(tx, [*small[:2], *large[:2], small[0]])]
    assert counts == [1, 2, 1, 2, 1]
    state = run(tx, [*small[:2], large[0]])[-1]
    np.testing.assert_allclose(state.gradient_sum, ALTERNATING[0], rtol=1e-6)


def test_nan_is_not_added_and_unmeasured_steps_are(numpy_stats):
    tx = averaged_gradient(adaoptax.norm_test(0.5), window=4, gamma=0.9)
    (first, *rest), bad = batches(numpy_stats, ALTERNATING), jnp.array([jnp.nan, 1.0])
    nan = (bad, first[1]._replace(sq_norm=jnp.float32(jnp.nan)))
    unmeasured = [
        (g, s._replace(num_groups=jnp.float32(0), variance=jnp.float32(jnp.nan))) for g, s in rest
    ]
    states = run(tx, [first, nan, *unmeasured[:3]])
    assert [int(s.gradients_summed) for s in states] == [1, 1, 2, 3, 4]
    assert int(states[-1].test.tests_run) == 1  # a full block waits for a measured step
    state = run(tx, [rest[3]], states[-1])[-1]
    assert int(state.gradients_summed) == 0
    assert np.isfinite(state.gradient_sum).all()
    assert int(state.decided_by_average) == 1


def test_a_full_block_waits_for_the_interval_of_the_test(numpy_stats):
    tx = averaged_gradient(adaoptax.norm_test(0.5, interval=4), window=2, gamma=0.9)
    counts = [int(s.gradients_summed) for s in run(tx, batches(numpy_stats, ALTERNATING))]
    assert counts == [1, 2, 3, 4, 0, 1]  # tests at the first and the fifth update


def test_it_raises_the_ceiling_of_a_plug_in_test_by_the_window(numpy_stats):
    """On pure noise in high dimension: required/current 1/ε² → r/ε² (derived)."""
    rng = np.random.default_rng(0)
    d, size, r = 2000, 8, 10
    steps = [numpy_stats(rng.normal(size=(size, d))) for _ in range(r)]
    plain = adaoptax.norm_test(0.9, signal="plug-in")
    safe = averaged_gradient(plain)  # r = 10, γ = 0.38
    state_plain, state = plain.init(jnp.zeros(d)), safe.init(jnp.zeros(d))
    for grads, stats in steps:
        _, state_plain = plain.update(grads, state_plain, stats=stats)
        _, state = safe.update(grads, state, stats=stats)
    assert float(required_batch_size(state_plain)) == pytest.approx(size / 0.81, rel=0.05)
    assert float(required_batch_size(state)) == pytest.approx(10 * size / 0.81, rel=0.05)
    assert int(state.decided_by_average) == 1
    published = averaged_gradient(
        adaoptax.augmented_inner_product_test(0.9, 5.84, signal="plug-in")
    )
    state = published.init(jnp.zeros(d))
    for grads, stats in steps:
        _, state = published.update(grads, state, stats=stats)
    assert int(state.decided_by_average) == 1
    assert bool(state.test.test_passed)  # ten is still below 34: the pair does not fire


def test_it_leaves_the_noise_side_alone(numpy_stats):
    rng = np.random.default_rng(2)
    steps = [numpy_stats(rng.normal(size=(6, 2)) + mean) for mean in ([2.0, 0.2], [-1.5, 0.3])]
    stats = steps[1][1]
    mean = (np.asarray(steps[0][0]) + np.asarray(steps[1][0])) / 2
    square = mean @ mean
    make: Any = {
        "along": adaoptax.inner_product_test(0.5, signal="plug-in"),
        "split": optimal_split(0.5, signal="plug-in"),
    }
    expected = {
        "along": float(stats.inner_product_variance) / (0.25 * square**2),
        "split": (
            float(stats.inner_product_variance) / square
            + float(adaoptax.orthogonal_variance(stats))
        )
        / (0.25 * square),
    }
    for name, test in make.items():
        state = run(averaged_gradient(test, window=2, gamma=0.999), steps)[-1]
        assert int(state.decided_by_average) == 1
        assert float(required_batch_size(state)) == pytest.approx(expected[name], rel=1e-4)


def test_it_works_inside_a_chain_and_is_found():
    tx = optax.chain(averaged_gradient(adaoptax.norm_test(0.5)), optax.sgd(0.1))
    grads, stats = adaoptax.stats_from_groups(jnp.eye(4), group_size=1)
    _, state = jax.jit(tx.update)(grads, tx.init(grads), stats=stats)
    assert isinstance(state[0], AveragedGradientState)
    assert float(required_batch_size(state)) == np.inf  # signal 1/4 − 1/4


@pytest.mark.parametrize("bad", [1, 0, 2.5, float("nan")])
def test_window_is_a_count(bad):
    with pytest.raises(ValueError, match=rf"window={bad}"):
        averaged_gradient(adaoptax.norm_test(0.5), window=bad)


@pytest.mark.parametrize("bad", [0, 1, 1.5, -0.1, float("nan")])
def test_gamma_is_a_proper_share(bad):
    with pytest.raises(ValueError, match=rf"gamma={bad}"):
        averaged_gradient(adaoptax.norm_test(0.5), gamma=bad)


@pytest.mark.parametrize(
    "wrong",
    [
        optax.sgd(0.1),
        optax.chain(adaoptax.norm_test(0.5), optax.sgd(0.1)),
        adaoptax.coordinate_test(0.5),
        proximal_test(0.5),
        proximal_inner_product_test(0.5),
    ],
)
def test_what_is_not_one_test_of_a_gradient_is_refused(wrong):
    with pytest.raises(TypeError, match=r"one batch test.*norm_test"):
        averaged_gradient(wrong)
