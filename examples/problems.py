"""What `train.py` can train: data that needs no download, a model, a loss, and what to look at."""

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from digits_data import digits
from flax import nnx
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split
from stdlib_data import read_standard_library, windows
from stdlib_model import Transformer


class Problem(NamedTuple):
    """Something to train.

    Attributes:
        description: One line for people.
        data: Arrays with one entry an example.
        init: ``init(key)`` → parameters.
        loss_fn: ``loss_fn(params, batch)`` → mean loss.
        metrics: ``metrics(params)`` → scalars by name, on data that is not trained on.
    """

    description: str
    data: Any
    init: Callable[[jax.Array], Any]
    loss_fn: Callable[[Any, Any], jax.Array]
    metrics: Callable[[Any], dict[str, jax.Array]]


class Entry(NamedTuple):
    """One of the problems: how to make it, and the options that suit it."""

    make: Callable[[argparse.Namespace], Problem]
    defaults: dict[str, Any]


def _classifier(
    name: str, arrays: list[np.ndarray], make_model: Callable[[nnx.Rngs], Any]
) -> Problem:
    """A Flax nnx model whose scores are compared with labels."""
    x, x_test, y, y_test = arrays
    graph = nnx.split(nnx.eval_shape(lambda: make_model(nnx.Rngs(0))))[0]
    scores = lambda params, inputs: nnx.merge(graph, params)(inputs)
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels

    def metrics(params: Any) -> dict[str, jax.Array]:
        right = scores(params, x_test).argmax(-1) == y_test
        test_loss = cross_entropy(scores(params, x_test), y_test).mean()
        return {"test_accuracy": right.mean(), "test_loss": test_loss}

    return Problem(
        description=f"{name}: {len(x):,} examples to train on, {len(x_test)} to test",
        data={"x": x, "y": y},
        init=lambda key: nnx.state(make_model(nnx.Rngs(key))),
        loss_fn=lambda params, b: cross_entropy(scores(params, b["x"]), b["y"]).mean(),
        metrics=metrics,
    )


class _CNN(nnx.Module):
    """Two convolutions on 8×8 images."""

    def __init__(self, width: int, rngs: nnx.Rngs) -> None:
        self.conv1 = nnx.Conv(1, width, (3, 3), rngs=rngs)
        self.conv2 = nnx.Conv(width, 2 * width, (3, 3), strides=2, rngs=rngs)
        self.scores = nnx.Linear(16 * 2 * width, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.conv1(x.reshape(-1, 8, 8, 1)))
        return self.scores(nnx.relu(self.conv2(x)).reshape(x.shape[0], -1))


def _digits_mlp(options: argparse.Namespace) -> Problem:
    model = lambda rngs: nnx.Sequential(
        nnx.Linear(64, options.width, rngs=rngs), nnx.relu, nnx.Linear(options.width, 10, rngs=rngs)
    )
    return _classifier("Digits, an MLP", digits(options.seed), model)


def _digits_cnn(options: argparse.Namespace) -> Problem:
    model = lambda rngs: _CNN(options.width, rngs)
    return _classifier("Digits, a CNN", digits(options.seed), model)


def _cancer(options: argparse.Namespace) -> Problem:
    """Wisconsin breast cancer: 30 numbers of a cell each, benign or malignant."""
    x, y = load_breast_cancer(return_X_y=True)
    x = ((x - x.mean(0)) / x.std(0)).astype(np.float32)
    arrays = train_test_split(
        x, y.astype(np.int32), test_size=114, stratify=y, random_state=options.seed
    )
    model = lambda rngs: nnx.Linear(30, 2, rngs=rngs)
    return _classifier("Breast cancer, logistic regression", arrays, model)


def _stdlib_lm(options: argparse.Namespace) -> Problem:
    """A small transformer that predicts the next byte of the standard library's source."""
    length, heads = 64, 4
    corpus = read_standard_library(2_000_000)
    validation = windows(corpus.validation, length)[:256]
    model = lambda rngs: Transformer(2, options.width, heads, length, jnp.float32, rngs)
    graph = nnx.split(nnx.eval_shape(lambda: model(nnx.Rngs(0))))[0]

    def loss_fn(params: Any, text: Any) -> jax.Array:
        text = jnp.asarray(text, jnp.int32)
        scores = nnx.merge(graph, params)(text[:, :-1])
        nats = optax.softmax_cross_entropy_with_integer_labels(scores, text[:, 1:])
        return nats.mean() / jnp.log(2.0)

    return Problem(
        description=corpus.describe(),
        data=windows(corpus.train, length),
        init=lambda key: nnx.state(model(nnx.Rngs(key))),
        loss_fn=loss_fn,
        metrics=lambda params: {"bits_per_byte": loss_fn(params, validation)},
    )


PROBLEMS = {
    "digits-mlp": Entry(_digits_mlp, {"width": 512, "examples": 43_200}),
    "digits-cnn": Entry(_digits_cnn, {"width": 16, "examples": 43_200, "learning_rate": 0.05}),
    "cancer": Entry(
        _cancer,
        {"examples": 27_300, "batch_size": 16, "micro_batch_size": 8, "max_batch_size": 256,
         "weight_decay": 0.01, "width": 1},
    ),
    "stdlib-lm": Entry(
        _stdlib_lm,
        {"width": 64, "optimizer": "adam", "learning_rate": 5e-3, "eta": 0.4, "examples": 5_000,
         "max_batch_size": 256, "weight_decay": 0.1},
    ),
}  # fmt: skip
