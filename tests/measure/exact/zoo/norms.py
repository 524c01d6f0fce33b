"""Normalisation layers: scales and biases around statistics of one example."""

import jax
import jax.numpy as jnp

from zoo.entry import ROWS, Draw, Entry, entry, fitted


def normalise(x, axis, eps=1e-5):
    mean = jnp.mean(x, axis=axis, keepdims=True)
    var = jnp.var(x, axis=axis, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(var + eps)


@fitted(
    lambda draw: {"w": draw.weight(4, 6), "scale": draw(6), "bias": draw(6)},
    lambda draw: draw(ROWS, 3, 4),
)
def layer_norm(p, x):
    return normalise(x @ p["w"], -1) * p["scale"] + p["bias"]


@fitted(lambda draw: {"w": draw.weight(4, 6), "scale": draw(6)}, lambda draw: draw(ROWS, 3, 4))
def rms_norm(p, x):
    """With the (1 + scale) of Gemma."""
    h = x @ p["w"]
    h = h * jax.lax.rsqrt(jnp.mean(h**2, axis=-1, keepdims=True) + 1e-6)
    return h * (1 + p["scale"])


@fitted(
    lambda draw: {
        "conv": draw.weight(3, 3, 2, 4),
        "scale": draw(4),
        "bias": draw(4),
        "out": draw.weight(4, 3),
    },
    lambda draw: draw(ROWS, 4, 4, 2),
)
def group_norm(p, x):
    h = jax.lax.conv_general_dilated(
        x, p["conv"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    grouped = h.reshape(*h.shape[:3], 2, 2)
    h = normalise(grouped, (1, 2, 4)).reshape(h.shape) * p["scale"] + p["bias"]
    return jnp.mean(jnp.tanh(h), axis=(1, 2)) @ p["out"]


@fitted(
    lambda draw: {"conv": draw(3, 3, 2, 4), "gain": draw.weight(4)},
    lambda draw: draw(ROWS, 5, 5, 2),
)
def weight_standardisation(p, x):
    """Every output channel of the kernel is normalised over its inputs."""
    kernel = normalise(p["conv"], (0, 1, 2)) * p["gain"] / 4
    h = jax.lax.conv_general_dilated(
        x, kernel, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return jnp.tanh(h)


@entry
def batch_norm_with_frozen_statistics(draw: Draw) -> Entry:
    """Evaluation mode: running statistics arrive as an extra argument."""
    params = {"w": draw.weight(4, 3), "scale": draw(3), "bias": draw(3)}

    def loss_fn(params, batch, running):
        h = batch["x"] @ params["w"]
        h = (h - running["mean"]) / jnp.sqrt(running["var"] + 1e-5)
        return jnp.mean((h * params["scale"] + params["bias"] - batch["y"]) ** 2)

    running = {"mean": draw(3), "var": draw(3) ** 2 + 1}
    return Entry(loss_fn, params, {"x": draw(ROWS, 4), "y": draw(ROWS, 3)}, args=(running,))


@fitted(
    lambda draw: {"w": draw.weight(4, 5), "film": draw.weight(3, 10), "b": draw(10)},
    lambda draw: {"x": draw(ROWS, 3, 4), "condition": draw(ROWS, 3)},
)
def modulation(p, x):
    """FiLM: scale and shift of a normalised layer are computed from another input."""
    scale, shift = jnp.split(x["condition"] @ p["film"] + p["b"], 2, axis=-1)
    return normalise(x["x"] @ p["w"], -1) * scale[:, None] + shift[:, None]
