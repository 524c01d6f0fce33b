"""`loss_kind="ghost"`: each group is a batch of its own, in every method that has groups."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import adaoptax
from adaoptax import measure, value_grad_and_stats
from adaoptax.measure import every, groups, micro_steps

RNG = np.random.default_rng(4)
ROWS, N = 16, 4
X = RNG.normal(size=(ROWS, 3)).astype(np.float32)
W = jnp.asarray(RNG.normal(size=(3, 2)), jnp.float32)
WHOLE, PARTLY = np.arange(ROWS) < 12, np.arange(ROWS) < 11


def normalised(w, x):
    h = x @ w
    return jnp.mean(jax.nn.softplus((h - h.mean(axis=0)) / jnp.sqrt(h.var(axis=0) + 1e-3)))


def pairs(w, x):
    """One row cannot be split in two halves."""
    better, worse = jnp.split(jnp.sum(jnp.tanh(x @ w), axis=1), 2)
    return jnp.mean(jax.nn.softplus(worse - better))


LOSSES = [normalised, pairs]


def by_hand(loss_fn, num_groups=N, of=N):
    """Loss, gradient and variance of the first groups, one call each."""
    parts = [jax.value_and_grad(loss_fn)(W, x) for x in np.split(X, of)[:num_groups]]
    h = np.stack([np.asarray(gradient, np.float64) for _, gradient in parts])
    g = h.mean(axis=0)
    variance = ROWS // of * ((h - g) ** 2).sum() / (num_groups - 1)
    return np.mean([value for value, _ in parts]), g, variance


def assert_same(measured, expected):
    loss, grads, stats = measured
    np.testing.assert_allclose(loss, expected[0], rtol=1e-5)
    np.testing.assert_allclose(grads, expected[1], rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(stats.variance, expected[2], rtol=1e-3)


def with_groups(loss_fn, mask):
    return jax.jit(value_grad_and_stats(loss_fn, groups(N), loss_kind="ghost"))(W, X, mask=mask)


def with_every(loss_fn, mask):
    method = every(2, groups(N), between=groups(N))
    step = jax.jit(value_grad_and_stats(loss_fn, method, loss_kind="ghost"))
    return step(W, X, mask=mask, due=jnp.asarray(False))


def with_micro_steps(loss_fn, mask):
    steps = micro_steps(loss_fn, loss_kind="ghost")
    add, state = jax.jit(steps.add), steps.init(W, X[:4])
    masks = [None] * N if mask is None else np.split(mask, N)
    for x, part in zip(np.split(X, N), masks, strict=True):
        state = add(state, W, x, mask=part)
    return steps.finish(state, W)


def accumulated(how):
    def run(loss_fn, mask):
        step = adaoptax.accumulate(
            loss_fn, lambda state, *measured: (state, measured), micro_batch_size=ROWS // N,
            max_batch_size=ROWS, how=how, loss_kind="ghost", donate=False,
        )  # fmt: skip
        batch = adaoptax.Batch(X, np.ones(ROWS, bool) if mask is None else mask)
        step.compile((W,), batch, progress=False)
        return step((W,), batch)[1]

    return run


def on_devices(inner):
    def run(loss_fn, mask):
        method = measure.devices("data", inner)
        step = value_grad_and_stats(loss_fn, method, loss_kind="ghost")
        devices = N if inner is None else N // 2
        cut = lambda x: None if x is None else np.stack(np.split(x, devices))
        mapped = jax.vmap(lambda x, m: step(W, x, mask=m), out_axes=None, axis_name="data")
        return jax.jit(mapped)(cut(X), cut(mask))

    return run


WAYS = {
    "groups": with_groups,
    "every": with_every,
    "micro_steps": with_micro_steps,
    "padded": accumulated("padded"),
    "host": accumulated("host"),
    "devices": on_devices(None),
    "devices of groups": on_devices(groups(2)),
}


@pytest.mark.parametrize("loss_fn", LOSSES)
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_each_group_is_a_batch(way, loss_fn):
    assert_same(way(loss_fn, None), by_hand(loss_fn))
    assert_same(way(loss_fn, WHOLE), by_hand(loss_fn, 3))


@pytest.mark.parametrize("loss_fn", LOSSES)
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_batch_that_is_partly_padding_is_not_silently_another_one(way, loss_fn):
    loss, grads, stats = way(loss_fn, PARTLY)
    assert np.isnan(loss)
    assert np.isnan(grads).all()
    assert np.isnan(stats.variance)


@pytest.mark.parametrize("loss_fn", LOSSES)
def test_a_mask_that_is_known_is_told(loss_fn):
    with pytest.raises(ValueError, match=r"whole groups of 4 rows.*got a group of 3 real rows"):
        value_grad_and_stats(loss_fn, groups(N), loss_kind="ghost")(W, X, mask=PARTLY)
    steps = micro_steps(loss_fn, loss_kind="ghost")
    with pytest.raises(ValueError, match="got a group of 2 real rows"):
        steps.add(steps.init(W, X[:4]), W, X[:4], mask=np.arange(4) < 2)


def test_the_groups_of_a_mesh():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    x = jax.device_put(X, NamedSharding(mesh, P("data")))
    step = jax.jit(value_grad_and_stats(normalised, groups(N), loss_kind="ghost"))
    assert_same(step(W, x), by_hand(normalised))
    assert_same(step(W, x, mask=WHOLE), by_hand(normalised, 3))


def test_the_default_takes_groups():
    step = value_grad_and_stats(normalised, loss_kind="ghost")
    assert_same(step(W, X), by_hand(normalised, 8, of=8))


def test_steps_between_of_a_padded_batch_need_groups_too():
    step: Any = value_grad_and_stats(normalised, every(2, groups(N)), loss_kind="ghost")
    with pytest.raises(ValueError, match=r"Pass between=adaoptax\.measure\.groups\(n\)"):
        step(W, X, mask=WHOLE, due=False)
    value, gradient = jax.value_and_grad(normalised)(W, X)
    loss, grads, _ = step(W, X, due=False)
    np.testing.assert_allclose((loss, *grads.ravel()), (value, *gradient.ravel()), rtol=1e-5)
