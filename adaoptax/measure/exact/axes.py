"""Where the examples are: the batch axis of a value, and where an equation takes it.

A batch axis may be merged with others by a reshape: [B, T, D] to [B·T, D] puts the examples on an
axis of size ``outer · B · inner`` (here 1 · B · T), example b being entries ``[:, b, :]`` of its
three factors. The sizes of axes tell nothing (B may be T), so the axis is followed from equation
to equation; where that ends, `Lost` says why.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from adaoptax.measure.programs import descriptions as read


class Axis(NamedTuple):
    """Axis `axis` has size ``outer · B · inner``, with the examples in the middle."""

    axis: int
    outer: int = 1
    inner: int = 1

    @property
    def parts(self) -> int:
        """Entries of one example along the axis."""
        return self.outer * self.inner


class Lost(ValueError):
    """The batch axis cannot be followed any further; the message is a clause that says why."""


def rows_of(x: jax.Array, axis: Axis, num_rows: int) -> jax.Array:
    """[B, ...]: the rows of `x`, each with `axis.parts` entries left on the batch axis."""
    before, after = x.shape[: axis.axis], x.shape[axis.axis + 1 :]
    x = x.reshape(*before, axis.outer, num_rows, axis.inner, *after)
    x = jnp.moveaxis(x, axis.axis + 1, 0)
    return x.reshape(num_rows, *before, axis.parts, *after)


def of_rows(x: jax.Array, axis: Axis, ndim: int) -> jax.Array:
    """One number a row, [B], in a shape that fits to a value of `ndim` axes with `axis`."""
    x = jnp.tile(jnp.repeat(x, axis.inner), axis.outer)
    return x.reshape([-1 if i == axis.axis else 1 for i in range(ndim)])


def row_shape(shape: Sequence[int], axis: Axis) -> tuple[int, ...]:
    """The shape of what one row has of a value."""
    return (*shape[: axis.axis], axis.parts, *shape[axis.axis + 1 :])


def follow(
    does: Any, shapes: Sequence[tuple], outputs: Sequence[tuple], axes: Sequence[Any], num_rows: int
) -> list[Axis]:
    """The batch axis of each result of an equation.

    Args:
        does: Description of the equation.
        shapes: Of its operands.
        outputs: Shapes of its results.
        axes: The batch axis of each operand, None for those without.
        num_rows: B.

    Raises:
        Lost: If a result has no one axis on which the examples are, in order.
    """
    rule: Any = _RULES.get(type(does))
    if rule is None:
        raise Lost("is not known here")
    found = rule(does, shapes, outputs, axes, num_rows)
    return found if isinstance(found, list) else [found] * len(outputs)


def _common(axes: Sequence[Any]) -> Axis:
    found = {axis for axis in axes if axis is not None}
    if len(found) > 1:
        raise Lost("lets every example meet others")
    return found.pop()


def _entrywise(does: Any, shapes: Any, outputs: Any, axes: Any, num_rows: int) -> Axis:
    axis = _common(axes)
    return axis


def _broadcast(does: read.Broadcast, shapes: Any, outputs: Any, axes: Any, num_rows: int) -> Axis:
    return axes[0]._replace(axis=does.dims[axes[0].axis])


def _reshape(does: read.Reshape, shapes: Any, outputs: Any, axes: Any, num_rows: int) -> Axis:
    count = lambda sizes: math.prod(max(size, 1) for size in sizes)  # also of empty arrays
    old, axis = shapes[0], axes[0]
    if does.order is not None:
        old = [old[i] for i in does.order]
        axis = axis._replace(axis=does.order.index(axis.axis))
    before, after = count(old[: axis.axis]) * axis.outer, count(old[axis.axis + 1 :]) * axis.inner
    for j, size in enumerate(does.new):
        front, back = count(does.new[:j]), count(does.new[j + 1 :])
        if before % front == 0 and after % back == 0:
            outer, inner = before // front, after // back
            if outer * num_rows * inner == size:
                return Axis(j, outer, inner)
    raise Lost("cuts the batch in parts")


def _transpose(does: read.Transpose, shapes: Any, outputs: Any, axes: Any, num_rows: int) -> Axis:
    return axes[0]._replace(axis=does.order.index(axes[0].axis))


def _reduce(does: read.Reduce, shapes: Any, outputs: Any, axes: Any, num_rows: int) -> Axis:
    axis = _common(axes)
    if axis.axis in does.axes:
        raise Lost("sums over the examples" if does.sums else "chooses among the examples")
    return axis._replace(axis=axis.axis - sum(a < axis.axis for a in does.axes))


def _along(does: read.Along, shapes: Any, outputs: Any, axes: Any, num_rows: int) -> Axis:
    axis = _common(axes)
    if axis.axis in does.axes or (does.kept is not None and axis.axis >= does.kept):
        raise Lost("acts along the batch")
    return axis


def _slice(does: read.Slice, shapes: Any, outputs: Any, axes: Any, num_rows: int) -> list[Axis]:
    axis = axes[0]
    block = num_rows * axis.inner

    def part(starts: Sequence[int], limits: Sequence[int]) -> Axis:
        start, stop = starts[axis.axis], limits[axis.axis]
        if does.strides[axis.axis] != 1 or start % block or stop % block:
            raise Lost("picks some of the examples")
        return axis._replace(outer=(stop - start) // block)

    return [part(*ends) for ends in zip(does.starts, does.limits, strict=True)]


def _concatenate(
    does: read.Concatenate, shapes: Any, outputs: Any, axes: Any, num_rows: int
) -> Axis:
    found = [axis for axis in axes if axis is not None]
    if found[0].axis != does.axis:
        return _common(axes)
    if len(found) < len(axes):
        raise Lost("appends rows that are no examples")
    if len({(axis.axis, axis.inner) for axis in found}) > 1:
        raise Lost("lets every example meet others")
    return found[0]._replace(outer=sum(axis.outer for axis in found))


def _stack(does: read.Stack, shapes: Any, outputs: Any, axes: Any, num_rows: int) -> Axis:
    axis = _common(axes)
    return axis._replace(axis=axis.axis + (does.axis <= axis.axis))


def _unstack(does: read.Unstack, shapes: Any, outputs: Any, axes: Any, num_rows: int) -> Axis:
    axis = axes[0]
    if axis.axis == does.axis:
        raise Lost("picks examples by their numbers")
    return axis._replace(axis=axis.axis - (does.axis < axis.axis))


def _tile(does: read.Tile, shapes: Any, outputs: Any, axes: Any, num_rows: int) -> Axis:
    return axes[0]._replace(outer=axes[0].outer * does.times[axes[0].axis])


def _product(does: read.Product, shapes: Any, outputs: Any, axes: Any, num_rows: int) -> Axis:
    ndims = (len(shapes[0]), len(shapes[1]))
    found = []
    for side, axis in enumerate(axes):
        if axis is not None:
            place = does.place(side, axis.axis, ndims)
            if place is None:
                raise Lost("sums over the examples")
            found.append(axis._replace(axis=place))
    return _common(found)


def _convolution(
    does: read.Convolution, shapes: Any, outputs: Any, axes: Any, num_rows: int
) -> Axis:
    images, kernel = axes
    if kernel is not None:
        return _kernel_of_each(does, images, kernel, num_rows)
    if images.axis != does.images[0] or does.batch_groups != 1:
        raise Lost("has the examples on an axis that is not its batch")
    return images._replace(axis=does.results[0])


def _kernel_of_each(
    does: read.Convolution, images: Axis | None, kernel: Axis, num_rows: int
) -> Axis:
    """Under vmap kernels of examples are output features, and their images are groups."""
    alone = kernel.axis == does.kernel[0] and kernel.outer == 1
    if images is None:
        grouped = does.feature_groups == 1
    else:
        grouped = (
            images.axis == does.images[1]
            and images.outer == 1
            and does.feature_groups % num_rows == 0
        )
    if not alone or not grouped or does.batch_groups != 1:
        raise Lost("convolves with kernels of several examples")
    return kernel._replace(axis=does.results[1])


def _gather(does: read.Gather, shapes: Any, outputs: Any, axes: Any, num_rows: int) -> Axis:
    (operand, indices), shape = axes, shapes[0]
    ndim = len(outputs[0])
    rest = [a for a in range(ndim) if a not in does.offsets]  # of the indices but their last axis
    found = []
    if indices is not None:
        if indices.axis == len(shapes[1]) - 1:
            raise Lost("takes coordinates from several examples")
        found.append(indices._replace(axis=rest[indices.axis]))
    if operand is not None:
        window = [a for a in range(len(shape)) if a not in (*does.collapsed, *does.batch)]
        if operand.axis in does.batch:
            along = does.batch_of_indices[does.batch.index(operand.axis)]
            found.append(operand._replace(axis=rest[along]))
        elif operand.axis in window and does.sizes[operand.axis] == shape[operand.axis]:
            found.append(operand._replace(axis=does.offsets[window.index(operand.axis)]))
        else:
            raise Lost("picks examples by their numbers")
    return _common(found)


def _scatter(does: read.Scatter, shapes: Any, outputs: Any, axes: Any, num_rows: int) -> Axis:
    operand, indices, updates = axes
    rest = [a for a in range(len(shapes[2])) if a not in does.windows]
    window = [a for a in range(len(shapes[0])) if a not in (*does.inserted, *does.batch)]

    def in_operand(axis: Axis) -> Axis:
        """Where an axis of the updates is in the operand."""
        if axis.axis in rest:
            along = rest.index(axis.axis)
            if along not in does.batch_of_indices:
                raise Lost("puts examples where their numbers say")
            return axis._replace(axis=does.batch[does.batch_of_indices.index(along)])
        place = window[does.windows.index(axis.axis)]
        if shapes[0][place] != shapes[2][axis.axis]:
            raise Lost("puts examples where their numbers say")
        return axis._replace(axis=place)

    found = [] if operand is None else [operand]
    if updates is not None:
        found.append(in_operand(updates))
    if indices is not None:
        if indices.axis == len(shapes[1]) - 1:
            raise Lost("takes coordinates from several examples")
        found.append(in_operand(indices._replace(axis=rest[indices.axis])))
    axis = _common(found)
    if axis.axis in does.indexed or axis.axis in does.inserted:
        raise Lost("puts values at examples that it picks by their numbers")
    return axis


def _window(does: read.Window, shapes: Any, outputs: Any, axes: Any, num_rows: int) -> Axis:
    if any(axis is not None for axis in axes[does.arrays :]):
        raise Lost("cuts at a place that depends on the examples")
    axis = _common(axes)
    if axis.axis not in does.whole:
        raise Lost("picks some of the examples")
    return axis


_RULES = {
    read.Entrywise: _entrywise,
    read.Broadcast: _broadcast,
    read.Reshape: _reshape,
    read.Transpose: _transpose,
    read.Reduce: _reduce,
    read.Along: _along,
    read.Slice: _slice,
    read.Concatenate: _concatenate,
    read.Stack: _stack,
    read.Unstack: _unstack,
    read.Tile: _tile,
    read.Product: _product,
    read.Convolution: _convolution,
    read.Gather: _gather,
    read.Scatter: _scatter,
    read.Window: _window,
}
