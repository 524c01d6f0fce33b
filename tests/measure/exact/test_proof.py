"""Means of per-example losses are proved to be means."""

import jax
import jax.numpy as jnp
import optax
import pytest
from proving import check, check_separable, of_logits, of_tokens

pytestmark = pytest.mark.topic("mixing losses")

cross_entropy = optax.softmax_cross_entropy_with_integer_labels


def two_views(z, batch):
    z = jnp.concatenate([z, 2 * z])
    rows = z.shape[0] // 2
    return jnp.mean((jnp.tanh(z[:rows]) - z[rows:]) ** 2)


def recurrent(z, batch):
    step = lambda h, x: (jnp.tanh(h @ jnp.ones((5, 5)) + x), h)
    h, outputs = jax.lax.scan(step, jnp.zeros((z.shape[0], 5)), z.swapaxes(0, 1))
    return jnp.mean(h**2) + jnp.mean(outputs)


def own_count(z, batch):
    each = jnp.sum(jnp.sum(z**2, -1) * batch["mask"], 1)
    return jnp.mean(each / jnp.maximum(jnp.sum(batch["mask"], 1), 1))


def gradient_penalty(params, batch):
    gradient = jax.grad(lambda x: jnp.sum(jnp.tanh(x @ params)))(batch["x"])
    return jnp.mean((jnp.linalg.norm(gradient, axis=-1) - 1) ** 2)


def step_by_step(params, batch):
    """Every task of a batch adapts parameters of its own."""

    def adapted(x):
        inner = jax.grad(lambda w: jnp.mean((x @ w - 1) ** 2))(params)
        return jnp.mean((x @ (params - 0.1 * inner)) ** 2)

    return jnp.mean(jax.vmap(adapted)(batch["t"]))


def flat_tokens(params, batch):
    rows, tokens, width = batch["t"].shape
    hidden = jax.nn.relu(batch["t"].reshape(-1, width) @ params)
    logits = hidden.reshape(rows, tokens, 5)
    return jnp.mean(jnp.sum(logits, axis=-1) * batch["mask"])


