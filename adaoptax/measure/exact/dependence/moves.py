"""Rules of primitives that move entries: reshapes, slices, gathers, sorts.

A rule takes the equation and what is known of its operands, none mixed or unknown and at least one
of them data, and returns what is known of the result. Indices are forgiven: whatever they depend
on they only rearrange, and sorting tokens by expert and back mixes nothing.
"""

import math
from collections.abc import Callable

from adaoptax.measure.exact.dependence.value import (
    ANY,
    UNKNOWN,
    Equation,
    Value,
    merge,
    nonlinear_scale,
    one_batch_axis,
    renumber,
    sum_scale,
)

# --- Axes -------------------------------------------------------------------------------------


def _broadcast(eqn: Equation, x: Value, *_: Value) -> Value:
    return x._replace(rows=frozenset(eqn.params["broadcast_dimensions"][a] for a in x.rows))


def _transpose(eqn: Equation, x: Value) -> Value:
    return x._replace(rows=frozenset(eqn.params["permutation"].index(a) for a in x.rows))


def _squeeze(eqn: Equation, x: Value) -> Value:
    return x._replace(rows=renumber(x.rows, eqn.params["dimensions"]))


def _reshape(eqn: Equation, x: Value, *_: Value) -> Value:
    """A batch axis may be merged and split if it is the only one, else it must stay as it is."""
    if not x.rows:
        return x
    if len(eqn.axes_in()) == len(eqn.axes_out()) == 1:
        return x._replace(rows=frozenset(eqn.axes_out()))
    places = {_place(eqn.outs[0], axis): axis for axis in eqn.axes_out()}
    rows = [places.get(_place(eqn.ins[0], axis)) for axis in x.rows]
    return UNKNOWN if None in rows else x._replace(rows=frozenset(a for a in rows if a is not None))


def _place(shapes: tuple, axis: int) -> tuple:
    """Size of an axis and number of blocks in front of it, in both traces."""
    return tuple((math.prod(shape[:axis]), shape[axis]) for shape in shapes)


# --- Slices along the batch -------------------------------------------------------------------


def _slice(eqn: Equation, x: Value) -> Value:
    starts, limits = eqn.params["start_indices"], eqn.params["limit_indices"]
    strides = eqn.params["strides"] or (1,) * len(starts)
    for axis in x.rows - _whole(eqn):
        x = _part(eqn, x, axis, starts[axis], limits[axis], strides[axis])
    return x


def _split(eqn: Equation, x: Value) -> list[Value]:
    sizes, axis = eqn.params["sizes"], eqn.params["axis"]
    if axis not in x.rows:
        return [x] * len(sizes)
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [
        _part(eqn, x, axis, start, start + size, 1, i)
        for i, (start, size) in enumerate(zip(starts, sizes, strict=True))
    ]


def _part(
    eqn: Equation, x: Value, axis: int, start: int, limit: int, stride: int, i: int = 0
) -> Value:
    """Some of the rows: their order is known as that of this slice."""
    order = ("slice", start, limit, stride) if x.order == () and not x.pairs else ANY
    return (x if axis in eqn.axes_out(i) else _picked(eqn, x, axis))._replace(order=order)


def _picked(eqn: Equation, x: Value, axis: int) -> Value:
    """A number of rows that does not grow with the batch: what all share, or the wrong axis."""
    if x.sums or x.pairs:
        return UNKNOWN
    return x._replace(
        rows=x.rows - {axis}, order=ANY, soft=x.soft or f"{eqn} picks some of the examples"
    )


def _whole(eqn: Equation) -> set[int]:
    """Axes of the first operand that the result has in full."""
    return {
        axis
        for axis in range(len(eqn.ins[0][0]))
        if all(a[axis] == b[axis] for a, b in zip(eqn.ins[0], eqn.outs[0], strict=True))
    }


def _rev(eqn: Equation, x: Value) -> Value:
    if not x.rows & set(eqn.params["dimensions"]):
        return x
    turned = {(): ("reversed",), ("reversed",): ()}
    return x._replace(order=ANY if x.pairs else turned.get(x.order, ANY))


def _concatenate(eqn: Equation, *ins: Value) -> Value:
    out = merge(ins, None, sum_scale(ins))
    axis = eqn.params["dimension"]
    if axis not in out.rows:
        return merge(ins, eqn, out.scale)
    parts = [x.order for x in ins]  # also of a last single row, as jnp.roll cuts it off
    if not all(order[:1] == ("slice",) for order in parts):
        return out._replace(order=ANY)
    ends = [0, *(order[2] for order in parts)]
    in_order = all(order[1:4:2] == (end, 1) for order, end in zip(parts, ends, strict=False))
    return out._replace(order=() if in_order else ("rolled", *parts))


def _stack(eqn: Equation, *ins: Value) -> Value:
    out = merge(ins, eqn, sum_scale(ins))
    new = eqn.params["axis"]
    return out._replace(rows=frozenset(axis + (axis >= new) for axis in out.rows))


def _unstack(eqn: Equation, x: Value) -> Value:
    return x._replace(rows=renumber(x.rows, [eqn.params["axis"]]))


