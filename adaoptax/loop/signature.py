"""What the rows of a source have in common; a change would compile the training step again."""

from typing import Any

import jax
import numpy as np


class Signature:
    """Structure, types and shapes of rows, as the first that came had them."""

    def __init__(self) -> None:
        self._first: tuple[Any, list[str]] | None = None

    def check(self, batch: Any) -> None:
        """Raises ValueError where the rows of `batch` differ from those before."""
        leaves, structure = jax.tree.flatten(batch)
        found = structure, [_describe(leaf) for leaf in leaves]
        if self._first is None:
            self._first = found
        elif found != self._first:
            raise ValueError(
                f"Expected examples as before, {_text(*self._first)}, got {_text(*found)}: the "
                "source changed in the middle, and the training step would be compiled again or "
                "compute something else; give all examples the same fields, types and shapes."
            )


def _describe(leaf: np.ndarray) -> str:
    # Texts of another length are no other type.
    dtype = leaf.dtype.kind if leaf.dtype.kind in "US" else leaf.dtype.name
    return f"{dtype}{list(leaf.shape[1:])}"


def _text(structure: Any, leaves: list[str]) -> str:
    return f"{structure.unflatten(leaves)!r:.300}"
