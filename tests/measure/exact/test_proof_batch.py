"""What `exact` accepts, since it sees the whole batch, and methods that cut the batch refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from proving import KEY, ROWS, check, check_separable, of_logits, of_tokens

pytestmark = pytest.mark.topic("mixing losses")


def diffusion(z, batch):
    noise = jax.random.normal(KEY, z.shape)
    time = jax.random.uniform(jax.random.fold_in(KEY, 1), (z.shape[0], 1))
    return jnp.mean((jnp.tanh(z + time * noise) - noise) ** 2)


def standardised(z):
    return (z - z.mean(axis=0)) / jnp.sqrt(z.var(axis=0) + 1e-5)


def over_time(x, start):
    """The last state of a recurrence over the second axis of `x` [rows, time]."""
    step = lambda h, v: (jnp.tanh(h + v), None)
    return jax.lax.scan(step, start, x.T)[0]


def in_turns(z, values):
    return jax.lax.map(lambda pair: jnp.sum(pair[0]) * pair[1], (z, values))


def until(rows, limits):
    """Each row as often through tanh as its limit says."""
    turn = lambda v, limit: jax.lax.while_loop(
        lambda c: c[1] < limit, lambda c: (jnp.tanh(c[0]), c[1] + 1), (v, 0)
    )
    return jax.vmap(turn)(rows, limits)[0]


@jax.custom_jvp
def counted(v):
    return v * jnp.arange(len(v))


counted.defjvp(lambda primals, tangents: (counted(*primals), tangents[0]))

OF_THE_BATCH = {
    "whitened advantage": (
        of_logits(lambda z, b: jnp.mean(standardised(b["x"]) * z[:, :1])),
        "sub.*standardised",
    ),
    "baseline": (of_logits(lambda z, b: jnp.mean((b["x"] - b["x"].mean()) * z[:, :1])), "sub"),
    "mean over tokens": (
        of_tokens(lambda z, b: jnp.sum(z[..., 0] * b["mask"]) / jnp.sum(b["mask"])),
        "div",
    ),
    "mean over at least one token": (
        of_tokens(lambda z, b: jnp.sum(z[..., 0] * b["mask"]) / jnp.maximum(jnp.sum(b["mask"]), 1)),
        "div",
    ),
    "mean where": (of_tokens(lambda z, b: jnp.mean(z[..., 0], where=b["mask"] > 0)), "div"),
    "mean weighted by data": (of_logits(lambda z, b: jnp.average(z, weights=b["x"][:, :5])), "div"),
    "covariance of the data": (
        of_logits(lambda z, b: jnp.vdot(standardised(b["x"])[:, :5], z) / len(z)),
        "standardised",
    ),
    "whitened over time": (
        of_logits(
            lambda z, b: jnp.mean(z[:, 0] * over_time(standardised(b["x"]), jnp.zeros(len(z))))
        ),
        "standardised",
    ),
    "whitened in turns": (
        of_logits(lambda z, b: in_turns(z, standardised(b["x"])[:, 0]).mean()),
        "standardised",
    ),
    "a branch on the data": (
        of_logits(
            lambda z, b: jax.lax.cond(b["x"].sum() > 0, jnp.mean, lambda z: jnp.mean(z**2), z)
        ),
        "cond.* branches on",
    ),
    "a branch of the sum": (
        of_logits(lambda z, b: jax.lax.cond(b["y"][0] > 0, lambda a: a, lambda a: -a, z.mean())),
        "cond.* branches on",
    ),
    "turns as the data say": (
        of_logits(
            lambda z, b: jax.lax.fori_loop(0, b["y"].sum(), lambda i, c: jnp.tanh(c), z).mean()
        ),
        "while.* turns as often",
    ),
    "limits of the batch": (
        of_logits(lambda z, b: until(z, b["y"] - b["y"].min()).mean()),
        "sub.* whole batch",
    ),
    "a stopped parameter times the batch": (
        lambda p, b: jnp.mean(b["x"] @ p * (jax.lax.stop_gradient(p).sum() * b["x"].mean())),
        "mul.* whole batch",
    ),
    "a carry of data": (
        of_logits(
            lambda z, b: jax.lax.scan(
                lambda c, v: (v[0], c.sum() * v[1].sum()), jnp.zeros(8), (b["x"], z)
            )[1].mean()
        ),
        "whole batch|carry",
    ),
    "a counter of rows": (
        of_logits(lambda z, b: jax.lax.scan(lambda c, v: (c + 1, c * v.sum()), 0.0, z)[1].mean()),
        "carry",
    ),
    "one turn for each example": (
        of_logits(lambda z, b: jax.lax.fori_loop(0, len(z), lambda i, c: jnp.tanh(c), z).mean()),
        "turns as often",
    ),
    "data alone": (lambda p, b: jnp.std(b["x"]), "data alone"),
}


@pytest.mark.parametrize("name", OF_THE_BATCH)
def test_values_of_the_whole_batch_are_named(name):
    loss_fn, where = OF_THE_BATCH[name]
    check_separable(loss_fn)
    with pytest.raises(
        ValueError, match=rf"to be the mean over .* one in which .*({where}).*exact"
    ):
        check(loss_fn)


IN_PLACES = {
    "dropout": of_logits(
        lambda z, b: jnp.mean(jnp.where(jax.random.bernoulli(KEY, 0.5, z.shape), 2 * z, 0))
    ),
    "diffusion": of_logits(diffusion),
    "weights that count": of_logits(lambda z, b: jnp.mean(z[:, 0] * jnp.arange(len(z)))),
    "table by the place": lambda p, b: jnp.mean(
        b["x"][:, 0] * p.reshape(-1)[jnp.arange(len(b["x"]))]
    ),
    "a state that counts": of_logits(lambda z, b: over_time(z, jnp.arange(len(z)) * 1.0).mean()),
    "a state of data that counts": of_logits(
        lambda z, b: jnp.mean(z[:, 0] * over_time(b["x"], jnp.arange(len(z)) * 1.0))
    ),
    "counted in turns": of_logits(lambda z, b: in_turns(z, jnp.arange(len(z)) * 1.0).mean()),
    "in a branch": lambda p, b: jnp.mean(
        jax.lax.cond(p[0, 0] > 0, lambda: (b["x"] @ p)[:, 0], lambda: jnp.arange(len(b["x"])) * 1.0)
    ),
    "limits that count": of_logits(lambda z, b: until(z, jnp.arange(len(z))).mean()),
    "a custom derivative": of_logits(lambda z, b: counted(z[:, 0]).mean()),
}


@pytest.mark.parametrize("name", IN_PLACES)
def test_places_of_rows_are_named(name):
    check_separable(IN_PLACES[name])
    with pytest.raises(ValueError, match=r"by its place in the batch|drawn from a random key"):
        check(IN_PLACES[name])


SCALES = {
    "sum": (of_logits(lambda z, b: jnp.sum(z**2)), "2"),
    "constant": (of_logits(lambda z, b: jnp.sum(z**2) / ROWS), "2"),
    "divided twice": (of_logits(lambda z, b: jnp.mean(z**2) / len(z)), "0.5"),
    "multiplied": (of_logits(lambda z, b: jnp.mean(z**2) * len(z)), "2"),
    "multiplied by a count": (of_logits(lambda z, b: jnp.mean(z) * jnp.ones(len(z)).sum()), "2"),
    "broadcast": (of_logits(lambda z, b: jnp.broadcast_to(z.mean(0), z.shape).sum()), "2"),
    "in a loop": (
        of_logits(lambda z, b: jax.lax.fori_loop(0, 3, lambda i, c: c + jnp.sum(z), 0.0)),
        "2",
    ),
    "in turns": (
        of_logits(lambda z, b: jax.lax.map(lambda v: v.sum() * float(len(z)), z).mean()),
        "2",
    ),
    "passed to jit": (
        of_logits(lambda z, b: jax.jit(lambda a, s: jnp.mean(a * s))(z, float(len(z)))),
        "2",
    ),
}


@pytest.mark.parametrize("name", SCALES)
def test_no_mean(name):
    loss_fn, factor = SCALES[name]
    check_separable(loss_fn)
    with pytest.raises(ValueError, match=rf"to be the mean .* {factor} times.*jnp\.mean"):
        check(loss_fn)


IN_ANOTHER_WAY = {
    "B - 1": of_logits(lambda z, b: jnp.sum(z**2) / (len(z) - 1)),
    "one term": of_logits(lambda z, b: jnp.mean(z**2) + jnp.sum(jax.nn.relu(z))),
    "a constant": of_logits(lambda z, b: jnp.mean(z) + 1 / len(z)),
    "a penalty": lambda p, b: jnp.mean(b["x"] @ p) + jnp.sum(p**2) / len(b["x"]),
    "only a penalty": lambda p, b: jnp.sum(p**2) * len(b["x"]),
    "a returned constant": lambda p, b: jax.lax.cond(
        p[0, 0] > 0, lambda: jnp.mean(b["x"] @ p), lambda: jnp.float32(len(b["x"]))
    ),
    "a product": of_logits(lambda z, b: jnp.mean(z) * jnp.prod(jnp.full(len(z), 2.0))),
    "turns of a number": of_logits(
        lambda z, b: jnp.mean(z) * jax.lax.fori_loop(0, len(z), lambda i, c: c + 1.0, 0.0)
    ),
    "a power in a loop": of_logits(
        lambda z, b: (
            jnp.mean(z) * jax.lax.scan(lambda c, _: (c * len(z), None), 1.0, jnp.ones(2))[0]
        )
    ),
    "an integer": of_logits(lambda z, b: jnp.mean(z[:, 0] * (b["y"] + len(z)))),
    "compared": of_logits(lambda z, b: jnp.mean(jnp.where(b["y"] < len(z), z[:, 0], 0))),
    "an index": of_logits(lambda z, b: jnp.mean(z[:, len(z) % 5])),
    "an index that is traced": of_logits(
        lambda z, b: jnp.mean(jax.lax.dynamic_index_in_dim(z, len(z) % 5, 1))
    ),
    "of each row": of_logits(lambda z, b: jnp.mean(jnp.tanh(z * len(z)))),
    "as many columns": of_logits(
        lambda z, b: jnp.mean(
            jax.nn.logsumexp(jnp.broadcast_to(z[:, :1], (len(z), len(z))), axis=1)
        )
    ),
    "entries beside the diagonal": of_logits(
        lambda z, b: jnp.sum(jnp.tanh((z @ z.T) * jnp.eye(len(z)) + 1)) / len(z)
    ),
    "a key": of_logits(lambda z, b: z.mean() * jax.random.uniform(jax.random.fold_in(KEY, len(z)))),
    "a choice by a count": of_logits(
        lambda z, b: jnp.where(jnp.ones(len(z)).sum() > 5, z, z**2).mean()
    ),
    "an array of numpy": of_logits(lambda z, b: jnp.mean(np.full(len(z), len(z) * 1.0) * z[:, 0])),
}


@pytest.mark.parametrize("name", IN_ANOTHER_WAY)
def test_what_depends_on_the_length_otherwise_is_refused(name):
    check_separable(IN_ANOTHER_WAY[name])
    with pytest.raises(ValueError, match=r"to be the mean over the rows"):
        check(IN_ANOTHER_WAY[name])
