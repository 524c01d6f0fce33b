"""The columns of one working set, padded to few shapes: JAX compiles once for each."""

from typing import NamedTuple

import jax
import numpy as np
import scipy.sparse

SMALLEST_WIDTH, SMALLEST_COUNT = 64, 256
COARSE = 4096  # so many columns or fewer: counts grow by factors of four instead of two


class Block(NamedTuple):
    """Columns of similar length; what lies beyond a column's end is row 0 with value 0.

    Attributes:
        places: Which columns of the working set these are [count], on the host.
        rows: Row numbers [padded count, width].
        values: Values [padded count, width].
    """

    places: np.ndarray
    rows: jax.Array
    values: jax.Array


def blocks(columns: scipy.sparse.csc_array) -> list[Block]:
    """All columns that are not empty, in blocks whose width grows by factors of four."""
    lengths = np.diff(columns.indptr)
    result, width, done = [], SMALLEST_WIDTH, 0
    while done < lengths.max(initial=0):
        places = np.flatnonzero((lengths > done) & (lengths <= width))
        if len(places):
            result.append(_block(columns, places, width))
        done, width = width, 4 * width
    return result


def _block(columns: scipy.sparse.csc_array, places: np.ndarray, width: int) -> Block:
    count = SMALLEST_COUNT
    while count < len(places):
        count *= 4 if count < COARSE else 2
    rows = np.zeros((count, width), np.int32)
    values = np.zeros((count, width))
    start, length = columns.indptr[places], np.diff(columns.indptr)[places]
    inside = np.arange(width) < length[:, None]
    at = (start[:, None] + np.arange(width))[inside]
    rows[: len(places)][inside] = columns.indices[at]
    values[: len(places)][inside] = columns.data[at]
    return Block(places, jax.device_put(rows), jax.device_put(values))
