"""Normalisation and structures."""

import jax
import jax.numpy as jnp
import optax
from jax import lax
from named_tools import (
    DATA,
    LOOP,
    MEAN,
    MIXES,
    D,
    K,
    T,
    Table,
    V,
    adders,
    ce,
    hidden,
    rows_ce,
    score,
    sg,
    white,
)

STRUCTURES: Table = {}
loss, add = adders(STRUCTURES)

labels = lambda z: jnp.arange(len(z))
dist = lambda a, c: jnp.sum((a - c) ** 2, -1)


@jax.custom_vjp
def reverse(x):
    return x


reverse.defvjp(lambda x: (x, None), lambda _, d: (-0.5 * d,))


# Normalisation.
tail = lambda p, b, z: ce(jnp.tanh(z * p["s"] + p["b"]) @ p["h"], b["c"]).mean()
first = lambda p, b: b["x"] @ p["w"]
add("BatchNorm", MIXES, "moments of the batch", lambda p, b: tail(p, b, white(first(p, b))))
add(
    "BatchNorm without gradient",
    MIXES,
    "moments of the batch",
    lambda p, b: (lambda z: tail(p, b, (z - sg(z.mean(0))) / sg(z.std(0) + 0.1)))(first(p, b)),
)
add(
    "BatchNorm over time",
    MIXES,
    "moments of rows and tokens",
    lambda p, b: jnp.mean(
        jnp.tanh(white((b["seq"] @ p["w"]).reshape(-1, D)) * p["s"]) ** 2 @ p["q"]
    ),
)
add(
    "BatchNorm in parts",
    MIXES,
    "moments of halves",
    lambda p, b: tail(p, b, jax.vmap(white)(first(p, b).reshape(2, -1, D)).reshape(-1, D)),
)
add(
    "BatchNorm by pmean",
    MIXES,
    "a named axis of rows",
    lambda p, b: tail(
        p, b, jax.vmap(lambda z: jnp.tanh(z - lax.pmean(z, "rows")), axis_name="rows")(first(p, b))
    ),
)
add(
    "BatchNorm with running moments",
    MEAN,
    "moments are parameters",
    lambda p, b: tail(p, b, (first(p, b) - sg(p["q"])) / sg(jnp.abs(p["s"]) + 0.1)),
)
add(
    "BatchNorm of the inputs",
    DATA,
    "moments of data",
    lambda p, b: tail(p, b, white(b["x"]) @ p["w"]),
    ("x",),
)
add("LayerNorm", MEAN, "moments of a row", lambda p, b: tail(p, b, white(first(p, b).T).T))
add(
    "InstanceNorm",
    MEAN,
    "moments of a row",
    lambda p, b: jnp.mean(jnp.tanh(jax.vmap(white)(b["seq"] @ p["w"]) * p["s"]) ** 2 @ p["q"]),
)
add(
    "weight norm",
    MEAN,
    "norms of parameters",
    lambda p, b: tail(p, b, b["x"] @ (p["w"] / jnp.linalg.norm(p["w"], axis=0))),
)
add(
    "weight standardisation",
    MEAN,
    "moments of parameters",
    lambda p, b: tail(p, b, b["x"] @ white(p["w"])),
)
add(
    "attention over rows",
    MIXES,
    "softmax over rows",
    lambda p, b: (lambda z: tail(p, b, jax.nn.softmax(z @ z.T) @ z))(first(p, b)),
)
add("gradient reversal", MEAN, "custom_vjp", lambda p, b: tail(p, b, reverse(first(p, b))))
add(
    "LoRA",
    MEAN,
    "frozen weights",
    lambda p, b: tail(p, b, b["x"] @ (sg(p["w"]) + p["h"] @ p["h"].T)),
)


@jax.custom_vjp
def balanced(x):
    return x


balanced.defvjp(lambda x: (x, None), lambda _, d: (d / jnp.sqrt(jnp.sum(d**2)),))
add(
    "cotangent over its norm",
    MIXES,
    "custom_vjp over the batch",
    lambda p, b: tail(p, b, balanced(first(p, b))),
)

