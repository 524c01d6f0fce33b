"""Transformers in plain functions: every way to store and apply the projections."""

import jax
import jax.numpy as jnp
import numpy as np

from zoo.entry import ROWS, Draw, Entry, cross_entropy, entry, fit, fitted, with_loss

HEADS, HEAD, WIDTH, TOKENS, WORDS = 2, 3, 4, 5, 6


def norm(x, scale):
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-5) * scale


def attend(q, k, v, causal=True):
    """[B, T, H, K] each."""
    scores = jnp.einsum("bthk,bshk->bhts", q, k) / np.sqrt(q.shape[-1]).astype(q.dtype)
    if causal:
        allowed = jnp.tril(jnp.ones(scores.shape[-2:], bool))
        scores = jnp.where(allowed, scores, -1e9)
    return jnp.einsum("bhts,bshk->bthk", jax.nn.softmax(scores), v)


def block_params(draw: Draw, *stack: int):
    """Per-head projections by einsum; `stack` is a leading axis of layers."""
    weight = lambda *shape: draw(*stack, *shape) / np.float32(2)
    return {
        "q": weight(WIDTH, HEADS, HEAD),
        "k": weight(WIDTH, HEADS, HEAD),
        "v": weight(WIDTH, HEADS, HEAD),
        "o": weight(HEADS, HEAD, WIDTH),
        "norm": [1 + weight(WIDTH) / 2, 1 + weight(WIDTH) / 2],
        "in": weight(WIDTH, 6),
        "b": weight(6),
        "out": weight(6, WIDTH),
    }


def block(p, x):
    h = norm(x, p["norm"][0])
    q, k, v = (jnp.einsum("btd,dhk->bthk", h, p[name]) for name in "qkv")
    x = x + jnp.einsum("bthk,hkd->btd", attend(q, k, v), p["o"])
    h = norm(x, p["norm"][1])
    return x + jax.nn.gelu(h @ p["in"] + p["b"]) @ p["out"]


def text(draw: Draw):
    return {"ids": draw.ids(WORDS, ROWS, TOKENS), "next": draw.ids(WORDS, ROWS, TOKENS)}


@with_loss(
    lambda draw: {
        "table": draw(WORDS, WIDTH),
        "positions": draw(TOKENS + 2, WIDTH) / 2,
        "blocks": [block_params(draw), block_params(draw)],
        "head": draw.weight(WIDTH, WORDS),
    },
    lambda draw: text(draw),
)
def transformer(params, batch):
    x = params["table"][batch["ids"]] + params["positions"][:TOKENS]
    for p in params["blocks"]:
        x = block(p, x)
    return cross_entropy(x @ params["head"], batch["next"])


@with_loss(
    lambda draw: {"table": draw(WORDS, WIDTH), "blocks": block_params(draw, 3)},
    lambda draw: text(draw),
)
def scanned_layers_with_remat_and_tied_embedding(params, batch):
    """One block, rematerialised, scanned over stacked parameters."""
    layer = jax.checkpoint(lambda x, p: (block(p, x), None))
    x, _ = jax.lax.scan(layer, params["table"][batch["ids"]], params["blocks"])
    return cross_entropy(x @ params["table"].T, batch["next"])


@entry
def scanned_layers_unrolled_with_policy(draw: Draw) -> Entry:
    """``unroll=2``, and a checkpoint policy that saves products."""
    params = {"w": draw(4, 4, 4) / 2, "b": draw(4, 4)}
    policy = jax.checkpoint_policies.dots_saveable

    def forward(p, x):
        layer = lambda h, p: (jnp.tanh(h @ p["w"] + p["b"]), jnp.mean(h, axis=-1))
        h, means = jax.lax.scan(jax.checkpoint(layer, policy=policy), x, p, unroll=2)
        return h + jnp.sum(means, axis=0)[..., None]

    return fit(draw, forward, params, draw(ROWS, 3, 4))


