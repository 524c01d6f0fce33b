"""What the models share."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

Problem = tuple[Callable[..., jax.Array], Any, Any]


def normal(key: jax.Array, *shape: int) -> jax.Array:
    """Weights of variance 1/fan-in, whose inputs are all axes but the last."""
    fan_in = 1
    for size in shape[:-1]:
        fan_in *= size
    return jax.random.normal(key, shape) / fan_in**0.5


def cross_entropy(scores: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean over all leading axes."""
    return optax.softmax_cross_entropy_with_integer_labels(scores, labels).mean()


def image_batch(key: jax.Array, batch_size: int) -> dict[str, jax.Array]:
    """Random images of 32×32×3 with labels of ten classes."""
    images, labels = jax.random.split(key)
    return {
        "x": jax.random.normal(images, (batch_size, 32, 32, 3)),
        "y": jax.random.randint(labels, (batch_size,), 0, 10),
    }


def attention(x: jax.Array, p: Any, heads: int, causal: bool) -> jax.Array:
    """Self-attention of [rows, steps, width] with the weights "qkv" and "out"."""
    rows, steps, width = x.shape
    split = (rows, steps, heads, width // heads)
    q, k, v = (part.reshape(split) for part in jnp.split(x @ p["qkv"], 3, axis=-1))
    mixed = jax.nn.dot_product_attention(q, k, v, is_causal=causal)
    return mixed.reshape(x.shape) @ p["out"]


def transformer_layer(x: jax.Array, p: Any, heads: int, causal: bool) -> jax.Array:
    """Attention and a feed-forward part, each after a scaled normalisation."""
    x = x + attention(jax.nn.standardize(x, axis=-1) * p["scale"][0], p, heads, causal)
    inner = jax.nn.standardize(x, axis=-1) * p["scale"][1]
    return x + jax.nn.gelu(inner @ p["up"]) @ p["down"]


def transformer_weights(key: jax.Array, width: int) -> dict[str, jax.Array]:
    """Weights of one `transformer_layer`."""
    keys = jax.random.split(key, 4)
    return {
        "qkv": normal(keys[0], width, 3 * width),
        "out": normal(keys[1], width, width),
        "up": normal(keys[2], width, 4 * width),
        "down": normal(keys[3], 4 * width, width),
        "scale": jnp.ones((2, width)),
    }
