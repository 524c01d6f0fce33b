"""What a random loss is assembled from: the shapes, the parameters and the names used so far."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

Rows = dict[str, Any]


class Draft(NamedTuple):
    """A part of a loss: ``fn(params, rows)`` → array [B, width], [B, T, width], [B] or [B, T]."""

    fn: Callable[[Any, Rows], Any]
    rank: int
    width: int


class Build:
    """Draws sizes, collects parameters, labels, and what has to be prepared from data alone."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.rows = int(rng.choice([4, 6, 8]))
        self.time = int(rng.choice([3, 4, 5]))
        self.features = int(rng.choice([3, 4, 5]))
        self.classes, self.words = 3, 7
        self.params: dict[str, Any] = {}
        self.names: list[str] = []
        self.families: set[str] = set()
        self.mixes = False
        self.held: set[str] = set()
        self.prepared: dict[str, Callable[[Rows], Any]] = {}
        self.given: dict[str, Callable[[Rows], Any]] = {}

    def note(self, name: str, family: str, mixes: bool = False) -> None:
        """Writes down a block."""
        self.names.append(name)
        self.families.add(family)
        self.mixes |= mixes

    def new(self, *shape: int, scale: float | None = None, around: float = 0.0) -> Callable:
        """A new parameter; returns ``get(params)``."""
        group, name = f"block{len(self.names)}", "wbuvse"[len(self.params.get(self._group, {})) % 6]
        values = self.rng.normal(size=shape) * (scale or 1 / np.sqrt(max(shape[0], 1)))
        self.params.setdefault(group, {})[name] = np.float32(values + around)
        return lambda params: params[group][name]

    @property
    def _group(self) -> str:
        return f"block{len(self.names)}"

    def width(self) -> int:
        """A width of a layer; equal to other sizes on purpose now and then."""
        return int(self.rng.choice([2, 3, 4, 5, self.rows]))

    def draw_batch(self, rng: np.random.Generator) -> Rows:
        """A batch; every row has a real token."""
        rows, time = self.rows, self.time
        lengths = rng.integers(1, time + 1, rows)
        return {
            "x": rng.normal(size=(rows, self.features)).astype(np.float32),
            "seq": rng.normal(size=(rows, time, self.features)).astype(np.float32),
            "y": rng.normal(size=rows).astype(np.float32),
            "r": rng.normal(size=rows).astype(np.float32),
            "c": rng.integers(0, self.classes, rows).astype(np.int32),
            "tok": rng.integers(0, self.words, (rows, time)).astype(np.int32),
            "m": np.arange(time) < lengths[:, None],
        }

    @property
    def prepare(self) -> Callable[[Rows], tuple[Rows, dict[str, Any]]]:
        """``prepare(batch)`` → ``(rows, given)``."""
        prepared, given = dict(self.prepared), dict(self.given)

        def prepare(batch: Rows) -> tuple[Rows, dict[str, Any]]:
            rows = {**batch, **{name: fn(batch) for name, fn in prepared.items()}}
            return rows, {name: fn(batch) for name, fn in given.items()}

        return prepare


def pick(g: Build, table: dict[str, Any], fits: Callable[[Any], bool] = lambda _: True) -> str:
    """The name of a random entry among those that fit."""
    names = [name for name, entry in table.items() if fits(entry)]
    return str(g.rng.choice(names))


def standardise(h: Any, axis: int | Sequence[int]) -> Any:
    """Zero mean and unit variance along `axis`."""
    mean = jnp.mean(h, axis=axis, keepdims=True)
    return (h - mean) / jnp.sqrt(jnp.var(h, axis=axis, keepdims=True) + 0.1)
