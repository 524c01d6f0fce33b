"""Losses in which the number of rows has a part: refused, or those of `jax.value_and_grad`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from adaoptax import measure, value_grad_and_stats

RNG = np.random.default_rng(8)
X = jnp.asarray(RNG.normal(size=(16, 4)), jnp.float32)
W = jnp.asarray(RNG.normal(size=(4, 4)), jnp.float32)
REAL = np.arange(16) < 13
KEYS = [jax.random.key(i) for i in range(33)]
ONES, OTHERS = np.ones(4, np.float32), np.array([3.0, 1, 1, 1], np.float32)

mean = lambda h: jnp.mean(jnp.tanh(h) ** 2)
summed = lambda w, x: jnp.sum(jnp.tanh(x @ w) ** 2)
penalty = lambda w: jnp.sum(w**2)
count = lambda x: jnp.int32(len(x))


def with_backward(backward):
    """The identity, with what flows back changed."""
    fn = jax.custom_vjp(lambda h: h)
    fn.defvjp(lambda h: (h, h), lambda h, c: (backward(h, c),))
    return fn


def groups(fn, w, x):
    return value_grad_and_stats(fn, measure.groups(4))(w, x)


def per_example(fn, w, x):
    return value_grad_and_stats(fn, measure.per_example())(w, x)


def exact(fn, w, x):
    return value_grad_and_stats(fn, measure.exact())(w, x)


def masked(fn, w, x):
    return value_grad_and_stats(fn, measure.exact())(w, x, mask=REAL)


IN_PARTS = {
    "a penalty divided by B": lambda w, x: (summed(w, x) + penalty(w)) / len(x),
    "a constant divided by B": lambda w, x: (summed(w, x) + 3.0) / len(x),
    "a penalty times B over B": lambda w, x: (mean(x @ w) * len(x) + penalty(w)) / len(x),
    "a key of the length": lambda w, x: mean(x @ w * jax.random.normal(KEYS[len(x)], (4,))),
    "bits of the length": lambda w, x: mean((x @ w) * (1 + (count(x) & 16))),
    "a rounded length": lambda w, x: summed(w, x) / lax.div(count(x), 3),
    "a length cut off": lambda w, x: summed(w, x) / (jnp.float32(len(x)) * 0.4).astype(int),
    "equal counts": lambda w, x: (
        summed(w, x) / len(x) ** 2 * (jnp.float32(len(x)) == jnp.sum(jnp.ones(len(x))))
    ),
    "a window over ones": lambda w, x: mean(
        (x @ w) * lax.reduce_window(jnp.ones(len(x)), 0.0, lax.add, (len(x),), (1,), "VALID")[0]
    ),
    "as many columns as rows": lambda w, x: jnp.mean(
        lax.dynamic_slice_in_dim(x @ jnp.tile(w, (1, 4)) * jnp.arange(16.0), 0, len(x), 1) ** 2
    ),
    "another order": lambda w, x: mean(
        x @ lax.reshape(w, (16,), (0, 1) if len(x) <= 4 else (1, 0)).reshape(4, 4)
    ),
    "cut on its way": lambda w, x: mean(
        with_backward(lambda h, c: jnp.clip(c, -1e-3, 1e-3))(x @ w)
    ),
    "by places on its way": lambda w, x: mean(
        with_backward(lambda h, c: c * (jnp.arange(len(c)) < 2)[:, None])(x @ w)
    ),
    "counted on its way": lambda w, x: mean(with_backward(lambda h, c: c * len(c))(x @ w)),
}


@pytest.mark.parametrize("name", IN_PARTS)
def test_no_mean_of_parts(name):
    with pytest.raises(ValueError, match=r"Expected (loss_fn|derivatives|a loss)"):
        groups(IN_PARTS[name], W, X)


OF_ONE_ROW = {
    "a constant of a jitted function": lambda w, x: mean(
        jax.jit(lambda h: h * (ONES if len(x) == 1 else OTHERS))(x @ w)
    ),
    "another divisor": lambda w, x: summed(w, x) / {1: 0.5, 2: 2.0, 4: 8.0}.get(len(x), len(x)),
}


@pytest.mark.parametrize("name", OF_ONE_ROW)
def test_another_loss_of_one_row(name):
    with pytest.raises(ValueError, match="what it does with several"):
        per_example(OF_ONE_ROW[name], W, X)


WITH_PADDING = {
    "a learned weight": lambda w, x: mean(x @ w) * jnp.exp(-w[0, 0]) + w[0, 0],
    "a penalty over B": lambda w, x: mean(x @ w) + penalty(w) / len(x),
    "a parameter over B": lambda w, x: mean(x @ (w * (4.0 / len(x)))),
    "a sum of ones": lambda w, x: summed(w, x) / jnp.sum(jnp.ones(len(x))),
    "a branch on the count": lambda w, x: mean(
        lax.cond(count(x) < 14, lambda h: h, lambda h: h * 2, x @ w)
    ),
    "as many turns": lambda w, x: mean(
        (x @ w) * lax.scan(lambda c, _: (c + 1.0, None), 0.0, None, length=len(x))[0]
    ),
}


@pytest.mark.parametrize("name", WITH_PADDING)
def test_padding_that_is_counted(name):
    with pytest.raises(ValueError, match="rows of padding can be left out"):
        masked(WITH_PADDING[name], W, X)


@pytest.mark.parametrize("name", WITH_PADDING)
def test_all_of_the_batch_is_no_matter(name):
    loss, gradient = jax.value_and_grad(WITH_PADDING[name])(W, X)
    found = exact(WITH_PADDING[name], W, X)
    np.testing.assert_allclose(found[0], loss, rtol=1e-6)
    np.testing.assert_allclose(found[1], gradient, rtol=1e-5, atol=1e-6)


NOT_LINEAR = {
    "clipped": lambda h, c: jnp.clip(c, -1e-2, 1e-2),
    "normalised": lambda h, c: c / jnp.linalg.norm(c),
    "with something added": lambda h, c: c + h,
}


@pytest.mark.parametrize("name", NOT_LINEAR)
def test_a_parameter_whose_gradient_is_changed(name):
    """The sum of what the rows get is not what the batch gets."""
    loss_fn = lambda w, x: mean(x @ with_backward(NOT_LINEAR[name])(w))
    with pytest.raises(ValueError, match="Expected derivatives that are linear"):
        exact(loss_fn, W, X)


def test_a_derivative_that_is_linear_passes():
    reverse = with_backward(lambda h, c: -0.5 * c * jax.nn.sigmoid(h))
    loss_fn = lambda w, x: mean(reverse(x @ reverse(w)))
    loss, gradient = jax.value_and_grad(loss_fn)(W, X)
    for way in (exact, groups, per_example):
        found = way(loss_fn, W, X)
        np.testing.assert_allclose(found[0], loss, rtol=1e-5)
        np.testing.assert_allclose(found[1], gradient, rtol=1e-4, atol=1e-6)


def test_a_derivative_that_cannot_be_seen():
    """JAX traces no derivative by itself inside of shard_map."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("d",))
    halve = with_backward(lambda h, c: 0.5 * c)
    loss_fn = lambda w, x: mean(halve(x @ w))

    def step(loss_kind):
        method = measure.devices("d")
        measured = value_grad_and_stats(loss_fn, method, loss_kind=loss_kind)
        spec = jax.sharding.PartitionSpec
        return jax.shard_map(measured, mesh=mesh, in_specs=(spec(), spec("d")), out_specs=spec())

    with pytest.raises(ValueError, match=r"unseen inside of jax\.shard_map.*assumed"):
        step("separable")(W, X)
    gradient = step("assumed")(W, X)[1]
    np.testing.assert_allclose(gradient, jax.grad(loss_fn)(W, X), rtol=1e-5, atol=1e-7)


def test_rows_whose_gradient_is_clipped_on_its_way():
    """`exact` sees the whole batch, and what flows back to the rows is the user's own."""
    clip = with_backward(lambda h, c: jnp.clip(c, -1e-3, 1e-3))
    loss_fn = lambda w, x: mean(clip(x @ w))
    loss, gradient = jax.value_and_grad(loss_fn)(W, X)
    found = exact(loss_fn, W, X)
    np.testing.assert_allclose(found[0], loss, rtol=1e-6)
    np.testing.assert_allclose(found[1], gradient, rtol=1e-5, atol=1e-7)
