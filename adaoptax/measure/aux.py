"""Putting the outputs of parts of a batch together as one call on the whole batch returns them."""

from typing import Any

import jax
import jax.numpy as jnp

from adaoptax._tree import ArrayTree
from adaoptax.measure.loss import Loss


def weighted_mean(parts: jax.Array, weight: jax.Array) -> jax.Array:
    """Mean over axis 0 of the parts of weight above zero, in their dtype; 0 if there are none."""
    wide = parts.astype(jnp.promote_types(parts.dtype, jnp.float32))
    column = weight.reshape(weight.shape[0], *(1,) * (parts.ndim - 1))
    total = jnp.sum(jnp.where(column > 0, column * wide, 0), axis=0)
    sum_of_weights = jnp.sum(weight)
    return (total / jnp.where(sum_of_weights > 0, sum_of_weights, 1)).astype(parts.dtype)


def combine_aux(
    parts: ArrayTree, weight: jax.Array, rows: int, num_rows: int, whole: ArrayTree
) -> ArrayTree:
    """The aux of the whole batch from that of its parts.

    A leaf that grows with the batch (one entry a row) is concatenated; any other float leaf is
    averaged over real rows; any other integer leaf is summed (a count).

    Args:
        parts: Pytree, leaves stacked on axis 0: one entry for each part.
        weight: [parts], the weight of each part.
        rows: Rows in a part.
        num_rows: Rows in the whole batch.
        whole: Shapes of the aux of one call on the whole batch.

    Returns:
        Pytree with the shapes of `whole`.

    Raises:
        ValueError: For a leaf that follows neither pattern.
    """

    def combine(path: Any, part: jax.Array, full: jax.ShapeDtypeStruct) -> jax.Array:
        each = part.shape[1:]
        if each != full.shape:
            if each[:1] == (rows,) and full.shape == (num_rows, *each[1:]):
                joined = part.reshape(part.shape[0] * rows, *each[1:])
                return joined[:num_rows]
        elif jnp.issubdtype(part.dtype, jnp.inexact):
            return weighted_mean(part, weight)
        elif jnp.issubdtype(part.dtype, jnp.integer):
            real = (weight > 0).reshape(weight.shape[0], *(1,) * (part.ndim - 1))
            return jnp.sum(jnp.where(real, part, 0), axis=0, dtype=part.dtype)
        raise ValueError(
            f"Expected aux{jax.tree_util.keystr(path)} to be a mean (float), a count (integer) or"
            f" one entry a row, got {part.dtype}{list(each)} for {rows} row(s) and"
            f" {full.dtype}{list(full.shape)} for the whole batch: return it in one of these forms."
        )

    return jax.tree_util.tree_map_with_path(combine, parts, whole)


def grows_with_batch(
    loss: Loss, params: ArrayTree, batch: ArrayTree, args: tuple, aux: ArrayTree
) -> ArrayTree:
    """Which leaves of `aux` (of a call on `batch`) have one entry a row: a pytree of bools."""
    if not loss.has_aux:
        return jax.tree.map(lambda leaf: False, aux)
    twice = lambda x: jnp.concatenate([x, x])
    doubled = jax.eval_shape(lambda p, b: loss(p, jax.tree.map(twice, b), args)[1], params, batch)
    return jax.tree.map(lambda leaf, more: leaf.shape != more.shape, aux, doubled)


def split_aux(aux: ArrayTree, grows: ArrayTree) -> tuple[list, list, list]:
    """Leaves of `aux` as ``(averages, counts, rows)``, each in order."""
    kinds: tuple[list, list, list] = ([], [], [])
    for leaf, grown in zip(jax.tree.leaves(aux), jax.tree.leaves(grows), strict=True):
        kinds[_kind(leaf, grown)].append(leaf)
    return kinds


def join_aux(aux: ArrayTree, grows: ArrayTree, kinds: tuple[list, list, list]) -> ArrayTree:
    """The inverse of `split_aux`, for new leaves."""
    rest = tuple(iter(kind) for kind in kinds)
    return jax.tree.map(lambda leaf, grown: next(rest[_kind(leaf, grown)]), aux, grows)


def _kind(leaf: jax.Array, grown: bool) -> int:
    if grown:
        return 2
    return 0 if jnp.issubdtype(leaf.dtype, jnp.inexact) else 1
