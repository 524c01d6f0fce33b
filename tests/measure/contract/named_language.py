"""Language models."""

import jax
import jax.numpy as jnp
from jax import lax
from named_tools import (
    DATA,
    LOOP,
    MEAN,
    MIXES,
    SCALED,
    D,
    T,
    Table,
    V,
    adders,
    ce,
    hidden,
    token_ce,
    words,
)

LANGUAGE: Table = {}
loss, add = adders(LANGUAGE)


add("mean over all tokens", MEAN, "mean", lambda p, b: token_ce(p, b).mean())
add(
    "flat tokens",
    MEAN,
    "B and T merged",
    lambda p, b: ce(hidden(p, b["seq"].reshape(-1, D)) @ p["out"], b["tok"].reshape(-1)).mean(),
)
add(
    "time-major tokens",
    MEAN,
    "T before B",
    lambda p, b: ce(hidden(p, jnp.swapaxes(b["seq"], 0, 1)) @ p["out"], b["tok"].T).mean(),
)
add(
    "flat time-major tokens",
    MEAN,
    "T and B merged",
    lambda p, b: ce(
        hidden(p, jnp.swapaxes(b["seq"], 0, 1).reshape(-1, D)) @ p["out"], b["tok"].T.reshape(-1)
    ).mean(),
)
add(
    "mean of sequences",
    MEAN,
    "mean over each row's tokens",
    lambda p, b: jnp.mean(jnp.sum(token_ce(p, b) * b["m"], 1) / b["m"].sum(1)),
)
add(
    "token mean",
    DATA,
    "Σlm / Σm",
    lambda p, b: jnp.sum(token_ce(p, b) * b["m"]) / b["m"].sum(),
    ("m",),
)
add(
    "token mean, at least one",
    DATA,
    "Σlm / max(Σm, 1)",
    lambda p, b: jnp.sum(token_ce(p, b) * b["m"]) / jnp.maximum(b["m"].sum(), 1),
    ("m",),
)
add(
    "token mean by where",
    DATA,
    "mean(where=)",
    lambda p, b: jnp.mean(token_ce(p, b), where=b["m"]),
    ("m",),
)
add(
    "token mean by average",
    DATA,
    "average(weights=)",
    lambda p, b: jnp.average(token_ce(p, b), weights=b["m"]),
    ("m",),
)
add(
    "token mean, flat",
    DATA,
    "Σlm / Σm over B·T",
    lambda p, b: (lambda v, m: jnp.vdot(v, m) / m.sum())(
        token_ce(p, b).reshape(-1), 1.0 * b["m"].reshape(-1)
    ),
    ("m",),
)
add(
    "tokens that are not padding",
    DATA,
    "labels of -1",
    lambda p, b: (lambda real: jnp.sum(jnp.where(real, token_ce(p, b), 0)) / real.sum())(
        b["tok2"] > 0
    ),
    ("tok2",),
)
add("mean of masked tokens", MEAN, "Σlm / BT", lambda p, b: jnp.mean(token_ce(p, b) * b["m"]))
add("tokens over a constant", SCALED, "Σl / 1000", lambda p, b: token_ce(p, b).sum() / 1000)
add("perplexity", MIXES, "exp(mean)", lambda p, b: jnp.exp(token_ce(p, b).mean()))
add(
    "z-loss",
    MEAN,
    "mean",
    lambda p, b: jnp.mean(token_ce(p, b) + 1e-2 * jax.nn.logsumexp(words(p, b["tok"]), -1) ** 2),
)
add(
    "z-loss of the mean",
    MIXES,
    "square of a mean",
    lambda p, b: token_ce(p, b).mean() + jnp.mean(jax.nn.logsumexp(words(p, b["tok"]), -1)) ** 2,
)
add(
    "next tokens",
    MEAN,
    "shifted within rows",
    lambda p, b: ce(words(p, b["tok"])[:, :-1], b["tok"][:, 1:]).mean(),
)
add(
    "shifted flat tokens",
    MIXES,
    "shifted across rows",
    lambda p, b: ce(
        (lambda z: z + jnp.roll(z, 1, 0) ** 2)(words(p, b["tok"]).reshape(-1, V)),
        b["tok"].reshape(-1),
    ).mean(),
)
add(
    "tied embedding",
    MEAN,
    "one table, used twice",
    lambda p, b: ce(hidden(p, p["e"][b["tok"]]) @ p["e"].T, b["tok2"]).mean(),
)
add(
    "two heads",
    MEAN,
    "speculative heads",
    lambda p, b: (
        token_ce(p, b).mean()
        + 0.3
        * ce((hidden(p, p["e"][b["tok"]]) @ p["v"] @ p["out"])[:, :-1], b["tok2"][:, 1:]).mean()
    ),
)
add(
    "unlikelihood",
    MEAN,
    "mean",
    lambda p, b: -jnp.mean(jnp.log1p(-0.99 * jnp.exp(-ce(words(p, b["tok"]), b["tok"])))),
)
add(
    "packed sequences", MEAN, "attention within segments of a row", lambda p, b: packed(p, b).mean()
)
add(
    "packed sequences, token mean",
    DATA,
    "Σlm / Σm",
    lambda p, b: jnp.sum(packed(p, b) * b["m"]) / b["m"].sum(),
    ("m",),
)
add(
    "token mean with L2",
    ("accept", "refuse"),
    "Σlm / Σm and a penalty",
    lambda p, b: jnp.sum(token_ce(p, b) * b["m"]) / b["m"].sum() + 0.1 * jnp.sum(p["w"] ** 2),
    ("m",),
)
add(
    "flash attention",
    MEAN,
    "jax.nn.dot_product_attention",
    lambda p, b: (
        lambda z: ce(
            jax.nn.dot_product_attention(z, z, z, is_causal=True)[:, :, 0] @ p["out"], b["tok"]
        ).mean()
    )((b["seq"] @ p["w"])[:, :, None]),
)
LANGUAGE["flash attention"] = LANGUAGE["flash attention"]._replace(float32=True)