# Structures.
matrix = lambda p, b: jnp.einsum("btd,bsd->bts", b["seq"] @ p["w"], b["seq"] @ p["w"]) + jnp.eye(T)
add(
    "CTC",
    MEAN,
    "optax.ctc_loss",
    lambda p, b: optax.ctc_loss(
        hidden(p, b["seq"]) @ p["out"],
        0.0 * b["m"],
        b["tok2"][:, :2] % (V - 1) + 1,
        jnp.zeros((len(b["x"]), 2)),
    ).mean(),
)
add(
    "padded graphs",
    MEAN,
    "a graph in a row",
    lambda p, b: jnp.mean(
        jax.vmap(
            lambda h, e: (
                jnp.tanh(h @ p["w"] + jax.ops.segment_sum(h[e[:, 0]] @ p["v"], e[:, 1], T)).mean(0)
                @ p["q"]
            )
        )(b["seq"], b["edges"])
        ** 2
    ),
)
add("graphs with offsets", LOOP, "nodes of all graphs in one array", lambda p, b: offsets(p, b))
add(
    "one graph, nodes are rows",
    MIXES,
    "edges between rows",
    lambda p, b: ce(
        (jnp.tanh((b["x"] @ p["w"])[jnp.roll(labels(b["x"]), 1)] + b["x"] @ p["v"])) @ p["h"],
        b["c"],
    ).mean(),
)
add(
    "bags of rows",
    MIXES,
    "sums over segments",
    lambda p, b: jnp.mean(jnp.tanh(jax.ops.segment_sum(hidden(p, b["x"]), b["bit"], 2) @ p["q"])),
)
add(
    "neural ODE",
    MEAN,
    "a scan of steps",
    lambda p, b: tail(
        p, b, lax.scan(lambda z, _: (z + 0.2 * jnp.tanh(z @ p["w"]), None), b["x"], length=4)[0]
    ),
)
add(
    "fixed iterations",
    MEAN,
    "a fori_loop",
    lambda p, b: tail(
        p, b, lax.fori_loop(0, 5, lambda i, z: jnp.tanh(0.3 * z @ p["w"] + b["x"]), b["x"])
    ),
)
add("implicit layer", LOOP, "a while_loop until all rows converge", lambda p, b: implicit(p, b))
add(
    "implicit layer of each row",
    MEAN,
    "a while_loop for each row",
    lambda p, b: tail(
        p,
        b,
        (lambda z: jnp.tanh(0.3 * z @ p["w"] + b["x"]))(
            sg(
                jax.vmap(
                    lambda x: lax.while_loop(
                        lambda z: jnp.sum((jnp.tanh(0.3 * z @ p["w"] + x) - z) ** 2) > 1e-3,
                        lambda z: jnp.tanh(0.3 * z @ p["w"] + x),
                        x,
                    )
                )(b["x"])
            )
        ),
    ),
)
add(
    "chain CRF",
    MEAN,
    "a scan over time",
    lambda p, b: jnp.mean(
        jax.nn.logsumexp(
            lax.scan(
                lambda a, u: (jax.nn.logsumexp(a[:, :, None] + p["h"][:K], 1) + u, None),
                jnp.zeros((len(b["x"]), K)),
                jnp.moveaxis(b["seq"] @ p["h"], 1, 0),
            )[0],
            1,
        )
    ),
)
add(
    "best permutation of each row",
    MEAN,
    "a minimum within the row",
    lambda p, b: jnp.mean(
        jnp.minimum(dist(hidden(p, b["x"]), b["x2"]), dist(hidden(p, b["x"]), b["x3"]))
    ),
)
add(
    "meta-learning",
    MEAN,
    "a step of each row",
    lambda p, b: jnp.mean(
        jax.vmap(
            lambda x, x2, y: (
                (
                    score(
                        {
                            **p,
                            "q": p["q"]
                            - 0.3 * jax.grad(lambda q: (score({**p, "q": q}, x) - y) ** 2)(p["q"]),
                        },
                        x2,
                    )
                    - y
                )
                ** 2
            )
        )(b["x"], b["x2"], b["y"])
    ),
)
add(
    "spectrum of each row",
    MEAN,
    "fft along the row",
    lambda p, b: jnp.mean(jnp.abs(jnp.fft.rfft(b["seq"] @ p["w"], axis=1)) ** 2),
)
add(
    "solve in each row",
    MEAN,
    "linear algebra of a row",
    lambda p, b: jnp.mean(jnp.linalg.solve(matrix(p, b), b["seq"]) ** 2),
)
add(
    "log-determinant of each row",
    MEAN,
    "linear algebra of a row",
    lambda p, b: jnp.mean(jnp.linalg.slogdet(matrix(p, b))[1]),
)
add(
    "two layers in remat",
    MEAN,
    "mean",
    lambda p, b: tail(
        p, b, jax.checkpoint(lambda x: jnp.tanh(jnp.tanh(x @ p["w"]) @ p["v"]))(b["x"])
    ),
)
add("all in jit", MEAN, "mean", lambda p, b: jax.jit(lambda p, b: rows_ce(p, b).mean())(p, b))
add(
    "convolution over the batch",
    MIXES,
    "rows as an axis of space",
    lambda p, b: jnp.mean(
        jnp.tanh(jnp.convolve(score(p, b["x"]), jnp.array([0.2, 0.5, 0.3]), "same")) ** 2
    ),
)


def offsets(p, b):
    n = len(b["x"])
    h = b["seq"].reshape(n * T, D)
    e = (b["edges"] + T * jnp.arange(n)[:, None, None]).reshape(-1, 2)
    h = jnp.tanh(h @ p["w"] + jax.ops.segment_sum(h[e[:, 0]] @ p["v"], e[:, 1], n * T))
    pooled = jax.ops.segment_sum(h, jnp.repeat(jnp.arange(n), T), n)
    return jnp.mean((pooled @ p["q"]) ** 2)


def implicit(p, b):
    step = lambda z: jnp.tanh(0.3 * z @ p["w"] + b["x"])
    z = lax.while_loop(lambda z: jnp.max(jnp.abs(step(z) - z)) > 1e-3, step, b["x"])
    return tail(p, b, step(sg(z)))
