"""Contrastive and self-supervised losses."""

import jax
import jax.numpy as jnp
import optax
from named_tools import (
    MEAN,
    MIXES,
    D,
    K,
    Table,
    adders,
    ce,
    hidden,
    logits,
    sg,
    unit,
    white,
)

CONTRASTIVE: Table = {}
loss, add = adders(CONTRASTIVE)


one = lambda p, b: unit(hidden(p, b["x"]))
two = lambda p, b: unit(b["x2"] @ p["v"])
labels = lambda z: jnp.arange(len(z))
dist = lambda a, c: jnp.sum((a - c) ** 2, -1)

add(
    "InfoNCE",
    MIXES,
    "rows are negatives",
    lambda p, b: ce(3 * one(p, b) @ two(p, b).T, labels(b["x"])).mean(),
)
add(
    "CLIP",
    MIXES,
    "rows are negatives",
    lambda p, b: (lambda s: (ce(s, labels(s)) + ce(s.T, labels(s))).mean() / 2)(
        jnp.exp(p["t"]) * one(p, b) @ two(p, b).T
    ),
)
add(
    "SigLIP",
    MIXES,
    "rows are negatives",
    lambda p, b: (
        -jnp.mean(
            jnp.sum(
                jax.nn.log_sigmoid((2 * jnp.eye(len(b["x"])) - 1) * (one(p, b) @ two(p, b).T)), 1
            )
        )
    ),
)
add(
    "SimCLR",
    MIXES,
    "rows are negatives",
    lambda p, b: optax.losses.ntxent(
        jnp.concatenate([one(p, b), two(p, b)]), jnp.tile(labels(b["x"]), 2)
    ),
)
add(
    "InfoNCE by vmap",
    MIXES,
    "rows are negatives",
    lambda p, b: jax.vmap(lambda z, i: ce(two(p, b) @ z, i))(one(p, b), labels(b["x"])).mean(),
)
add(
    "InfoNCE against data",
    ("either", "refuse"),
    "negatives are raw data",
    lambda p, b: ce(one(p, b) @ b["x2"].T, labels(b["x"])).mean(),
    ("x2",),
)
add(
    "MoCo",
    MEAN,
    "negatives are no rows",
    lambda p, b: (
        lambda z: jnp.mean(jax.nn.logsumexp(z @ sg(p["e"]).T, 1) - jnp.sum(z * sg(two(p, b)), 1))
    )(one(p, b)),
)
add(
    "candidates of each row",
    MEAN,
    "negatives in the row",
    lambda p, b: ce(jnp.einsum("bd,btd->bt", one(p, b), b["seq"]), b["c"]).mean(),
)
add(
    "triplet of each row",
    MEAN,
    "three arrays",
    lambda p, b: jnp.mean(
        jax.nn.relu(dist(one(p, b), two(p, b)) - dist(one(p, b), unit(b["x3"] @ p["v"])) + 0.5)
    ),
)
add(
    "pairs with labels",
    MEAN,
    "two arrays",
    lambda p, b: jnp.mean(
        jnp.where(
            b["bit"] > 0, dist(one(p, b), two(p, b)), jax.nn.relu(1 - dist(one(p, b), two(p, b)))
        )
    ),
)
add("BYOL", MEAN, "mean", lambda p, b: jnp.mean(dist(one(p, b) @ p["v"], sg(two(p, b)))))
add(
    "DINO with a fixed centre",
    MEAN,
    "the centre is a parameter",
    lambda p, b: (
        -jnp.mean(
            jnp.sum(
                sg(jax.nn.softmax((logits(p, b["x2"]) - p["q"][:K]) / 0.2))
                * jax.nn.log_softmax(logits(p, b["x"])),
                1,
            )
        )
    ),
)
add(
    "DINO with the batch's centre",
    MIXES,
    "mean of outputs",
    lambda p, b: (
        -jnp.mean(
            jnp.sum(
                sg(jax.nn.softmax((logits(p, b["x2"]) - logits(p, b["x2"]).mean(0)) / 0.2))
                * jax.nn.log_softmax(logits(p, b["x"])),
                1,
            )
        )
    ),
)
add(
    "centres of classes",
    MEAN,
    "centres are parameters",
    lambda p, b: jnp.mean(dist(hidden(p, b["x"]), p["e"][b["c"]])),
)
add(
    "prototypes of the batch",
    MIXES,
    "means of each class",
    lambda p, b: (
        lambda z, o: ce(-dist(z[:, None], (o.T @ z) / (o.sum(0)[:, None] + 1e-3)), b["c"]).mean()
    )(one(p, b), jax.nn.one_hot(b["c"], K)),
)
add(
    "Barlow Twins",
    MIXES,
    "cross-correlation",
    lambda p, b: jnp.sum((white(one(p, b)).T @ white(two(p, b)) / len(b["x"]) - jnp.eye(D)) ** 2),
)
add(
    "VICReg",
    MIXES,
    "variance and covariance",
    lambda p, b: (
        lambda z: (
            jnp.mean(dist(z, two(p, b)))
            + jnp.mean(jax.nn.relu(1 - jnp.std(z, 0)))
            + jnp.sum(jnp.cov(z.T) ** 2)
        )
    )(one(p, b)),
)
add(
    "uniformity",
    MIXES,
    "pairs of rows",
    lambda p, b: (lambda z: jnp.log(jnp.mean(jnp.exp(-2 * dist(z[:, None], z)))))(one(p, b)),
)


@loss(MIXES, "rows are positives and negatives")
def supervised_contrastive(p, b):
    z = one(p, b)
    other = 1 - jnp.eye(len(z))
    same = (b["c"][:, None] == b["c"]) * other
    logp = z @ z.T - jnp.log(jnp.sum(jnp.exp(z @ z.T) * other, 1, keepdims=True))
    return -jnp.mean(jnp.sum(same * logp, 1) / jnp.maximum(same.sum(1), 1))


@loss(MIXES, "the hardest rows")
def batch_hard(p, b):
    z = one(p, b)
    d, same = dist(z[:, None], z), b["c"][:, None] == b["c"]
    far, near = jnp.max(jnp.where(same, d, 0), 1), jnp.min(jnp.where(same, 9, d), 1)
    return jnp.mean(jax.nn.softplus(far - near))


@loss(MIXES, "assignments that balance the batch")
def swav(p, b):
    q = jnp.exp(logits(p, b["x2"]))
    for _ in range(3):
        q = q / q.sum(0)
        q = q / q.sum(1, keepdims=True)
    return -jnp.mean(jnp.sum(sg(q) * jax.nn.log_softmax(logits(p, b["x"])), 1))