def packed(p, b):
    h = p["e"][b["tok"]]
    same = b["seg"][:, :, None] == b["seg"][:, None]
    a = jnp.where(same, (h @ p["v"]) @ jnp.swapaxes(h, 1, 2), -1e9)
    return ce(hidden(p, h + jax.nn.softmax(a) @ h) @ p["out"], b["tok2"])


@loss(MEAN, "the vocabulary's loss in chunks of the sequence")
def chunks_of_time(p, b):
    h = jnp.moveaxis(hidden(p, b["seq"]).reshape(-1, 2, T // 2, D), 1, 0)
    labels = jnp.moveaxis(b["tok"].reshape(-1, 2, T // 2), 1, 0)
    step = jax.checkpoint(lambda c, r: (c + ce(r[0] @ p["out"], r[1]).sum(1), None))
    return lax.scan(step, jnp.zeros(len(b["x"])), (h, labels))[0].mean() / T


@loss(LOOP, "the vocabulary's loss in chunks of tokens")
def chunks_of_tokens(p, b):
    h, labels = hidden(p, b["seq"]).reshape(4, -1, D), b["tok"].reshape(4, -1)
    step = lambda c, r: (c + ce(r[0] @ p["out"], r[1]).sum(), None)
    return lax.scan(step, 0.0, (h, labels))[0] / b["tok"].size


@loss(MEAN, "a linear recurrence")
def recurrence(p, b):
    a = jnp.broadcast_to(jax.nn.sigmoid(p["s"]), b["seq"].shape)
    join = lambda a, b: (a[0] * b[0], b[0] * a[1] + b[1])
    h = lax.associative_scan(join, (a, b["seq"] @ p["w"]), axis=1)[1]
    return ce(h @ p["out"], b["tok"]).mean()
