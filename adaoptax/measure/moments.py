"""Mean and scatter of group gradients: one chunk at a time, merged by Chan's formula.

Group j has W_j real rows and the mean gradient h_j. With W = Σ W_j and n groups that have a real
row, the mean is g = Σ W_j h_j / W, and

    S² = Σ_j W_j ‖h_j − g‖² / (n − 1)

is unbiased for any sizes of groups that do not depend on the gradients.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from adaoptax import _tree
from adaoptax._tree import ArrayTree
from adaoptax.stats import GradientStats, unbiased

STATISTICS = ("norm", "inner", "coordinate")
OF_STACKED_GRADIENTS = (*STATISTICS, "leave-one-out")  # what needs the square of every group, too


def check_statistics(statistics: tuple[str, ...], offered: tuple[str, ...], method: str) -> None:
    """Raises ValueError unless every name is known to `method`."""
    unknown = [name for name in statistics if name not in offered]
    if unknown or isinstance(statistics, str):
        raise ValueError(
            f"Expected statistics to be a tuple of names out of {offered}, got {statistics!r}:"
            f" {method} measures these only."
        )


class Totals(NamedTuple):
    """What the statistics need to know of the sizes of groups.

    Attributes:
        weight: W = Σ W_j, the real rows.
        num_groups: n, the groups with a real row.
    """

    weight: jax.Array
    num_groups: jax.Array

    def unbiased(self, scatter: jax.Array) -> jax.Array:
        """S² of a scatter Σ W_j ‖h_j − g‖²; NaN for fewer than two groups."""
        return unbiased(scatter, self.num_groups.astype(scatter.dtype))


def totals_of(weight: jax.Array) -> Totals:
    """Totals of groups of `weight` [n] real rows."""
    return Totals(jnp.sum(weight), jnp.sum(weight > 0, dtype=jnp.int32))


class Moments(NamedTuple):
    """Mean gradient of the groups so far and their scatter about it.

    Attributes:
        mean: pytree like the parameters, at least float32.
        scatter: Σ W_j ‖h_j − mean‖², in the metric of a preconditioner if there is one.
        coordinate_scatter: the same per coordinate, without a metric, or None.
    """

    mean: ArrayTree
    scatter: jax.Array
    coordinate_scatter: ArrayTree | None


def zero_moments(params: ArrayTree, coordinate: bool) -> Moments:
    """Moments of no group, of the types (dtype, sharding, varying axes) that gradients have."""
    mean = jax.tree.map(
        lambda x: jnp.zeros_like(x, dtype=jnp.promote_types(jnp.result_type(x), jnp.float32)),
        params,
    )
    real = lambda x: jnp.zeros_like(x, dtype=jnp.finfo(x.dtype).dtype)
    return Moments(
        mean=mean,
        # Not zeros([]): a literal lies on no mesh, and cannot be carried on an Explicit one.
        scatter=jnp.sum(jnp.zeros([1], _tree.scalar_dtype(mean))),
        coordinate_scatter=jax.tree.map(real, mean) if coordinate else None,
    )


def chunk_moments(
    group_grads: ArrayTree, weight: jax.Array, coordinate: bool, metric: ArrayTree | None = None
) -> Moments:
    """Moments of a chunk of groups whose gradients are stacked on axis 0; `weight` is [c]."""
    if weight.shape[0] == 1 and not coordinate:  # one group is its own mean, without scatter
        mean = jax.tree.map(lambda h: _tree.widen(h[0]), group_grads)
        return Moments(mean, jnp.zeros([], _tree.scalar_dtype(mean)), None)
    total = jnp.sum(weight)
    share = weight / jnp.where(total > 0, total, 1)
    # A group of padding only may hold NaN: it counts as the zero gradient of weight zero.
    stacked = jax.tree.map(
        lambda h: jnp.where(_rows(weight, h) > 0, _tree.widen(h), 0), group_grads
    )
    mean = jax.tree.map(lambda h: jnp.sum(_rows(share, h) * h, axis=0), stacked)
    weighted_square = lambda h, g: _rows(weight, h) * _tree.squared_modulus(h - g)
    if not coordinate:
        squares = jax.tree.map(weighted_square, stacked, mean)
        return Moments(mean, _tree.weighed_total(squares, metric), None)
    coordinate_scatter = jax.tree.map(
        lambda h, g: jnp.sum(weighted_square(h, g), axis=0), stacked, mean
    )
    return Moments(mean, _tree.weighed_total(coordinate_scatter, metric), coordinate_scatter)


def add_chunk(
    moments: Moments,
    chunk: Moments,
    weight_before: jax.Array,
    weight: jax.Array,
    metric: ArrayTree | None = None,
) -> Moments:
    """Merges a chunk of total `weight` into moments of total `weight_before` (Chan)."""
    after = weight_before + weight
    share = weight / jnp.where(after > 0, after, 1)
    between = weight_before * share
    difference = jax.tree.map(lambda h, g: h - g, chunk.mean, moments.mean)
    coordinate_scatter = None
    if moments.coordinate_scatter is not None:
        coordinate_scatter = jax.tree.map(
            lambda a, b, d: a + b + between.astype(a.dtype) * _tree.squared_modulus(d),
            moments.coordinate_scatter,
            chunk.coordinate_scatter,
            difference,
        )
    return Moments(
        mean=jax.tree.map(lambda g, d: g + share.astype(g.dtype) * d, moments.mean, difference),
        scatter=moments.scatter + chunk.scatter + between * _tree.sq_norm(difference, metric),
        coordinate_scatter=coordinate_scatter,
    )


def centred_inner_products(
    group_grads: ArrayTree, mean: ArrayTree, metric: ArrayTree | None = None
) -> jax.Array:
    """Re⟨h_j − g, g⟩ for each group of a stack [c, ...], summed over all tensors: shape [c]."""

    def leaf(h: jax.Array, g: jax.Array, direction: jax.Array) -> jax.Array:
        h = _tree.widen(h) - g
        return jnp.sum(jnp.real(h * jnp.conj(direction)).reshape(h.shape[0], -1), axis=1)

    parts = jax.tree.leaves(jax.tree.map(leaf, group_grads, mean, in_metric(mean, metric)))
    return jnp.sum(jnp.stack(parts), axis=0)


def inner_scatter(products: jax.Array, weight: jax.Array) -> jax.Array:
    """Σ W_j (p_j − p̄)² of all groups' centred inner products; p̄ is zero but for rounding."""
    real, total = weight > 0, jnp.sum(weight)
    products = jnp.where(real, products, 0)
    mean = jnp.sum(weight * products) / jnp.where(total > 0, total, 1)
    return jnp.sum(weight * (products - mean) ** 2)


