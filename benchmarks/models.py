"""Losses to measure: ``(loss_fn, params, batch)`` of an MLP, a small CNN and a transformer."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

Problem = tuple[Callable[..., jax.Array], Any, Any]


def _normal(key: jax.Array, *shape: int) -> jax.Array:
    fan_in = 1
    for size in shape[:-1]:
        fan_in *= size
    return jax.random.normal(key, shape) / fan_in**0.5


def _cross_entropy(scores: jax.Array, labels: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(scores, labels).mean()


def mlp(batch_size: int = 256) -> Problem:
    """784-512-512-10 with ReLU."""
    keys = jax.random.split(jax.random.key(0), 5)
    sizes = (784, 512, 512, 10)
    params = [
        {"w": _normal(key, i, o), "b": jnp.zeros(o)}
        for key, i, o in zip(keys[:3], sizes[:-1], sizes[1:], strict=True)
    ]

    def loss_fn(params: Any, batch: Any) -> jax.Array:
        x = batch["x"]
        for layer in params[:-1]:
            x = jax.nn.relu(x @ layer["w"] + layer["b"])
        return _cross_entropy(x @ params[-1]["w"] + params[-1]["b"], batch["y"])

    batch = {
        "x": jax.random.normal(keys[3], (batch_size, 784)),
        "y": jax.random.randint(keys[4], (batch_size,), 0, 10),
    }
    return loss_fn, params, batch


def cnn(batch_size: int = 128) -> Problem:
    """Three 3×3 convolutions (32, 64, 64) on 32×32×3, then a dense layer."""
    keys = jax.random.split(jax.random.key(1), 6)
    params = {
        "convs": [
            _normal(keys[0], 3, 3, 3, 32),
            _normal(keys[1], 3, 3, 32, 64),
            _normal(keys[2], 3, 3, 64, 64),
        ],
        "dense": _normal(keys[3], 4 * 4 * 64, 10),
    }

    def loss_fn(params: Any, batch: Any) -> jax.Array:
        x = batch["x"]
        for kernel in params["convs"]:
            x = jax.lax.conv_general_dilated(
                x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            x = jax.nn.relu(x)
        return _cross_entropy(x.reshape(x.shape[0], -1) @ params["dense"], batch["y"])

    batch = {
        "x": jax.random.normal(keys[4], (batch_size, 32, 32, 3)),
        "y": jax.random.randint(keys[5], (batch_size,), 0, 10),
    }
    return loss_fn, params, batch


def transformer(batch_size: int = 32, length: int = 128, width: int = 256) -> Problem:
    """A pre-LN byte-level language model: 4 layers, 4 heads, vocabulary 256."""
    keys = iter(jax.random.split(jax.random.key(2), 32))
    layer = lambda: {
        "qkv": _normal(next(keys), width, 3 * width),
        "out": _normal(next(keys), width, width),
        "up": _normal(next(keys), width, 4 * width),
        "down": _normal(next(keys), 4 * width, width),
        "scale": jnp.ones((2, width)),
    }
    params = {
        "embed": 0.02 * jax.random.normal(next(keys), (256, width)),
        "layers": [layer() for _ in range(4)],
        "head": _normal(next(keys), width, 256),
    }

    def norm(x: jax.Array, scale: jax.Array) -> jax.Array:
        return jax.nn.standardize(x, axis=-1) * scale

    def attention(x: jax.Array, p: Any) -> jax.Array:
        rows, steps, _ = x.shape
        heads = (rows, steps, 4, width // 4)
        q, k, v = (part.reshape(heads) for part in jnp.split(x @ p["qkv"], 3, axis=-1))
        mixed = jax.nn.dot_product_attention(q, k, v, is_causal=True)
        return mixed.reshape(x.shape) @ p["out"]

    def loss_fn(params: Any, batch: Any) -> jax.Array:
        x = params["embed"][batch[:, :-1]]
        for p in params["layers"]:
            x = x + attention(norm(x, p["scale"][0]), p)
            x = x + jax.nn.gelu(norm(x, p["scale"][1]) @ p["up"]) @ p["down"]
        return _cross_entropy(jax.nn.standardize(x, axis=-1) @ params["head"], batch[:, 1:])

    return loss_fn, params, jax.random.randint(next(keys), (batch_size, length + 1), 0, 256)


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "MLP 256": mlp,
    "MLP 1024": lambda: mlp(1024),
    "CNN": cnn,
    "transformer": transformer,
}
