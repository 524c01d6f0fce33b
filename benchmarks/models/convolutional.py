"""Convolutional networks on 32×32×3."""

from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.models.layers import Problem, cross_entropy, image_batch, normal


def convolve(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """Convolution of [rows, height, width, channels] that keeps the size, but for the stride."""
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), "SAME", dimension_numbers=layout
    )


def mean_pool(x: jax.Array) -> jax.Array:
    """Means of 3×3 windows at stride 2."""
    return jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 3, 3, 1), (1, 2, 2, 1), "VALID") / 9


def small_cnn(batch_size: int = 128) -> Problem:
    """Three strided 3×3 convolutions (32, 64, 64), then a dense layer; no biases."""
    keys = jax.random.split(jax.random.key(1), 5)
    params = {
        "convs": [
            normal(keys[0], 3, 3, 3, 32),
            normal(keys[1], 3, 3, 32, 64),
            normal(keys[2], 3, 3, 64, 64),
        ],
        "dense": normal(keys[3], 4 * 4 * 64, 10),
    }

    def loss_fn(params: Any, batch: Any) -> jax.Array:
        x = batch["x"]
        for kernel in params["convs"]:
            x = jax.nn.relu(convolve(x, kernel, stride=2))
        return cross_entropy(x.reshape(x.shape[0], -1) @ params["dense"], batch["y"])

    return loss_fn, params, image_batch(keys[4], batch_size)


def cnn(batch_size: int = 128) -> Problem:
    """Three 3×3 convolutions (32, 64, 128), a pool, two dense layers: 242 122 parameters."""
    keys = jax.random.split(jax.random.key(1), 6)
    params = {
        "convs": [
            {"w": normal(keys[0], 3, 3, 3, 32), "b": jnp.zeros(32)},
            {"w": normal(keys[1], 3, 3, 32, 64), "b": jnp.zeros(64)},
            {"w": normal(keys[2], 3, 3, 64, 128), "b": jnp.zeros(128)},
        ],
        "hidden": {"w": normal(keys[3], 3 * 3 * 128, 128), "b": jnp.zeros(128)},
        "out": {"w": normal(keys[4], 128, 10), "b": jnp.zeros(10)},
    }

    def loss_fn(params: Any, batch: Any) -> jax.Array:
        x = batch["x"]
        for layer, stride in zip(params["convs"], (1, 2, 2), strict=True):
            x = jax.nn.relu(convolve(x, layer["w"], stride) + layer["b"])
        x = mean_pool(x).reshape(x.shape[0], -1)
        x = jax.nn.relu(x @ params["hidden"]["w"] + params["hidden"]["b"])
        return cross_entropy(x @ params["out"]["w"] + params["out"]["b"], batch["y"])

    return loss_fn, params, image_batch(keys[5], batch_size)


def group_norm(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """Normalises each of 8 groups of channels over all positions of its example."""
    grouped = x.reshape(*x.shape[:3], 8, -1)
    return jax.nn.standardize(grouped, axis=(1, 2, 4)).reshape(x.shape) * scale + bias


def resnet(batch_size: int = 64, width: int = 16) -> Problem:
    """ResNet-18 for 32×32 with GroupNorm for BatchNorm, a quarter as wide: 701 456 parameters."""
    keys = iter(jax.random.split(jax.random.key(3), 32))

    def layer(size: int, inputs: int, outputs: int) -> dict[str, jax.Array]:
        kernel = normal(next(keys), size, size, inputs, outputs)
        return {"w": kernel, "scale": jnp.ones(outputs), "bias": jnp.zeros(outputs)}

    def apply(x: jax.Array, p: Any, stride: int = 1) -> jax.Array:
        return group_norm(convolve(x, p["w"], stride), p["scale"], p["bias"])

    widths = [width * 2**stage for stage in range(4) for _ in range(2)]
    blocks = [
        {"first": layer(3, i, o), "second": layer(3, o, o)}
        | ({"short": layer(1, i, o)} if i != o else {})
        for i, o in zip([width, *widths[:-1]], widths, strict=True)
    ]
    params = {
        "stem": layer(3, 3, width),
        "blocks": blocks,
        "out": normal(next(keys), 8 * width, 10),
    }

    def loss_fn(params: Any, batch: Any) -> jax.Array:
        x = jax.nn.relu(apply(batch["x"], params["stem"]))
        for p in params["blocks"]:
            stride = 2 if "short" in p else 1
            inner = apply(jax.nn.relu(apply(x, p["first"], stride)), p["second"])
            x = jax.nn.relu(inner + (apply(x, p["short"], stride) if "short" in p else x))
        return cross_entropy(x.mean((1, 2)) @ params["out"], batch["y"])

    return loss_fn, params, image_batch(next(keys), batch_size)
