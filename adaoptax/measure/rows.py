"""The rows of a batch: counted, masked, cut into contiguous groups."""

import functools
from collections.abc import Callable, Collection, Sequence
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
            " what all examples share belongs in an extra argument, not in here; an axis of"
            " examples that is not the first is moved there, and back in the loss (jnp.moveaxis)."
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


ROWS_OUTSIDE = """\
Expected data with one entry for each row in the batch, got {leaf} of shape {shape} beside a batch \
of {num_rows} rows: the loss takes it only as long as the batch. A way of measuring takes the \
batch apart, and would pair each part with all of it. If it belongs to the rows, pass \
batch_argnums={argnums}, or put it in the batch."""


def check_rows_in_batch(
    loss: Callable[[ArrayTree, tuple], jax.Array],
    batch: ArrayTree,
    args: tuple,
    argnums: Sequence[int],
    batch_argnums: tuple[int, ...],
) -> None:
    """Raises ValueError for an array in `args` that has one entry for each row of the batch.

    An array that is only as long as the batch by chance passes. So the shapes are asked: a loss of
    a batch twice as long, which takes the array twice as long and not as it is, pairs it with rows.

    Args:
        loss: ``loss(batch, args)``.
        batch: The batch, B rows.
        args: What else the loss takes.
        argnums: The position in the user's loss of each of `args`.
        batch_argnums: The positions of the batch.
    """
    num_rows = count_rows(batch)
    leaves, structure = jax.tree_util.tree_flatten_with_path(args)
    as_long = [i for i, (_, x) in enumerate(leaves) if np.shape(x)[:1] == (num_rows,)]
    if not as_long or num_rows < 2:
        return

    def runs(longer: Collection[int]) -> bool:
        """Whether the loss takes a batch twice as long, with these leaves of `args` as long."""
        rows = jax.tree.map(_twice, jax.eval_shape(lambda tree: tree, batch))
        grown = jax.eval_shape(lambda tree: tree, {i: leaves[i][1] for i in longer})

        def of_shapes(rows: ArrayTree, grown: dict) -> jax.Array:
            rest = [grown.get(i, leaf) for i, (_, leaf) in enumerate(leaves)]
            return loss(rows, jax.tree.unflatten(structure, rest))

        try:
            jax.eval_shape(of_shapes, rows, jax.tree.map(_twice, grown))
        except Exception:  # whatever a loss says of shapes that do not fit
            return False
        return True

    if runs(()):
        return
    found = next((each for each in (as_long, *([i] for i in as_long)) if runs(each)), None)
    if found is None:
        return  # it takes batches of this length only; nothing is known of the array
    path, leaf = leaves[found[0]]
    argnum = argnums[path[0].idx]
    name = f"argument {argnum} of loss_fn{jax.tree_util.keystr(path[1:])}"
    cure = (*batch_argnums, argnum)
    shape = np.shape(leaf)
    raise ValueError(ROWS_OUTSIDE.format(leaf=name, shape=shape, num_rows=num_rows, argnums=cure))


def _twice(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    return x.update(shape=(2 * x.shape[0], *x.shape[1:]))


def checked_mask(mask: Any, num_rows: int) -> jax.Array | None:
    """`mask` as a bool array [rows], or None; ValueError for another shape or dtype."""
    if mask is None:
        return None
    if np.shape(mask) != (num_rows,):
        raise ValueError(
            f"Expected mask of shape ({num_rows},), one entry for each example of the batch, got"
            f" shape {np.shape(mask)}."
        )
    mask = jnp.asarray(mask)
    if mask.dtype != bool:
        raise ValueError(
            f"Expected mask of bools, got {mask.dtype}: it tells real rows from padding and weighs"
            " nothing. Pass mask > 0."
        )
    return mask


def check_whole_groups(mask: Any, num_groups: int) -> None:
    """Raises ValueError where padding is part of a group; a traced mask has no value yet."""
    if isinstance(mask, jax.core.Tracer):
        return
    real = np.asarray(mask).reshape(num_groups, -1).sum(axis=1)
    rows = np.size(mask) // num_groups
    partly = real[(real > 0) & (real < rows)]
    if len(partly):
        raise ValueError(
            f"Expected a mask whose padding fills whole groups of {rows} rows with"
            f' loss_kind="ghost", got a group of {partly[0]} real rows: rows of padding would be'
            " part of its batch. Leave these rows out, or choose groups that divide the real rows."
        )


def replace_padding(batch: ArrayTree, mask: jax.Array) -> ArrayTree:
    """Puts the first real row in place of every padding row.

    Padding has weight zero, but 0 · NaN is NaN: garbage must not reach the loss at all.
    """
    first = jnp.argmax(mask)
    is_first = jnp.arange(mask.shape[0]) == first

    def leaf(x: jax.Array) -> jax.Array:
        x = jnp.asarray(x)
        if jnp.issubdtype(x.dtype, jax.dtypes.extended):  # random keys, which do not add up
            return jnp.take(x, jnp.where(mask, jnp.arange(mask.shape[0]), first), axis=0)
        column = lambda chosen: chosen.reshape(-1, *(1,) * (x.ndim - 1))
        # Picked by a sum and not by an index: rows on many devices stay where they are.
        add_up = jnp.any if x.dtype == bool else functools.partial(jnp.sum, dtype=x.dtype)
        row = add_up(jnp.where(column(is_first), x, jnp.zeros_like(x)), axis=0)
        return jnp.where(column(mask), x, row)

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
