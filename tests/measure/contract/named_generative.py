"""Generative losses."""

import jax
import jax.numpy as jnp
from named_tools import (
    DATA,
    MEAN,
    MIXES,
    Table,
    adders,
    bce,
    ce,
    hidden,
    score,
    sg,
)

GENERATIVE: Table = {}
loss, add = adders(GENERATIVE)

dist = lambda a, c: jnp.sum((a - c) ** 2, -1)
KEY = jax.random.PRNGKey(3)


def elbo(p, b, eps):
    m, s = hidden(p, b["x"]), 0.3 * b["x"] @ p["v"]
    prior = 0.5 * jnp.sum(m**2 + jnp.exp(2 * s) - 2 * s, 1)
    return jnp.mean(dist((m + jnp.exp(s) * eps) @ p["w"].T, b["x"]) + prior)


drawn = lambda b: jax.random.normal(KEY, b["x"].shape, jnp.float32)
add("VAE", MEAN, "noise in the batch", lambda p, b: elbo(p, b, b["eps"]))
add("VAE with one key", DATA, "noise drawn for the batch", lambda p, b: elbo(p, b, drawn(b)))
add(
    "dropout with one key",
    DATA,
    "a mask drawn for the batch",
    lambda p, b: ce((hidden(p, b["x"]) * (drawn(b) > 0)) @ p["h"], b["c"]).mean(),
)
add(
    "discriminator",
    MEAN,
    "two batches, row by row",
    lambda p, b: jnp.mean(jax.nn.softplus(-score(p, b["x"])) + jax.nn.softplus(score(p, b["x2"]))),
)
add(
    "discriminator in one call",
    MEAN,
    "two arrays, concatenated",
    lambda p, b: bce(
        score(p, jnp.concatenate([b["x"], b["x2"]])), jnp.repeat(jnp.array([1.0, 0.0]), len(b["x"]))
    ).mean(),
)
add(
    "WGAN-GP",
    MEAN,
    "mean",
    lambda p, b: jnp.mean(
        score(p, b["x2"])
        - score(p, b["x"])
        + (
            jnp.linalg.norm(
                jax.vmap(jax.grad(lambda x: score(p, x)))(0.5 * b["x"] + 0.5 * b["x2"]), axis=1
            )
            - 1
        )
        ** 2
    ),
)
add(
    "relativistic average GAN",
    MIXES,
    "against the mean of the others",
    lambda p, b: jnp.mean(jax.nn.softplus(score(p, b["x2"]).mean() - score(p, b["x"]))),
)
add(
    "minibatch discrimination",
    MIXES,
    "spread of the batch as a feature",
    lambda p, b: jnp.mean(jax.nn.softplus(score(p, b["x"]) + jnp.std(hidden(p, b["x"]), 0).mean())),
)
add(
    "diffusion",
    MEAN,
    "times and noise in the batch",
    lambda p, b: (
        lambda a: jnp.mean((hidden(p, a * b["x"] + jnp.sqrt(1 - a**2) * b["eps"]) - b["eps"]) ** 2)
    )(jax.nn.sigmoid(b["r"])[:, None]),
)
add(
    "flow matching",
    MEAN,
    "mean",
    lambda p, b: (
        lambda t: jnp.mean((hidden(p, t * b["x"] + (1 - t) * b["eps"]) - b["x"] + b["eps"]) ** 2)
    )(b["w"][:, None] / 2),
)
add(
    "flow",
    MEAN,
    "log-determinant of parameters",
    lambda p, b: jnp.mean(0.5 * jnp.sum((b["x"] @ p["w"]) ** 2, 1)) - jnp.linalg.slogdet(p["w"])[1],
)
add(
    "flow with coupling",
    MEAN,
    "log-determinant of each row",
    lambda p, b: (
        lambda s: jnp.mean(0.5 * jnp.sum((b["x2"] * jnp.exp(s)) ** 2, 1) - jnp.sum(s, 1))
    )(hidden(p, b["x"])),
)
add(
    "flow by Jacobian",
    MEAN,
    "slogdet of each row's Jacobian",
    lambda p, b: (
        -jnp.mean(
            jax.vmap(
                lambda x: jnp.linalg.slogdet(jax.jacobian(lambda v: v + 0.1 * hidden(p, v))(x))[1]
            )(b["x"])
        )
    ),
)
add(
    "energy-based",
    MEAN,
    "data against samples",
    lambda p, b: jnp.mean(score(p, b["x"]) - score(p, b["x2"]) + 0.1 * score(p, b["x"]) ** 2),
)
add(
    "energy with the batch's partition",
    MIXES,
    "log-sum-exp over samples",
    lambda p, b: jnp.mean(score(p, b["x"])) + jax.nn.logsumexp(-score(p, b["x2"])),
)
add(
    "MINE",
    MIXES,
    "log-mean-exp",
    lambda p, b: -score(p, b["x"]).mean() + jnp.log(jnp.mean(jnp.exp(score(p, b["x2"])))),
)
add(
    "MMD",
    MIXES,
    "pairs of rows",
    lambda p, b: (lambda z, k: k(z, z) - 2 * k(z, b["x2"]))(
        hidden(p, b["x"]), lambda a, c: jnp.mean(jnp.exp(-dist(a[:, None], c)))
    ),
)
add(
    "sliced score matching",
    MEAN,
    "directions in the batch",
    lambda p, b: jnp.mean(
        jax.vmap(
            lambda x, v: (lambda s, t: v @ t + 0.5 * (v @ s) ** 2)(
                *jax.jvp(lambda x: hidden(p, x), (x,), (v,))
            )
        )(b["x"], b["eps"])
    ),
)
add(
    "VQ",
    MEAN,
    "straight-through",
    lambda p, b: (
        lambda z: (
            lambda q: jnp.mean(dist(z + sg(q - z), b["x2"]) + dist(q, sg(z)) + 0.2 * dist(z, sg(q)))
        )(p["e"][jnp.argmin(dist(z[:, None], p["e"]), 1)])
    )(hidden(p, b["x"])),
)
add(
    "VQ with the codebook's entropy",
    MIXES,
    "entropy of the batch's mean",
    lambda p, b: (lambda a: jnp.sum(a.mean(0) * jnp.log(a.mean(0))))(
        jax.nn.softmax(hidden(p, b["x"]) @ p["e"].T)
    ),
)
add(
    "IWAE",
    MEAN,
    "samples of each row",
    lambda p, b: (
        -jnp.mean(
            jax.nn.logsumexp(
                -dist((hidden(p, b["x"])[:, None] + b["seq"]) @ p["v"], b["x2"][:, None]), axis=1
            )
        )
    ),
)
