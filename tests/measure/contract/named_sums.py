"""Sums, guards, positions and regularisers."""

import jax
import jax.numpy as jnp
from named_tools import (
    LOOP,
    MEAN,
    MIXES,
    PLACE,
    SCALED,
    B,
    Table,
    adders,
    ce,
    hidden,
    logits,
    rows_ce,
    score,
    sg,
)

SUMS: Table = {}
loss, add = adders(SUMS)


error = lambda p, b: score(p, b["x"]) - b["y"]

# Sums.
add("sum", SCALED, "sum", lambda p, b: rows_ce(p, b).sum())
add("sum over a constant", SCALED, "sum / 32", lambda p, b: rows_ce(p, b).sum() / 32)
add("sum over the size of today", SCALED, "sum / 8", lambda p, b: rows_ce(p, b).sum() / B)
add("sum over B - 1", SCALED, "sum / (B - 1)", lambda p, b: rows_ce(p, b).sum() / (len(b["x"]) - 1))
add("mean times B", SCALED, "mean · B", lambda p, b: rows_ce(p, b).mean() * len(b["x"]))
add(
    "mean of one term and sum of another",
    SCALED,
    "two scales",
    lambda p, b: rows_ce(p, b).mean() + jnp.sum(error(p, b) ** 2),
)
add(
    "1000 / B · sum",
    MEAN,
    "a mean, times 1000",
    lambda p, b: 1000 / len(b["x"]) * rows_ce(p, b).sum(),
)
add("loss scale", MEAN, "a mean, times 1024", lambda p, b: 1024 * rows_ce(p, b).mean())

# Guards.
add(
    "guarded loss",
    MEAN,
    "where(isfinite)",
    lambda p, b: (lambda v: jnp.where(jnp.isfinite(v), v, 0.0))(rows_ce(p, b).mean()),
)
add(
    "guarded rows",
    MEAN,
    "where(isfinite)",
    lambda p, b: (lambda v: jnp.where(jnp.isfinite(v), v, 0.0))(rows_ce(p, b)).mean(),
)
add(
    "nan_to_num",
    LOOP,
    "a mean where it is finite",
    lambda p, b: jnp.nan_to_num(rows_ce(p, b).mean()),
)
add(
    "clipped loss",
    LOOP,
    "a mean between the bounds",
    lambda p, b: jnp.clip(rows_ce(p, b).mean(), -100, 100),
)
add("clipped rows", MEAN, "mean", lambda p, b: jnp.clip(rows_ce(p, b), 0, 2).mean())
add(
    "flooding", MIXES, "|mean - b| + b", lambda p, b: jnp.abs(rows_ce(p, b).mean() ** 2 - 0.1) + 0.1
)

