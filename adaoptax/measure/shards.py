"""Groups that stay on their devices under plain `jax.jit`, where a batch is sharded by its type.

The batch [B] is cut in [S, B/S]: with S the shards of its leading axis (or a multiple) every part
lies on one device. `jax.vmap` over S, with a name, makes S "devices" of these parts, and the method
`devices` over that name does the rest: its `psum` is what XLA turns into the one all-reduce. Groups
are contiguous rows in any case; S only says which of them run side by side.
"""

import contextlib
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType

from adaoptax._tree import ArrayTree
from adaoptax.measure.aux import grows_with_batch, join_aux, split_aux
from adaoptax.measure.loss import Loss, Measured
from adaoptax.measure.rows import count_rows, cut

AXIS = "adaoptax_shards"


def shards_of(batch: ArrayTree, params: ArrayTree, n: int) -> int:
    """How many of `n` groups should run side by side, by the mesh that the arguments lie on.

    On an Explicit mesh the type of the batch tells its shards. On an Auto mesh it only tells the
    mesh: the devices of the mesh are a multiple of the shards, and so is their greatest common
    divisor with `n` if `n` is. Inside `jax.shard_map` or off any mesh it is one.
    """
    mesh = mesh_of((batch, params))
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    if AxisType.Manual in kinds.values():
        return 1
    spec = batch_axes(batch)
    if spec:
        shards = math.prod(mesh.shape[axis] for axis in spec)
        if n % shards:
            raise ValueError(
                f"Expected n={n} groups to be a multiple of the {shards} shards of the batch over"
                f" mesh axes {spec}, so that every group lies on one device: choose such an n."
            )
        return shards
    automatic = math.prod(size for axis, size in mesh.shape.items() if kinds[axis] == AxisType.Auto)
    return math.gcd(n, automatic)


def mesh_of(tree: ArrayTree) -> Any:
    """The mesh that the leaves lie on, or else the one that `jax.set_mesh` has set."""
    meshes = (_sharding(leaf).mesh for leaf in jax.tree.leaves(tree))
    return next((mesh for mesh in meshes if not mesh.empty), jax.sharding.get_abstract_mesh())


def batch_axes(batch: ArrayTree) -> tuple[str, ...]:
    """The Explicit mesh axes that the leading axis of the batch is sharded over."""
    for leaf in jax.tree.leaves(batch):
        spec = _sharding(leaf).spec
        if len(spec) and spec[0] is not None:
            return spec[0] if isinstance(spec[0], tuple) else (spec[0],)
    return ()


def add_up(tree: ArrayTree, axes: tuple[str, ...]) -> ArrayTree:
    """The sum over `AXIS`; `lax.psum` under vmap does not know Explicit meshes (jax 0.10)."""
    del axes
    return _add_up(tree)


@jax.custom_batching.custom_vmap
def _add_up(tree: ArrayTree) -> ArrayTree:
    return tree


@_add_up.def_vmap
def _sum_over_batch(size: int, in_batched: list, tree: ArrayTree) -> tuple[ArrayTree, ArrayTree]:
    (batched,) = in_batched
    sums = jax.tree.map(
        lambda x, many: jnp.sum(x, axis=0, dtype=x.dtype) if many else size * x, tree, batched
    )
    return sums, jax.tree.map(lambda many: False, batched)


def measure_shards(
    measure: Callable[..., Measured],
    loss: Loss,
    params: ArrayTree,
    batch: ArrayTree,
    args: tuple,
    mask: Any,
    shards: int,
) -> Measured:
    """Runs `measure` (made by ``devices(AXIS, ...)``) on `shards` contiguous parts at once."""
    with _mesh_context(batch, params):
        num_rows = count_rows(batch)
        into_parts = lambda tree: cut(tree, (shards, num_rows // shards))
        parts = into_parts(batch)
        if mask is not None:
            axes = batch_axes(batch)
            if axes:
                mask = jax.reshard(mask, jax.P(axes))
            mask = into_parts(mask)

        grows = None
        if loss.has_aux:
            aux = jax.eval_shape(lambda p, b: loss(p, b, args)[1], params, batch)
            grows = grows_with_batch(loss, params, batch, args, aux)

        def measured(part: ArrayTree, part_mask: Any) -> Any:
            (value, aux), grads, stats = measure(params, part, args, part_mask)
            averages, counts, of_rows = split_aux(aux, grows)
            return (value, (averages, counts), grads, stats), of_rows

        in_axes = (0, None if mask is None else 0)
        (value, (averages, counts), grads, stats), of_rows = jax.vmap(
            measured, in_axes=in_axes, out_axes=(None, 0), axis_name=AXIS
        )(parts, mask)
        aux = None
        if loss.has_aux:
            of_rows = [x.reshape(-1, *x.shape[2:]) for x in of_rows]
            shapes = jax.eval_shape(lambda p, b: loss(p, b, args)[1], params, batch)
            aux = join_aux(shapes, grows, (averages, counts, of_rows))
        return (value, aux), grads, stats


def _mesh_context(batch: ArrayTree, params: ArrayTree) -> contextlib.AbstractContextManager:
    """The Explicit mesh of traced arguments, where the user has not called `jax.set_mesh`."""
    traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(batch))
    if not (traced and batch_axes(batch) and jax.sharding.get_abstract_mesh().empty):
        return contextlib.nullcontext()
    return jax.sharding.use_abstract_mesh(mesh_of((batch, params)))


def _sharding(leaf: Any) -> jax.sharding.NamedSharding:
    return jax.typeof(jnp.asarray(leaf) if not hasattr(leaf, "shape") else leaf).sharding
