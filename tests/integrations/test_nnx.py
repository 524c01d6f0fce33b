"""Flax nnx: modules are parameters, and `nnx.Optimizer.update` passes the statistics on."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import adaoptax
from adaoptax.measure import groups, per_example

pytestmark = pytest.mark.sampled


class MLP(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(3, 4, rngs=rngs)
        self.out = nnx.Linear(4, 1, rngs=rngs)

    def __call__(self, x):
        return self.out(nnx.tanh(self.hidden(x)))[:, 0]


def loss_fn(model, batch):
    return jnp.mean((model(batch["x"]) - batch["y"]) ** 2)


def pure_loss(params, batch):
    hidden = jnp.tanh(batch["x"] @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    scores = hidden @ params["out"]["kernel"] + params["out"]["bias"]
    return jnp.mean((scores[:, 0] - batch["y"]) ** 2)


def make_tx():
    return optax.chain(adaoptax.norm_test(eta=0.5), adaoptax.adascale(0.1, base_batch_size=4))


def make_batch():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(16, 3)).astype(np.float32)
    return {"x": x, "y": x.sum(axis=1) + rng.normal(size=16).astype(np.float32)}


def pure_params(model):
    return {
        name: {"kernel": getattr(model, name).kernel[...], "bias": getattr(model, name).bias[...]}
        for name in ("hidden", "out")
    }


MASK = np.arange(16) < 11
METHODS: list[Any] = [groups(4), per_example(), per_example(5)]


def plain_loop(params, batch, method, mask, steps=3):
    """The same training by optax on plain dictionaries: the required size and gain of each step."""
    tx, history = make_tx(), []
    measure = jax.jit(adaoptax.value_grad_and_stats(pure_loss, method))
    state = tx.init(params)
    for _ in range(steps):
        loss, grads, stats = measure(params, batch, mask=mask)
        updates, state = tx.update(grads, state, params, stats=stats)
        params = optax.apply_updates(params, updates)
        required = adaoptax.required_batch_size(state)
        history.append([float(loss), float(required), float(optax.tree.get(state, "gain"))])
    return params, history


def assert_same(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), a, b)


@pytest.mark.parametrize("mask", [None, MASK], ids=["all", "masked"])
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_training_under_nnx_jit_equals_plain_optax(method, mask, compilations):
    model, batch = MLP(nnx.Rngs(0)), make_batch()
    expected_params, expected = plain_loop(pure_params(model), batch, method, mask)
    optimizer = nnx.Optimizer(model, make_tx(), wrt=nnx.Param)
    measure = adaoptax.value_grad_and_stats(loss_fn, method)

    @nnx.jit
    def step(model, optimizer, batch, mask):
        loss, grads, stats = measure(model, batch, mask=mask)
        optimizer.update(model, grads, stats=stats)
        state = nnx.as_pure(optimizer.opt_state)
        return loss, adaoptax.required_batch_size(state), optax.tree.get(state, "gain")

    history = [[float(x) for x in step(model, optimizer, batch, mask)]]
    compilations.reset()
    history += [[float(x) for x in step(model, optimizer, batch, mask)] for _ in range(2)]
    assert compilations.count == 0
    np.testing.assert_allclose(history, expected, rtol=1e-4)
    assert_same(pure_params(model), expected_params)
    assert int(optimizer.step[...]) == 3
    # Read from outside, from the optimizer's own state of variables.
    required = adaoptax.required_batch_size(optimizer.opt_state)
    np.testing.assert_allclose(required, expected[-1][1], rtol=1e-4)


def test_training_under_jax_jit():
    """Modules are pytrees: pass them in, hand them back."""
    model, batch = MLP(nnx.Rngs(0)), make_batch()
    expected_params, expected = plain_loop(pure_params(model), batch, groups(4), None)
    optimizer = nnx.Optimizer(model, make_tx(), wrt=nnx.Param)
    measure = adaoptax.value_grad_and_stats(loss_fn, groups(4))

    @jax.jit
    def step(model, optimizer, batch):
        _, grads, stats = measure(model, batch)
        optimizer.update(model, grads, stats=stats)
        return model, optimizer, adaoptax.required_batch_size(optimizer.opt_state)

    for _, required_of_step, _ in expected:
        model, optimizer, required = step(model, optimizer, batch)
        np.testing.assert_allclose(required, required_of_step, rtol=1e-4)
    assert_same(pure_params(model), expected_params)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_gradients_and_statistics_of_a_module(method):
    """Like the module; equal to those of plain dictionaries, per coordinate too."""
    method = dataclasses.replace(method, statistics=("norm", "coordinate"))
    model, batch = MLP(nnx.Rngs(0)), make_batch()
    measured = jax.jit(adaoptax.value_grad_and_stats(loss_fn, method))(model, batch, mask=MASK)
    plain = jax.jit(adaoptax.value_grad_and_stats(pure_loss, method))(
        pure_params(model), batch, mask=MASK
    )
    loss, grads, stats = measured
    np.testing.assert_allclose(loss, plain[0], rtol=1e-6)
    assert_same(pure_params(grads), plain[1])
    assert_same(pure_params(stats.coordinate_variance), plain[2].coordinate_variance)
    np.testing.assert_allclose(stats.variance, plain[2].variance, rtol=1e-5)
    # The reference of the reference: jax on the whole real batch, without adaoptax.
    real = jax.tree.map(lambda x: x[MASK], batch)
    assert_same(pure_params(grads), jax.grad(pure_loss)(pure_params(model), real))


def test_missing_statistics_are_a_type_error():
    model = MLP(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, make_tx(), wrt=nnx.Param)
    grads = jax.grad(loss_fn)(model, make_batch())
    with pytest.raises(TypeError, match="stats"):
        optimizer.update(model, grads)


def test_dropout_with_a_key_for_each_row():
    """Keys as an extra argument; rows of a group differ, so no two rows share a mask."""

    def dropout_loss(model, batch, key):
        kept = jax.random.bernoulli(key, 0.5, (len(batch["y"]), 64))
        hidden = nnx.tanh(model.hidden(batch["x"])) * kept[:, :4] * 2
        return jnp.mean((model.out(hidden)[:, 0] - batch["y"]) ** 2), kept

    model, batch = MLP(nnx.Rngs(0)), make_batch()
    for method in METHODS:
        measure = adaoptax.value_grad_and_stats(dropout_loss, method, has_aux=True, key_argnums=2)
        (_, kept), _, stats = nnx.jit(measure)(model, batch, jax.random.key(0))
        assert kept.shape == (16, 64)
        assert len(np.unique(np.asarray(kept), axis=0)) == 16
        assert float(stats.variance) > 0
