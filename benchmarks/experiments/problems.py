"""What the experiments train: three small problems on data that needs no download."""

import functools
import pathlib
import runpy
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.experiments.mnist1d import make_mnist1d
from benchmarks.models.layers import cross_entropy, normal, transformer_layer, transformer_weights

_EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"
_BITS = 1 / np.log(2).astype(np.float32)


class Problem(NamedTuple):
    """Something to train.

    Attributes:
        name: What it is called in tables.
        data: NumPy arrays with one entry an example.
        init: ``init(key)`` → parameters.
        loss_fn: ``loss_fn(params, batch)`` → mean loss over the rows of a batch, which is a dict
            like `data`.
        metrics: ``metrics(params)`` → scalars by name, on data that is not trained on; can be
            jitted.
        guess: Loss of the uniform guess: a run that ends above it has diverged.
    """

    name: str
    data: dict[str, np.ndarray]
    init: Callable[[jax.Array], Any]
    loss_fn: Callable[[Any, Any], jax.Array]
    metrics: Callable[[Any], dict[str, jax.Array]]
    guess: float


@functools.cache
def digits_cnn(width: int = 16) -> Problem:
    """Digits of 8×8 pixels, 7,200 with their shifts: two convolutions and a dense layer."""

    def init(key: jax.Array) -> Any:
        keys = jax.random.split(key, 3)
        return {
            "convs": [
                {"w": 2**0.5 * normal(keys[0], 9, width), "b": jnp.zeros(width)},
                {"w": 2**0.5 * normal(keys[1], 9 * width, 2 * width), "b": jnp.zeros(2 * width)},
            ],
            "out": {"w": normal(keys[2], 16 * 2 * width, 10), "b": jnp.zeros(10)},
        }

    def scores(params: Any, x: jax.Array) -> jax.Array:
        first, second = params["convs"]
        x = jax.nn.relu(_patches2d(x.reshape(-1, 8, 8, 1), 1) @ first["w"] + first["b"])
        x = jax.nn.relu(_patches2d(x, 2) @ second["w"] + second["b"])
        return x.reshape(len(x), -1) @ params["out"]["w"] + params["out"]["b"]

    x, x_test, y, y_test = _from_example("digits_data.py", "digits")(seed=0)
    return _classifier("digits CNN", init, scores, (x, y), (x_test, y_test))


@functools.cache
def mnist1d(width: int = 24) -> Problem:
    """MNIST-1D, 4,000 curves of 40 points in ten classes: three strided convolutions."""
    inputs = (1, width, width)

    def init(key: jax.Array) -> Any:
        *keys, last = jax.random.split(key, 4)
        return {
            "convs": [
                {"w": 2**0.5 * normal(k, 5 * channels, width), "b": jnp.zeros(width)}
                for k, channels in zip(keys, inputs, strict=True)
            ],
            "out": {"w": normal(last, 5 * width, 10), "b": jnp.zeros(10)},
        }

    def scores(params: Any, x: jax.Array) -> jax.Array:
        x = x[..., None]
        for p in params["convs"]:
            x = jax.nn.relu(_patches1d(x) @ p["w"] + p["b"])
        return x.reshape(len(x), -1) @ params["out"]["w"] + params["out"]["b"]

    train, test = make_mnist1d(4000, seed=0), make_mnist1d(1000, seed=1)
    return _classifier("MNIST-1D", init, scores, train, test)


@functools.cache
def byte_lm(length: int = 32, width: int = 32, layers: int = 1) -> Problem:
    """The next byte of Python's standard library from a small transformer; losses are bits."""
    corpus = _from_example("stdlib_data.py", "read_standard_library")(2_000_000)
    windows = _from_example("stdlib_data.py", "windows")
    validation = np.array(windows(corpus.validation, length))
    validation = validation[:: max(len(validation) // 512, 1)][:512]  # from all over the text

    def init(key: jax.Array) -> Any:
        keys = jax.random.split(key, layers + 2)
        return {
            "bytes": 0.1 * jax.random.normal(keys[0], (256, width)),
            "places": jnp.zeros((length, width)),
            "layers": [transformer_weights(k, width) for k in keys[1:-1]],
            "scores": normal(keys[-1], width, 256),
        }

    def loss_fn(params: Any, batch: Any) -> jax.Array:
        text = jnp.asarray(batch["text"], jnp.int32)
        x = params["bytes"][text[:, :-1]] + params["places"]
        for p in params["layers"]:
            x = transformer_layer(x, p, heads=2, causal=True)
        scores = jax.nn.standardize(x, axis=-1) @ params["scores"]
        return cross_entropy(scores, text[:, 1:]) * _BITS

    return Problem(
        name="byte LM",
        data={"text": np.array(windows(corpus.train, length))},
        init=init,
        loss_fn=loss_fn,
        metrics=lambda params: {"bits_per_byte": loss_fn(params, {"text": validation})},
        guess=8.0,
    )


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "digits_cnn": digits_cnn,
    "mnist1d": mnist1d,
    "byte_lm": byte_lm,
}


def _classifier(
    name: str,
    init: Callable[[jax.Array], Any],
    scores: Callable[[Any, Any], jax.Array],
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
) -> Problem:
    """Ten classes, told apart by the cross-entropy of their scores."""

    def metrics(params: Any) -> dict[str, jax.Array]:
        found = scores(params, jnp.asarray(test[0]))
        right = found.argmax(-1) == test[1]
        return {
            "test_accuracy": right.mean(),
            "test_loss": cross_entropy(found, jnp.asarray(test[1])),
        }

    return Problem(
        name=name,
        data={"x": train[0], "y": train[1]},
        init=init,
        loss_fn=lambda params, b: cross_entropy(scores(params, b["x"]), b["y"]),
        metrics=metrics,
        guess=float(np.log(10)),
    )


def _patches2d(x: jax.Array, stride: int) -> jax.Array:
    """Windows of 3×3, so that a convolution is a product, which is faster in loops on the CPU."""
    size = x.shape[1]
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifts = [
        x[:, i : i + size : stride, j : j + size : stride] for i in range(3) for j in range(3)
    ]
    return jnp.concatenate(shifts, axis=-1)


def _patches1d(x: jax.Array) -> jax.Array:
    """Windows of 5 at stride 2."""
    size = x.shape[1]
    x = jnp.pad(x, ((0, 0), (2, 2), (0, 0)))
    return jnp.concatenate([x[:, i : i + size : 2] for i in range(5)], axis=-1)


def _from_example(file: str, name: str) -> Any:
    """A function of a file in `examples`, which are scripts and no package."""
    return runpy.run_path(str(_EXAMPLES / file))[name]
