"""Padded blocks hold exactly the entries of the matrix."""

import jax
import numpy as np
import pytest
import scipy.sparse
from blitzws.columns import blocks


@pytest.mark.usefixtures("float64")
def test_blocks_hold_every_entry_once_whatever_the_lengths() -> None:
    rng = np.random.default_rng(0)
    lengths = [0, 1, 63, 64, 65, 256, 257, 700, 0, 5]
    dense = np.zeros((700, len(lengths)))
    for column, length in enumerate(lengths):
        dense[rng.choice(700, length, replace=False), column] = rng.normal(size=length)
    rebuilt = np.zeros_like(dense)
    widths = []
    for block in blocks(scipy.sparse.csc_array(dense)):
        rows, values = jax.device_get((block.rows, block.values))
        widths.append(rows.shape[1])
        for place, at, value in zip(block.places, rows, values, strict=False):
            np.add.at(rebuilt[:, place], at, value)
        assert not values[len(block.places) :].any()
    np.testing.assert_array_equal(rebuilt, dense)
    assert widths == [64, 256, 1024]


def test_a_matrix_without_entries_has_no_blocks() -> None:
    assert blocks(scipy.sparse.csc_array((5, 3))) == []
    assert blocks(scipy.sparse.csc_array((5, 0))) == []
