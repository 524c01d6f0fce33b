"""Transformers: a language model and a vision transformer."""

from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.models.layers import (
    Problem,
    cross_entropy,
    image_batch,
    normal,
    transformer_layer,
    transformer_weights,
)


def transformer(
    batch_size: int = 32,
    length: int = 128,
    width: int = 256,
    vocabulary: int = 256,
    tied: bool = False,
) -> Problem:
    """A pre-LN language model: 4 layers, 4 heads; the head is the embedding's transpose if tied."""
    keys = iter(jax.random.split(jax.random.key(2), 8))
    params = {
        "embed": 0.02 * jax.random.normal(next(keys), (vocabulary, width)),
        "layers": [transformer_weights(next(keys), width) for _ in range(4)],
    }
    if not tied:
        params["head"] = normal(next(keys), width, vocabulary)

    def loss_fn(params: Any, batch: Any) -> jax.Array:
        x = params["embed"][batch[:, :-1]]
        for p in params["layers"]:
            x = transformer_layer(x, p, heads=4, causal=True)
        head = params["embed"].T if tied else params["head"]
        return cross_entropy(jax.nn.standardize(x, axis=-1) @ head, batch[:, 1:])

    return loss_fn, params, jax.random.randint(next(keys), (batch_size, length + 1), 0, vocabulary)


def vit(batch_size: int = 32, layers: int = 12, width: int = 192) -> Problem:
    """ViT-tiny on 64 patches of 4×4: 12 layers (scanned), 3 heads, mean of the tokens."""
    keys = jax.random.split(jax.random.key(4), 5)
    params = {
        "patches": {"w": normal(keys[0], 4 * 4 * 3, width), "b": jnp.zeros(width)},
        "positions": 0.02 * jax.random.normal(keys[1], (64, width)),
        "layers": jax.vmap(lambda key: transformer_weights(key, width))(
            jax.random.split(keys[2], layers)
        ),
        "out": {"w": normal(keys[3], width, 10), "b": jnp.zeros(10)},
    }

    def loss_fn(params: Any, batch: Any) -> jax.Array:
        rows = batch["x"].shape[0]
        patches = batch["x"].reshape(rows, 8, 4, 8, 4, 3).swapaxes(2, 3).reshape(rows, 64, 48)
        x = patches @ params["patches"]["w"] + params["patches"]["b"] + params["positions"]
        layer = lambda x, p: (transformer_layer(x, p, heads=3, causal=False), None)
        x, _ = jax.lax.scan(layer, x, params["layers"])
        scores = jax.nn.standardize(x, axis=-1).mean(1) @ params["out"]["w"] + params["out"]["b"]
        return cross_entropy(scores, batch["y"])

    return loss_fn, params, image_batch(keys[4], batch_size)
