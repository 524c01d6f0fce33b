"""Mixtures of experts, and rows in loops."""

import jax
import jax.numpy as jnp
from jax import lax
from named_tools import (
    LOOP,
    MEAN,
    MIXES,
    B,
    D,
    Table,
    adders,
    rows_ce,
    sg,
)

EXPERTS: Table = {}
loss, add = adders(EXPERTS)


# Mixtures of experts.
gates = lambda p, b: jax.nn.softmax(b["seq"] @ p["h"])
experts = lambda p, b: jnp.tanh(jnp.einsum("btd,edf->btef", b["seq"], p["experts"]))
mixed = lambda p, b, g: jnp.mean((jnp.einsum("bte,btef->btf", g, experts(p, b)) - b["seq"]) ** 2)
chosen = lambda g: jax.nn.one_hot(g.argmax(-1), 3)
add("soft experts", MEAN, "mean", lambda p, b: mixed(p, b, gates(p, b)))
add(
    "switch",
    MEAN,
    "each token's best expert",
    lambda p, b: mixed(p, b, chosen(gates(p, b)) * gates(p, b)),
)
add(
    "router z-loss",
    MEAN,
    "mean",
    lambda p, b: jnp.mean(jax.nn.logsumexp(b["seq"] @ p["h"], -1) ** 2),
)
add(
    "balance over the batch",
    MIXES,
    "products of batch means",
    lambda p, b: (lambda g: mixed(p, b, g) + 3 * jnp.sum(chosen(g).mean((0, 1)) * g.mean((0, 1))))(
        gates(p, b)
    ),
)
add(
    "balance of each row",
    MEAN,
    "products of a row's means",
    lambda p, b: (lambda g: mixed(p, b, g) + 3 * jnp.sum(chosen(g).mean(1) * g.mean(1), 1).mean())(
        gates(p, b)
    ),
)
add(
    "importance of experts",
    MIXES,
    "variation of batch sums",
    lambda p, b: (lambda g: mixed(p, b, g) + jnp.var(g.sum((0, 1))) / jnp.mean(g.sum((0, 1))) ** 2)(
        gates(p, b)
    ),
)
add(
    "bias against load",
    MIXES,
    "sign of the batch's load",
    lambda p, b: (
        lambda g: mixed(p, b, g * (1 + 0.3 * sg(jnp.tanh(jnp.exp(3 * g).mean((0, 1)) - 4))))
    )(gates(p, b)),
)


@loss(MIXES, "places of tokens in their expert")
def capacity(p, b):
    g = gates(p, b).reshape(-1, 3)
    place = jnp.cumsum(chosen(g), 0) * chosen(g)
    y = jnp.einsum("ne,nef->nf", g * chosen(g) * (place <= 5), experts(p, b).reshape(-1, 3, D))
    return jnp.mean((y - b["seq"].reshape(-1, D)) ** 2)


@loss(LOOP, "a mean, but tokens travel to their expert and back")
def sorted_tokens(p, b):
    x = b["seq"].reshape(-1, D)
    g = jax.nn.softmax(x @ p["h"])
    order = jnp.argsort(g.argmax(-1))
    weights = p["experts"][g.argmax(-1)[order]]
    y = jnp.einsum("nd,ndf->nf", x[order], weights)[jnp.argsort(order)]
    return jnp.mean((y * g.max(-1, keepdims=True) - x) ** 2)


@loss(MIXES, "experts choose their tokens")
def expert_choice(p, b):
    x = b["seq"].reshape(-1, D)
    g = jax.nn.softmax(x @ p["h"])
    weight, which = lax.top_k(g.T, 8)
    y = jnp.tanh(jnp.einsum("end,edf->enf", x[which], p["experts"])) * weight[..., None]
    out = jnp.zeros_like(x).at[which.reshape(-1)].add(y.reshape(-1, D))
    return jnp.mean((out - x) ** 2)


# Rows in loops.
one = lambda p: lambda r: rows_ce(p, jax.tree.map(lambda x: x[None], r))[0]
part = lambda b, k: jax.tree.map(lambda x: x.reshape(k, -1, *x.shape[1:]), b)
add("vmap over rows", MEAN, "mean", lambda p, b: jax.vmap(one(p))(b).mean())
add("lax.map over rows", MEAN, "mean", lambda p, b: lax.map(one(p), b).mean())
add(
    "lax.map over parts of rows", LOOP, "mean", lambda p, b: lax.map(one(p), b, batch_size=4).mean()
)
add(
    "scan with a sum",
    LOOP,
    "mean",
    lambda p, b: lax.scan(lambda c, r: (c + one(p)(r), None), 0.0, b)[0] / len(b["x"]),
)
add(
    "scan with two sums",
    LOOP,
    "Σwl / Σw",
    lambda p, b: (lambda c: c[0] / c[1])(
        lax.scan(lambda c, r: ((c[0] + r["w"] * one(p)(r), c[1] + r["w"]), None), (0.0, 0.0), b)[0]
    ),
    ("w",),
)
add(
    "scan over micro-batches",
    LOOP,
    "mean",
    lambda p, b: lax.scan(lambda c, r: (c + rows_ce(p, r).mean(), None), 0.0, part(b, 4))[0] / 4,
)
add(
    "vmap over micro-batches",
    LOOP,
    "mean",
    lambda p, b: jax.vmap(lambda r: rows_ce(p, r).mean())(part(b, 2)).mean(),
)
add(
    "fori_loop over rows",
    LOOP,
    "mean",
    lambda p, b: (
        lax.fori_loop(0, B, lambda i, c: c + one(p)(jax.tree.map(lambda x: x[i], b)), 0.0) / B
    ),
)
add(
    "rows in Python",
    LOOP,
    "mean",
    lambda p, b: (
        sum(one(p)(jax.tree.map(lambda x, i=i: x[i], b)) for i in range(len(b["x"]))) / len(b["x"])
    ),
)
add(
    "state carried from row to row",
    MIXES,
    "a recurrence over rows",
    lambda p, b: lax.scan(lambda h, x: (jnp.tanh(h @ p["v"] + x @ p["w"]),) * 2, p["q"], b["x"])[
        1
    ].var(),
)
add(
    "moving baseline",
    MIXES,
    "a running mean of losses",
    lambda p, b: lax.scan(
        lambda c, r: (0.9 * c + 0.1 * sg(one(p)(r)), (one(p)(r) - c) * one(p)(r)), 0.0, b
    )[1].mean(),
)
