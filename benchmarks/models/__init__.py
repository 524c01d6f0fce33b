"""Losses to measure: every model is a function that returns ``(loss_fn, params, batch)``."""

from collections.abc import Callable
from typing import Any, NamedTuple

from benchmarks.models.convolutional import cnn, resnet, small_cnn
from benchmarks.models.layers import Problem
from benchmarks.models.mlp import mlp
from benchmarks.models.transformers import transformer, vit

__all__ = ["HEADLINE", "MODELS", "PROBLEMS", "Model", "Problem"]


class Model(NamedTuple):
    """A model of the tables.

    Attributes:
        title: What it is, for a heading.
        make: Makes the problem, with the options.
        options: Keyword arguments of `make`.
    """

    title: str
    make: Callable[..., Problem]
    options: dict[str, Any]

    def build(self) -> Problem:
        """Makes the problem."""
        return self.make(**self.options)


def _mlp(batch_size: int) -> Model:
    return Model(f"MLP, B={batch_size}", mlp, {"batch_size": batch_size})


def _language_model(vocabulary: int, length: int, rows: int, tied: bool = False) -> Model:
    title = f"LM {vocabulary}, T={length}, B={rows}" + (", tied" if tied else "")
    options = {"batch_size": rows, "length": length, "vocabulary": vocabulary, "tied": tied}
    return Model(title, transformer, options)


MODELS: dict[str, Model] = {
    "mlp": _mlp(256),
    "cnn": Model("CNN, B=128", cnn, {"batch_size": 128}),
    "lm": _language_model(256, 128, 32),
    "lm-v4096": _language_model(4096, 128, 32),
    "resnet": Model("ResNet-18, B=64", resnet, {"batch_size": 64}),
    "vit": Model("ViT-tiny, B=32", vit, {"batch_size": 32}),
    "mlp-b32": _mlp(32),
    "mlp-b1024": _mlp(1024),
    "lm-tied": _language_model(256, 128, 32, tied=True),
    "lm-v4096-tied": _language_model(4096, 128, 32, tied=True),
    "lm-t32": _language_model(256, 32, 64),
    "lm-t32-tied": _language_model(256, 32, 64, tied=True),
    "lm-t512": _language_model(256, 512, 8),
    "lm-t512-tied": _language_model(256, 512, 8, tied=True),
    "tiny": Model("tiny MLP, B=32", mlp, {"batch_size": 32, "sizes": (8, 16, 4)}),
}

HEADLINE = ("mlp", "cnn", "lm", "lm-v4096", "resnet", "vit")

PROBLEMS: dict[str, Callable[[], Problem]] = {
    "MLP 256": mlp,
    "MLP 1024": lambda: mlp(1024),
    "CNN": small_cnn,
    "transformer": transformer,
}
