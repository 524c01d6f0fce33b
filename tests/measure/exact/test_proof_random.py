"""Random losses: what is proved is true.

The truth is computed: a loss is a mean of per-example losses if it equals the mean of its own
values on batches of one row; and it is a sum over the rows if no two of them, each with parameters
of its own, meet in its second derivatives.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from proving import check, check_separable

pytestmark = pytest.mark.topic("random programs")

ROWS, WIDTH = 4, 3
RNG = np.random.default_rng(0)
WEIGHT = RNG.normal(size=(WIDTH, WIDTH))
ROWS_OF_DATA = RNG.normal(size=(ROWS, WIDTH))


def standardise(h, axis):
    centred = h - h.mean(axis=axis, keepdims=True)
    return centred / jnp.sqrt((centred**2).mean(axis=axis, keepdims=True) + 0.1)


def in_halves(h, x):
    """One function on two parts of the batch, put together again; a batch of one is no part."""
    cut = h.shape[0] // 2
    return jnp.concatenate([jnp.tanh(h[:cut]), jnp.tanh(h[cut:])]) if cut else jnp.tanh(h)


def over_time(h, x):
    carry, outputs = jax.lax.scan(
        lambda c, row: (jnp.tanh(c + row), c * row), jnp.zeros(h.shape[0]), h.T
    )
    return outputs.T + carry[:, None]


def attention(h, x):
    return jax.nn.softmax(h @ h.T) @ h


# Each takes the hidden state and the data, both [rows, WIDTH].
SEPARATE = {
    "tanh": lambda h, x: jnp.tanh(h),
    "dense": lambda h, x: h @ WEIGHT,
    "skip": lambda h, x: h + 0.3 * x,
    "gate": lambda h, x: h * jax.nn.sigmoid(x),
    "where": lambda h, x: jnp.where(x > 0, h, 2 * h),
    "layer norm": lambda h, x: standardise(h, 1),
    "softmax": lambda h, x: jax.nn.softmax(h),
    "cumsum": lambda h, x: jnp.cumsum(h, axis=1),
    "flat": lambda h, x: jax.nn.softplus(h.reshape(-1)).reshape(h.shape),
    "transposed": lambda h, x: (WEIGHT @ h.T).T,
    "vmap": lambda h, x: jax.vmap(lambda a, b: jnp.outer(a, b) @ a)(h, x),
    "jit": lambda h, x: jax.jit(jax.checkpoint(lambda a: a @ WEIGHT + jnp.tanh(a)))(h),
    "over time": over_time,
    "penalty": lambda h, x: jax.grad(lambda a: jnp.sum(jnp.tanh(a @ WEIGHT)))(h),
}
MIXING = {
    "centre": lambda h, x: h - h.mean(axis=0),
    "standardise": lambda h, x: standardise(h, 0),
    "softmax over batch": lambda h, x: h + jax.nn.softmax(h, axis=0),
    "reversed": lambda h, x: h[::-1] + 0.5 * x,
    "rolled": lambda h, x: h * jnp.roll(x, 1, axis=0),
    "gram": lambda h, x: h + jnp.tanh(h @ h.T) @ h,
    "attention": lambda h, x: attention(h, x),
    "scaled by mean": lambda h, x: h * (2 + jnp.tanh(h.mean(axis=0))),
    "cumsum over batch": lambda h, x: jnp.cumsum(h, axis=0),
    "covariance": lambda h, x: h @ jnp.tanh(h.T @ h / h.shape[0]),
}
# Separate or not, these need not be followed to the end.
OPAQUE = {
    "halves": in_halves,
    "there and back": lambda h, x: jnp.tanh(h[::-1])[::-1],
    "map": lambda h, x: jax.lax.map(lambda a: jnp.sin(a).sum() + a, h),
    "gather": lambda h, x: h * h[jnp.arange(h.shape[0]), jnp.argmax(x, axis=1)][:, None],
    "permuted": lambda h, x: jnp.tanh(h[np.arange(h.shape[0])[::-1]]) + h,
    "largest": lambda h, x: h / jnp.max(jnp.abs(h)),
    "stable": lambda h, x: jnp.log(jnp.sum(jnp.exp(h - jnp.max(h)), axis=1))[:, None] + h,
    "diagonal": lambda h, x: jnp.diag(h @ x.T)[:, None] * h,
    "sorted": lambda h, x: jnp.sort(h, axis=0) + h,
    "stacked": lambda h, x: jnp.prod(jnp.stack([h, x, 1 + h]), axis=0),
    "counted": lambda h, x: h * (1 + jnp.arange(h.shape[0]))[:, None],
    "state": lambda h, x: over_time(h, x) + jnp.zeros(h.shape),
    "whitened": lambda h, x: h * standardise(x, 0),
    "largest of data": lambda h, x: h / jnp.max(jnp.abs(x)),
    "times length": lambda h, x: h * len(h),
    "branch": lambda h, x: jax.lax.cond(x.sum() > 0, jnp.tanh, jnp.sin, h),
    "turns": lambda h, x: jax.lax.fori_loop(0, len(h), lambda i, c: jnp.sin(c), h),
}
FOLLOWED_ENDS = {
    "mean": lambda h, x: jnp.mean(h**2),
    "sum over length": lambda h, x: jnp.sum(h**2) / h.shape[0],
    "mean of means": lambda h, x: jnp.mean(jnp.mean(jnp.sin(h), axis=0)),
    "two terms": lambda h, x: jnp.mean(h**2) + 0.1 * jnp.mean(jnp.cos(h)) + jnp.sum(WEIGHT**2),
    "mean added to all": lambda h, x: jnp.mean(h[:, 0] + jnp.mean(h**2)),
    "dot": lambda h, x: jnp.vdot(h, x) / h.shape[0],
    "sum": lambda h, x: jnp.sum(h**2),
    "sum by a constant": lambda h, x: jnp.sum(h**2) / ROWS,
    "root": lambda h, x: jnp.sqrt(1 + jnp.mean(h**2)),
    "log mean exp": lambda h, x: jnp.log(jnp.mean(jnp.exp(jnp.sin(h)))),
    "largest": lambda h, x: jnp.max(jnp.sum(h**2, axis=1)),
    "ratio": lambda h, x: jnp.sum(h**2) / jnp.sum(jnp.exp(x)),
    "pairs": lambda h, x: jnp.mean((h[:, :1] - x[:, 1]) ** 2),
    "variance": lambda h, x: jnp.mean(h**2) + jnp.sum(jnp.var(x * h, axis=0)),
}
PROVED_ENDS = ["mean", "sum over length", "mean of means", "two terms", "dot"]
ENDS = FOLLOWED_ENDS | {
    "trace": lambda h, x: jnp.trace(h @ x.T) / h.shape[0],
    "sums of parts": lambda h, x: jnp.mean(h[::2] ** 2) + jnp.mean(h[1::2] ** 2),
    "guarded": lambda h, x: jnp.maximum(jnp.mean(h**2), 0.0),
    "by weights": lambda h, x: jnp.average(h[:, 0], weights=jnp.arange(h.shape[0]) + 1.0),
}


def alarm(prove, loss):
    try:
        prove(loss, jnp.ones([]), jnp.asarray(ROWS_OF_DATA))
    except ValueError as error:
        return str(error)
    return None


def is_mean(loss):
    """Whether the loss of the batch is the mean of the losses of its rows."""
    alone = [float(loss(1.0, jnp.asarray(row[None]))) for row in ROWS_OF_DATA]
    whole = float(loss(1.0, jnp.asarray(ROWS_OF_DATA)))
    return np.isclose(whole, np.mean(alone), rtol=1e-9, atol=1e-12)


def is_separable(loss):
    """Whether rows that have parameters of their own do not meet."""
    hessian = np.array(jax.hessian(loss)(jnp.ones([ROWS, 1]), jnp.asarray(ROWS_OF_DATA)))
    pairs = hessian.reshape(ROWS, ROWS)
    return np.allclose(pairs, np.diag(np.diag(pairs)), rtol=0, atol=1e-9 * np.abs(pairs).max())


def program(steps, end):
    def loss(params, x):
        h = params * x
        for step in steps:
            h = step(h, x)
        return end(h, x)

    return loss


def chosen(*pools):
    pool = {name: fn for each in pools for name, fn in each.items()}
    return st.lists(st.sampled_from(sorted(pool)), max_size=4), pool


names, STEPS = chosen(SEPARATE, MIXING, OPAQUE)


@given(names, st.sampled_from(sorted(ENDS)))
@settings(max_examples=60)
def test_what_is_proved_is_true(steps, end):
    with jax.enable_x64(True):
        loss = program([STEPS[step] for step in steps], ENDS[end])
        assert alarm(check, loss) is not None or is_mean(loss)
        assert alarm(check_separable, loss) is not None or is_separable(loss)


kept, KEPT = chosen(SEPARATE)


@given(kept, st.sampled_from(PROVED_ENDS))
@settings(max_examples=60)
def test_common_means_are_proved(steps, end):
    with jax.enable_x64(True):
        loss = program([KEPT[step] for step in steps], ENDS[end])
        assert is_mean(loss)
        assert alarm(check_separable, loss) is None
        assert alarm(check, loss) is None


@pytest.mark.parametrize("name", MIXING)
def test_each_mixing_step_is_seen(name):
    with jax.enable_x64(True):
        loss = program([MIXING[name], SEPARATE["tanh"]], ENDS["mean"])
        assert not is_mean(loss)
        assert alarm(check, loss)
        message = alarm(check_separable, loss)
        assert message is None if name == "rolled" else "examples meet" in message  # rolled data
