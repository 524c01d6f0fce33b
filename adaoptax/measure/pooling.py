r"""Pooling the gradients of devices, in one collective.

Device j brings :math:`W_j` rows, their mean gradient :math:`h_j` and, if it measured groups of its
own, their scatter :math:`M_j` about :math:`h_j`. With :math:`W = \sum_j W_j` (Chan's formula)

    g = Σ W_j h_j / W,      M = Σ (M_j + W_j ‖h_j − g‖²) = Σ (M_j + W_j ‖h_j‖²) − W ‖g‖²

The last form needs sums over devices of things each device knows before any communication, so all
of it rides in the all-reduce of the gradient. Its price is cancellation where devices hardly
differ, see `pool`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from adaoptax import _tree
from adaoptax._tree import ArrayTree
from adaoptax.measure.varying import AxisName, axes_of, check_bound, varying_axes
from adaoptax.stats import GradientStats, unbiased

AddUp = Callable[[ArrayTree, tuple[str, ...]], ArrayTree]


class Local(NamedTuple):
    """What one device brings.

    Attributes:
        grads: Mean gradient of its rows.
        weight: W_j, its real rows; zero for a device of padding only.
        stats: Statistics of its own groups, or None for one group.
        averages: Pytree of float values that are means over its rows (loss, metrics).
    """

    grads: ArrayTree
    weight: Any
    stats: GradientStats | None = None
    averages: ArrayTree = ()


def pool(
    local: Local,
    axis_name: AxisName,
    *,
    equal: bool,
    coordinate: bool,
    centred: bool,
    add_up: AddUp = jax.lax.psum,
    metric: ArrayTree | None = None,
) -> tuple[ArrayTree, GradientStats, ArrayTree]:
    """Gradient, statistics and averages over all devices on `axis_name`.

    The scatter within and between devices has (all groups − 1) degrees of freedom, and the variance
    is unbiased for any numbers of rows that do not depend on the gradients.

    Args:
        local: What this device brings.
        axis_name: One mesh axis or several.
        equal: Whether all devices bring the same (static) weight: the counts need no collective.
        coordinate: Whether to pool the coordinate variance, which doubles the all-reduce.
        centred: Whether to spend a second all-reduce, of the scatter about the mean alone.
        add_up: ``add_up(tree, axes)``, the sum over devices.
        metric: Of the norms and of `local.stats`, equal on all devices; None for the Euclidean one.

    Returns:
        ``(grads, stats, averages)``, equal on all devices; `grads` at least in float32.
    """
    axes, devices = axes_of(axis_name), check_bound(axis_name)
    dtype = _tree.scalar_dtype(local.grads)
    weight = jnp.asarray(local.weight, dtype)
    real = weight > 0
    # A device without real rows may hold NaN: it counts as zero.
    clean = lambda x: _tree.widen(x) if equal else jnp.where(real, _tree.widen(x), 0)
    own = jax.tree.map(clean, local.grads)
    averages = jax.tree.map(clean, local.averages)

    groups, within = real.astype(dtype), _own_scatter(local.stats, coordinate, dtype)
    if local.stats is not None:
        groups = jnp.where(real, local.stats.num_groups, 0).astype(dtype)
    counts = {"weight": weight, "groups": groups}

    def scatter_about(centre: ArrayTree | None) -> ArrayTree:
        """M_j + W_j ‖h_j − centre‖², or a tree of it for each coordinate."""
        distance = own if centre is None else jax.tree.map(lambda h, c: h - c, own, centre)
        if not coordinate:
            return within + weight * _tree.sq_norm(distance, metric)
        squares = jax.tree.map(lambda d: weight * _tree.squared_modulus(d), distance)
        return squares if local.stats is None else jax.tree.map(jnp.add, within, squares)

    share = jnp.ones([], dtype) if equal else weight
    sums: dict[str, Any] = {
        "grads": jax.tree.map(lambda h: share.astype(h.real.dtype) * h, own),
        "averages": jax.tree.map(lambda x: share.astype(x.real.dtype) * x, averages),
    }
    if not centred:
        sums["scatter"] = scatter_about(None)
    if equal:
        # Equal on all devices by construction: multiplied, not communicated.
        same = {name: x for name, x in counts.items() if not varying_axes(x) & set(axes)}
        sums["counts"] = {name: x for name, x in counts.items() if name not in same}
    else:
        same, sums["counts"] = {}, counts
    sums = add_up(sums, axes)
    total = sums["counts"] | {name: devices * x for name, x in same.items()}

    divisor = jnp.asarray(devices, dtype) if equal else total["weight"]
    divisor = jnp.where(divisor > 0, divisor, 1)
    average = lambda x: x / divisor.astype(x.real.dtype)
    grads = jax.tree.map(average, sums["grads"])
    averages = jax.tree.map(
        lambda x, old: jnp.where(total["weight"] > 0, average(x), jnp.nan).astype(old.dtype),
        sums["averages"],
        local.averages,
    )

    if centred:
        scatter = add_up(scatter_about(grads), axes)
    elif coordinate:
        scatter = jax.tree.map(
            lambda s, g: jnp.maximum(s - total["weight"] * _tree.squared_modulus(g), 0),
            sums["scatter"],
            grads,
        )
    else:
        # A sum of squares: what falls below zero is rounding.
        scatter = jnp.maximum(sums["scatter"] - total["weight"] * _tree.sq_norm(grads, metric), 0)
    variances = jax.tree.map(lambda s: unbiased(s, total["groups"]).astype(s.dtype), scatter)
    stats = GradientStats(
        num_examples=total["weight"],
        num_groups=total["groups"],
        sq_norm=_tree.sq_norm(grads, metric).astype(dtype),
        # A scalar is in the metric already, coordinates are not.
        variance=_tree.weighed_total(variances, metric if coordinate else None).astype(dtype),
        coordinate_variance=variances if coordinate else None,
    )
    return grads, stats, averages


def _own_scatter(stats: GradientStats | None, coordinate: bool, dtype: Any) -> ArrayTree:
    """M_j = (n_j − 1) S_j², zero where the device has one group or none."""
    if stats is None:
        return jnp.zeros([], dtype)
    several = stats.num_groups > 1
    scatter = lambda variance: jnp.where(several, (stats.num_groups - 1) * variance, 0)
    return jax.tree.map(scatter, stats.coordinate_variance if coordinate else stats.variance)
