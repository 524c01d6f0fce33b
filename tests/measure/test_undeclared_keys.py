"""Numbers drawn for the rows of a batch from a key that is not declared are refused."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adaoptax
from adaoptax import measure, value_grad_and_stats
from adaoptax.measure import groups, micro_steps, per_example

X = np.random.default_rng(5).normal(size=(8, 3)).astype(np.float32)
W = jnp.ones(3)
CAPTURED = jax.random.key(7)


def noisy(w, x, noise):
    return jnp.mean((x @ w + noise) ** 2)


def accumulated(fn, *args, **options):
    step = adaoptax.accumulate(
        fn, lambda state, *measured: (state, measured), micro_batch_size=2, max_batch_size=8,
        donate=False, **options,
    )  # fmt: skip
    return step((W,), adaoptax.Batch(X, np.ones(8, bool)), *args)


def on_devices(fn, *args, **options):
    step = value_grad_and_stats(fn, measure.devices("data", groups(2)), **options)
    mapped = jax.vmap(lambda x: step(W, x, *args), axis_name="data")
    return mapped(X.reshape(2, 4, 3))


WAYS: dict[str, Any] = {
    "groups": lambda fn, *args, **kw: value_grad_and_stats(fn, groups(4), **kw)(W, X, *args),
    "per_example": lambda fn, *args, **kw: value_grad_and_stats(fn, per_example(), **kw)(
        W, X, *args
    ),
    "micro_steps": lambda fn, *args, **kw: micro_steps(fn, **kw).init(W, X[:2], *args),
    "with a method": lambda fn, *args, **kw: micro_steps(fn, groups(2), **kw).init(W, X, *args),
    "accumulate": accumulated,
    "devices": on_devices,
    "under jit": lambda fn, *args, **kw: jax.jit(value_grad_and_stats(fn, groups(2), **kw))(
        W, X, *args
    ),
}
KEYS = [jax.random.key(1), jax.random.PRNGKey(1), jax.random.key(1, impl="rbg")]


def of_rows(key, x):
    return jax.random.normal(key, x.shape[:1])


def permuted(key, x):
    return jax.random.permutation(key, x[:, 0])


def split_for_rows(key, x):
    return jax.vmap(jax.random.normal)(jax.random.split(key, len(x)))


def in_a_loop(key, x):
    one = lambda total, key: (total + jax.random.bernoulli(key, 0.5, x.shape[:1]), None)
    return jax.lax.scan(one, jnp.zeros(len(x)), jax.random.split(key, 3))[0]


def one_by_one(key, x):
    return jnp.stack([jax.random.uniform(jax.random.fold_in(key, i)) for i in range(len(x))])


DRAWS = [of_rows, split_for_rows]
OTHERS = [permuted, in_a_loop, one_by_one]  # refused for more than the key


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_key_that_is_not_declared_is_named(way):
    """Every group would have the numbers of the first."""
    fn = lambda w, x, key: noisy(w, x, of_rows(key, x))
    told = r"got key_argnums=\(\) and random_bits\(.*test_undeclared_keys.*position in key_argnums"
    with pytest.raises(ValueError, match=told):
        way(fn, KEYS[0])
    captured = lambda w, x: noisy(w, x, of_rows(CAPTURED, x))
    with pytest.raises(ValueError, match="Make that key an argument of loss_fn"):
        way(captured)
    way(fn, KEYS[0], key_argnums=2)
    way(fn, KEYS[0], loss_kind="assumed")


@pytest.mark.parametrize("key", KEYS, ids=["typed", "raw", "rbg"])
@pytest.mark.parametrize("draw", DRAWS)
def test_however_numbers_are_drawn(draw, key):
    fn = lambda w, x, key: noisy(w, x, draw(key, x))
    with pytest.raises(ValueError, match=r"got key_argnums=\(\) and random_\w+\("):
        value_grad_and_stats(fn, groups(4))(W, X, key)
    value_grad_and_stats(fn, groups(4), key_argnums=2)(W, X, key)


@pytest.mark.parametrize("key", KEYS, ids=["typed", "raw", "rbg"])
@pytest.mark.parametrize("draw", OTHERS)
def test_draws_in_other_ways_are_refused_too(draw, key):
    fn = lambda w, x, key: noisy(w, x, draw(key, x))
    with pytest.raises(ValueError, match="Expected"):
        value_grad_and_stats(fn, groups(4))(W, X, key)


def test_gamma_has_a_primitive_of_its_own():
    fn = lambda w, x, key: noisy(w, x, jax.random.gamma(key, jnp.ones(len(x))))
    with pytest.raises(ValueError, match=r"random_gamma\("):
        value_grad_and_stats(fn, groups(4))(W, X, KEYS[0])
    value_grad_and_stats(fn, groups(4), key_argnums=2)(W, X, KEYS[0])


def test_one_key_of_two_is_not_declared():
    fn = lambda w, x, a, flag, b: noisy(w, x, of_rows(a, x) + of_rows(b, x))
    measured = lambda **kw: value_grad_and_stats(fn, groups(2), **kw)(
        W, X, KEYS[0], "flag", KEYS[1]
    )
    measured(key_argnums=(2, 4))
    for declared in (2, 4):
        with pytest.raises(ValueError, match=rf"got key_argnums=\({declared},\) and random_bits"):
            measured(key_argnums=declared)


def test_what_is_the_same_for_all_rows_is_drawn_as_in_the_plain_call():
    """A draw without an axis of rows, one from keys of the rows, one from ids of the rows."""

    def fn(w, batch, key):
        mask = jax.random.bernoulli(key, 0.5, (3,))
        noise = jax.vmap(jax.random.normal)(batch["key"])
        each = jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i)))(batch["id"])
        return noisy(w, batch["x"] * mask, noise + each)

    batch = {"x": X, "key": jax.random.split(KEYS[0], 8), "id": np.arange(8)}
    for method in (groups(4), per_example()):
        loss, grads, _ = value_grad_and_stats(fn, method)(W, batch, CAPTURED)
        value, gradient = jax.value_and_grad(fn)(W, batch, CAPTURED)
        np.testing.assert_allclose(loss, value, rtol=1e-5)
        np.testing.assert_allclose(grads, gradient, rtol=1e-4, atol=1e-6)
