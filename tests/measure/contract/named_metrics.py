"""Metrics as losses."""

import jax
import jax.numpy as jnp
from jax import lax
from named_tools import (
    LOOP,
    MEAN,
    MIXES,
    SCALED,
    Table,
    adders,
    bce,
    ce,
    hidden,
    logits,
    rows_ce,
    score,
    sg,
)

METRICS: Table = {}
loss, add = adders(METRICS)


# Metrics.
prob = lambda p, b: jax.nn.sigmoid(score(p, b["x"]))
pixels = lambda p, b: jax.nn.sigmoid(score(p, b["seq"]))
dice = lambda q, m, axis: (
    1 - (2 * jnp.sum(q * m, axis) + 1) / (jnp.sum(q, axis) + jnp.sum(m, axis) + 1)
)
sq = lambda p, b: (score(p, b["x"]) - b["y"]) ** 2
add("Dice of images", MEAN, "ratio of each row", lambda p, b: dice(pixels(p, b), b["m"], 1).mean())
add("Dice of the batch", MIXES, "ratio of sums", lambda p, b: dice(pixels(p, b), b["m"], None))
add(
    "Jaccard of the batch",
    MIXES,
    "ratio of sums",
    lambda p, b: (
        1 - jnp.sum(pixels(p, b) * b["m"]) / jnp.sum(pixels(p, b) + b["m"] - pixels(p, b) * b["m"])
    ),
)
add(
    "soft F1",
    MIXES,
    "ratio of sums",
    lambda p, b: 1 - 2 * jnp.sum(prob(p, b) * b["bit"]) / jnp.sum(prob(p, b) + b["bit"]),
)
add(
    "AUC by pairs",
    MIXES,
    "pairs of rows",
    lambda p, b: jnp.mean(
        jax.nn.softplus(score(p, b["x"])[:, None] - score(p, b["x"]))
        * (b["bit"][:, None] < b["bit"])
    ),
)
add(
    "Pearson",
    MIXES,
    "moments of predictions",
    lambda p, b: 1 - jnp.corrcoef(score(p, b["x"]), b["y"])[0, 1],
)
add(
    "concordance",
    MIXES,
    "moments of predictions",
    lambda p, b: (
        lambda s, y: (
            1
            - 2
            * jnp.mean((s - s.mean()) * (y - y.mean()))
            / (s.var() + y.var() + (s.mean() - y.mean()) ** 2)
        )
    )(score(p, b["x"]), b["y"]),
)
add("RMSE", MIXES, "root of the mean", lambda p, b: jnp.sqrt(sq(p, b).mean()))
add(
    "norm of errors",
    MIXES,
    "root of the sum",
    lambda p, b: jnp.linalg.norm(score(p, b["x"]) - b["y"]),
)
add(
    "geometric mean",
    MIXES,
    "exp(mean log)",
    lambda p, b: jnp.exp(jnp.mean(jnp.log(0.1 + sq(p, b)))),
)
add("log of the mean", MIXES, "log(mean)", lambda p, b: jnp.log(sq(p, b).mean()))
add("median", MIXES, "the middle row", lambda p, b: jnp.median(sq(p, b)))
add("quantile of losses", MIXES, "one rank", lambda p, b: jnp.quantile(sq(p, b), 0.8))
add("CVaR", MIXES, "the worst rows", lambda p, b: lax.top_k(sq(p, b), 3)[0].mean())
add(
    "CVaR with its own threshold",
    MEAN,
    "the threshold is a parameter",
    lambda p, b: p["t"] + jnp.mean(jax.nn.relu(sq(p, b) - p["t"])) / 0.3,
)
add("hard mining by sort", MIXES, "the worst rows", lambda p, b: jnp.sort(sq(p, b))[-4:].mean())
add(
    "hard mining by threshold",
    MIXES,
    "above the mean",
    lambda p, b: jnp.mean(sq(p, b), where=sq(p, b) > sg(sq(p, b).mean())),
)
add(
    "hard mining by a constant",
    MIXES,
    "divided by how many are hard",
    lambda p, b: jnp.sum(jnp.where(sq(p, b) > 0.7, sq(p, b), 0)) / jnp.sum(sq(p, b) > 0.7),
)
add("trimmed mean", MIXES, "without the extremes", lambda p, b: jnp.sort(sq(p, b))[1:-1].mean())
add("worst row", MIXES, "max", lambda p, b: sq(p, b).max())
add("tilted", MIXES, "log-mean-exp", lambda p, b: jax.nn.logsumexp(sq(p, b)) - jnp.log(len(b["y"])))
add(
    "softmax weights of losses",
    MIXES,
    "softmax of losses",
    lambda p, b: jnp.sum(sq(p, b) * sg(jax.nn.softmax(sq(p, b)))),
)
add(
    "over its own size",
    MIXES,
    "loss / stop_gradient(loss)",
    lambda p, b: sq(p, b).mean() / sg(sq(p, b).mean()),
)
add(
    "less the batch mean",
    MIXES,
    "centred losses",
    lambda p, b: jnp.mean((score(p, b["x"]) - score(p, b["x"]).mean() - b["y"]) ** 2),
)
add(
    "Cox",
    MIXES,
    "sets at risk",
    lambda p, b: (lambda s: jnp.mean(lax.cumlogsumexp(s) - s))(
        score(p, b["x"])[jnp.argsort(b["r"])]
    ),
)
add(
    "calibration",
    MIXES,
    "|mean of p - mean of y|",
    lambda p, b: (
        bce(score(p, b["x"]), b["bit"]).mean() + jnp.abs(prob(p, b).mean() - b["bit"].mean())
    ),
)
add(
    "gap between groups",
    MIXES,
    "square of a gap of means",
    lambda p, b: rows_ce(p, b).mean() + (jnp.mean(score(p, b["x"]) * b["y"])) ** 2,
)
add(
    "si-sdr of each row",
    MEAN,
    "ratio of each row",
    lambda p, b: (
        lambda e, y: (
            -jnp.mean(
                jnp.log(
                    jnp.sum((jnp.sum(e * y, 1) / jnp.sum(y * y, 1))[:, None] ** 2 * y**2, 1)
                    / jnp.sum((e - y) ** 2, 1)
                )
            )
        )
    )(hidden(p, b["x"]), b["x2"]),
)
add("mean and sum", SCALED, "two scales", lambda p, b: sq(p, b).mean() + 0.1 * rows_ce(p, b).sum())
add(
    "sum of a batch in order", LOOP, "sorted, then averaged", lambda p, b: jnp.sort(sq(p, b)).mean()
)
add(
    "labels beside words",
    MEAN,
    "mean",
    lambda p, b: ce(logits(p, b["x"] + p["e"][b["c"]]), b["c"]).mean(),
)
