"""AdaGrad-Norm against a numpy loop and closed forms; the pairs with a test equal their parts."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adaoptax

pytestmark = pytest.mark.sampled


def gradients(seed: int, steps: int = 25) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [{"w": rng.normal(size=(3, 4)), "b": rng.normal(size=5)} for _ in range(steps)]


def as_jax(tree: Any, dtype: Any = jnp.float32) -> Any:
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), tree)


@pytest.mark.parametrize(("start", "eps"), [(0.1, 1e-7), (0.0, 0.0), (2.0, 0.5)])
@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize(("dtype", "rtol"), [(jnp.float32, 1e-5), (jnp.float64, 1e-12)])
def test_equals_a_numpy_loop(start, eps, jit, dtype, rtol):
    steps = gradients(0)
    tx = adaoptax.scaling.scale_by_adagrad_norm(start, eps)
    with jax.enable_x64(dtype == jnp.float64):
        update = jax.jit(tx.update) if jit else tx.update
        state, total = tx.init(as_jax(steps[0], dtype)), start
        for grads in steps:
            total += sum((g**2).sum() for g in grads.values())
            updates, state = update(as_jax(grads, dtype), state)
            for key, g in grads.items():
                np.testing.assert_allclose(updates[key], g / np.sqrt(total + eps), rtol=rtol)
            assert float(state.sq_norm_sum) == pytest.approx(total, rel=rtol)
    assert state.sq_norm_sum.dtype == dtype


def test_closed_form_of_a_constant_gradient():
    g, tx = jnp.array([3.0, -4.0]), adaoptax.adagrad_norm(0.5, 0.0, 0.0)
    state = tx.init(g)
    for t in range(1, 50):
        updates, state = tx.update(g, state)
        np.testing.assert_allclose(updates, -0.5 * np.array([0.6, -0.8]) / np.sqrt(t), rtol=1e-6)


def test_schedule_counts_steps():
    g, tx = jnp.array([3.0, 4.0]), adaoptax.adagrad_norm(lambda count: 1.0 / (1 + count), 0.0, 0.0)
    state = tx.init(g)
    for t in range(1, 6):
        updates, state = tx.update(g, state)
        np.testing.assert_allclose(updates, -np.array([0.6, 0.8]) / np.sqrt(t) / t, rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_nonfinite_gradient_gives_a_zero_update_and_is_forgotten(bad):
    tx = adaoptax.scaling.scale_by_adagrad_norm()
    good = jnp.array([1.0, 2.0])
    _, before = tx.update(good, tx.init(good))
    updates, after = tx.update(jnp.array([1.0, bad]), before)
    np.testing.assert_array_equal(updates, [0, 0])
    assert float(after.sq_norm_sum) == float(before.sq_norm_sum)
    np.testing.assert_array_equal(tx.update(good, after)[0], tx.update(good, before)[0])


@pytest.mark.parametrize("start", [0.0, 0.1])
def test_zero_gradient_gives_a_zero_update(start):
    tx = adaoptax.scaling.scale_by_adagrad_norm(start, 0.0)
    updates, state = tx.update(jnp.zeros(3), tx.init(jnp.zeros(3)))
    np.testing.assert_array_equal(updates, np.zeros(3))
    assert float(state.sq_norm_sum) == pytest.approx(start)


def test_float16_norms_do_not_overflow():
    g = jnp.full(1000, 300.0, jnp.float16)  # the sum of squares is 9e7, float16 ends at 65504
    tx = adaoptax.scaling.scale_by_adagrad_norm(0.0, 0.0)
    updates, state = tx.update(g, tx.init(g))
    assert state.sq_norm_sum.dtype == jnp.float32
    assert float(state.sq_norm_sum) == pytest.approx(9e7, rel=1e-6)
    assert updates.dtype == jnp.float16
    np.testing.assert_allclose(updates, 1 / np.sqrt(1000), rtol=1e-3)


def noisy(seed: int, steps: int = 6) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return list(rng.normal(size=(steps, 8, 5)) + rng.normal(size=5))


def run(tx: Any, story: list[np.ndarray], numpy_stats: Any) -> tuple[list[Any], Any]:
    state, update, found = tx.init(jnp.zeros(5)), jax.jit(tx.update), []
    for rows in story:
        grads, stats = numpy_stats(rows)
        updates, state = update(grads, state, jnp.zeros(5), stats=stats)
        found.append((updates, adaoptax.required_batch_size(state)))
    return found, state


PAIRS: dict[str, tuple[Any, Any, Any]] = {
    "adadagrad": (
        lambda: adaoptax.adadagrad(0.3, 0.7, 0.2, 1e-5, decay=0.5),
        lambda: adaoptax.coordinate_test(0.7, decay=0.5),
        lambda: optax.adagrad(0.3, 0.2, 1e-5),
    ),
    "adadagrad with the norm test": (
        lambda: adaoptax.adadagrad(0.3, 0.7, test="norm", signal="plug-in"),
        lambda: adaoptax.norm_test(0.7, signal="plug-in"),
        lambda: optax.adagrad(0.3),
    ),
    "adadagrad_norm": (
        lambda: adaoptax.adadagrad_norm(0.3, 0.7, 0.2, 1e-5, interval=2, dataset_size=100),
        lambda: adaoptax.norm_test(0.7, interval=2, dataset_size=100),
        lambda: adaoptax.adagrad_norm(0.3, 0.2, 1e-5),
    ),
}


@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize("name", PAIRS)
def test_pairs_equal_their_parts(name, numpy_stats):
    pair, test, step = PAIRS[name]
    parts = optax.chain(test(), step())
    story = noisy(2)
    for (u1, b1), (u2, b2) in zip(
        run(pair(), story, numpy_stats)[0], run(parts, story, numpy_stats)[0], strict=True
    ):
        np.testing.assert_array_equal(u1, u2)
        assert float(b1) == float(b2) > 0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", PAIRS)
def test_pairs_survive_a_nonfinite_gradient(name, bad, numpy_stats):
    story = noisy(3)
    spoiled = story[0].copy()
    spoiled[0, 0] = bad
    pair = PAIRS[name][0]
    if name == "adadagrad_norm":  # with interval=2 an extra step would shift the tests
        pair = lambda: adaoptax.adadagrad_norm(0.3, 0.7)
    clean, _ = run(pair(), story, numpy_stats)
    found, state = run(pair(), [*story[:3], spoiled, *story[3:]], numpy_stats)
    np.testing.assert_array_equal(found[3][0], np.zeros(5))
    assert float(found[3][1]) == float(found[2][1])
    assert int(optax.tree.get(state, "tests_undefined")) == 1
    for (u1, b1), (u2, b2) in zip(clean, found[:3] + found[4:], strict=True):
        np.testing.assert_array_equal(u1, u2)
        assert float(b1) == float(b2)


@pytest.mark.parametrize("bad", [-0.1, float("nan")])
@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("initial_accumulator_value", lambda bad: adaoptax.scaling.scale_by_adagrad_norm(bad)),
        ("initial_accumulator_value", lambda bad: adaoptax.adagrad_norm(0.1, bad)),
        ("initial_accumulator_value", lambda bad: adaoptax.adadagrad_norm(0.1, 0.5, bad)),
        ("eps", lambda bad: adaoptax.adagrad_norm(0.1, eps=bad)),
        ("eps", lambda bad: adaoptax.adadagrad_norm(0.1, eps=bad)),
    ],
)
def test_sums_do_not_start_below_zero(name, make, bad):
    with pytest.raises(ValueError, match=rf"Expected {name} >= 0, got {name}={bad!r}"):
        make(bad)


def test_unknown_test_lists_the_choices():
    with pytest.raises(ValueError, match=r"'coordinate', 'norm'.*test='inner'"):
        adaoptax.adadagrad(0.1, test="inner")