def in_metric(grads: ArrayTree, metric: ArrayTree | None) -> ArrayTree:
    """P g, whose inner product with anything is that with g in the metric."""
    if metric is None:
        return grads
    return jax.tree.map(lambda g, p: g * p.astype(_tree.scalar_dtype(g)), grads, metric)


def sq_deviations(
    group_grads: ArrayTree, mean: ArrayTree, metric: ArrayTree | None = None
) -> jax.Array:
    """‖h_j − g‖² for each group of a stack [c, ...], summed over all tensors: shape [c]."""
    square = lambda h, g: _tree.squared_modulus(_tree.widen(h) - g)
    squares = in_metric(jax.tree.map(square, group_grads, mean), metric)
    parts = [jnp.sum(x.reshape(x.shape[0], -1), axis=1) for x in jax.tree.leaves(squares)]
    return jnp.sum(jnp.stack(parts), axis=0)


def leave_one_out_scatter(
    products: jax.Array, sq_deviations: jax.Array, weight: jax.Array
) -> jax.Array:
    """Σ W_j (p'_j − p̄')² of inner products with the mean of the *other* groups.

    With c_j = ⟨h_j − g, g⟩ and q_j = ‖h_j − g‖² the products are ‖g‖² plus
    ((W − 2 W_j) c_j − W_j q_j)/(W − W_j): what all have in common is never subtracted.
    """
    total = jnp.sum(weight)
    rest = total - weight
    counts = (weight > 0) & (rest > 0)
    deviation = (total - 2 * weight) * products - weight * sq_deviations
    deviation = jnp.where(counts, deviation / jnp.where(counts, rest, 1), 0)
    mean = jnp.sum(weight * deviation) / jnp.where(total > 0, total, 1)
    return jnp.sum(weight * (deviation - mean) ** 2)


def to_stats(
    moments: Moments,
    totals: Totals,
    inner_scatter: jax.Array | None = None,
    leave_one_out_scatter: jax.Array | None = None,
    *,
    metric: ArrayTree | None = None,
) -> GradientStats:
    """The statistics of all groups together."""
    coordinate_variance = moments.coordinate_scatter
    if coordinate_variance is not None:
        coordinate_variance = jax.tree.map(
            lambda x: totals.unbiased(x).astype(x.dtype), coordinate_variance
        )
    dtype = moments.scatter.dtype
    unbiased = lambda scatter: None if scatter is None else totals.unbiased(scatter)
    return GradientStats(
        num_examples=totals.weight.astype(dtype),
        num_groups=totals.num_groups.astype(dtype),
        sq_norm=_tree.sq_norm(moments.mean, metric).astype(dtype),
        variance=totals.unbiased(moments.scatter),
        inner_product_variance=unbiased(inner_scatter),
        coordinate_variance=coordinate_variance,
        leave_one_out_variance=unbiased(leave_one_out_scatter),
    )


def _rows(per_row: jax.Array, like: jax.Array) -> jax.Array:
    """Reshapes [c] to broadcast against [c, ...], in the real dtype of `like`."""
    column = per_row.reshape(per_row.shape[0], *(1,) * (like.ndim - 1))
    return column.astype(jnp.finfo(like.dtype).dtype)
