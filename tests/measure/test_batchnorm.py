"""Losses that mix the rows of a batch: each group is a real small batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_reference import flat

from adaoptax import value_grad_and_stats
from adaoptax.measure import groups

pytestmark = pytest.mark.sampled

ROWS, N = 12, 3


def batchnorm_loss(params, batch, epsilon=1e-5):
    """A network that normalises over the batch, in training mode."""
    hidden = batch["x"] @ params["w"]
    hidden = (hidden - hidden.mean(axis=0)) / jnp.sqrt(hidden.var(axis=0) + epsilon)
    return jnp.mean((jnp.tanh(hidden) @ params["out"] - batch["y"]) ** 2)


def standardising_loss(params, batch):
    """No epsilon: a batch of equal rows has no gradient (0/0)."""
    return batchnorm_loss(params, batch, epsilon=0.0)


def contrastive_loss(params, batch):
    """InfoNCE between rows of one batch."""
    a, b = batch["x"] @ params["w"], batch["z"] @ params["w"]
    return -jnp.mean(jnp.diag(jax.nn.log_softmax(a @ b.T, axis=1)))


LOSSES = [batchnorm_loss, standardising_loss, contrastive_loss]


def problem():
    rng = np.random.default_rng(0)
    draw = lambda *shape: np.asarray(rng.normal(size=shape), np.float32)
    params = {"w": draw(4, 5), "out": draw(5)}
    return params, {"x": draw(ROWS, 4), "z": draw(ROWS, 4), "y": draw(ROWS)}


def group_by_group(loss_fn, params, batch, real_groups):
    """Loss, mean gradient and S² of whole groups, each one call of the loss in float64."""
    rows = ROWS // N
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), (params, batch))
        parts = [
            jax.value_and_grad(loss_fn)(
                wide[0], jax.tree.map(lambda x, j=j: x[j * rows : (j + 1) * rows], wide[1])
            )
            for j in real_groups
        ]
        h = np.stack([flat(grads) for _, grads in parts])
        loss = np.mean([float(value) for value, _ in parts])
    g = h.mean(axis=0)
    with np.errstate(invalid="ignore"):
        variance = rows * ((h - g) ** 2).sum() / np.float64(len(h) - 1)
    return loss, g, variance


@pytest.mark.parametrize("loss_fn", LOSSES)
@pytest.mark.parametrize("real_groups", [None, [0, 1, 2], [0, 1], [1, 2], [0, 2], [1]], ids=str)
def test_each_group_is_a_batch_of_its_own(loss_fn, real_groups):
    """Also when other groups are padding only, at the end or before a real one."""
    params, batch = problem()
    mask = None
    if real_groups is not None:
        mask = np.repeat(np.isin(np.arange(N), real_groups), ROWS // N)
        batch = jax.tree.map(
            lambda x: np.where(mask.reshape(-1, *[1] * (x.ndim - 1)), x, np.float32(np.nan)), batch
        )
    measure = jax.jit(value_grad_and_stats(loss_fn, groups(N), loss_kind="ghost"))
    loss, grads, stats = measure(params, batch, mask=mask)
    present = [0, 1, 2] if real_groups is None else real_groups
    expected_loss, expected_grads, variance = group_by_group(loss_fn, params, batch, present)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-4)
    np.testing.assert_allclose(flat(grads), expected_grads, rtol=1e-3, atol=1e-4)
    assert float(stats.num_examples) == len(present) * ROWS // N
    np.testing.assert_allclose(stats.variance, variance, rtol=1e-3)


def test_rows_of_a_group_do_interact():
    """Otherwise the test above would prove nothing."""
    params, batch = problem()
    measure = jax.jit(value_grad_and_stats(batchnorm_loss, groups(N), loss_kind="ghost"))
    _, grads, _ = measure(params, batch)
    whole = jax.grad(batchnorm_loss)(params, batch)
    assert np.abs(flat(grads) - flat(whole)).max() > 1e-2


def test_running_statistics_travel_in_aux():
    params, batch = problem()

    def fn(params, batch, running):
        hidden = batch["x"] @ params["w"]
        new = {"mean": 0.9 * running["mean"] + 0.1 * hidden.mean(axis=0)}
        return batchnorm_loss(params, batch), new

    measure = jax.jit(value_grad_and_stats(fn, groups(N), loss_kind="ghost", has_aux=True))
    mask = np.arange(ROWS) < 8  # two groups of four
    running = {"mean": np.ones(5, np.float32)}
    (_, new), _, _ = measure(params, batch, running, mask=mask)
    hidden = batch["x"][:8].astype(np.float64) @ params["w"].astype(np.float64)
    np.testing.assert_allclose(new["mean"], 0.9 + 0.1 * hidden.mean(axis=0), rtol=1e-5)
