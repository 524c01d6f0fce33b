"""`required_batch_size` through every wrapper that an optimizer may sit in."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import adaoptax

EXPECTED = 320 / 19  # norm test, η = 0.25, on the fixture


def norm() -> Any:
    return adaoptax.norm_test(0.25)


WRAPPERS: dict[str, Any] = {
    "alone": norm,
    "chain": lambda: optax.chain(optax.identity(), norm(), optax.adam(1e-3)),
    "chain of chains": lambda: optax.chain(optax.chain(optax.chain(norm())), optax.sgd(0.1)),
    "named_chain": lambda: optax.named_chain(("test", norm()), ("step", optax.sgd(0.1))),
    "masked": lambda: optax.masked(norm(), {"a": True, "b": False}),
    "partition": lambda: optax.partition(
        {"x": optax.chain(norm(), optax.sgd(0.1)), "y": optax.adam(0.1)}, {"a": "x", "b": "y"}
    ),
    "inject_hyperparams": lambda: optax.inject_hyperparams(adaoptax.norm_test)(eta=0.25),
    "apply_if_finite": lambda: optax.apply_if_finite(optax.chain(norm(), optax.sgd(0.1)), 3),
    "MultiSteps": lambda: optax.MultiSteps(optax.chain(norm(), optax.sgd(0.1)), 2),
    "skip_nonfinite": lambda: adaoptax.skip_nonfinite(optax.chain(norm(), optax.sgd(0.1))),
}


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("name", WRAPPERS)
def test_found_in_every_wrapper(name, jit, rows, numpy_stats):
    grads, stats = numpy_stats({"a": rows[:, :1], "b": rows[:, 1:]})
    tx = WRAPPERS[name]()
    state = tx.init(grads)
    assert float(adaoptax.required_batch_size(state)) == 0

    def step(state: Any) -> tuple[Any, Any]:
        _, state = tx.update(grads, state, grads, stats=stats)
        return state, adaoptax.required_batch_size(state)

    step = jax.jit(step) if jit else step
    for _ in range(2):  # MultiSteps: with the second, the inner state moves
        state, required = step(state)
    assert required.shape == ()
    assert required.dtype == jnp.float32
    assert float(required) == pytest.approx(EXPECTED, rel=1e-6)
    assert float(adaoptax.required_batch_size(state)) == float(required)


@pytest.mark.parametrize("jit", [False, True])
def test_found_in_an_nnx_optimizer(jit, rows, numpy_stats):
    grads, stats = numpy_stats(rows)
    model = nnx.Linear(1, 2, use_bias=False, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.chain(norm(), optax.sgd(0.1)), wrt=nnx.Param)

    def step(model: Any, optimizer: Any, grads: Any, stats: Any) -> jax.Array:
        like = nnx.state(model, nnx.Param)
        state = jax.tree.map(lambda p: grads.reshape(p.shape), like)
        optimizer.update(model, state, stats=stats)
        return adaoptax.required_batch_size(optimizer.opt_state)

    run = nnx.jit(step) if jit else step
    required = run(model, optimizer, grads, stats)
    assert float(required) == pytest.approx(EXPECTED, rel=1e-6)
    outside = adaoptax.required_batch_size(optimizer.opt_state)
    assert isinstance(outside, jax.Array)
    assert float(outside) == pytest.approx(EXPECTED, rel=1e-6)


def test_several_tests_give_the_largest(rows, numpy_stats):
    grads, stats = numpy_stats(rows)
    tx = optax.chain(
        adaoptax.norm_test(0.25, signal="plug-in"),  # 13.33
        adaoptax.inner_product_test(0.1, signal="plug-in"),  # 16.67
        optax.sgd(0.1),
        adaoptax.augmented_inner_product_test(10, 0.25, signal="plug-in"),  # 10.67
    )
    _, state = tx.update(grads, tx.init(grads), stats=stats)
    assert float(adaoptax.required_batch_size(state)) == pytest.approx(50 / 3, rel=1e-6)


def test_infinity_is_reported(numpy_stats):
    grads, stats = numpy_stats(np.array([[1.0], [-1.0]]))
    tx = optax.chain(norm(), optax.sgd(0.1))
    _, state = tx.update(grads, tx.init(grads), stats=stats)
    assert float(adaoptax.required_batch_size(state)) == np.inf


@pytest.mark.parametrize("state", [(), None, {"a": 1}, optax.sgd(0.1).init({"w": jnp.ones(2)})])
def test_no_test_is_an_error_that_says_what_to_do(state):
    with pytest.raises(ValueError, match=r"Expected a batch test in opt_state.*norm_test"):
        adaoptax.required_batch_size(state)


@pytest.mark.usefixtures("float64")
def test_mixed_precision_of_two_tests_gives_the_wider(numpy_stats, rows):
    grads, stats = numpy_stats(rows, 1, np.float64)
    narrow = adaoptax.norm_test(0.25).init(jnp.ones(2, jnp.float32))
    wide = adaoptax.norm_test(0.25).update(
        grads, adaoptax.norm_test(0.25).init(grads), stats=stats
    )[1]
    required = adaoptax.required_batch_size((narrow, wide))
    assert required.dtype == jnp.float64
    assert float(required) == pytest.approx(EXPECTED, rel=1e-14)


def test_a_state_vmapped_over_seeds_has_one_requirement_for_each(numpy_stats, rows):
    tx = optax.chain(adaoptax.norm_test(0.25), adaoptax.norm_test(0.5))
    scales = np.array([1.0, 2.0, 3.0], np.float32)
    noise = lambda scale: numpy_stats(rows * np.array([1.0, scale], np.float32))
    each = [noise(scale) for scale in scales]
    grads, stats = jax.tree.map(lambda *x: jnp.stack(x), *each)
    state = jax.vmap(tx.init)(grads)
    _, state = jax.vmap(lambda g, s, st: tx.update(g, s, stats=st))(grads, state, stats)
    together = adaoptax.required_batch_size(state)
    alone = []
    for grads, stats in each:
        _, one = tx.update(grads, tx.init(grads), stats=stats)
        alone.append(float(adaoptax.required_batch_size(one)))
    np.testing.assert_allclose(together, alone, rtol=1e-6)
    assert len(set(alone)) == 3
