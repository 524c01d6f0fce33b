"""`skip_nonfinite` and `bind_extra_args`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from changing_batches import assert_bits

import adaoptax


def needs_scale() -> Any:
    """A transformation with a required extra argument of its own."""
    return optax.GradientTransformationExtraArgs(
        lambda params: optax.EmptyState(),
        lambda updates, state, params=None, *, factor, **extra: (
            jax.tree.map(lambda u: factor * u, updates),
            state,
        ),
    )


@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_nonfinite_step_never_happened(bad, jit, numpy_stats):
    rng = np.random.default_rng(0)
    story = list(rng.normal(size=(6, 4, 3)))
    broken = story[0].copy()
    broken[0, 0] = bad
    tx = adaoptax.skip_nonfinite(optax.adam(0.1))
    inner = adaoptax.bind_extra_args(optax.adam(0.1))
    update, plain = ((jax.jit(t.update) if jit else t.update) for t in (tx, inner))
    state, inner_state = tx.init(jnp.zeros(3)), inner.init(jnp.zeros(3))
    for step, rows in enumerate([*story[:3], broken, *story[3:]]):
        grads, stats = numpy_stats(rows)
        updates, state = update(grads, state, stats=stats)
        if step == 3:
            np.testing.assert_array_equal(updates, np.zeros(3))
            assert not np.signbit(np.asarray(updates)).any()
        else:
            expected, inner_state = plain(grads, inner_state, stats=stats)
            np.testing.assert_array_equal(updates, expected)
        assert int(state.nonfinite_skipped) == (step >= 3)
        assert_bits(state.inner_state, inner_state)


def test_skip_passes_stats_and_other_arguments_on(rows, numpy_stats):
    grads, stats = numpy_stats(rows)
    tx = adaoptax.skip_nonfinite(optax.chain(adaoptax.norm_test(0.25), needs_scale()))
    updates, state = tx.update(grads, tx.init(grads), stats=stats, factor=3.0)
    np.testing.assert_allclose(updates, 3 * grads)
    assert float(adaoptax.required_batch_size(state)) == pytest.approx(320 / 19, rel=1e-6)


def test_skip_counts_every_bad_step(numpy_stats):
    tx = adaoptax.skip_nonfinite(optax.sgd(0.1))
    state = tx.init(jnp.zeros(2))
    for value in (np.nan, 1.0, np.inf, np.nan):
        grads, stats = numpy_stats(np.array([[value, 1.0], [1.0, 2.0]]))
        _, state = tx.update(grads, state, stats=stats)
    assert int(state.nonfinite_skipped) == 3


@pytest.mark.parametrize("wrong", [None, 1.0])
def test_skip_needs_statistics(wrong):
    tx, ones = adaoptax.skip_nonfinite(optax.sgd(0.1)), jnp.ones(2)
    with pytest.raises(TypeError, match="stats"):
        tx.update(ones, tx.init(ones))
    with pytest.raises(TypeError, match=r"Expected stats to be a GradientStats.*skip_nonfinite"):
        tx.update(ones, tx.init(ones), stats=wrong)


def test_bind_serves_a_trainer_that_passes_nothing(rows, numpy_stats):
    grads, stats = numpy_stats(rows)
    tx = optax.chain(adaoptax.norm_test(0.25), optax.sgd(0.1))

    @jax.jit
    def train_step(state: Any, grads: Any, stats: Any) -> Any:
        bound = adaoptax.bind_extra_args(tx, stats=stats)
        return bound.update(grads, state, grads)

    updates, state = train_step(tx.init(grads), grads, stats)
    np.testing.assert_allclose(updates, -0.1 * grads, rtol=1e-6)
    assert float(adaoptax.required_batch_size(state)) == pytest.approx(320 / 19, rel=1e-6)
    bound_state = adaoptax.bind_extra_args(tx, stats=stats).init(grads)
    jax.tree.map(np.testing.assert_array_equal, bound_state, tx.init(grads))


def test_the_arguments_of_the_trainer_win(rows, numpy_stats):
    tx = adaoptax.bind_extra_args(needs_scale(), factor=2.0)
    ones = jnp.ones(2)
    np.testing.assert_array_equal(tx.update(ones, tx.init(ones))[0], [2, 2])
    np.testing.assert_array_equal(tx.update(ones, tx.init(ones), factor=5.0)[0], [5, 5])


def test_bind_accepts_a_transformation_without_extra_arguments():
    tx = adaoptax.bind_extra_args(optax.sgd(0.5), stats=None, anything=1)
    ones = jnp.ones(2)
    np.testing.assert_array_equal(tx.update(ones, tx.init(ones), other=3)[0], [-0.5, -0.5])
