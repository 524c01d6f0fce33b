"""The rows of a batch: counted, masked, cut into contiguous groups."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adaoptax._tree import ArrayTree


def count_rows(batch: ArrayTree, name: str = "batch") -> int:
    """The leading length that all leaves of `batch` share; `name` is the argument, for errors."""
    leaves = jax.tree_util.tree_leaves_with_path(batch)
    lengths = {
        jax.tree_util.keystr(path) or name: np.shape(leaf)[0] if np.ndim(leaf) else None
        for path, leaf in leaves
    }
    if not lengths:
        raise ValueError(f"Expected {name} to hold at least one array, got {name}={batch!r}.")
    if None in lengths.values() or len(set(lengths.values())) > 1:
        listed = ", ".join(f"{leaf}: {length}" for leaf, length in lengths.items())
        raise ValueError(
            f"Expected every leaf of {name} to have the same leading axis, got lengths {listed}:"
            " what all examples share belongs in an extra argument, not in here."
        )
    (rows,) = set(lengths.values())
    assert rows is not None
    return rows


def check_two(num_rows: int) -> None:
    """Raises ValueError for a batch whose examples, one by one, cannot tell their noise."""
    if num_rows < 2:
        raise ValueError(
            f"Expected a batch of at least 2 examples, got {num_rows}: the noise is what differs"
            " between examples, so one example cannot tell it."
        )


def check_mask(mask: Any, num_rows: int) -> jax.Array:
    """`mask` as an array [rows]; ValueError for another shape."""
    if np.shape(mask) != (num_rows,):
        raise ValueError(
            f"Expected mask of shape ({num_rows},), one entry for each example of the batch, got"
            f" shape {np.shape(mask)}."
        )
    return jnp.asarray(mask)


def normalised(weight: jax.Array) -> jax.Array:
    """Weights over their maximum, so that tiny ones do not underflow; 0 and 1 stay as they are."""
    largest = jnp.max(weight)
    return weight / jnp.where(largest > 0, largest, 1)


def replace_padding(batch: ArrayTree, mask: jax.Array) -> ArrayTree:
    """Puts the first real row in place of every padding row.

    Padding has weight zero, but 0 · NaN is NaN: garbage must not reach the loss at all.
    """
    real = mask > 0
    first = jnp.argmax(real)
    is_first = jnp.arange(mask.shape[0]) == first

    def leaf(x: jax.Array) -> jax.Array:
        x = jnp.asarray(x)
        if jnp.issubdtype(x.dtype, jax.dtypes.extended):  # random keys, which do not add up
            return jnp.take(x, jnp.where(real, jnp.arange(mask.shape[0]), first), axis=0)
        column = lambda chosen: chosen.reshape(-1, *(1,) * (x.ndim - 1))
        # Picked by a sum and not by an index: rows on many devices stay where they are.
        add_up = jnp.any if x.dtype == bool else functools.partial(jnp.sum, dtype=x.dtype)
        row = add_up(jnp.where(column(is_first), x, jnp.zeros_like(x)), axis=0)
        return jnp.where(column(real), x, row)

    return jax.tree.map(leaf, batch)


def cut(tree: ArrayTree, shape: tuple[int, ...]) -> ArrayTree:
    """Reshapes the leading axis of every leaf to the axes `shape` (contiguous rows)."""
    return jax.tree.map(lambda x: jnp.reshape(x, shape + jnp.shape(x)[1:]), tree)


def pad_groups(tree: ArrayTree, num_groups: int) -> ArrayTree:
    """Repeats the first group until there are `num_groups` of them."""

    def pad(x: jax.Array) -> jax.Array:
        index = np.arange(num_groups)
        return x if x.shape[0] == num_groups else x[np.where(index < x.shape[0], index, 0)]

    return jax.tree.map(pad, tree)
