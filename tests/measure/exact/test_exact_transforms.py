"""The exact method under JAX's transformations, and what it asks of the compiler."""

import functools
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import row_gradients, statistics

from adaoptax import measure, value_grad_and_stats

pytestmark = pytest.mark.topic("transformations of JAX")

ALL = ("norm", "inner", "coordinate")
RNG = np.random.default_rng(3)
X = RNG.normal(size=(6, 4, 3)).astype(np.float32)
PARAMS = {
    "layers": RNG.normal(size=(2, 3, 3)).astype(np.float32),
    "bias": RNG.normal(size=3).astype(np.float32),
}


def loss_fn(params, x):
    h, _ = jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, params["layers"])
    return jnp.mean((h + params["bias"]) ** 2)


measured = value_grad_and_stats(loss_fn, measure.exact(ALL))


@functools.cache
def expected(scale=1.0):
    """(gradient, statistics) with all parameters times `scale`."""
    rows = row_gradients(loss_fn, jax.tree.map(lambda x: np.float32(scale) * x, PARAMS), X)
    return rows.mean_grad, statistics(rows)


def assert_expected(found, scale=1.0):
    (_, grads, stats), (mean_grad, by_definition) = found, expected(scale)
    compare = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7)
    jax.tree.map(compare, grads, mean_grad)
    for name in ("sq_norm", "variance", "inner_product_variance"):
        compare(getattr(stats, name), getattr(by_definition, name), err_msg=name)
    jax.tree.map(compare, stats.coordinate_variance, by_definition.coordinate_variance)


def nth(tree, i):
    return jax.tree.map(lambda x: x[i], tree)


def test_vmap_over_an_ensemble():
    members = jax.tree.map(lambda x: jnp.stack([x, x / 2]), PARAMS)
    found = jax.jit(jax.vmap(measured, in_axes=(0, None)))(members, X)
    assert_expected(nth(found, 0))
    assert_expected(nth(found, 1), 0.5)


def test_vmap_over_batches():
    found = jax.jit(jax.vmap(measured, in_axes=(None, 0)))(PARAMS, jnp.stack([2 * X, X]))
    assert_expected(nth(found, 1))


def test_inside_scan():
    def step(scale, x):
        params = jax.tree.map(lambda leaf: scale * leaf, PARAMS)
        return scale / 2, measured(params, x)

    _, found = jax.jit(lambda xs: jax.lax.scan(step, jnp.ones([]), xs))(jnp.stack([X, X]))
    assert_expected(nth(found, 0))
    assert_expected(nth(found, 1), 0.5)


def test_inside_cond():
    found = jax.jit(
        lambda due: jax.lax.cond(
            due, lambda: measured(PARAMS, X), lambda: measured(PARAMS, jnp.zeros_like(X))
        )
    )(True)
    assert_expected(found)


def test_debug_nans():
    """No NaN arises on the way, not even one that is thrown away."""
    small = value_grad_and_stats(lambda w, x: jnp.mean(jnp.tanh(x @ w)), measure.exact(ALL))
    with jax.debug_nans(True):
        small(jnp.ones(3), X)
        assert_expected(jax.jit(measured)(PARAMS, X))


def test_without_jit_at_all():
    with jax.disable_jit():
        assert_expected(measured(PARAMS, X))


def test_donated_parameters():
    assert_expected(jax.jit(measured, donate_argnums=0)(jax.device_put(PARAMS), X))


def test_one_compilation_and_no_transfers():
    """Whatever the mask, and with nothing read back by the host."""
    step: Any = jax.jit(lambda params, x, mask: measured(params, x, mask=mask))
    params, x = jax.device_put((PARAMS, X))
    masks = jax.device_put([np.ones(6, bool), np.array([1, 0, 1, 1, 0, 1], bool)])
    with jax.transfer_guard("disallow"):
        for mask in masks:
            found = step(params, x, mask)
    assert step._cache_size() == 1
    rows = row_gradients(loss_fn, PARAMS, X, mask=masks[-1])
    np.testing.assert_allclose(found[2].variance, statistics(rows).variance, rtol=1e-5)


@pytest.mark.parametrize("jit", [jax.jit, lambda fn: fn], ids=["jit", "eager"])
@pytest.mark.parametrize("result", [0, 1, 2])
def test_derivatives_of_the_results_are_refused(jit, result):
    """They would be zero: parameters are seen by their roots alone."""
    step = jit(value_grad_and_stats(loss_fn, measure.exact()))
    total = lambda params: sum(jnp.sum(x) for x in jax.tree.leaves(step(params, X)[result]))
    with pytest.raises(TypeError, match=r"no second derivatives.*per_example"):
        jax.grad(total)(PARAMS)


def test_derivatives_by_something_else_pass():
    """By the learning rate of a step, for example."""

    def after_step(rate):
        _, grads, _ = value_grad_and_stats(loss_fn, measure.exact())(PARAMS, X)
        return loss_fn(jax.tree.map(lambda p, g: p - rate * g, PARAMS, grads), X)

    slope = jax.grad(after_step)(0.0)
    np.testing.assert_allclose(slope, -expected()[1].sq_norm, rtol=1e-5)


def test_it_leans_on_nothing_that_jax_has_deprecated() -> None:
    """A user's project may turn warnings into errors, of our dependencies' too."""
    loss = lambda params, x: jnp.mean((jnp.tanh(2 * x @ params["w"]) @ params["v"]) ** 2)
    params = {"w": jnp.ones((4, 8)), "v": jnp.ones((8, 2))}
    fn = value_grad_and_stats(loss, measure.exact(ALL))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jax.jit(fn)(params, jnp.ones((6, 4)))