@fitted(lambda draw: draw(2, 2, 4, 4) / 2, lambda draw: draw(ROWS, 2, 4))
def layers_in_nested_scans(p, x):
    """Groups of layers: a scan in a scan, as for remat in √n pieces."""
    layer = lambda h, w: (jnp.tanh(h @ w), None)
    group = jax.checkpoint(lambda h, ws: jax.lax.scan(layer, h, ws))
    return jax.lax.scan(group, x, p)[0]


@fitted(
    lambda draw: {"block": block_params(draw), "turns": draw(3, WIDTH)},
    lambda draw: draw(ROWS, 3, WIDTH),
)
def shared_layer_in_a_scan(p, x):
    """A universal transformer: every turn applies the same block, with a bias of its own."""
    turn = lambda x, bias: (block(p["block"], x + bias), None)
    return jax.lax.scan(turn, x, p["turns"])[0]


@fitted(
    lambda draw: {"qkv": draw.weight(WIDTH, 3 * HEADS * HEAD), "b": draw(3 * HEADS * HEAD)},
    lambda draw: draw(ROWS, TOKENS, WIDTH),
)
def fused_projection(p, x):
    """One weight for q, k and v; the output of the product is split."""
    fused = (x @ p["qkv"] + p["b"]).reshape(*x.shape[:2], 3, HEADS, HEAD)
    return attend(fused[:, :, 0], fused[:, :, 1], fused[:, :, 2])


@entry
def split_weight(draw: Draw) -> Entry:
    """One weight for q, k and v; the weight itself is split and sliced."""
    size = HEADS * HEAD
    params = {"qkv": draw.weight(WIDTH, 3 * size), "out": draw.weight(size, 2 * WIDTH)}

    def forward(p, x):
        heads = lambda w: (x @ w).reshape(*x.shape[:2], HEADS, HEAD)
        attended = attend(*map(heads, jnp.split(p["qkv"], 3, axis=1)))
        h = attended.reshape(*x.shape[:2], size)
        return jnp.tanh(h @ p["out"][:, :WIDTH]) * jnp.tanh(h @ p["out"][:, WIDTH:])

    return fit(draw, forward, params, draw(ROWS, TOKENS, WIDTH))


@fitted(
    lambda draw: {
        "q": draw.weight(WIDTH, HEADS, HEAD),
        "kv": draw(3, 2, HEADS, HEAD) / 2,
        "o": draw.weight(HEADS, HEAD, WIDTH),
    },
    lambda draw: {"queries": draw(ROWS, TOKENS, WIDTH), "memory": draw(ROWS, 3, 3)},
)
def cross_attention(p, x):
    """Queries of one sequence, keys and values of another of a different length and width."""
    q = jnp.einsum("btd,dhk->bthk", x["queries"], p["q"])
    k, v = jnp.einsum("bsd,dchk->cbshk", x["memory"], p["kv"])
    return jnp.einsum("bthk,hkd->btd", attend(q, k, v, causal=False), p["o"])


@fitted(
    lambda draw: {
        "queries": draw(2, WIDTH),
        "q": draw.weight(WIDTH, WIDTH),
        "k": draw.weight(3, WIDTH),
    },
    lambda draw: draw(ROWS, TOKENS, 3),
)
def learned_queries(p, x):
    """Perceiver: the queries are parameters, without a batch axis until they meet the data."""
    q, k = p["queries"] @ p["q"], x @ p["k"]
    scores = jax.nn.softmax(jnp.einsum("qd,btd->bqt", q, k))
    return jnp.einsum("bqt,btd->bqd", scores, k)


@entry
def attention_of_one_example(draw: Draw) -> Entry:
    """vmap over rows outside, over heads inside; heads stand first in the weights."""
    params = {"qkv": draw(HEADS, 3, WIDTH, HEAD) / 2, "o": draw(HEADS, HEAD, WIDTH) / 2}

    def head(p, x):
        q, k, v = (x @ w for w in p["qkv"])
        return jax.nn.softmax(q @ k.T) @ v @ p["o"]

    one = lambda p, x: jnp.sum(jax.vmap(head, in_axes=(0, None))(p, x), axis=0)
    return fit(draw, jax.vmap(one, in_axes=(None, 0)), params, draw(ROWS, TOKENS, WIDTH))


