"""Losses whose Python takes another path for fewer rows: refused by all methods that cut there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaoptax import measure, value_grad_and_stats
from adaoptax.measure import micro_steps

RNG = np.random.default_rng(8)
X = RNG.normal(size=(16, 5, 4)).astype(np.float32)
W = jnp.asarray(RNG.normal(size=(4, 4)).astype(np.float32))


def losses(w, x):
    """One a row, with products of rows that JAX writes without their axis if there is but one."""
    h = x @ w
    scores = jax.nn.softmax(h @ h.swapaxes(1, 2))
    return jnp.mean(jnp.tanh(scores @ h) ** 2, axis=(1, 2))


def other_operations(w, x, fewer_than):
    return jnp.mean(losses(w, x) if len(x) >= fewer_than else jnp.sqrt(losses(w, x)))


def other_number(w, x, fewer_than):
    return jnp.mean(losses(w, x)) * (1.0 if len(x) >= fewer_than else 1.5)


def more_operations(w, x, fewer_than):
    mean = jnp.mean(losses(w, x))
    return mean if len(x) >= fewer_than else mean + jnp.mean(w**2)


def other_axes(w, x, fewer_than):
    return jnp.mean(losses(w if len(x) >= fewer_than else w.T, x))


def other_operand(w, x, fewer_than):
    h, g = jnp.mean(losses(w, x)), jnp.mean(losses(w**2, x))
    return h - 2 * g if len(x) >= fewer_than else g - 2 * h


def other_broadcast(w, x, fewer_than):
    scale = w[0, :, None] if len(x) >= fewer_than else w[0, None, :]
    return jnp.mean(losses(w, x[:, :4] * scale))


def other_split(w, x, fewer_than):
    parts = (2, 3) if len(x) >= fewer_than else (3, 2)
    return jnp.mean(jax.lax.split(x @ w, parts, axis=1)[0].sum((1, 2)) ** 2)


def other_gather(w, x, fewer_than):
    square = x[:, :4] @ w
    axis = 1 if len(x) >= fewer_than else 2
    return jnp.mean(jnp.take(square, jnp.array([0, 2]), axis=axis, mode="clip").sum((1, 2)) ** 2)


def other_window(w, x, fewer_than):
    pads = ((0, 0), (1, 0), (0, 0)) if len(x) >= fewer_than else ((0, 0), (0, 1), (0, 0))
    sums = jax.lax.reduce_window(x @ w, 0.0, jax.lax.add, (1, 2, 1), (1, 1, 1), pads)
    return jnp.mean(sums[:, 0].sum(1) ** 2)


def other_direction(w, x, fewer_than):
    sums = jax.lax.cumsum(x @ w, axis=1, reverse=len(x) < fewer_than)
    return jnp.mean(sums[:, 0].sum(1) ** 2)


def other_count(w, x, fewer_than):
    """As many of the largest entries as there are rows, up to a number."""
    best = jax.lax.top_k((x @ w).reshape(len(x), -1), 2 if len(x) < fewer_than else 3)[0]
    return jnp.mean(best**2)


def position(w, x, fewer_than):
    """The same in a short batch, where all rows stand in front."""
    return jnp.mean(losses(w, x) * (jnp.arange(len(x)) < fewer_than))


BRANCHES = (
    other_operations, other_number, more_operations, other_axes, other_operand, other_broadcast,
    other_split, other_gather, other_window, other_direction, other_count,
)  # fmt: skip


def by_micro_steps(loss_fn):
    steps = micro_steps(loss_fn)

    def of_halves(w, x):
        state = steps.init(w, x[:8])
        for half in (x[:8], x[8:]):
            state = steps.add(state, w, half)
        return steps.finish(state, w)

    return of_halves


WAYS = {
    "per_example": (1, lambda fn: value_grad_and_stats(fn, measure.per_example())),
    "inner_products": (1, lambda fn: value_grad_and_stats(fn, measure.inner_products(None))),
    "groups": (4, lambda fn: value_grad_and_stats(fn, measure.groups(4))),
    "masked groups": (
        1,
        lambda fn: (
            lambda w, x: value_grad_and_stats(fn, measure.groups(4))(w, x, mask=np.arange(16) < 13)
        ),
    ),
    "micro_steps": (8, by_micro_steps),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("branch", [*BRANCHES, position], ids=lambda f: f.__name__)
def test_another_path_for_the_rows_of_a_part(branch, way):
    rows, make = WAYS[way]
    with pytest.raises(ValueError, match=r"the mean over the rows|what it does with several"):
        make(lambda w, x: branch(w, x, rows + 1))(W, X)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("branch", BRANCHES, ids=lambda f: f.__name__)
def test_a_path_that_no_part_takes_is_no_matter(branch, way):
    rows, make = WAYS[way]
    loss_fn = lambda w, x: branch(w, x, rows if rows > 1 else 0)
    found = make(loss_fn)(W, X)
    value, gradient = jax.value_and_grad(loss_fn)(W, X[:13] if way == "masked groups" else X)
    np.testing.assert_allclose(found[0], value, rtol=1e-5)
    np.testing.assert_allclose(found[1], gradient, rtol=1e-4, atol=1e-6)


def test_a_place_that_only_a_later_micro_batch_reaches():
    """The whole batch is not at hand: a mask of its first 100 rows is none in the first 16."""
    loss_fn = lambda w, x: jnp.mean(losses(w, x) * (jnp.arange(len(x)) < 100))
    with pytest.raises(ValueError, match="by its place in the batch"):
        micro_steps(loss_fn).init(W, X)


def test_exact_sees_the_whole_batch():
    for branch in BRANCHES:
        loss_fn = lambda w, x, branch=branch: branch(w, x, 9)
        found = value_grad_and_stats(loss_fn, measure.exact())(W, X)
        value, gradient = jax.value_and_grad(loss_fn)(W, X)
        np.testing.assert_allclose(found[0], value, rtol=1e-6)
        np.testing.assert_allclose(found[1], gradient, rtol=1e-5, atol=1e-7)