# By position.
add(
    "arange mask",
    PLACE,
    "rows by position",
    lambda p, b: jnp.mean(rows_ce(p, b), where=jnp.arange(len(b["x"])) < 5),
)
add(
    "arange select",
    PLACE,
    "rows by position",
    lambda p, b: (lambda v: jnp.mean(jnp.where(jnp.arange(len(v)) < 5, v, 0.1 * v)))(rows_ce(p, b)),
)
add("first row", PLACE, "one row", lambda p, b: rows_ce(p, b)[0])
add(
    "without the first row",
    PLACE,
    "rows by position",
    lambda p, b: rows_ce(p, b).at[0].set(0).mean(),
)
add("every other row", PLACE, "rows by position", lambda p, b: rows_ce(p, b)[::2].mean())
add("first rows", PLACE, "rows by position", lambda p, b: rows_ce(p, b)[:3].mean())
add(
    "halves apart",
    PLACE,
    "rows by position",
    lambda p, b: (lambda v: v[: len(v) // 2].mean() - v[len(v) // 2 :].mean())(rows_ce(p, b)),
)
add(
    "labelled and unlabelled halves",
    PLACE,
    "rows by position",
    lambda p, b: rows_ce(p, b)[:4].mean() + 0.1 * jnp.mean(error(p, b)[4:] ** 2),
)
add(
    "linspace",
    PLACE,
    "rows by position",
    lambda p, b: jnp.mean(rows_ce(p, b) * jnp.linspace(0, 1, len(b["x"]))),
)
add("running mean", PLACE, "cumsum over rows", lambda p, b: jnp.mean(jnp.cumsum(rows_ce(p, b))))
add(
    "rolled labels",
    PLACE,
    "labels of the next row",
    lambda p, b: ce(logits(p, b["x"]), jnp.roll(b["c"], 1)).mean(),
    ("c",),
)
add(
    "weights by the row's own index",
    MEAN,
    "the index is data",
    lambda p, b: jnp.mean(rows_ce(p, b) * jnp.cos(b["index"])),
)
add(
    "neighbours",
    MIXES,
    "products of rows",
    lambda p, b: jnp.mean(hidden(p, b["x"]) * jnp.roll(hidden(p, b["x"]), 1, 0)),
)
add(
    "smooth along rows",
    MIXES,
    "differences of rows",
    lambda p, b: jnp.mean(jnp.diff(score(p, b["x"])) ** 2),
)

# Regularisers.
penalty = lambda p: sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(p))
add("L2", MEAN, "penalty of parameters", lambda p, b: rows_ce(p, b).mean() + 0.01 * penalty(p))
add(
    "L1",
    MEAN,
    "penalty of parameters",
    lambda p, b: rows_ce(p, b).mean() + 0.01 * jnp.sum(jnp.abs(p["w"])),
)
add(
    "orthogonal weights",
    MEAN,
    "penalty of parameters",
    lambda p, b: rows_ce(p, b).mean() + jnp.sum((p["w"].T @ p["w"] - jnp.eye(len(p["w"]))) ** 2),
)
add(
    "elastic weight consolidation",
    MEAN,
    "penalty of parameters",
    lambda p, b: rows_ce(p, b).mean() + 0.3 * jnp.sum((p["w"] - 0.1) ** 2 * jnp.exp(sg(p["v"]))),
)
add("sum with L2", SCALED, "sum and penalty", lambda p, b: rows_ce(p, b).sum() + 0.01 * penalty(p))
add(
    "sparse activity",
    MEAN,
    "mean",
    lambda p, b: rows_ce(p, b).mean() + 0.1 * jnp.mean(jnp.abs(hidden(p, b["x"]))),
)
add(
    "entropy of rows",
    MEAN,
    "mean",
    lambda p, b: (
        rows_ce(p, b).mean()
        - 0.1
        * jnp.mean(
            jnp.sum(jax.nn.softmax(logits(p, b["x"])) * jax.nn.log_softmax(logits(p, b["x"])), 1)
        )
    ),
)
add(
    "spectral norm",
    MEAN,
    "of parameters",
    lambda p, b: ce(
        jnp.tanh(b["x"] @ (p["w"] / jnp.linalg.norm(p["w"] @ sg(p["q"])))) @ p["h"], b["c"]
    ).mean(),
)
add(
    "gradient penalty",
    MEAN,
    "of each row",
    lambda p, b: jnp.mean(
        (jnp.linalg.norm(jax.vmap(jax.grad(lambda x: score(p, x)))(b["x"]), axis=1) - 1) ** 2
    ),
)
add(
    "gradient penalty by sum",
    MEAN,
    "gradient of a sum over rows",
    lambda p, b: jnp.mean(jnp.sum(jax.grad(lambda x: score(p, x).sum())(b["x"]) ** 2, 1)),
)
add(
    "manifold mixup",
    MIXES,
    "hidden rows meet",
    lambda p, b: ce((hidden(p, b["x"]) + hidden(p, b["x"])[::-1]) @ p["h"], b["c"]).mean(),
)
add("variance of losses", MIXES, "REx", lambda p, b: rows_ce(p, b).mean() + jnp.var(rows_ce(p, b)))


@loss(MEAN, "two draws of each row")
def r_drop(p, b):
    one = jax.nn.log_softmax(logits(p, b["x"] * (b["eps"] > 0)))
    two = jax.nn.log_softmax(logits(p, b["x"] * (b["x2"] > 0)))
    return jnp.mean(jnp.sum(jnp.exp(one) * (one - two) + jnp.exp(two) * (two - one), 1))


@loss(MIXES, "entropy of the batch mean")
def marginal_entropy(p, b):
    mean = jax.nn.softmax(logits(p, b["x"])).mean(0)
    return rows_ce(p, b).mean() + jnp.sum(mean * jnp.log(mean))


@loss(MEAN, "a step of each row")
def virtual_adversarial(p, b):
    like = sg(jax.nn.softmax(logits(p, b["x"])))
    far = lambda d: -jnp.sum(like * jax.nn.log_softmax(logits(p, b["x"] + d)))
    d = jax.grad(far)(0.1 * b["eps"])
    d = sg(d / jnp.linalg.norm(d, axis=1, keepdims=True))
    return -jnp.mean(jnp.sum(like * jax.nn.log_softmax(logits(p, b["x"] + d)), 1))


@loss(MIXES, "the step is that of the batch")
def sharpness_aware(p, b):
    g = jax.grad(lambda q: rows_ce(q, b).mean())(p)
    size = jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(g)))
    return rows_ce(jax.tree.map(lambda x, d: x + sg(0.1 * d / size), p, g), b).mean()


@loss(MIXES, "square of the batch's gradient")
def invariant_risk(p, b):
    risk = lambda scale: ce(logits(p, b["x"]) * scale, b["c"]).mean()
    return risk(1.0) + jax.grad(risk)(1.0) ** 2


@loss(MIXES, "the worse of two groups")
def group_dro(p, b):
    v = rows_ce(p, b)
    means = jnp.stack([jnp.sum(v * (b["bit"] == i)) / jnp.sum(b["bit"] == i) for i in range(2)])
    return jnp.sum(sg(jax.nn.softmax(means)) * means)
