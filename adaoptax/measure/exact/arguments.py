"""Checks of what the exact method is given, beyond those that every method makes."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from adaoptax._tree import ArrayTree
from adaoptax.measure.programs.places import effects_of
from adaoptax.measure.shards import batch_axes, mesh_of
from adaoptax.measure.varying import varying_axes

# By name, since jax has no public ones: printing, and state that lives and dies inside the loss.
_HARMLESS = ("DebugEffect", "InternalMutableArrayEffect")


def check_params(params: ArrayTree) -> None:
    """Raises ValueError unless there are leaves, and all can be differentiated: floats."""
    if not jax.tree.leaves(params):
        raise ValueError(
            f"Expected params to hold at least one array, got params={params!r}: without"
            " parameters there is no gradient to measure."
        )
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        dtype = leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.inexact):
            raise ValueError(
                f"Expected params of floats, got dtype {dtype} at params"
                f"{jax.tree_util.keystr(path)}: counters, random keys and indices have no"
                " gradient; pass them as an extra argument of the loss."
            )


def check_local_params(params: ArrayTree, batch: ArrayTree) -> None:
    """Raises ValueError if gradients would be summed over the devices of a `jax.shard_map`."""
    of_all = lambda tree: frozenset().union(*map(varying_axes, jax.tree.leaves(tree)))
    missing = [
        axis
        for axis in sorted(of_all(batch))
        if any(axis not in varying_axes(leaf) for leaf in jax.tree.leaves(params))
    ]
    if missing:
        raise ValueError(
            f"Expected params that are local to each device of mesh axes {missing}, as the batch"
            " is, got replicated ones: inside jax.shard_map their gradients are sums over devices."
            " Measure with adaoptax.measure.devices(axis_name, adaoptax.measure.exact()), or take"
            " adaoptax.vary(params, axis_name)."
        )


def check_local_rows(batch: ArrayTree) -> None:
    """Raises ValueError for rows that are sharded by their type: their sums would be ambiguous."""
    axes = batch_axes(batch)
    if axes and math.prod(mesh_of(batch).shape[axis] for axis in axes) > 1:
        raise ValueError(
            f"Expected a batch whose rows are not sharded over Explicit mesh axes {axes}: inner"
            " products, probes and numbers of single examples need all rows at once. Measure norms"
            " and coordinates alone, or take a mesh with axis_types=AxisType.Auto."
        )


def check_one_number(closed_jaxpr: Any) -> None:
    """Raises TypeError, as `jax.grad` does, unless the loss of one example is one real number."""
    loss = closed_jaxpr.out_avals[0]
    if loss.shape or not jnp.issubdtype(loss.dtype, jnp.floating):
        raise TypeError(
            "Expected loss_fn to return one real number, its mean over the batch, got"
            f" {loss.str_short()}: this usually means that jnp.mean is"
            " missing at its end."
        )


def check_effects(closed_jaxpr: Any) -> None:
    """Raises ValueError if the traced loss acts on the world outside of it.

    The exact method rearranges, repeats and drops equations. Printing may suffer that.
    """
    for effect, where in effects_of(closed_jaxpr):
        if effect not in _HARMLESS:
            raise ValueError(
                "Expected a loss without side effects, got one with the effect"
                f" {effect} of {where}: the exact method evaluates parts of the loss once, several"
                " times or not at all. Return the value as aux, or measure with"
                " adaoptax.measure.groups(n)."
            )


def check_group_size(group_size: int, num_rows: int) -> None:
    """Raises ValueError unless the batch divides in two groups or more of `group_size`."""
    if num_rows % group_size or num_rows < 2 * group_size:
        raise ValueError(
            f"Expected a batch that divides in at least 2 groups of group_size={group_size}, got"
            f" {num_rows} examples: choose a divisor, or pad the batch and mask the padding."
        )


def check_probe_size(probe_size: int, num_rows: int, group_size: int = 1) -> None:
    """Raises ValueError unless two groups or more of the batch make up the probe."""
    if not 2 * group_size <= probe_size <= num_rows or probe_size % group_size:
        multiple = f" and a multiple of group_size={group_size}" if group_size > 1 else ""
        raise ValueError(
            f"Expected {2 * group_size} <= probe_size <= {num_rows}, the examples of the"
            f" batch{multiple}, got probe_size={probe_size}: the probe is the part of the batch"
            " that is measured; None measures all of it."
        )