@entry
def rotary_and_gated(draw: Draw) -> Entry:
    """Llama: rotary positions, grouped queries (two heads share a key), a gated layer."""
    params = {
        "q": draw(WIDTH, 2, 4) / 2,
        "k": draw(WIDTH, 1, 4) / 2,
        "v": draw(WIDTH, 1, 4) / 2,
        "gate": draw.weight(8, 5),
        "up": draw.weight(8, 5),
    }

    def rotate(x):
        frequencies = jnp.array([1.0, 0.1], x.dtype)
        angles = jnp.arange(x.shape[1], dtype=x.dtype)[:, None, None] * frequencies
        a, b = jnp.split(x, 2, axis=-1)
        sin, cos = jnp.sin(angles), jnp.cos(angles)
        return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)

    def forward(p, x):
        q, k, v = (jnp.einsum("btd,dhk->bthk", x, p[name]) for name in "qkv")
        k, v = (jnp.repeat(z, 2, axis=2) for z in (rotate(k), v))
        h = attend(rotate(q), k, v).reshape(*x.shape[:2], 8)
        return jax.nn.silu(h @ p["gate"]) * (h @ p["up"])

    return fit(draw, forward, params, draw(ROWS, TOKENS, WIDTH))


@entry
def relative_position_bias(draw: Draw) -> Entry:
    """T5: scores plus a table that is read at constant distances, many positions a bucket."""
    tokens = np.arange(TOKENS, dtype=np.int32)
    distance = np.clip(tokens - tokens[:, None], -2, 2) + 2
    params = {"bias": draw(5), "v": draw.weight(WIDTH, 3)}

    def forward(p, x):
        scores = jnp.einsum("btd,bsd->bts", x, x) + p["bias"][distance]
        return jax.nn.softmax(scores) @ (x @ p["v"])

    return fit(draw, forward, params, draw(ROWS, TOKENS, WIDTH))


@with_loss(
    lambda draw: {"table": draw(WORDS, WIDTH), "head": draw.weight(WIDTH, WORDS)},
    lambda draw: {**text(draw), "length": 1 + draw.ids(TOKENS, ROWS)},
)
def mean_over_real_tokens(params, batch):
    """Sequences of several lengths: each example is the mean over its own tokens."""
    scores = jax.nn.log_softmax(jnp.tanh(params["table"][batch["ids"]]) @ params["head"])
    losses = -jnp.take_along_axis(scores, batch["next"][..., None], axis=-1)[..., 0]
    real = (jnp.arange(TOKENS) < batch["length"][:, None]).astype(losses.dtype)
    return jnp.mean(jnp.sum(losses * real, axis=1) / jnp.sum(real, axis=1))


@fitted(
    lambda draw: {"token": draw(WIDTH), "cache": draw(2, WIDTH), "w": draw.weight(WIDTH, WIDTH)},
    lambda draw: {"x": draw(ROWS, TOKENS, WIDTH), "hidden": draw.ids(2, ROWS, TOKENS) > 0},
)
def mask_token(p, x):
    """Some positions are replaced by one learned vector, others receive cached parameters."""
    h = jnp.where(x["hidden"][..., None], p["token"], x["x"])
    h = h.at[:, 1:3].set(p["cache"])
    return jnp.tanh(h @ p["w"])


@fitted(
    lambda draw: {"q": draw(WIDTH, 2, 4) / 2, "kv": draw(2, WIDTH, 1, 4) / 2},
    lambda draw: {"x": draw(ROWS, TOKENS, WIDTH), "length": 1 + draw.ids(TOKENS, ROWS)},
)
def attention_by_jax(p, x):
    """`jax.nn.dot_product_attention`, with grouped queries and a length for every example."""
    q = jnp.einsum("btd,dhk->bthk", x["x"], p["q"])
    k, v = jnp.einsum("btd,cdhk->cbthk", x["x"], p["kv"])
    return jax.nn.dot_product_attention(
        q,
        k,
        v,
        is_causal=True,
        query_seq_lengths=x["length"],
        key_value_seq_lengths=x["length"],
    )
