"""Reinforcement learning and preferences."""

import jax
import jax.numpy as jnp
from jax import lax
from named_tools import (
    DATA,
    MEAN,
    MIXES,
    Table,
    adders,
    hidden,
    log_prob,
    logits,
    rows_ce,
    score,
    sg,
    white,
)

DECISIONS: Table = {}
loss, add = adders(DECISIONS)


act = lambda p, b: -rows_ce(p, b)  # log-probability of each row's action
value = lambda p, b, x="x": b[x] @ p["w"] @ p["q"]
ratio = lambda p, b: jnp.exp(act(p, b) - b["old"] + 1)
clipped = lambda r, a: jnp.minimum(r * a, jnp.clip(r, 0.8, 1.2) * a)

add("REINFORCE", MEAN, "mean", lambda p, b: -jnp.mean(act(p, b) * b["r"]))
add(
    "REINFORCE, whitened returns",
    DATA,
    "moments of returns",
    lambda p, b: -jnp.mean(act(p, b) * white(b["r"])),
    ("r",),
)
add(
    "REINFORCE, mean baseline",
    DATA,
    "mean of returns",
    lambda p, b: -jnp.mean(act(p, b) * (b["r"] - b["r"].mean())),
    ("r",),
)
add(
    "leave-one-out baseline",
    DATA,
    "mean of the other returns",
    lambda p, b: -jnp.mean(act(p, b) * (b["r"] - (b["r"].sum() - b["r"]) / (len(b["r"]) - 1))),
    ("r",),
)
add(
    "returns by rank",
    DATA,
    "ranks of data",
    lambda p, b: -jnp.mean(act(p, b) * jnp.argsort(jnp.argsort(b["r"]))),
    ("r",),
)
add(
    "groups of rollouts",
    DATA,
    "moments of each four returns",
    lambda p, b: -jnp.mean(act(p, b) * white(b["r"].reshape(-1, 4).T).T.reshape(-1)),
    ("r",),
)
add(
    "groups of rollouts, clipped",
    DATA,
    "moments of each four returns",
    lambda p, b: -jnp.mean(clipped(ratio(p, b), white(b["r"].reshape(-1, 4).T).T.reshape(-1))),
    ("r",),
)
add("PPO", MEAN, "mean", lambda p, b: -jnp.mean(clipped(ratio(p, b), b["r"])))
add(
    "PPO, whitened advantages",
    DATA,
    "moments of advantages",
    lambda p, b: -jnp.mean(clipped(ratio(p, b), white(b["r"]))),
    ("r",),
)
add(
    "PPO, advantages of its own critic",
    MEAN,
    "critic of the row alone",
    lambda p, b: -jnp.mean(clipped(ratio(p, b), sg(b["r"] - value(p, b)))),
)
add(
    "PPO, whitened by its own critic",
    MIXES,
    "moments of what the critic says",
    lambda p, b: -jnp.mean(clipped(ratio(p, b), sg(white(b["r"] - value(p, b))))),
)
add(
    "actor-critic",
    MEAN,
    "mean",
    lambda p, b: jnp.mean(
        -act(p, b) * sg(b["r"] - value(p, b)) + 0.5 * (b["r"] - value(p, b)) ** 2
    ),
)
add(
    "value over its spread",
    DATA,
    "variance of returns",
    lambda p, b: jnp.mean((value(p, b) - b["r"]) ** 2) / jnp.var(b["r"]),
    ("r",),
)
add(
    "DQN",
    MEAN,
    "target of the row alone",
    lambda p, b: jnp.mean(
        (logits(p, b["x"])[:, 0] - b["r"] - 0.9 * sg(logits(p, b["x2"]).max(1))) ** 2
    ),
)
add(
    "double DQN",
    MEAN,
    "mean",
    lambda p, b: jnp.mean(
        (
            jnp.take_along_axis(logits(p, b["x"]), b["c"][:, None], 1)[:, 0]
            - b["r"]
            - 0.9
            * sg(
                jnp.take_along_axis(logits(p, b["x3"]), logits(p, b["x2"]).argmax(1)[:, None], 1)[
                    :, 0
                ]
            )
        )
        ** 2
    ),
)
add(
    "prioritised replay",
    DATA,
    "weights over the largest",
    lambda p, b: jnp.mean(b["w"] / b["w"].max() * (value(p, b) - b["r"]) ** 2),
    ("w",),
)
add(
    "SAC",
    MEAN,
    "noise in the batch",
    lambda p, b: (
        lambda mu: jnp.mean(
            0.1 * jnp.sum(-mu[0] - b["eps"] ** 2, 1)
            - hidden(p, b["x2"] + mu[1] + jnp.exp(mu[0]) * b["eps"]) @ p["q"]
        )
    )((hidden(p, b["x"]), b["x"] @ p["v"])),
)
add(
    "AWR",
    MEAN,
    "exp of the row's advantage",
    lambda p, b: -jnp.mean(act(p, b) * sg(jnp.exp(b["r"] - value(p, b)))),
)
add(
    "AWR, shares of the batch",
    MIXES,
    "softmax over what the critic says",
    lambda p, b: -jnp.sum(act(p, b) * sg(jax.nn.softmax(b["r"] - value(p, b)))),
)
add(
    "self-normalised weights",
    MIXES,
    "Σ ratio·r / Σ ratio",
    lambda p, b: -jnp.sum(ratio(p, b) * b["r"]) / jnp.sum(ratio(p, b)),
)
add("behaviour cloning", MEAN, "mean", lambda p, b: jnp.mean((hidden(p, b["x"]) - b["x2"]) ** 2))
add(
    "conservative Q",
    MEAN,
    "mean",
    lambda p, b: jnp.mean(
        jax.nn.logsumexp(logits(p, b["x"]), 1)
        - jnp.take_along_axis(logits(p, b["x"]), b["c"][:, None], 1)[:, 0]
    ),
)


