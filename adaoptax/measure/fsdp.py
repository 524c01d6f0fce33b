r"""Statistics of fully sharded models: each layer's norm as its gradient appears.

A fully sharded model gathers the weights of one layer before it computes with them, and scatters
their gradient as soon as the backward pass has it: no device ever holds the gradient of its own
rows for all layers, whose norm is the statistic. `gather` takes that norm on the way. Its backward
pass receives the local gradient of one layer's weights, adds its square to the cotangent of a
*probe* (a zero that travels with the weights), and hands on the sum over devices, scattered:

    forward    W = all_gather(shard)
    backward   probe += ‖dW‖²,   d shard = reduce_scatter(dW)

Cotangents add up by themselves, over layers, through `jax.lax.scan` and `jax.checkpoint`, so that
the gradient of all probes together is ‖h_j‖² of this device.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from adaoptax import _tree
from adaoptax._tree import ArrayTree
from adaoptax.measure.aux import grows_with_batch, join_aux, split_aux
from adaoptax.measure.exact.proof import check_mean
from adaoptax.measure.loss import Loss, Measured, Method
from adaoptax.measure.rows import count_rows
from adaoptax.measure.varying import (
    AxisName,
    axes_of,
    check_bound,
    tracks_varying,
    vary,
    varying_axes,
)
from adaoptax.stats import GradientStats, unbiased

GATHER_UNDER_VMAP = """\
Expected adaoptax.measure.gather to see the gradient of a device's rows, got that of one example.
This usually means that jax.grad was taken inside jax.vmap over examples, as for per-example
gradients: their squared norms would be added up in place of the norm of their mean, and every
example would be communicated by itself. Map the loss over examples, and differentiate the mean:
adaoptax.value_grad_and_stats(lambda params, batch: jax.vmap(loss, (None, 0))(params, batch).mean(),
adaoptax.measure.fsdp(axis_name, specs))."""


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["value", "probe"],
    meta_fields=["axes", "dim"],
)
@dataclasses.dataclass(frozen=True)
class Shard:
    """A parameter inside the loss, before `gather`.

    Attributes:
        value: This device's part of the parameter, or all of it if it is replicated.
        probe: Zeros [..., 2] whose cotangent holds the squared norm of the parameter's gradient,
            and how often it was gathered; a leading axis like that of `value`, so that
            `jax.lax.scan` over layers slices both.
        axes: Mesh axes over which gradients are summed.
        dim: The dimension that is sharded over them, counted from the last (-1), or None.
    """

    value: jax.Array
    probe: jax.Array
    axes: tuple[str, ...]
    dim: int | None


def gather(weights: ArrayTree) -> ArrayTree:
    """Makes the parameters of a layer whole, right before they are used.

    Inside a loss that is measured by `fsdp`, parameters arrive as shards; this gathers them over
    devices, and its backward pass takes the norm of their gradient and scatters it. Anywhere else
    parameters are whole and this does nothing: the same loss runs under plain `jax.jit`.

    Call it inside the `jax.lax.scan` over layers (under `jax.checkpoint`, so that the backward pass
    gathers again rather than keeps), and once on each parameter: a weight that is used in two
    places (a tied embedding) is gathered before both. The norms of two gathers would be added as
    if they were of two parameters; the variance is then NaN.

    Args:
        weights: Pytree of parameters, as the loss received them (or slices by `jax.lax.scan`).

    Returns:
        The same pytree of whole arrays.

    Raises:
        ValueError: In the backward pass, if `jax.grad` was taken inside `jax.vmap` over examples.

    Examples:
        >>> import jax.numpy as jnp
        >>> from adaoptax import measure
        >>> measure.gather({"w": jnp.ones(2)})["w"].tolist()  # no shard: unchanged
        [1.0, 1.0]
    """
    return jax.tree.map(
        lambda x: _gather(x.axes, x.dim, x.value, x.probe) if _is_shard(x) else x,
        weights,
        is_leaf=_is_shard,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _gather(
    axes: tuple[str, ...], dim: int | None, value: jax.Array, probe: jax.Array
) -> jax.Array:
    del probe
    if dim is None:
        return vary(value, axes)
    return jax.lax.all_gather(value, axes, axis=value.ndim + dim, tiled=True)


def _gather_forward(
    axes: tuple[str, ...], dim: int | None, value: jax.Array, probe: jax.Array
) -> tuple[jax.Array, jax.Array]:
    return _gather(axes, dim, value, probe), probe


def _gather_backward(
    axes: tuple[str, ...], dim: int | None, probe: jax.Array, gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    gradient = _refuse_vmap(gradient)
    square = _tree.sq_norm(gradient).astype(probe.dtype)
    first = (0,) * (probe.ndim - 1)
    probe_gradient = jnp.zeros_like(probe).at[first].set(jnp.stack([square, jnp.ones_like(square)]))
    if dim is None:
        return jax.lax.psum(gradient, axes), probe_gradient
    summed = jax.lax.psum_scatter(gradient, axes, scatter_dimension=gradient.ndim + dim, tiled=True)
    return summed, probe_gradient


_gather.defvjp(_gather_forward, _gather_backward)


@jax.custom_batching.custom_vmap
def _refuse_vmap(gradient: jax.Array) -> jax.Array:
    return gradient


@_refuse_vmap.def_vmap
def _raise_under_vmap(size: int, in_batched: list, gradient: jax.Array) -> Any:
    raise ValueError(GATHER_UNDER_VMAP)


@dataclasses.dataclass(frozen=True)
class _Fsdp:
    axis_name: AxisName
    specs: ArrayTree

    def __call__(self, loss: Loss) -> Callable[..., Measured]:
        def measure(params: Any, batch: Any, args: tuple, mask: Any) -> Measured:
            if mask is not None:
                raise ValueError(
                    "Expected mask=None with adaoptax.measure.fsdp, got a mask: the norm of a"
                    " device's gradient is taken inside the loss, which knows of no padding. Drop"
                    " incomplete batches, or measure with devices(axis_name)."
                )
            if loss.metric is not None:
                raise ValueError(
                    "Expected preconditioner=None with adaoptax.measure.fsdp, got one: the norm of"
                    " a device's gradient is taken layer by layer where no device holds the whole"
                    " preconditioner. Measure with devices(axis_name), or without it."
                )
            devices, axes = check_bound(self.axis_name), axes_of(self.axis_name)
            rows = count_rows(batch)
            if any(loss.is_key(args)):
                index = jax.lax.axis_index(self.axis_name)
                args = loss.map_keys(lambda key: jax.random.fold_in(key, index), args)
            shards = _to_shards(params, self.specs, axes)
            differentiate = jax.value_and_grad(lambda p: loss(p, batch, args), has_aux=True)
            (value, aux), gradient = differentiate(shards)
            check_mean(
                loss,
                shards,
                batch,
                args,
                f"adaoptax.measure.fsdp({self.axis_name!r})",
                rows,
                devices * rows,
            )
            found = jax.tree.leaves(gradient, is_leaf=_is_shard)
            mean = [shard.value / devices for shard in found]
            grads = jax.tree.unflatten(jax.tree.structure(params), mean)

            grows = grows_with_batch(loss, shards, batch, args, aux)
            averages, counts, of_rows = split_aux(aux, grows)
            split = [g for g, shard in zip(mean, found, strict=True) if shard.dim is not None]
            whole = [g for g, shard in zip(mean, found, strict=True) if shard.dim is None]
            dtype = _tree.scalar_dtype(params)
            widened = jax.tree.map(_tree.widen, (value, averages))
            # Gathered twice, the two parts of a gradient do not tell the norm of their sum.
            square = lambda probe: jnp.where(
                jnp.max(probe[..., 1]) > 1, jnp.nan, jnp.sum(probe[..., 0])
            )
            squares, sq_norm, averaged = jax.lax.psum(
                (
                    sum(square(shard.probe) for shard in found),
                    _tree.sq_norm(split).astype(dtype),
                    widened,
                ),
                axes,
            )
            sq_norm = sq_norm + _tree.sq_norm(whole).astype(dtype)
            scatter = rows * jnp.maximum(squares - devices * sq_norm, 0)
            value, averages = jax.tree.map(
                lambda x, old: (x / devices).astype(old.dtype), averaged, (value, averages)
            )
            counts = jax.lax.psum(counts, axes) if counts else counts
            count = jnp.asarray(devices, dtype)
            stats = GradientStats(rows * count, count, sq_norm, unbiased(scatter, count))
            return (value, join_aux(aux, grows, (averages, counts, of_rows))), grads, stats

        return measure

    def gradient_only(self) -> Method:
        """The same method: norms cost nothing beside the collectives of the gradient."""
        return self


def fsdp(axis_name: AxisName, specs: ArrayTree) -> _Fsdp:
    r"""Measures between devices whose parameters are sharded over the same axis (FSDP-Norm).

    For `jax.shard_map` over the data axis with parameters sharded over it too. The loss receives
    shards and makes them whole layer by layer with `gather`; each layer's squared norm is taken as
    its local gradient appears in the backward pass, right before it is scattered, so that the
    gradient of a device never exists for more than one layer. Gradients come back sharded like the
    parameters, statistics equal on all devices.

    Communication is that of the plain step: one all-gather (two with `jax.checkpoint`) and one
    reduce-scatter a layer, and two float32 numbers beside the loss. The variance is
    :math:`\frac{b}{J-1} (\sum_j \lVert h_j \rVert^2 - J \lVert g \rVert^2)`, and cancels as in
    `stats_from_axis`; there is no centred form, since that needs the mean gradient in full.

    To accumulate, call it for each part of the batch and combine with `merge_stats` **outside** of
    `jax.shard_map`, where norms of sharded arrays are global.

    Args:
        axis_name: Name of the mesh axis, or a tuple of names: rows and parameters are sharded over
            it.
        specs: Pytree of `jax.sharding.PartitionSpec` like the parameters (or a prefix), the
            `in_specs` of `jax.shard_map`. Leaves that do not name `axis_name` are replicated.

    Returns:
        A method for `value_grad_and_stats`. It raises NameError if `axis_name` is not bound, and
        ValueError for a mask, a preconditioner, specs that do not tell how the parameters lie
        (seen with ``check_vma=True``), or gradients of single examples.

    Examples:
        >>> import adaoptax, jax, jax.numpy as jnp
        >>> from jax.sharding import PartitionSpec as P
        >>> from adaoptax.measure import fsdp, gather
        >>> def loss_fn(params, x):
        ...     layer = lambda x, weights: (jnp.tanh(x @ gather(weights)), None)
        ...     return jnp.mean(jax.lax.scan(jax.checkpoint(layer), x, params)[0] ** 2)
        >>> mesh = jax.sharding.Mesh(jax.devices()[:1], ("data",))
        >>> specs = P(None, "data")  # [layers, in, out]: the second dimension is sharded
        >>> measure = jax.shard_map(
        ...     adaoptax.value_grad_and_stats(loss_fn, fsdp("data", specs)),
        ...     mesh=mesh, in_specs=(specs, P("data")), out_specs=(P(), specs, P()))
        >>> loss, grads, stats = jax.jit(measure)(jnp.ones((3, 4, 4)) / 4, jnp.ones((8, 4)))
        >>> grads.shape, float(stats.num_examples)
        ((3, 4, 4), 8.0)

    References:
        Lau et al., `Adaptive Batch Size Schedules for Distributed Training of Language Models with
        Data and Model Parallelism <https://arxiv.org/abs/2412.21124>`_, 2024.
    """
    return _Fsdp(axis_name, specs)


def _is_shard(x: Any) -> bool:
    return isinstance(x, Shard)


def _to_shards(params: ArrayTree, specs: ArrayTree, axes: tuple[str, ...]) -> ArrayTree:
    """Wraps every parameter with its probe and its place."""
    is_spec = lambda x: isinstance(x, jax.sharding.PartitionSpec)
    specs = jax.tree.broadcast(specs, params, is_leaf=is_spec)
    tracked = tracks_varying(axes)
    dtype = _tree.scalar_dtype(params)

    def wrap(path: Any, value: Any, spec: Any) -> Shard:
        value = jnp.asarray(value)
        named = [axes_of(entry) if entry is not None else () for entry in spec]
        sharded = [i for i, entry in enumerate(named) if set(axes) & set(entry)]
        if len(sharded) > 1 or any(not set(axes) <= set(named[i]) for i in sharded):
            raise ValueError(
                f"Expected params{jax.tree_util.keystr(path)} to have one dimension that is sharded"
                f" over axis_name={axes}, or none, got {spec}: shard it over all of them or none."
            )
        if tracked and bool(sharded) != bool(set(axes) & varying_axes(value)):
            lies = "replicated" if sharded else "different on its devices"
            raise ValueError(
                f"Expected specs to tell how params lie over axis_name={axes}, got {spec} for"
                f" params{jax.tree_util.keystr(path)}, which is {lies}: pass the in_specs of"
                " jax.shard_map."
            )
        probe = vary(jnp.zeros((*value.shape[:1], 2), dtype), axes)
        return Shard(value, probe, axes, sharded[0] - value.ndim if sharded else None)

    return jax.tree_util.tree_map_with_path(wrap, params, specs)
