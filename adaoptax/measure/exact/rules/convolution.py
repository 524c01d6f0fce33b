"""Convolutions: dense layers on patches of the image, with strides, dilations and feature groups.

The patches of one example are cut out by strided slices when they are needed, so that no more than
one example's patches are ever alive; and the products with them avoid the convolution kernels that
XLA on CPUs has inside loops, which are twenty times slower than those outside.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adaoptax import _tree
from adaoptax.measure.exact import cost
from adaoptax.measure.exact.axes import Axis
from adaoptax.measure.exact.factors import Factor, Want
from adaoptax.measure.exact.rules.dense import Outer
from adaoptax.measure.exact.rules.rule import Rule
from adaoptax.measure.programs import descriptions as read
from adaoptax.measure.programs.describe import describe
from adaoptax.measure.varying import vary_like


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Patches(Factor):
    """Inputs and output cotangents of a convolution, as they are.

    Attributes:
        x: [B, m, ...], m images of one example (more than one after merging).
        d: [B, m, ...].
        rule: The convolution.
    """

    x: jax.Array
    d: jax.Array
    rule: "Convolution" = dataclasses.field(metadata={"static": True})

    def gradient(self) -> jax.Array:
        x, d = jax.vmap(self.rule.patches)(self.x, self.d)
        return Outer(x, d).total()

    def total(self) -> jax.Array:
        rule = self.rule
        x, d = _batch(self.x, rule.data_axis.axis), _batch(self.d, rule.result_axis.axis)
        zeros = vary_like(jnp.zeros(rule.parameter.shape, rule.parameter.dtype), d)
        (kernel,) = jax.vjp(lambda w: rule.forward(x, w), zeros)[1](d)
        return rule.canonical(_tree.widen(kernel))

    def inner(self, other: jax.Array) -> jax.Array:
        def of_one(one: "Patches") -> jax.Array:
            outer = Outer(*jax.vmap(one.rule.patches)(one.x, one.d))
            return jnp.sum(outer.inner(other))

        return jax.lax.map(of_one, self)


def _batch(x: jax.Array, axis: int) -> jax.Array:
    """[B, m, ...] as one batch of images on `axis`."""
    x = jnp.moveaxis(x.reshape(-1, *x.shape[2:]), 0, axis)
    return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])


@dataclasses.dataclass(frozen=True, eq=False)
class Convolution(Rule):
    """`conv_general_dilated` of data and a kernel, which is seen as [groups, kernel · I, O]."""

    name = "convolution"

    @property
    def _groups(self) -> int:
        return self.does.feature_groups

    @property
    def _kernel(self) -> tuple[list[int], int, int, list[int]]:
        """Order of the kernel's axes (space, in, out), and their sizes."""
        out, into, *space = self.does.kernel
        shape = self.parameter.shape
        return [*space, into, out], shape[into], shape[out], [shape[axis] for axis in space]

    def canonical(self, w: Any) -> Any:
        order, into, out, space = self._kernel
        n, i = self._groups, math.prod(space) * into
        # Output channels are grouped in blocks: [space, in, group, out of the group].
        return w.transpose(order).reshape(i, n, out // n).swapaxes(0, 1)

    def restore(self, w: jax.Array) -> jax.Array:
        order, into, out, space = self._kernel
        return w.swapaxes(0, 1).reshape(*space, into, out).transpose(np.argsort(order))

    def patches(self, x: jax.Array, d: jax.Array) -> tuple[jax.Array, jax.Array]:
        """One image and its cotangent as [N, T, I] and [N, T, O]: T output positions."""
        does = self.does
        _, into, out, space = self._kernel
        n = self._groups
        batch, feature, *spatial = does.images
        image = x.transpose(batch, *spatial, feature)
        dilation = [
            (lo, hi, step - 1) for (lo, hi), step in zip(does.padding, does.dilation, strict=True)
        ]
        image = jax.lax.pad(image, jnp.zeros([], x.dtype), [(0, 0, 0), *dilation, (0, 0, 0)])
        batch_out, feature_out, *spatial_out = does.results
        d = d.transpose(batch_out, *spatial_out, feature_out)
        sizes, strides = d.shape[1:-1], does.strides

        def cut(offset: tuple[int, ...]) -> jax.Array:
            start = [o * step for o, step in zip(offset, does.kernel_dilation, strict=True)]
            stop = [
                begin + (size - 1) * stride + 1
                for begin, size, stride in zip(start, sizes, strides, strict=True)
            ]
            part = jax.lax.slice(
                image, [0, *start, 0], [image.shape[0], *stop, image.shape[-1]], [1, *strides, 1]
            )
            return part.reshape(-1, n, into)

        windows = [cut(offset) for offset in np.ndindex(*space)]
        columns = jnp.concatenate(windows, axis=2)  # [T, N, kernel · I]
        return columns.swapaxes(0, 1), d.reshape(-1, n, out // n).swapaxes(0, 1)

    def of_rows(self, x: jax.Array, d: jax.Array) -> Patches:
        return Patches(x[:, None], d[:, None], self)

    def choice(self, num_examples: int, want: Want, turns: int) -> cost.Choice:
        _, into, out, space = self._kernel
        entries = math.prod(space) * into * out
        positions = turns * math.prod(self.output.shape) // out
        along = 2.0 * num_examples * positions * entries if want.inner else 0.0
        if not want.squares:
            return cost.Choice("none", along, 0)
        patches = 4 * positions * math.prod(space) * into * self._groups
        return cost.Choice("scan", 4.0 * num_examples * entries + along, patches + 4 * entries)


def match(eqn: Any, position: int, data: Axis, result: Axis, num_rows: int) -> Convolution | None:
    """The rule for `eqn`, if it is a convolution with a parameter as its kernel."""
    does = describe(eqn)
    if not isinstance(does, read.Convolution) or position != 1:
        return None
    return Convolution(eqn, does, position, data, result, num_rows)
