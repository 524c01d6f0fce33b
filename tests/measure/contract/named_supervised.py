"""Supervised losses: means of rows, and those that data of the batch normalises."""

import jax
import jax.numpy as jnp
from named_tools import (
    DATA,
    MEAN,
    K,
    Table,
    adders,
    bce,
    ce,
    hidden,
    logits,
    rows_ce,
    score,
    sg,
    white,
)

SUPERVISED: Table = {}
loss, add = adders(SUPERVISED)


error = lambda p, b: score(p, b["x"]) - b["y"]

# Means.
add("mse", MEAN, "mean", lambda p, b: jnp.mean(error(p, b) ** 2))
add("mse by size", MEAN, "sum / size", lambda p, b: jnp.sum(error(p, b) ** 2) / b["y"].size)
add("mse by norm", MEAN, "norm² / B", lambda p, b: jnp.linalg.norm(error(p, b)) ** 2 / len(b["y"]))
add("mse by dot", MEAN, "dot / B", lambda p, b: jnp.dot(error(p, b), error(p, b)) / len(b["y"]))
add("half mse", MEAN, "mean", lambda p, b: 0.5 * jnp.mean(jnp.square(error(p, b))))
add("cross-entropy", MEAN, "mean", lambda p, b: rows_ce(p, b).mean())
add(
    "huber",
    MEAN,
    "mean",
    lambda p, b: jnp.mean(
        jnp.where(jnp.abs(error(p, b)) < 1, 0.5 * error(p, b) ** 2, jnp.abs(error(p, b)) - 0.5)
    ),
)
add("log-cosh", MEAN, "mean", lambda p, b: jnp.mean(jnp.logaddexp(error(p, b), -error(p, b))))
add(
    "hinge",
    MEAN,
    "mean",
    lambda p, b: jnp.mean(jax.nn.relu(1 - (2 * b["bit"] - 1) * score(p, b["x"]))),
)
add("bce with logits", MEAN, "mean", lambda p, b: bce(score(p, b["x"]), b["bit"]).mean())
add(
    "quantile regression",
    MEAN,
    "mean",
    lambda p, b: jnp.mean(jnp.maximum(0.9 * error(p, b), -0.1 * error(p, b))),
)
add(
    "poisson",
    MEAN,
    "mean",
    lambda p, b: jnp.mean(jnp.exp(score(p, b["x"])) - b["c"] * score(p, b["x"])),
)
add(
    "gaussian nll",
    MEAN,
    "mean",
    lambda p, b: jnp.mean(
        0.5 * (logits(p, b["x"])[:, 0] - b["y"]) ** 2 * jnp.exp(-logits(p, b["x"])[:, 1])
        + 0.5 * logits(p, b["x"])[:, 1]
    ),
)
add(
    "cosine distance",
    MEAN,
    "mean",
    lambda p, b: jnp.mean(
        1
        - jnp.sum(hidden(p, b["x"]) * b["x2"], 1)
        / (jnp.linalg.norm(hidden(p, b["x"]), axis=1) * jnp.linalg.norm(b["x2"], axis=1))
    ),
)
add(
    "weighted rows / B",
    MEAN,
    "weights of the row alone",
    lambda p, b: jnp.sum(rows_ce(p, b) * b["w"]) / len(b["w"]),
)
add("mape", MEAN, "mean", lambda p, b: jnp.mean(jnp.abs(error(p, b)) / (jnp.abs(b["y"]) + 0.1)))
add(
    "distillation",
    MEAN,
    "teacher's logits are data",
    lambda p, b: (
        -jnp.mean(
            jnp.sum(
                jax.nn.softmax(b["x2"][:, :K] / 2) * jax.nn.log_softmax(logits(p, b["x"]) / 2), 1
            )
        )
        * 4
    ),
)
add("feature distillation", MEAN, "mean", lambda p, b: jnp.mean((hidden(p, b["x"]) - b["x2"]) ** 2))
add(
    "own teacher",
    MEAN,
    "stop_gradient of the row alone",
    lambda p, b: jnp.mean((hidden(p, b["x"]) - sg(hidden(p, b["x2"]))) ** 2),
)
add(
    "mixup of two arrays",
    MEAN,
    "pairs are in the batch",
    lambda p, b: jnp.mean(ce(logits(p, 0.3 * b["x"] + 0.7 * b["x2"]), b["c"])),
)
add(
    "learned temperature",
    MEAN,
    "mean",
    lambda p, b: ce(logits(p, b["x"]) * jnp.exp(p["t"]), b["c"]).mean(),
)
add(
    "trace of pairs",
    MEAN,
    "trace / B",
    lambda p, b: jnp.trace(hidden(p, b["x"]) @ b["x2"].T) / len(b["x"]),
)
add(
    "sum of products",
    MEAN,
    "einsum over both axes",
    lambda p, b: jnp.einsum("bi,bi->", hidden(p, b["x"]), b["x2"]) / len(b["x"]),
)