def _tile(eqn: Equation, x: Value) -> Value:
    repeated = any(eqn.params["reps"][axis] > 1 for axis in x.rows)
    return x._replace(order=ANY) if repeated else x


def _pad(eqn: Equation, x: Value, value: Value) -> Value:
    out = merge([x, value], None, sum_scale([x, value]))
    if all(tuple(eqn.params["padding_config"][axis]) == (0, 0, 0) for axis in x.rows):
        return out
    return UNKNOWN if x.pairs or x.rows - eqn.axes_out() else out._replace(order=ANY)


def _dynamic_slice(eqn: Equation, x: Value, *starts: Value) -> Value:
    if any(start.data for start in starts):
        return UNKNOWN
    for axis in x.rows - _whole(eqn):
        x = x._replace(order=ANY) if axis in eqn.axes_out() else _picked(eqn, x, axis)
    return x


def _dynamic_update_slice(eqn: Equation, x: Value, update: Value, *starts: Value) -> Value:
    out = merge([x, update], None, sum_scale([x, update]))
    if any(start.data for start in starts) or out.rows - eqn.axes_out():
        return UNKNOWN
    small, large = eqn.ins[1]
    partial = any((small[a], large[a]) != (eqn.outs[0][0][a], eqn.outs[0][1][a]) for a in out.rows)
    return out._replace(order=ANY) if partial else out


# --- Indices ----------------------------------------------------------------------------------


def _gather(eqn: Equation, x: Value, indices: Value) -> Value:
    if _guessed(indices) or (x.sums and indices.data):
        return UNKNOWN
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    large_sizes = eqn.large_params["slice_sizes"]
    ndim = len(eqn.outs[0][0])
    batch = [axis for axis in range(ndim) if axis not in numbers.offset_dims]
    gone = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    window = [axis for axis in range(len(eqn.ins[0][0])) if axis not in gone]
    rows = {batch[axis] for axis in indices.rows if axis < len(batch)}
    out = merge([x, indices], None, x.scale if not indices.data else nonlinear_scale([x, indices]))
    for axis in x.rows:
        if axis in numbers.operand_batching_dims:
            k = numbers.operand_batching_dims.index(axis)
            rows.add(batch[numbers.start_indices_batching_dims[k]])
        elif (sizes[axis], large_sizes[axis]) == tuple(shape[axis] for shape in eqn.ins[0]):
            rows.add(numbers.offset_dims[window.index(axis)])
        elif eqn.axes_out() and not x.pairs:  # rows found by index, as in x[arange(B), labels]
            return one_batch_axis(eqn)._replace(scale=out.scale)
        else:
            return _picked(eqn, x, axis)
    return out._replace(rows=frozenset(rows))


def _scatter(eqn: Equation, x: Value, indices: Value, updates: Value) -> Value:
    if _guessed(indices):
        return UNKNOWN
    numbers = eqn.params["dimension_numbers"]
    out = merge([x, indices, updates], None, sum_scale([x, updates]))
    gone = (*numbers.inserted_window_dims, *numbers.operand_batching_dims)
    window = [axis for axis in range(len(eqn.ins[0][0])) if axis not in gone]
    # Axes of `updates` outside of its window are the axes of `indices`, in order.
    ndim = len(eqn.ins[2][0])
    batch = [axis for axis in range(ndim) if axis not in numbers.update_window_dims]
    rows, scattered = set(x.rows), False
    for axis in updates.rows & set(numbers.update_window_dims):
        rows.add(window[numbers.update_window_dims.index(axis)])
    for axis in indices.rows | {batch.index(a) for a in updates.rows if a in batch}:
        if axis in numbers.scatter_indices_batching_dims:
            k = numbers.scatter_indices_batching_dims.index(axis)
            rows.add(numbers.operand_batching_dims[k])
        else:
            scattered = True
    moved = scattered or bool(x.rows & set(numbers.scatter_dims_to_operand_dims))
    if not moved:
        return out._replace(rows=frozenset(rows))
    if eqn.axes_out():
        return UNKNOWN if out.sums or len(rows) > 1 else one_batch_axis(eqn)
    # Each example adds to bins that all share: the sum of all contributions.
    adds = eqn.name in ("scatter_add", "scatter-add") and not (rows or out.soft or out.sums)
    return out._replace(rows=frozenset(), sums=eqn, order=()) if adds else UNKNOWN


def _guessed(indices: Value) -> bool:
    """Whether indices depend on more than their own example."""
    return bool(indices.sums or indices.soft or indices.pairs)


def _sort(eqn: Equation, *ins: Value) -> Value:
    out = merge(ins, None, nonlinear_scale(ins))
    return UNKNOWN if out.sums or eqn.params["dimension"] in out.rows else out


RULES: dict[str, Callable[..., Value | list[Value]]] = {
    "broadcast_in_dim": _broadcast,
    "transpose": _transpose,
    "squeeze": _squeeze,
    "reshape": _reshape,
    "slice": _slice,
    "split": _split,
    "rev": _rev,
    "concatenate": _concatenate,
    "stack": _stack,
    "unstack": _unstack,
    "tile": _tile,
    "pad": _pad,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "gather": _gather,
    "scatter": _scatter,
    "scatter-add": _scatter,
    "scatter_add": _scatter,
    "sort": _sort,
}