def convolution(params, batch):
    x = batch["t"][..., None]
    y = jax.lax.conv_general_dilated(
        x, params[:3, :3, None, None], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    pooled = jax.lax.reduce_window(y, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    return jnp.mean(pooled**2)


FOLLOWED = {
    "mean": of_logits(lambda z, b: jnp.mean(z**2)),
    "sum over the length": of_logits(lambda z, b: jnp.sum(z**2) / z.shape[0]),
    "weights 1/B": of_logits(lambda z, b: jnp.sum(jnp.full(len(z), 1 / len(z)) * z[:, 0])),
    "dot": of_logits(lambda z, b: jnp.vdot(z, z) / z.shape[0]),
    "both axes": of_tokens(lambda z, b: jnp.mean(z**2, axis=(0, 1)).sum()),
    "cross entropy": of_logits(lambda z, b: cross_entropy(z, b["y"]).mean()),
    "one hot": of_logits(
        lambda z, b: -jnp.mean(jnp.sum(jax.nn.one_hot(b["y"], 5) * jax.nn.log_softmax(z), 1))
    ),
    "take along axis": of_logits(
        lambda z, b: -jnp.take_along_axis(jax.nn.log_softmax(z), b["y"][:, None], 1).mean()
    ),
    "pick by index": of_logits(
        lambda z, b: -jnp.mean(jax.nn.log_softmax(z)[jnp.arange(len(z)), b["y"]])
    ),
    "sigmoid": of_logits(lambda z, b: optax.sigmoid_binary_cross_entropy(z, z > 0).mean()),
    "huber": of_logits(lambda z, b: optax.huber_loss(z).mean()),
    "cosine": of_logits(lambda z, b: optax.cosine_distance(z, b["x"][:, :5]).mean()),
    "ctc": of_tokens(
        lambda z, b: optax.ctc_loss(
            z, 1 - b["mask"], b["y"][:, None] + jnp.arange(3), b["mask"][:, :3]
        ).mean()
    ),
    "vmap": lambda p, b: jax.vmap(lambda x, y: cross_entropy(x @ p, y))(b["x"], b["y"]).mean(),
    "rows in scan over time": of_tokens(recurrent),
    "tokens flattened": flat_tokens,
    "convolution": convolution,
    "attention": of_tokens(
        lambda z, b: jnp.mean((jax.nn.softmax(jnp.einsum("btd,bsd->bts", z, z)) @ z) ** 2)
    ),
    "own count of tokens": of_tokens(own_count),
    "tokens over a constant": of_tokens(
        lambda z, b: jnp.sum(jnp.sum(z, -1) * b["mask"]) / b["mask"].size
    ),
    "regulariser": lambda p, b: jnp.mean((b["x"] @ p) ** 2) + jnp.sqrt(jnp.sum(p**2)),
    "guard against NaN": of_logits(lambda z, b: jnp.nan_to_num(jnp.mean(z**2))),
    "guard by select": of_logits(
        lambda z, b: jnp.where(jnp.isfinite(jnp.mean(z)), jnp.mean(z), 0.0)
    ),
    "two views": of_logits(two_views),
    "top-k of the classes": of_logits(lambda z, b: jnp.mean(jax.lax.top_k(z, 2)[0])),
    "sorted classes": of_logits(lambda z, b: jnp.mean(jnp.sort(z, axis=1)[:, 2:] ** 2)),
    "segments within": of_logits(
        lambda z, b: jax.vmap(lambda v: jax.ops.segment_sum(v, jnp.arange(5) // 2, 3))(z).mean()
    ),
    "jit and remat": of_logits(jax.jit(jax.checkpoint(lambda z, b: jnp.mean(jnp.tanh(z))))),
    "fixed loop": of_logits(
        lambda z, b: jax.lax.fori_loop(0, 3, lambda i, c: jnp.tanh(c + i), z).mean()
    ),
    "while of each row": of_logits(
        lambda z, b: jax.vmap(
            lambda v: jax.lax.while_loop(lambda v: v.sum() < 9, lambda v: 2 * v + 1, v)
        )(z).mean()
    ),
    "cond on a parameter": lambda p, b: jax.lax.cond(
        p[0, 0] > 0, lambda z: jnp.mean(z**2), lambda z: jnp.mean(z), b["x"] @ p
    ),
    "gradient penalty": gradient_penalty,
    "adaptation of each task": step_by_step,
    "ensemble": of_logits(
        lambda z, b: jnp.mean(jax.nn.logsumexp(z[None] * jnp.arange(1.0, 4)[:, None, None], axis=0))
    ),
    "loss over bfloat16": of_logits(lambda z, b: jnp.mean(z.astype(jnp.bfloat16) ** 2)),
    "map over rows": lambda p, b: jax.lax.map(lambda x: jnp.sum((x @ p) ** 2), b["x"]).mean(),
    "weights of the rows": of_logits(lambda z, b: jnp.average(z[:, 0], weights=jnp.ones(len(z)))),
    "trace of pairs": of_logits(lambda z, b: jnp.trace(z @ z.T) / len(z)),
    "views stacked": of_logits(lambda z, b: jnp.mean(jnp.tanh(jnp.stack([z, 2 * z], 1)) ** 2)),
    "views tiled": of_logits(lambda z, b: jnp.mean(jnp.tile(z, (2, 1)) ** 2)),
    "learned weight": lambda p, b: jnp.exp(p[0, 0]) * jnp.mean(b["x"] @ p) + p[0, 1],
}


@pytest.mark.parametrize("name", FOLLOWED)
def test_means_of_per_example_losses_are_proved(name):
    check_separable(FOLLOWED[name])
    check(FOLLOWED[name])