@loss(MEAN, "mean")
def label_smoothing(p, b):
    target = 0.9 * jax.nn.one_hot(b["c"], K) + 0.1 / K
    return -jnp.mean(jnp.sum(target * jax.nn.log_softmax(logits(p, b["x"])), axis=-1))


@loss(MEAN, "mean")
def focal(p, b):
    losses = rows_ce(p, b)
    return jnp.mean((1 - jnp.exp(-losses)) ** 2 * losses)


@loss(MEAN, "learned weights of means")
def multi_task(p, b):
    one, two = jnp.mean(error(p, b) ** 2), rows_ce(p, b).mean()
    return one * jnp.exp(-p["s"][0]) + two * jnp.exp(-p["s"][1]) + p["s"][0] + p["s"][1]


@loss(MEAN, "class embeddings with a margin")
def arcface(p, b):
    z = hidden(p, b["x"])
    cos = (z / jnp.linalg.norm(z, axis=1, keepdims=True)) @ (
        p["h"] / jnp.linalg.norm(p["h"], axis=0)
    )
    return ce(8 * (cos - 0.2 * jax.nn.one_hot(b["c"], K)), b["c"]).mean()


# Normalised by data.
add(
    "weights over their sum",
    DATA,
    "Σwl / Σw",
    lambda p, b: jnp.sum(rows_ce(p, b) * b["w"]) / b["w"].sum(),
    ("w",),
)
add(
    "average with weights",
    DATA,
    "Σwl / Σw",
    lambda p, b: jnp.average(rows_ce(p, b), weights=b["w"]),
    ("w",),
)
add(
    "weights by bincount",
    DATA,
    "counts of the batch",
    lambda p, b: jnp.mean(rows_ce(p, b) / jnp.bincount(b["c"], length=K)[b["c"]]),
    ("c",),
)
add(
    "standardised targets",
    DATA,
    "moments of the targets",
    lambda p, b: jnp.mean((score(p, b["x"]) - white(b["y"])) ** 2),
    ("y",),
)
add(
    "standardised inputs",
    DATA,
    "moments of the inputs",
    lambda p, b: jnp.mean((score(p, white(b["x"])) - b["y"]) ** 2),
    ("x",),
)
add(
    "weights over the largest",
    DATA,
    "a maximum of the data",
    lambda p, b: jnp.mean(rows_ce(p, b) * b["w"] / b["w"].max()),
    ("w",),
)
add(
    "share of variance",
    DATA,
    "SSE / SST",
    lambda p, b: jnp.sum(error(p, b) ** 2) / jnp.sum((b["y"] - b["y"].mean()) ** 2),
    ("y",),
)
add(
    "labelled rows only",
    DATA,
    "divided by their number",
    lambda p, b: (
        jnp.sum(jnp.where(b["bit"] > 0, rows_ce(p, b), 0)) / jnp.maximum(b["bit"].sum(), 1)
    ),
    ("bit",),
)
add(
    "mean where",
    DATA,
    "divided by their number",
    lambda p, b: jnp.mean(rows_ce(p, b), where=b["bit"] > 0),
    ("bit",),
)
add(
    "softmax weights of data",
    DATA,
    "softmax over data",
    lambda p, b: jnp.sum(jax.nn.softmax(b["r"]) * rows_ce(p, b)),
    ("r",),
)
add(
    "mixup with the flipped batch",
    ("either", "refuse"),
    "partners are data",
    lambda p, b: ce(logits(p, 0.6 * b["x"] + 0.4 * b["x"][::-1]), b["c"]).mean(),
    ("x",),
)


@loss(DATA, "numbers of positives and negatives", ("bit",))
def balanced_bce(p, b):
    share = b["bit"].mean()
    weight = jnp.where(b["bit"] > 0, 0.5 / share, 0.5 / (1 - share))
    return jnp.mean(weight * bce(score(p, b["x"]), b["bit"]))
