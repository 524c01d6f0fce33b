"""Proximal operators against their definition, and runs that reach known constrained solutions."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adaoptax
from adaoptax import prox
from adaoptax.prox import proximal_gradient

pytestmark = pytest.mark.sampled

TREE = {"w": jnp.array([[0.3, -2.0], [1.5, 0.05]]), "b": jnp.array([-0.4, 0.9, 0.0])}
OPERATORS: dict[str, Any] = {  # operator, and the penalty h of the flat vector
    "l1": (prox.l1(0.7), lambda x: 0.7 * np.abs(x).sum()),
    "box": (prox.box(-0.5, 1.0), lambda x: 0.0 if ((x >= -0.5) & (x <= 1)).all() else np.inf),
    "simplex": (
        prox.simplex(2.0),
        lambda x: 0.0 if (x >= -1e-7).all() and abs(x.sum() - 2) < 1e-5 else np.inf,
    ),
    "l2_ball": (prox.l2_ball(1.3), lambda x: 0.0 if np.linalg.norm(x) <= 1.3 + 1e-6 else np.inf),
    "l1_ball": (prox.l1_ball(1.3), lambda x: 0.0 if np.abs(x).sum() <= 1.3 + 1e-5 else np.inf),
}
every = pytest.mark.parametrize("name", OPERATORS)


def flat(tree: Any) -> np.ndarray:
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)]).astype(np.float64)


def somewhere(name: str, rng: Any) -> np.ndarray:
    """A random feasible point of each set."""
    x = rng.normal(size=7)
    positive = np.abs(x) / np.abs(x).sum()
    return {
        "l1": 2 * x,
        "box": np.clip(x, -0.5, 1),
        "simplex": 2 * positive,
        "l2_ball": 1.3 * rng.uniform() * x / np.linalg.norm(x),
        "l1_ball": 1.3 * rng.uniform() * np.sign(x) * positive,
    }[name]


@every
def test_the_operator_minimizes_what_defines_it(name):
    operator, penalty = OPERATORS[name]
    step, rng, x = 0.6, np.random.default_rng(0), flat(TREE)
    y = flat(operator.apply(TREE, step))
    objective = lambda z: penalty(z) + ((z - x) ** 2).sum() / (2 * step)
    assert np.isfinite(objective(y))
    for _ in range(300):  # no random point, nor any point on the way to one, is better
        other = somewhere(name, rng)
        for share in (1.0, 0.1, 0.001):
            assert objective((1 - share) * y + share * other) >= objective(y) - 1e-6


@every
def test_the_operator_keeps_structure_and_dtype_and_feasible_points(name):
    operator, _ = OPERATORS[name]
    out = operator.apply(TREE, 0.6)
    structure: Any = jax.tree.structure
    assert structure(out) == structure(TREE)
    assert [x.dtype for x in jax.tree.leaves(out)] == [jnp.float32] * 2
    if operator.is_projection:
        np.testing.assert_allclose(flat(operator.apply(out, 0.1)), flat(out), atol=1e-6)


def lasso() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    a = rng.normal(size=(30, 6))
    return a, a @ np.array([1.5, 0.0, 0.0, -2.0, 0.0, 0.3]) + 0.1 * rng.normal(size=30)


@functools.cache
def solution(name: str) -> np.ndarray:
    """Float64 numpy: 20 000 steps of projected or soft-thresholded descent, written out."""
    a, b = lasso()
    step, x = 1 / np.linalg.eigvalsh(a.T @ a / 30).max(), np.zeros(6)
    operate: Any = {
        "l1": lambda x: np.sign(x) * np.maximum(np.abs(x) - 0.2 * step, 0),
        "box": lambda x: np.clip(x, -1, 1),
        "l2_ball": lambda x: x * min(1, 1 / np.linalg.norm(x)),
    }[name]
    for _ in range(20_000):
        x = operate(x - step * a.T @ (a @ x - b) / 30)
    return x


@pytest.mark.parametrize(
    ("name", "operator"),
    [("l1", prox.l1(0.2)), ("box", prox.box(-1.0, 1.0)), ("l2_ball", prox.l2_ball(1.0))],
)
def test_runs_reach_the_constrained_solution(name, operator):
    a, b = (jnp.asarray(x, jnp.float32) for x in lasso())
    tx = proximal_gradient(operator, 0.2)

    def step(carry: Any, _: Any) -> Any:
        x, state = carry
        updates, state = tx.update(a.T @ (a @ x - b) / 30, state, x)
        return (optax.apply_updates(x, updates), state), None

    x = jnp.zeros(6)
    x = jax.lax.scan(step, (x, tx.init(x)), length=2000)[0][0]
    np.testing.assert_allclose(x, solution(name), atol=2e-5)
    if name == "l1":
        np.testing.assert_array_equal(np.asarray(x) == 0, solution(name) == 0)
        assert (np.asarray(x) == 0).sum() >= 2


@pytest.mark.parametrize(
    ("fn", "expected"),
    [
        (optax.projections.projection_simplex, [1.0, 0.0]),  # its second argument is no step size
        (optax.projections.projection_non_negative, [2.0, 0.0]),
        (functools.partial(optax.projections.projection_box, lower=-0.5, upper=1.5), [1.5, -0.5]),
        (lambda x, step: x - 2 * step, [1.0, -2.0]),
        (prox.projection(lambda x: jnp.minimum(x, 0.25)), [0.25, -1.0]),
    ],
)
def test_plain_functions_are_told_apart_by_their_arguments(fn, expected):
    x = jnp.array([1.0, 0.0]) if expected[0] != 0.25 else jnp.zeros(2)
    tx = proximal_gradient(fn, 0.5)
    moved_to = jnp.array([2.0, -1.0])
    updates, _ = tx.update((x - moved_to) / 0.5, tx.init(x), x)
    np.testing.assert_allclose(x + updates, expected, atol=1e-6)


@pytest.mark.parametrize("wrong", [3.0, None, optax.projections.projection_box, optax.sgd(0.1)])
def test_what_is_no_proximal_operator_is_a_type_error(wrong):
    with pytest.raises(TypeError, match=r"Expected prox to be a Prox.*adaoptax.prox.box"):
        proximal_gradient(wrong, 0.1)


@pytest.mark.parametrize(
    ("operator", "start"),
    [
        (prox.box(0.0, 1.0), [0.5, -0.1]),
        (prox.simplex(), [0.7, 0.7]),
        (prox.simplex(), [0.0, 0.0]),
        (prox.l2_ball(0.5), [1.0, 0.0]),
        (prox.l1_ball(1.0), [0.9, -0.2]),
        (prox.box(0.0, 1.0), [0.5, float("nan")]),
    ],
)
def test_an_infeasible_start_is_refused_where_it_can_be_told(operator, start):
    tx, x = proximal_gradient(operator, 0.1), jnp.array(start)
    message = (
        rf"Expected params in the feasible set of prox={operator.name}, got params at distance"
    )
    with pytest.raises(ValueError, match=message):
        tx.init(x)
    with pytest.raises(ValueError, match=message):
        proximal_gradient(operator, 0.1, theta=0.5).init(x)
    state = jax.jit(tx.init)(x)  # cannot be told: the first step leads into the set
    if np.isfinite(start).all():
        updates, _ = tx.update(jnp.zeros(2), state, x)
        tx.init(x + updates)
        nearest = operator.apply(x, 1.0)
        np.testing.assert_allclose(x + updates, nearest, atol=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_rounding_of_a_feasible_start_is_no_fault(dtype):
    rng = np.random.default_rng(0)
    for operator in (prox.simplex(), prox.l2_ball(1.0), prox.l1_ball(1.0), prox.box(0.1, 0.3)):
        x = jnp.asarray(rng.normal(size=3000), jnp.float32)
        x = operator.apply(x, 1.0).astype(dtype)
        proximal_gradient(operator, 0.1).init(x)


def test_an_infeasible_start_is_told_under_a_transfer_guard():
    tx, x = proximal_gradient(prox.box(0.0, 1.0), 0.1), jnp.array([2.0])
    inside = jnp.array([0.5])
    with jax.transfer_guard("disallow"):
        jax.jit(tx.init)(inside)
        with pytest.raises(ValueError, match="distance 1 "):
            tx.init(x)


def test_an_infeasible_constant_is_told_inside_of_a_traced_function():
    tx, outside, inside = proximal_gradient(prox.box(0.0, 1.0), 0.1), jnp.full(2, 2.0), jnp.zeros(2)
    jax.jit(lambda: tx.init(inside))()
    with pytest.raises(ValueError, match="feasible"):
        jax.jit(lambda: tx.init(outside))()


def test_a_schedule_is_read_at_the_step():
    tx = proximal_gradient(prox.l1(1.0), lambda count: 1.0 / (1 + count))
    x, state = jnp.array([10.0]), None
    state = tx.init(x)
    lengths = []
    for _ in range(3):
        updates, state = tx.update(jnp.array([1.0]), state, x)
        lengths.append(float(updates[0]))
    assert lengths == pytest.approx([-2.0, -1.0, -2 / 3])  # gradient and threshold, both times α
    assert int(state.proximal_steps) == 3


def test_missing_params_and_bad_numbers_are_told():
    tx = proximal_gradient(prox.l1(1.0), 0.1)
    with pytest.raises(ValueError, match="params=None"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
    for bad in (0.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match="learning_rate"):
            proximal_gradient(prox.l1(1.0), bad)
    for make, match in (
        (lambda: prox.l1(-1.0), "strength=-1.0"),
        (lambda: prox.box(1.0, 0.0), "lower=1.0 and upper=0.0"),
        (lambda: prox.simplex(0.0), "scale=0.0"),
        (lambda: prox.l2_ball(-1.0), "radius=-1.0"),
        (lambda: prox.l1_ball(0), "radius=0"),
    ):
        with pytest.raises(ValueError, match=match):
            make()


def test_a_nan_gradient_is_loud_and_skipped_where_asked():
    x, bad = jnp.array([0.5, 0.5]), jnp.array([jnp.nan, 0.0])
    tx = proximal_gradient(prox.simplex(), 0.1)
    assert np.isnan(tx.update(bad, tx.init(x), x)[0]).any()
    skipping = adaoptax.skip_nonfinite(tx)
    _, stats = adaoptax.stats_from_groups(jnp.array([[jnp.nan, 0.0], [0.0, 0.0]]), group_size=1)
    updates, state = skipping.update(bad, skipping.init(x), x, stats=stats)
    assert (np.asarray(updates) == 0).all()
    assert int(state.inner_state.proximal_steps) == 0


@every
def test_a_nan_stays_a_nan(name):
    x = jnp.asarray(somewhere(name, np.random.default_rng(0)), jnp.float32)
    tx = proximal_gradient(OPERATORS[name][0], 0.1)
    updates, _ = tx.update(jnp.full(7, jnp.nan).at[1:].set(1.0), tx.init(x), x)
    assert np.isnan(updates[0])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_gradients_of_half_precision_leave_no_remainder(dtype):
    x = jnp.array([1.2345678, 0.0123456])
    for operator in (prox.l1(1000.0), prox.box(upper=0.0)):
        tx = proximal_gradient(operator, 0.1)
        state = tx.init(jnp.zeros(2))
        updates, _ = tx.update(jnp.array([20.0, 20.0], dtype), state, x)
        np.testing.assert_array_equal(optax.apply_updates(x, updates) > 0, False)
    tx = proximal_gradient(prox.l1(1000.0), 0.1)
    updates, _ = tx.update(jnp.zeros(2, dtype), tx.init(x), x)
    np.testing.assert_array_equal(optax.apply_updates(x, updates), 0)
