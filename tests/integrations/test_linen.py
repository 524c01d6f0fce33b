"""Flax linen: our TrainState, and Flax's own through `bind_extra_args`."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import struct
from flax.training import train_state

import adaoptax
from adaoptax.integrations.flax import TrainState


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(nn.tanh(nn.Dense(4)(x)))[:, 0]


MODEL = MLP()


def loss_fn(params, batch):
    return jnp.mean((MODEL.apply({"params": params}, batch["x"]) - batch["y"]) ** 2)


MEASURE = adaoptax.value_grad_and_stats(loss_fn, adaoptax.measure.groups(4))


def make_tx():
    return optax.chain(adaoptax.norm_test(eta=0.5), adaoptax.adascale(0.1, base_batch_size=4))


def problem():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(16, 3)).astype(np.float32)
    batch = {"x": x, "y": x.sum(axis=1) + rng.normal(size=16).astype(np.float32)}
    return MODEL.init(jax.random.key(0), x)["params"], batch


def plain_loop(params, batch, steps=3):
    """The same training with optax alone."""
    tx = make_tx()
    state = tx.init(params)
    for _ in range(steps):
        _, grads, stats = jax.jit(MEASURE)(params, batch)
        updates, state = tx.update(grads, state, params, stats=stats)
        params = optax.apply_updates(params, updates)
    return params, state


def assert_same(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), a, b)


def test_equals_a_plain_optax_loop_under_jit_with_a_donated_state(compilations):
    params, batch = problem()
    expected_params, expected_opt_state = plain_loop(params, batch)

    @jax.jit
    def init(params):
        return TrainState.create(apply_fn=MODEL.apply, params=params, tx=tx)

    def step(state, batch):
        loss, grads, stats = MEASURE(state.params, batch)
        return state.apply_gradients(grads=grads, stats=stats), loss

    tx = make_tx()
    step = jax.jit(step, donate_argnums=0)
    state = init(params)
    losses = []
    for i in range(3):
        given = state
        state, loss = step(state, batch)
        losses.append(float(loss))
        assert jax.tree.leaves(given.params)[0].is_deleted()
        if i == 0:
            compilations.reset()
    assert compilations.count == 0
    assert losses[0] > losses[1] > losses[2]
    assert int(state.step) == 3
    assert state.tx is tx  # static: a new one would compile a new step
    assert_same(state.params, expected_params)
    assert_same(state.opt_state, expected_opt_state)
    np.testing.assert_allclose(
        adaoptax.required_batch_size(state.opt_state),
        adaoptax.required_batch_size(expected_opt_state),
        rtol=1e-5,
    )


def test_fields_of_a_subclass_are_replaced_and_the_rest_passed_on():
    class State(TrainState):
        batch_stats: Any = None
        label: str = struct.field(pytree_node=False, default="")

    received = {}

    def update(updates, state, params=None, **extra):
        received.update(extra)
        return updates, state

    tx = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
    state = State.create(apply_fn=None, params={"w": jnp.ones(2)}, tx=tx, batch_stats={"mean": 0.0})
    new = state.apply_gradients(
        grads={"w": jnp.full(2, 0.5)}, batch_stats={"mean": 3.0}, label="b", stats="s", value=7
    )
    assert type(new) is State
    assert received == {"stats": "s", "value": 7}
    assert (new.batch_stats, new.label) == ({"mean": 3.0}, "b")
    assert state.batch_stats == {"mean": 0.0}
    np.testing.assert_allclose(new.params["w"], [1.5, 1.5])
    assert new.tx is state.tx is tx
    assert int(new.step) == 1


def test_missing_statistics_are_a_type_error():
    params, _ = problem()
    state = TrainState.create(apply_fn=None, params=params, tx=make_tx())
    with pytest.raises(TypeError, match="stats"):
        state.apply_gradients(grads=params)


def test_optimizers_without_extra_arguments_are_served():
    params = {"w": jnp.ones(2)}
    state = TrainState.create(apply_fn=None, params=params, tx=optax.sgd(0.5))
    _, stats = adaoptax.stats_from_groups(jnp.eye(2), 1)
    for extra in ({}, {"stats": stats}):
        new = state.apply_gradients(grads=params, **extra)
        np.testing.assert_allclose(new.params["w"], [0.5, 0.5])
        assert new.tx is state.tx


def test_flax_s_own_train_state_with_bound_arguments():
    """The recipe: bind inside the step, put the plain optimizer back."""
    params, batch = problem()
    expected_params, expected_opt_state = plain_loop(params, batch)
    tx = make_tx()
    state = train_state.TrainState.create(apply_fn=MODEL.apply, params=params, tx=tx)

    @jax.jit
    def step(state, batch):
        _, grads, stats = MEASURE(state.params, batch)
        bound = state.replace(tx=adaoptax.bind_extra_args(state.tx, stats=stats))
        return bound.apply_gradients(grads=grads).replace(tx=state.tx)

    for _ in range(3):
        state = step(state, batch)
    assert state.tx is tx
    assert_same(state.params, expected_params)
    assert_same(state.opt_state, expected_opt_state)


def test_bound_arguments_yield_to_those_of_the_trainer():
    received = {}

    def update(updates, state, params=None, **extra):
        received.update(extra)
        return updates, state

    tx = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
    bound = adaoptax.bind_extra_args(tx, stats="bound", value=1)
    bound.update(jnp.ones(1), bound.init(jnp.ones(1)), stats="given")
    assert received == {"stats": "given", "value": 1}


def test_batch_norm_in_training_mode():
    """Each group is normalised by itself; running statistics are averaged over the groups."""

    class Normalised(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            hidden = nn.Dense(4, use_bias=False)(x)
            return nn.Dense(1)(nn.BatchNorm(use_running_average=not train, momentum=0.5)(hidden))

    class State(TrainState):
        batch_stats: Any = None

    model, (_, batch) = Normalised(), problem()
    variables = model.init(jax.random.key(0), batch["x"], train=False)

    def bn_loss(params, batch, batch_stats):
        scores, new = model.apply(
            {"params": params, "batch_stats": batch_stats},
            batch["x"],
            train=True,
            mutable=["batch_stats"],
        )
        return jnp.mean((scores[:, 0] - batch["y"]) ** 2), new["batch_stats"]

    measure = adaoptax.value_grad_and_stats(
        bn_loss, adaoptax.measure.groups(4), loss_kind="ghost", has_aux=True
    )
    state = State.create(
        apply_fn=None,
        params=variables["params"],
        tx=make_tx(),
        batch_stats=variables["batch_stats"],
    )

    @jax.jit
    def step(state, batch, mask):
        (_, new), grads, stats = measure(state.params, batch, state.batch_stats, mask=mask)
        return state.apply_gradients(grads=grads, stats=stats, batch_stats=new), grads

    mask = np.arange(16) < 12  # three real groups of four
    new, grads = step(state, batch, mask)
    parts = [jax.tree.map(lambda x, j=j: x[4 * j : 4 * j + 4], batch) for j in range(3)]
    single = jax.jit(jax.grad(bn_loss, has_aux=True))
    outs = [single(state.params, part, state.batch_stats) for part in parts]
    mean = lambda *x: np.mean(np.stack(x), axis=0)
    assert_same(grads, jax.tree.map(mean, *[grads for grads, _ in outs]))
    assert_same(new.batch_stats, jax.tree.map(mean, *[stats for _, stats in outs]))
