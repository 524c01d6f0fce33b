"""What describes a loss: where its batch and keys stand, what kind of mean it is."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy_reference import assert_measured, mlp, mlp_loss, reference, rows_by_jax

import adaoptax
from adaoptax import value_grad_and_stats
from adaoptax.measure import (
    exact,
    explain,
    groups,
    inner_products,
    micro_steps,
    per_example,
    per_example_moments,
)

ROWS = 8
ALL = ("norm", "inner", "coordinate")
METHODS = [None, exact(ALL), per_example(3, ALL), groups(4), inner_products(None)]


def apart(params, x, y):
    return mlp_loss(params, {"x": x, "y": y})


@pytest.fixture(scope="module")
def network():
    params, batch = mlp(ROWS)
    return params, batch, rows_by_jax(mlp_loss, params, batch)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_a_batch_of_several_arguments(method, network):
    params, batch, _ = network
    together = value_grad_and_stats(mlp_loss, method)(params, batch)
    measure = jax.jit(value_grad_and_stats(apart, method, batch_argnums=(1, 2)))
    for a, b in zip(*map(jax.tree.leaves, (measure(params, batch["x"], batch["y"]), together)),
                    strict=True):  # fmt: skip
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_a_batch_and_a_key_in_any_place(network):
    params, batch, rows = network

    def loss_fn(params, scale, y, key, x):
        noise = 0 * jax.random.normal(key)
        return scale * apart(params, x, y) + noise

    options: Any = {"batch_argnums": (4, 2), "key_argnums": 3}
    measure = value_grad_and_stats(loss_fn, per_example(None, ALL), **options)
    measured = measure(params, 1.0, batch["y"], jax.random.key(0), batch["x"])
    assert_measured(measured, reference(rows, ROWS))
    moments = per_example_moments(loss_fn, ("norm",), **options)
    found: Any = moments(params, 1.0, batch["y"], jax.random.key(0), batch["x"])[2]
    np.testing.assert_allclose(found.sq_norms, (rows[1] ** 2).sum(axis=1), rtol=1e-4)
    one = value_grad_and_stats(lambda w, scale, x: scale * jnp.mean(x @ w), batch_argnums=2)
    assert one(jnp.ones(2), 2.0, jnp.ones((4, 2)))[1].tolist() == [2.0, 2.0]


def test_micro_steps_and_accumulate_take_the_same_words(network):
    params, batch, rows = network
    steps = micro_steps(apart, batch_argnums=(1, 2))
    parts = [{name: x[i : i + 2] for name, x in batch.items()} for i in range(0, ROWS, 2)]
    state = steps.init(params, parts[0]["x"], parts[0]["y"])
    for part in parts:
        state = steps.add(state, params, part["x"], part["y"])
    assert_measured(steps.finish(state, params), reference(rows, 4))

    def update(state, loss, grads, stats):
        return state, (loss, grads, stats)

    step = adaoptax.accumulate(
        apart, update, micro_batch_size=2, max_batch_size=ROWS, batch_argnums=(1, 2)
    )
    data = (batch["x"], batch["y"])
    loader = adaoptax.BatchLoader(
        data, ROWS, max_batch_size=ROWS, pad_to=step.capacities, shuffle=False
    )
    _, output = step((jax.tree.map(jnp.asarray, params),), next(loader))
    assert_measured(output, reference(rows, 4))


PER_ROW = {
    "method=None": lambda fn, *args, **kw: value_grad_and_stats(fn, **kw)(*args),
    "exact": lambda fn, *args, **kw: value_grad_and_stats(fn, exact(), **kw)(*args),
    "groups": lambda fn, *args, **kw: value_grad_and_stats(fn, groups(2), **kw)(*args),
    "per_example": lambda fn, *args, **kw: value_grad_and_stats(fn, per_example(), **kw)(*args),
    "moments": lambda fn, *args, **kw: per_example_moments(fn, **kw)(*args),
    "micro_steps": lambda fn, *args, **kw: micro_steps(fn, **kw).init(*args),
    "explain": lambda fn, *args, **kw: explain(fn, *args, **kw),
}


@pytest.mark.parametrize("measure", PER_ROW.values(), ids=PER_ROW)
def test_data_of_rows_outside_of_the_batch_is_named(measure):
    """Labels beside a batch would be broadcast against each of its parts, and nobody would know."""
    x, y, w = jnp.ones((ROWS, 3)), jnp.ones(ROWS), jnp.ones(3)
    loss_fn = lambda w, x, labels: jnp.mean((x @ w - labels["y"]) ** 2)
    with pytest.raises(ValueError, match=r"argument 2 of loss_fn\['y'\] of shape \(8,\).*\(1, 2\)"):
        measure(loss_fn, w, x, {"y": y})
    measure(loss_fn, w, x, {"y": y}, batch_argnums=(1, 2))


def test_what_is_as_long_as_the_batch_by_chance_is_welcome():
    """Class weights, a table that rows look up, a flag: the loss takes a longer batch with them."""
    x, weights = jax.random.normal(jax.random.key(0), (ROWS, ROWS)), jnp.arange(1.0, ROWS + 1)

    def loss_fn(w, x, weights, sign):
        assert sign
        labels = jnp.argmax(x, axis=1)
        losses = optax.softmax_cross_entropy_with_integer_labels(x * w, labels)
        return jnp.mean(weights[labels] * losses)

    for method in (exact(), groups(2), per_example()):
        loss, grads, _ = value_grad_and_stats(loss_fn, method)(jnp.ones(ROWS), x, weights, True)
        value, gradient = jax.value_and_grad(loss_fn)(jnp.ones(ROWS), x, weights, True)
        np.testing.assert_allclose(loss, value, rtol=1e-5)
        np.testing.assert_allclose(grads, gradient, rtol=1e-4, atol=1e-6)


def whitened(w, x):
    h = x @ w
    return jnp.mean((h - h.mean()) ** 2) + 0 * h.std()


def test_kinds_of_losses():
    x, w = np.random.default_rng(0).normal(size=(ROWS, 3)), jnp.ones(3)
    with pytest.raises(ValueError, match="examples meet"):
        value_grad_and_stats(whitened, exact())(w, x)
    value, gradient = jax.value_and_grad(lambda w: jnp.mean((x @ w) ** 2))(w)
    loss, grads, _ = value_grad_and_stats(
        lambda w, x: jnp.mean((x @ w) ** 2), exact(), loss_kind="assumed"
    )(w, x)
    np.testing.assert_allclose(loss, value, rtol=1e-5)
    np.testing.assert_allclose(grads, gradient, rtol=1e-5)
    ghost = value_grad_and_stats(whitened, groups(2), loss_kind="ghost")
    _, grads, stats = ghost(w, x)
    halves = [jax.grad(whitened)(w, part) for part in (x[:4], x[4:])]
    np.testing.assert_allclose(grads, np.mean(halves, axis=0), rtol=1e-5)
    assert float(stats.num_groups) == 2


@pytest.mark.parametrize("method", [exact(), per_example(), inner_products(None)], ids=str)
def test_a_ghost_has_no_examples(method):
    with pytest.raises(ValueError, match=r'got "ghost".*groups\(n\)'):
        value_grad_and_stats(whitened, method, loss_kind="ghost")(jnp.ones(3), jnp.ones((4, 3)))
    with pytest.raises(ValueError, match="per_example_moments, got"):
        per_example_moments(whitened, loss_kind="ghost")


@pytest.mark.parametrize(
    ("description", "error", "match"),
    [
        ({"loss_kind": "sum"}, ValueError, "'separable', 'assumed', 'ghost'; got loss_kind='sum'"),
        ({"batch_argnums": 0}, ValueError, "batch_argnums=0: position 0 of the loss is params"),
        ({"batch_argnums": (1, 1)}, ValueError, r"batch_argnums=\(1, 1\)"),
        ({"batch_argnums": ()}, ValueError, r"batch_argnums=\(\)"),
        ({"key_argnums": 1}, ValueError, "key_argnums=1: .*keys are not data"),
        ({"key_argnums": 0}, ValueError, "key_argnums=0"),
        ({"weights_of": len}, NotImplementedError, "weights_of=None"),
    ],
)
def test_descriptions_out_of_range(description, error, match):
    update = lambda state, *measured: (state, None)
    for make in (
        value_grad_and_stats,
        micro_steps,
        per_example_moments,
        lambda fn, **kw: adaoptax.accumulate(
            fn, update, micro_batch_size=2, max_batch_size=4, **kw
        ),
    ):
        with pytest.raises(error, match=match):
            make(mlp_loss, **description)


def test_missing_inputs_and_batches_of_another_form():
    measure = value_grad_and_stats(apart, groups(2), batch_argnums=(1, 2))
    with pytest.raises(TypeError, match=r"positions \[2\] of the loss.*params and 1 more"):
        measure(jnp.ones(3), jnp.ones((4, 3)))
    step = adaoptax.accumulate(
        apart, lambda state, *m: (state, None), micro_batch_size=2, max_batch_size=4,
        batch_argnums=(1, 2),
    )  # fmt: skip
    loader = adaoptax.BatchLoader(
        {"x": np.ones((8, 3))}, 4, max_batch_size=4, pad_to=step.capacities
    )
    with pytest.raises(ValueError, match=r"tuple of 2 parts, as batch_argnums.* got dict"):
        step((jnp.ones(3),), next(loader))
