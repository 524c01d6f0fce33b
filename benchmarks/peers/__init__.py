"""PyTorch's ways to per-example gradients, to be compared with PyTorch's own plain step.

``pip install "adaoptax[peers]"``; what is not installed is left out. PyTorch is imported only when
it is measured.
"""

import importlib.metadata
import importlib.util
from collections.abc import Callable
from typing import Any

from benchmarks.models import Model
from benchmarks.timing import Program

PLAIN = "PyTorch plain step"
PACKAGES = {
    PLAIN: "torch",
    "torch.func vmap(grad): norm": "torch",
    "BackPACK BatchL2Grad: norm": "backpack",
    "BackPACK SumGradSquared: coordinate": "backpack",
    "Opacus hooks: norm": "opacus",
    "Opacus ghost: norm": "opacus",
}
"""Name of a method → the package that it needs."""


def missing(name: str) -> str | None:
    """The package that the method needs and that is not installed, if one."""
    needed = ("torch", PACKAGES[name]) if name in PACKAGES else ()
    return next((package for package in needed if not importlib.util.find_spec(package)), None)


def version() -> str:
    """The release of PyTorch."""
    return f"torch {importlib.metadata.version('torch')}"


def make(name: str) -> Callable[[Model, Any], Program]:
    """What makes the program of a method: ``(model, batch)`` → program."""

    def program(model: Model, batch: Any) -> Program:
        from benchmarks.peers.methods import STEPS, program_of

        return program_of(STEPS[name], model, batch)

    return program
