"""Statistics between the devices of a mesh axis: each device's mean gradient is a group."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from adaoptax import _tree, _validate
from adaoptax._metric import as_metric
from adaoptax._tree import ArrayTree
from adaoptax.measure.aux import grows_with_batch, join_aux, split_aux
from adaoptax.measure.exact.proof import check_mean
from adaoptax.measure.gradient_only import GradientOnly
from adaoptax.measure.grouped import measure_groups
from adaoptax.measure.loss import Loss, Measured, Method, check_method
from adaoptax.measure.moments import check_statistics
from adaoptax.measure.part_of_batch import check_devices_apart
from adaoptax.measure.pooling import AddUp, Local, pool
from adaoptax.measure.rows import count_rows
from adaoptax.measure.varying import (
    AxisName,
    axes_of,
    check_bound,
    check_local,
    leaves_where,
    tracks_varying,
    vary,
    varying_axes,
)
from adaoptax.stats import GradientStats
from adaoptax.typing import Scalar

STATISTICS = ("norm", "coordinate")


def stats_from_axis(
    local_grads: ArrayTree,
    axis_name: AxisName,
    local_batch_size: Scalar,
    *,
    local_stats: GradientStats | None = None,
    statistics: tuple[str, ...] = ("norm",),
    centred: bool = False,
    preconditioner: ArrayTree | None = None,
) -> tuple[ArrayTree, GradientStats]:
    r"""Mean gradient and statistics from the local gradients of the devices on an axis.

    Call it where the `pmean` of the gradients stood, inside `jax.shard_map`, `jax.pmap` or
    ``jax.vmap(axis_name=...)``. With J devices, :math:`W_j` examples each,

    .. math:: g = \sum_j W_j h_j / W, \qquad
        S^2 = \frac{1}{J - 1} \Big( \sum_j W_j \lVert h_j \rVert^2 - W \lVert g \rVert^2 \Big)

    is unbiased for every J ≥ 2, and needs no more than the gradient's own all-reduce, where it adds
    one float32 number. Gradients are summed in float32 or wider.

    **Precision.** The difference cancels where devices hardly differ. The relative error of
    `variance` in float32 is about :math:`10^{-7} \kappa` with :math:`\kappa = B \lVert g \rVert^2 /
    ((J - 1) S^2)`: measured 3e-7 at κ = 1, 6e-6 at κ = 100, 2e-3 at κ = 10⁴. The term `signal` is
    hardly touched, since the noise is then small beside it. ``centred=True`` measures
    :math:`\sum_j W_j \lVert h_j - g \rVert^2` with an all-reduce of its own, of one number, and
    errs by less than 1e-6 at any κ up to 10⁸.

    Args:
        local_grads: Mean gradient of the examples of this device. In `jax.shard_map` with its
            default ``check_vma=True`` take it with respect to ``vary(params, axis_name)``.
        axis_name: Name of the mesh axis, or a tuple of names.
        local_batch_size: Examples on this device: a number if all devices have as many, or an
            array that may differ between them (0 for padding only), whose sum then rides along.
        local_stats: Statistics of the groups of this device (accumulation), whose scatter is pooled
            with that between devices: J devices with k groups give J·k − 1 degrees of freedom.
        statistics: ``("norm",)`` or ``("norm", "coordinate")``; the latter doubles the all-reduce.
        centred: Whether to spend a second, scalar all-reduce for precision.
        preconditioner: As in `value_grad_and_stats`, equal on all devices; `local_stats` are
            measured with it, too.

    Returns:
        ``(grads, stats)``, equal on all devices: the mean over all examples, in the dtype of
        `local_grads`, and its statistics. With one device and one group `variance` is NaN.

    Raises:
        NameError: If `axis_name` is not bound.
        ValueError: If a gradient is already reduced (seen where JAX tracks it, ``check_vma=True``),
            or an argument is out of range.

    Examples:
        >>> import adaoptax, functools, jax, jax.numpy as jnp
        >>> rows = jnp.array([[1., 0.], [3., 0.], [2., 2.], [2., -2.]])  # of four devices
        >>> grads, stats = jax.vmap(
        ...     lambda g: adaoptax.stats_from_axis(g, "data", 1), axis_name="data")(rows)
        >>> grads[0].tolist(), round(float(stats.variance[0]), 3)
        ([2.0, 0.0], 3.333)
    """
    check_statistics(statistics, STATISTICS, "stats_from_axis")
    _validate.at_least(
        "local_batch_size", local_batch_size, 1, "it counts the examples of one device."
    )
    check_bound(axis_name)
    check_local(local_grads, axis_name)
    coordinate = "coordinate" in statistics
    if coordinate and local_stats is not None and local_stats.coordinate_variance is None:
        raise ValueError(
            "Expected local_stats with coordinate_variance for statistics=('norm', 'coordinate'),"
            " got None: measure it on each device too."
        )
    local = Local(local_grads, local_batch_size, local_stats)
    equal = _validate.is_number(local_batch_size) and local_stats is None
    grads, stats, _ = pool(
        local,
        axis_name,
        equal=equal,
        coordinate=coordinate,
        centred=centred,
        metric=as_metric(preconditioner, local_grads),
    )
    return jax.tree.map(lambda g, h: g.astype(jnp.result_type(h)), grads, local_grads), stats


@dataclasses.dataclass(frozen=True)
class _OneGroup:
    """The whole local batch as one group."""

    statistics: tuple[str, ...]

    def __call__(self, loss: Loss) -> Callable[..., Measured]:
        def measure(params: Any, batch: Any, args: tuple, mask: Any) -> Measured:
            return measure_groups(
                loss,
                params,
                batch,
                args,
                mask,
                num_groups=1,
                chunk_size=1,
                statistics=self.statistics,
            )

        return measure


@dataclasses.dataclass(frozen=True)
class Devices:
    """The method of `devices`; `add_up` sums over the axis."""

    axis_name: AxisName
    inner: Method | None
    statistics: tuple[str, ...]
    centred: bool
    add_up: AddUp = jax.lax.psum

    def __call__(self, loss: Loss) -> Callable[..., Measured]:
        """Returns the function that measures `loss`."""

        def measure(params: Any, batch: Any, args: tuple, mask: Any) -> Measured:
            rows = count_rows(batch)
            devices = check_bound(self.axis_name)
            _check_replicated(params, self.axis_name)
            args = keys_of_device(loss, args, self.axis_name)
            inner = (self.inner or _OneGroup(("norm",)))(loss)
            local = vary(params, self.axis_name)
            check_devices_apart(loss, local, batch, args, self.axis_name)
            name = f"adaoptax.measure.devices({self.axis_name!r})"
            check_mean(loss, local, batch, args, name, rows, devices * rows)
            (value, aux), grads, stats = inner(local, batch, args, mask)
            coordinate = "coordinate" in self.statistics
            if coordinate and self.inner is not None and stats.coordinate_variance is None:
                raise ValueError(
                    "Expected inner to measure what devices(statistics=('norm', 'coordinate'))"
                    f" pools, got inner={self.inner}: pass the same statistics to inner."
                )
            weight: Any = rows
            if mask is not None:
                weight = jnp.sum(mask, dtype=_tree.scalar_dtype(grads))
            grows = grows_with_batch(loss, params, batch, args, aux)
            averages, counts, of_rows = split_aux(aux, grows)
            pooled, stats, (value, averages) = pool(
                Local(
                    grads,
                    weight,
                    None if self.inner is None else stats,
                    (value, averages),
                ),
                self.axis_name,
                equal=mask is None,
                coordinate=coordinate,
                centred=self.centred,
                add_up=self.add_up,
                metric=loss.metric,
            )
            counts = self.add_up(counts, axes_of(self.axis_name)) if counts else counts
            aux = join_aux(aux, grows, (averages, counts, of_rows))
            pooled = jax.tree.map(lambda g, h: g.astype(h.dtype), pooled, grads)
            return (value, aux), pooled, stats

        return measure

    def gradient_only(self) -> Method:
        """What remains of it where noise is not measured."""
        return dataclasses.replace(self, inner=GradientOnly(), statistics=("norm",), centred=False)


def devices(
    axis_name: AxisName,
    inner: Method | None = None,
    *,
    statistics: tuple[str, ...] = ("norm",),
    centred: bool = False,
) -> Devices:
    r"""Measures between the devices of a mesh axis, inside `jax.shard_map` or `jax.pmap`.

    Each device differentiates the loss of its own rows; the mean gradients are pooled by the
    all-reduce that data parallelism needs anyway, with one float32 number more. The batch that the
    loss receives is the local one. Parameters must be replicated over `axis_name` (they may be
    sharded over other axes that stay automatic, ``shard_map(axis_names={"data"})``); for
    parameters sharded over it take `fsdp`.

    With ``inner=groups(k)`` each device accumulates over k groups, and the scatter within devices
    is pooled with that between them: J·k − 1 degrees of freedom, exactly unbiased.

    - The loss is the mean over all real rows of all devices.
    - `aux`: float leaves are averaged over real rows, integer leaves summed, leaves with one entry
      a row stay local.
    - Random keys are folded with the index of the device.
    - A mask may leave devices with unequal counts, even none: they are weighed exactly.
    - All gradients, statistics and the loss are equal on all devices: with ``check_vma=True`` they
      pass ``out_specs=P()``.

    Args:
        axis_name: Name of the mesh axis that the batch is sharded over, or a tuple of names.
        inner: How each device measures its own rows, for example ``groups(4)``; None takes them
            as one group. Its inner products are not pooled.
        statistics: ``("norm",)`` or ``("norm", "coordinate")``; `inner` must measure the latter.
        centred: Whether to spend a second, scalar all-reduce; see `stats_from_axis` for when
            precision asks for it.

    Returns:
        A method for `value_grad_and_stats`. It raises NameError if `axis_name` is not bound, and
        ValueError if parameters already differ between devices, or if devices meet in the loss
        (BatchNorm with ``axis_name``, a `pmean`). With one device and one group `variance` is
        NaN: every test then keeps its requirement, and counts it as undefined.

    Raises:
        ValueError: If a name in `statistics` is unknown.
        TypeError: If `inner` is not a method of `adaoptax.measure`.

    Examples:
        >>> import adaoptax, functools, jax, jax.numpy as jnp
        >>> measure = adaoptax.value_grad_and_stats(
        ...     lambda w, x: (x @ w).mean(), adaoptax.measure.devices("data"))
        >>> rows = jnp.array([[1., 0.], [2., 2.], [3., 0.], [2., -2.]])
        >>> loss, grads, stats = jax.vmap(  # two devices with two rows each
        ...     measure, in_axes=(None, 0), axis_name="data")(jnp.ones(2), rows.reshape(2, 2, 2))
        >>> float(stats.num_groups[0]), float(stats.variance[0])
        (2.0, 5.0)

    References:
        Lau et al., `Adaptive Batch Size Schedules for Distributed Training of Language Models with
        Data and Model Parallelism <https://arxiv.org/abs/2412.21124>`_, 2024.
    """
    check_statistics(statistics, STATISTICS, "devices")
    if inner is not None:
        check_method("inner", inner)
    return Devices(axis_name, inner, tuple(statistics), centred)


def keys_of_device(loss: Loss, args: tuple, axis_name: AxisName) -> tuple:
    """`args` with random keys that differ between the devices of the axis."""
    if not any(loss.is_key(args)):
        return args
    index = jax.lax.axis_index(axis_name)
    return loss.map_keys(lambda key: jax.random.fold_in(key, index), args)


def _check_replicated(params: ArrayTree, axis_name: AxisName) -> None:
    """ValueError for parameters that differ between devices, where JAX tracks it."""
    if not tracks_varying(axis_name):
        return
    axes = set(axes_of(axis_name))
    differing = leaves_where(params, "params", lambda leaf: bool(axes & varying_axes(leaf)))
    if differing:
        raise ValueError(
            f"Expected params that are replicated over {axis_name=}, got leaves that differ between"
            f" its devices: {', '.join(differing[:5])}. If they are shards, measure with"
            " adaoptax.measure.fsdp(axis_name, specs); if you called adaoptax.vary, leave it out:"
            " devices(axis_name) does it."
        )
