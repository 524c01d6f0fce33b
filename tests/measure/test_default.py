"""What `method=None` chooses: one test for each row of the table in `measure.default`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import adaoptax
from adaoptax import measure
from adaoptax.measure.default import default_method
from adaoptax.measure.loss import describe_loss

X = np.random.default_rng(0).normal(size=(24, 6)).astype(np.float32)
W = jnp.ones((6, 3))


def dense(params, x, *args):
    return jnp.mean((x @ params) ** 2)


def mixing(params, x):
    y = x @ params
    return jnp.mean((y - jnp.mean(y, axis=0)) ** 2)


def chosen(loss_fn, params=W, batch=X, args=(), mask=None, **description):
    return default_method(describe_loss(loss_fn, **description), params, batch, args, mask)


def test_a_cheap_loss_is_measured_exactly():
    assert chosen(dense) == measure.exact()
    assert chosen(dense, batch=X[:2]) == measure.exact()
    assert chosen(dense, batch=X[:23]) == measure.exact()  # a prime: no groups divide it


def test_extra_arguments_do_not_matter():
    """Arrays, traced or not, keys and flags."""

    def loss_fn(params, x, scale, flag, key):
        assert flag is None
        x = jnp.where(scale > 0, x, jax.random.normal(key, x.shape))
        return dense(params, scale * x)

    def method_of(scale):
        args = (scale, None, jax.random.key(0))
        methods.append(chosen(loss_fn, args=args, key_argnums=4))
        return scale

    methods: list[Any] = []
    method_of(jnp.ones([]))
    jax.jit(method_of)(jnp.ones([]))
    assert methods == [measure.exact()] * 2


@pytest.mark.parametrize(("num_rows", "n"), [(24, 8), (21, 7), (10, 5), (2, 2), (9, 3)])
def test_a_loss_of_batches_is_measured_in_groups(num_rows, n):
    assert chosen(mixing, batch=X[:num_rows], loss_kind="ghost") == measure.groups(n)


@pytest.mark.parametrize("mask", [None, np.ones(24, bool)])
def test_a_loss_that_is_no_mean_of_its_parts_is_measured_whole_or_refused(mask):
    """Groups would return the gradient of another function."""
    run = lambda fn, **how: adaoptax.value_grad_and_stats(fn, **how)(W, X, mask=mask)
    with pytest.raises(ValueError, match=r"examples meet.*loss_kind=\"ghost\""):
        run(mixing)
    total = lambda params, x: jnp.sum((x @ params) ** 2)
    if mask is None:
        np.testing.assert_allclose(run(total)[1], jax.grad(total)(W, X), rtol=1e-5)
        assert chosen(mixing, loss_kind="assumed") == measure.exact()
    else:
        with pytest.raises(ValueError, match="2 times as large"):
            run(total)


def test_a_masked_batch_is_measured_in_groups():
    assert chosen(dense, mask=np.ones(24, bool)) == measure.groups(8)


def test_a_large_parameter_without_a_rule_is_measured_in_groups():
    """4 MiB of it times 24 examples are more than 64 MiB, and than the parameters take."""
    table = jnp.ones((6, 2**18))
    loss_fn = lambda params, x: jnp.mean(jnp.sort(params * x[:, :, None], axis=-1))
    assert measure.explain(loss_fn, table, X).treatments[0].how == "repeated"
    assert chosen(loss_fn, params=table) == measure.groups(8)


def test_work_beyond_a_tenth_of_the_gradient_is_measured_in_groups():
    sequence = np.ones((8, 4, 3), np.float32)  # Gram matrices of 4 x 4 beside products of 3 x 3
    loss_fn = lambda params, x: jnp.mean((x @ params) ** 2)
    assert measure.explain(loss_fn, jnp.ones((3, 3)), sequence).time_ratio > 1.1
    assert chosen(loss_fn, params=jnp.ones((3, 3)), batch=sequence) == measure.groups(8)


def test_several_devices_are_measured_in_groups():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    batch = jax.device_put(X, NamedSharding(mesh, P("data")))
    methods: list[Any] = []

    def step(params, x):
        methods.append(chosen(dense, params, x))
        return params

    with jax.set_mesh(mesh):
        jax.jit(step)(jax.device_put(W, NamedSharding(mesh, P())), batch)
    assert methods == [measure.groups(8)]


def test_the_choice_is_that_of_the_transformation():
    _, _, stats = jax.jit(adaoptax.value_grad_and_stats(dense))(W, X)
    assert stats.num_groups == 24
    _, _, stats = jax.jit(adaoptax.value_grad_and_stats(mixing, loss_kind="ghost"))(W, X)
    assert stats.num_groups == 8


@pytest.mark.parametrize("num_rows", [1, 11])
def test_a_prime_that_nothing_measures(num_rows):
    with pytest.raises(ValueError, match=rf"method=None, got {num_rows} examples.*pad the batch"):
        chosen(mixing, batch=X[:num_rows], loss_kind="assumed", mask=np.ones(num_rows, bool))
    with pytest.raises(ValueError, match=rf"method=None, got {num_rows} examples.*groups\(n\)"):
        chosen(mixing, batch=X[:num_rows], loss_kind="ghost")


def test_a_broken_loss_says_so():
    with pytest.raises(TypeError, match=r"dot_general|shape"):
        adaoptax.value_grad_and_stats(lambda params, x: jnp.mean(x @ params.T))(W, X)