@loss(MEAN, "advantages by a scan over time")
def gae(p, b):
    v = b["seq"] @ p["w"] @ p["q"]
    delta = b["r"][:, None] + 0.9 * sg(v[:, 1:]) - v[:, :-1]
    step = lambda c, d: (d + 0.8 * c,) * 2
    a = lax.scan(step, jnp.zeros(len(v)), sg(delta).T, reverse=True)[1].T
    return jnp.mean((v[:, :-1] - sg(a + v[:, :-1])) ** 2) - jnp.mean(act(p, b) * a[:, 0])


@loss(MIXES, "advantages whitened over rows and time")
def gae_whitened(p, b):
    v = b["seq"] @ p["w"] @ p["q"]
    delta = b["r"][:, None] + 0.9 * sg(v[:, 1:]) - v[:, :-1]
    a = sg(white(delta.reshape(-1)).reshape(delta.shape))
    return jnp.mean(delta**2) - jnp.mean(act(p, b) * a[:, 0])


@loss(MEAN, "quantiles of each row")
def quantile_dqn(p, b):
    z, target = hidden(p, b["x"]), sg(b["r"][:, None] + 0.9 * hidden(p, b["x2"]))
    u = target[:, None, :] - z[:, :, None]
    tau = (jnp.arange(z.shape[1]) + 0.5) / z.shape[1]
    return jnp.mean(jnp.abs(tau[:, None] - (u < 0)) * jnp.log(jnp.cosh(u)))


# Preferences.
add(
    "Bradley-Terry",
    MEAN,
    "pairs in a row",
    lambda p, b: -jax.nn.log_sigmoid(score(p, b["x"]) - score(p, b["x2"])).mean(),
)
add(
    "DPO",
    MEAN,
    "pairs in a row",
    lambda p, b: (
        -jax.nn.log_sigmoid(0.1 * (log_prob(p, b, "tok") - log_prob(p, b, "tok2") - b["r"])).mean()
    ),
)
add(
    "IPO",
    MEAN,
    "pairs in a row",
    lambda p, b: jnp.mean((log_prob(p, b, "tok") - log_prob(p, b, "tok2") - 5) ** 2),
)
add(
    "SimPO",
    MEAN,
    "pairs in a row",
    lambda p, b: (
        -jax.nn.log_sigmoid((log_prob(p, b, "tok") - log_prob(p, b, "tok2")) / 4 - 0.1).mean()
    ),
)
add(
    "DPO by concatenation",
    MEAN,
    "pairs in a row, in one call",
    lambda p, b: (lambda s: -jax.nn.log_sigmoid(s[: len(b["x"])] - s[len(b["x"]) :]).mean())(
        score(p, jnp.concatenate([b["x"], b["x2"]]))
    ),
)
add(
    "DPO by stacking",
    MEAN,
    "pairs in a row, in one call",
    lambda p, b: (lambda s: -jax.nn.log_sigmoid(s[0] - s[1]).mean())(
        score(p, jnp.stack([b["x"], b["x2"]]))
    ),
)
add(
    "DPO of halves",
    MIXES,
    "pairs of rows",
    lambda p, b: (lambda s: -jax.nn.log_sigmoid(s[: len(s) // 2] - s[len(s) // 2 :]).mean())(
        score(p, b["x"])
    ),
)


@loss(MIXES, "pairs of rows")
def DPO_by_split(p, b):
    better, worse = jnp.split(score(p, b["x"]), 2)
    return -jax.nn.log_sigmoid(better - worse).mean()


add(
    "DPO interleaved",
    MIXES,
    "pairs of rows",
    lambda p, b: (lambda s: -jax.nn.log_sigmoid(s[::2] - s[1::2]).mean())(score(p, b["x"])),
)
add(
    "DPO by reshape",
    MIXES,
    "pairs of rows",
    lambda p, b: (lambda s: -jax.nn.log_sigmoid(s[:, 0] - s[:, 1]).mean())(
        score(p, b["x"]).reshape(-1, 2)
    ),
)
add(
    "KTO",
    MIXES,
    "a threshold of the batch",
    lambda p, b: jnp.mean(
        jax.nn.sigmoid(
            (2 * b["bit"] - 1) * (score(p, b["x"]) - sg(jax.nn.relu(score(p, b["x"]).mean() + 1)))
        )
    ),
)
add(
    "Plackett-Luce of each row",
    MEAN,
    "a list in a row",
    lambda p, b: (
        lambda s: jnp.mean(jnp.sum(jnp.flip(lax.cumlogsumexp(jnp.flip(s, 1), axis=1), 1) - s, 1))
    )(score(p, b["seq"])),
)
add(
    "ListNet of each row",
    MEAN,
    "a list in a row",
    lambda p, b: jnp.mean(
        -jnp.sum(jax.nn.softmax(b["seq"][..., 0]) * jax.nn.log_softmax(score(p, b["seq"])), 1)
    ),
)
