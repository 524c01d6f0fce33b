"""The one engine of `per_example` and `groups`: gradients of contiguous groups, chunk by chunk.

    batch [B] -> [chunks, groups of a chunk, rows of a group]

Groups of a chunk are differentiated at once by vmap, chunks one after another in a loop whose
carry is a running mean gradient and its scatter. `per_example` has one row a group, `groups` one
group a chunk. Chunks of padding alone at the end of a masked batch are never computed: the bound
of the loop is a traced number, so one compiled step serves every real size up to its capacity.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from adaoptax import _tree
from adaoptax._tree import ArrayTree
from adaoptax.measure import moments as m
from adaoptax.measure.aux import combine_aux, weighted_mean
from adaoptax.measure.loss import Loss, Measured
from adaoptax.measure.part_of_batch import check_one_row, check_part
from adaoptax.measure.programs.convolutions import channels_last
from adaoptax.measure.rows import (
    check_whole_groups,
    count_rows,
    cut,
    pad_groups,
    replace_padding,
)
from adaoptax.measure.varying import manual_axes, vary_like


def measure_groups(
    loss: Loss,
    params: ArrayTree,
    batch: ArrayTree,
    args: tuple,
    mask: Any,
    *,
    num_groups: int,
    chunk_size: int,
    statistics: tuple[str, ...],
    stop_early: bool = True,
) -> Measured:
    """Loss, mean gradient and statistics of `num_groups` groups, `chunk_size` of them at once.

    `stop_early` says whether chunks of padding alone at the end are left out. Under a `vmap` whose
    parts lie on different devices they must not be: each turn of the loop would first ask all
    devices whether any goes on.
    """
    num_rows = count_rows(batch)
    rows = num_rows // num_groups
    num_chunks = -(-num_groups // chunk_size)
    dtype = _tree.scalar_dtype(params)

    if mask is None:
        row_weight = jnp.ones(num_rows, dtype)
    else:
        if loss.kind == "ghost":
            check_whole_groups(mask, num_groups)
        row_weight = mask.astype(dtype)
        batch = replace_padding(batch, mask)

    def into_chunks(tree: ArrayTree) -> ArrayTree:
        return cut(pad_groups(tree, num_chunks * chunk_size), (num_chunks, chunk_size))

    one_key, args = args, loss.split_keys(args, num_groups)
    inputs = into_chunks(cut(batch, (num_groups, rows)))
    keys = loss.map_keys(into_chunks, args)
    added = num_chunks * chunk_size - num_groups
    row_weight = cut(
        jnp.pad(row_weight.reshape(num_groups, rows), ((0, added), (0, 0))),
        (num_chunks, chunk_size),
    )
    weight = row_weight.sum(-1)
    chunk_weight = weight.sum(-1)

    grad = group_gradient(loss, may_hold_padding=mask is not None and rows > 1)

    @channels_last
    def differentiate(i: Any) -> tuple[tuple[jax.Array, Any], ArrayTree]:
        """(loss, aux) and gradients of the groups of chunk i, stacked."""
        at_i = lambda x: jax.lax.dynamic_index_in_dim(x, i, keepdims=False)
        chunk = (jax.tree.map(at_i, inputs), at_i(row_weight), loss.map_keys(at_i, keys))
        if chunk_size > 1:
            axes = (None, 0, 0, loss.key_axes(args))
            return jax.vmap(grad, in_axes=axes)(params, *chunk)
        first = lambda x: x[0]
        group = (jax.tree.map(first, chunk[0]), chunk[1][0], loss.map_keys(first, chunk[2]))
        return jax.tree.map(lambda x: jnp.asarray(x)[None], grad(params, *group))

    coordinate, metric = "coordinate" in statistics, loss.metric
    if loss.kind != "ghost" and (rows == 1 or mask is not None):
        check_one_row(loss, params, batch, one_key)
    try:
        grad_shapes = jax.eval_shape(differentiate, 0)[1]
    except (TypeError, ValueError, IndexError):
        check_part(loss, params, batch, one_key, rows)
        raise
    products, squares = None, None
    needs_products = "inner" in statistics or "leave-one-out" in statistics

    def against_mean(grads: ArrayTree, mean: ArrayTree) -> tuple[jax.Array, jax.Array | None]:
        wanted = "leave-one-out" in statistics
        squares = m.sq_deviations(grads, mean, metric) if wanted else None
        return m.centred_inner_products(grads, mean, metric), squares

    if num_chunks == 1:
        values, grads = differentiate(0)
        moments = m.chunk_moments(grads, weight[0], coordinate, metric)
        if needs_products:
            products, squares = against_mean(grads, moments.mean)
    else:
        before = jnp.cumsum(chunk_weight) - chunk_weight

        def step(moments: m.Moments, i: Any) -> tuple[m.Moments, Any]:
            values, grads = differentiate(i)
            chunk = m.chunk_moments(grads, weight[i], coordinate, metric)
            return m.add_chunk(moments, chunk, before[i], chunk_weight[i], metric), values

        bound = None if mask is None or not stop_early else _last_real(chunk_weight)
        moments, values = _scan(step, m.zero_moments(params, coordinate), num_chunks, bound)
        values = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), values)
        if needs_products:
            # The mean is known only now: a second pass keeps the memory at one chunk.
            def again(nothing: tuple, i: Any) -> tuple[tuple, Any]:
                return nothing, against_mean(differentiate(i)[1], moments.mean)

            flat = lambda x: x.reshape(-1)
            products, squares = jax.tree.map(flat, _scan(again, (), num_chunks, bound)[1])

    weight = weight.reshape(-1)
    scatter, others = None, None
    if products is not None and "inner" in statistics:
        scatter = m.inner_scatter(products, weight)
    if squares is not None:
        zero = lambda x: jnp.where(weight > 0, x, 0)  # padding may hold NaN
        others = m.leave_one_out_scatter(zero(products), zero(squares), weight)
    stats = m.to_stats(moments, m.totals_of(weight), scatter, others, metric=metric)
    grads = jax.tree.map(lambda g, s: g.astype(s.dtype), moments.mean, grad_shapes)
    losses, aux = values
    if loss.has_aux:
        whole = jax.eval_shape(lambda p, b: loss(p, b, one_key), params, batch)[1]
        aux = combine_aux(aux, weight, rows, num_rows, whole)
    any_real = jnp.max(weight) > 0
    value = jnp.where(any_real, weighted_mean(losses, weight), jnp.nan)
    return (value, aux), grads, stats


def group_gradient(loss: Loss, may_hold_padding: bool) -> Callable[..., Any]:
    """``f(params, rows, weight, args)`` → ``((loss, aux), grads)`` of one group.

    Padding is replaced only in the branch of a group that holds some: elsewhere it costs nothing.
    For a loss of kind ``"ghost"``, which has no rows, all is NaN there.
    """

    def whole(params: ArrayTree, rows: ArrayTree, weight: jax.Array, args: tuple) -> Any:
        del weight
        return loss(params, rows, args)

    def row_by_row(params: ArrayTree, rows: ArrayTree, weight: jax.Array, args: tuple) -> Any:
        return weighted_loss(loss, params, replace_padding(rows, weight > 0), weight, args)

    gradient = lambda fn: jax.value_and_grad(fn, has_aux=True)
    if not may_hold_padding:
        return gradient(whole)

    def either(params: ArrayTree, rows: ArrayTree, weight: jax.Array, args: tuple) -> Any:
        # A full group is the user's loss as it stands, so BatchNorm sees a real small batch; one
        # of padding only is not computed at all, so that nothing in it can spread.
        branch = lambda fn: lambda: gradient(fn)(params, rows, weight, args)
        values, grads = jax.eval_shape(branch(whole))

        def constant(number: float) -> Any:
            full = lambda s: jnp.full(s.shape, number if _is_float(s) else 0, s.dtype)
            return vary_like(jax.tree.map(full, (values, grads)), (values, grads))

        nothing, undefined = (functools.partial(constant, number) for number in (0, jnp.nan))
        partly = undefined if loss.kind == "ghost" else branch(row_by_row)
        kind = jnp.where(jnp.min(weight) == jnp.max(weight), 2, 1) * (jnp.max(weight) > 0)
        return jax.lax.switch(kind, [nothing, partly, branch(whole)])

    return either


def _is_float(x: jax.ShapeDtypeStruct) -> bool:
    return jnp.issubdtype(x.dtype, jnp.inexact)


def weighted_loss(
    loss: Loss, params: ArrayTree, rows: ArrayTree, weight: jax.Array, args: tuple
) -> tuple[jax.Array, Any]:
    """``(loss, aux)`` of a batch whose rows weigh `weight`, for a mean of per-example losses."""
    values, aux = loss.of_rows(params, rows, args)
    if loss.has_aux:
        as_whole = jax.eval_shape(lambda p, b: loss(p, b, args), params, rows)[1]
        aux = combine_aux(aux, weight, 1, weight.shape[0], as_whole)
    return weighted_mean(values, weight), aux


def _scan(step: Callable[..., Any], start: Any, length: int, bound: Any) -> tuple[Any, Any]:
    """`lax.scan` of ``step(carry, i)`` for i < length; outputs from the traced `bound` on are zero.

    On one of many devices the start of the carry gets the type of its end.
    """
    if bound is not None or manual_axes():
        carry_shapes, out_shapes = jax.eval_shape(step, start, 0)
        start = vary_like(start, carry_shapes)
    if bound is None:
        return jax.lax.scan(step, start, jnp.arange(length))
    empty = jax.tree.map(lambda s: jnp.zeros((length, *s.shape), s.dtype), out_shapes)
    empty = vary_like(empty, out_shapes)

    def at_i(i: Any, carry: tuple[Any, Any]) -> tuple[Any, Any]:
        carry, outs = carry
        carry, out = step(carry, i)
        return carry, jax.tree.map(lambda every, new: every.at[i].set(new), outs, out)

    return jax.lax.fori_loop(0, bound, at_i, (start, empty))


def _last_real(chunk_weight: jax.Array) -> jax.Array:
    """One past the index of the last chunk with a real row."""
    index = jnp.arange(1, chunk_weight.shape[0] + 1)
    return jnp.max(jnp.where(chunk_weight > 0, index, 0))
