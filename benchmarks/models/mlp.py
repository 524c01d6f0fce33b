"""A multilayer perceptron."""

from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.models.layers import Problem, cross_entropy, normal


def mlp(batch_size: int = 256, sizes: tuple[int, ...] = (784, 512, 512, 10)) -> Problem:
    """Dense layers of the given sizes, with biases and ReLU."""
    keys = jax.random.split(jax.random.key(0), len(sizes) + 1)
    params = [
        {"w": normal(key, i, o), "b": jnp.zeros(o)}
        for key, i, o in zip(keys[2:], sizes[:-1], sizes[1:], strict=True)
    ]

    def loss_fn(params: Any, batch: Any) -> jax.Array:
        x = batch["x"]
        for layer in params[:-1]:
            x = jax.nn.relu(x @ layer["w"] + layer["b"])
        return cross_entropy(x @ params[-1]["w"] + params[-1]["b"], batch["y"])

    batch = {
        "x": jax.random.normal(keys[0], (batch_size, sizes[0])),
        "y": jax.random.randint(keys[1], (batch_size,), 0, sizes[-1]),
    }
    return loss_fn, params, batch
