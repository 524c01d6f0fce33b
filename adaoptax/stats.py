r"""The statistics of one gradient, and the quantities derived from them.

A batch of :math:`B` examples is cut in :math:`n` groups of :math:`m = B/n` examples with mean
gradients :math:`h_1 \dots h_n` (:math:`n = B`, :math:`m = 1` when measured per example), and
:math:`g` is the mean gradient that the optimizer sees. All sums run over all tensors of the
parameter tree before any ratio is formed.

The functions below are pure, and work on the statistics of one step or on averages of them.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from adaoptax import _tree
from adaoptax._metric import as_metric
from adaoptax._tree import ArrayTree

__all__ = [
    "GradientStats",
    "is_measured",
    "merge_stats",
    "noise_scale",
    "orthogonal_variance",
    "signal",
]


class GradientStats(NamedTuple):
    r"""What one gradient evaluation tells about noise and signal.

    Leaves are float32 scalars (float64 where the gradients are), so that the whole of it costs
    a few bytes, needs no sharding and passes through every Optax wrapper.

    Attributes:
        num_examples: :math:`B`, the examples that the gradient averages. Padding never counts.
        num_groups: :math:`n`; the estimate has :math:`n - 1` degrees of freedom. Zero says that
            noise was **not measured** at this step (`measure.every`): all that decides holds its
            state, and counts nothing.
        sq_norm: :math:`\lVert g \rVert^2`, the squared norm of the mean gradient.
        variance: :math:`S^2 = \frac{m}{n-1} \sum_k \lVert h_k - g \rVert^2`, the unbiased trace of
            the **per-example** gradient covariance, whatever :math:`m` was. NaN if fewer than two
            groups are real: one group tells nothing about noise.
        inner_product_variance: :math:`V_{ip} = \frac{m}{n-1} \sum_k (\langle h_k, g \rangle -
            \lVert g \rVert^2)^2`, the unbiased variance of the per-example
            :math:`\langle g_i, g \rangle`; None where it was not measured.
        coordinate_variance: pytree like the parameters, the unbiased per-coordinate variance of
            per-example gradients (its sum is `variance`); None unless asked for.
        leave_one_out_variance: :math:`\frac{m}{n-1} \sum_k (p_k' - \bar p')^2`, the unbiased
            variance of :math:`p_k' = \langle h_k, g_{-k} \rangle`, the inner product with the mean
            of the other groups (`measure.leave_one_out`); None unless asked for.

    **With a preconditioner** P (`value_grad_and_stats`) the squared norm is :math:`g^\top P g`, the
    variance :math:`\operatorname{tr} P \Sigma`, and inner products are :math:`g_i^\top P g`: those
    of :math:`P^{1/2} g_i`. `coordinate_variance` remains that of the gradient as it is, whose sum
    *times P* is then the variance.

    Examples:
        >>> import adaoptax, jax.numpy as jnp
        >>> rows = jnp.array([[1., 0.], [3., 0.], [2., 2.], [2., -2.]])  # per-example gradients
        >>> grads, stats = adaoptax.stats_from_groups(rows, group_size=1)
        >>> [round(float(x), 3) for x in (stats.sq_norm, stats.variance, adaoptax.signal(stats))]
        [4.0, 3.333, 3.167]
    """

    num_examples: jax.Array
    num_groups: jax.Array
    sq_norm: jax.Array
    variance: jax.Array
    inner_product_variance: jax.Array | None = None
    coordinate_variance: ArrayTree | None = None
    leave_one_out_variance: jax.Array | None = None


def signal(stats: GradientStats) -> jax.Array:
    r"""Unbiased estimate of the squared norm of the true gradient.

    .. math:: \lVert g \rVert^2 - S^2 / B

    The measured :math:`\lVert g \rVert^2` contains the noise of its own batch,
    :math:`\mathbb{E} \lVert g \rVert^2 = \lVert \nabla F \rVert^2 + \operatorname{tr}\Sigma / B`.

    Args:
        stats: Statistics of one batch.

    Returns:
        A scalar that may be zero or negative, which says that the batch cannot tell its gradient
        from noise. It is never clamped here: clamping before averaging biases the average.

    Examples:
        >>> import adaoptax, jax.numpy as jnp
        >>> rows = jnp.array([[1., 0.], [3., 0.], [2., 2.], [2., -2.]])  # per-example gradients
        >>> _, stats = adaoptax.stats_from_groups(rows, group_size=1)
        >>> round(float(adaoptax.signal(stats)), 4)  # 4 - (10/3)/4
        3.1667
    """
    return stats.sq_norm - stats.variance / stats.num_examples


def noise_scale(stats: GradientStats) -> jax.Array:
    r"""The simple gradient noise scale, in examples.

    .. math:: B_{simple} = S^2 / (\lVert g \rVert^2 - S^2 / B)

    Args:
        stats: Statistics of one batch. One batch gives a rough value: average `variance` and
            `signal` over steps first, then divide. Never average the ratio.

    Returns:
        A scalar; `inf` if the signal is not positive (noise all the way), NaN where nothing was
        measured (one group, or no gradient and no noise at all).

    Examples:
        >>> import adaoptax, jax.numpy as jnp
        >>> rows = jnp.array([[1., 0.], [3., 0.], [2., 2.], [2., -2.]])  # per-example gradients
        >>> _, stats = adaoptax.stats_from_groups(rows, group_size=1)
        >>> round(float(adaoptax.noise_scale(stats)), 4)  # (10/3)/(19/6)
        1.0526

    References:
        McCandlish et al., `An Empirical Model of Large-Batch Training
        <https://arxiv.org/abs/1812.06162>`_, 2018, section 2.2.
    """
    return ratio(stats.variance, signal(stats))


def orthogonal_variance(stats: GradientStats) -> jax.Array:
    r"""Variance of per-example gradients across the mean gradient.

    .. math:: V_{or} = \max(S^2 - V_{ip} / \lVert g \rVert^2, 0)

    Args:
        stats: Statistics that hold `inner_product_variance`.

    Returns:
        A scalar; equal to `variance` if the mean gradient is zero (no direction to project on).

    Raises:
        ValueError: If the inner products were not measured.

    Examples:
        >>> import adaoptax, jax.numpy as jnp
        >>> rows = jnp.array([[1., 0.], [3., 0.], [2., 2.], [2., -2.]])  # per-example gradients
        >>> _, stats = adaoptax.stats_from_groups(rows, group_size=1)
        >>> round(float(adaoptax.orthogonal_variance(stats)), 4)  # 10/3 - (8/3)/4
        2.6667

    References:
        Bollapragada et al., `Adaptive Sampling Strategies for Stochastic Optimization
        <https://arxiv.org/abs/1710.11258>`_, 2018, equation 3.3.
    """
    along = require_inner_product_variance(stats)
    has_direction = stats.sq_norm > 0
    along = jnp.where(has_direction, along / jnp.where(has_direction, stats.sq_norm, 1), 0)
    return jnp.maximum(stats.variance - along, 0)


def is_measured(stats: GradientStats) -> jax.Array:
    """Whether noise was to be measured at this step, as `measure.every` chooses steps.

    Args:
        stats: Statistics of one step.

    Returns:
        A bool scalar: False for no groups of some examples. What was measured may still be
        undefined: one group, NaN, a batch of padding only.

    Examples:
        >>> import adaoptax, jax.numpy as jnp
        >>> grads, stats = adaoptax.stats_from_groups(jnp.eye(4), group_size=8)
        >>> bool(adaoptax.stats.is_measured(stats))
        True
        >>> bool(adaoptax.stats.is_measured(stats._replace(num_groups=0)))
        False
    """
    return (stats.num_groups > 0) | ~(stats.num_examples > 0)


def merge_stats(
    grads_a: ArrayTree,
    stats_a: GradientStats,
    grads_b: ArrayTree,
    stats_b: GradientStats,
    *,
    preconditioner: ArrayTree | None = None,
) -> tuple[ArrayTree, GradientStats]:
    r"""Gradient and statistics of the union of two disjoint batches.

    With :math:`M = (n - 1) S^2` and :math:`d = g_b - g_a` (Chan's formula),

    .. math:: g = g_a + \tfrac{B_b}{B} d, \qquad
        M = M_a + M_b + \tfrac{B_a B_b}{B} \lVert d \rVert^2, \qquad
        S^2 = M / (n_a + n_b - 1)

    Equal to the pooled computation on all groups of both, in any order of merging. Parts of one
    group are welcome: their undefined variance counts as no scatter; beside a measured part, one
    that was not measured (`is_measured`) is one group.

    Args:
        grads_a: Mean gradient of the first batch.
        stats_a: Its statistics.
        grads_b: Mean gradient of the second batch.
        stats_b: Its statistics.
        preconditioner: The one that both were measured with, if they were.

    Returns:
        ``(grads, stats)`` of the union. `inner_product_variance` is None, since the inner products
        with the merged gradient need both covariances in full; `coordinate_variance` is merged
        when both parts hold it.

    Examples:
        >>> import adaoptax, jax.numpy as jnp
        >>> rows = jnp.array([[1., 0.], [3., 0.], [2., 2.], [2., -2.]])  # per-example gradients
        >>> a = adaoptax.stats_from_groups(rows[:2], group_size=1)
        >>> b = adaoptax.stats_from_groups(rows[2:], group_size=1)
        >>> grads, stats = adaoptax.merge_stats(*a, *b)
        >>> float(stats.num_examples), round(float(stats.variance), 4)
        (4.0, 3.3333)

    References:
        Chan, Golub and LeVeque, Updating Formulae and a Pairwise Algorithm for Computing Sample
        Variances, 1979.
    """
    metric = as_metric(preconditioner, grads_a)
    size = stats_a.num_examples + stats_b.num_examples
    groups = _groups_beside(stats_a, stats_b) + _groups_beside(stats_b, stats_a)
    share_b = jnp.where(size > 0, stats_b.num_examples / jnp.where(size > 0, size, 1), 0)
    between = stats_a.num_examples * share_b
    differences = jax.tree.map(lambda a, b: _tree.widen(b) - _tree.widen(a), grads_a, grads_b)
    merged = jax.tree.map(lambda a, d: _tree.widen(a) + share_b * d, grads_a, differences)

    def pooled(variance_a: jax.Array, variance_b: jax.Array, sq_difference: Any) -> jax.Array:
        scatter = _scatter(variance_a, stats_a) + _scatter(variance_b, stats_b)
        return unbiased(scatter + between * sq_difference, groups)

    coordinates = None
    if stats_a.coordinate_variance is not None and stats_b.coordinate_variance is not None:
        sq_differences = jax.tree.map(_tree.squared_modulus, differences)
        coordinates = jax.tree.map(
            pooled, stats_a.coordinate_variance, stats_b.coordinate_variance, sq_differences
        )
    stats = GradientStats(
        num_examples=size,
        num_groups=groups,
        sq_norm=_tree.sq_norm(merged, metric),
        variance=pooled(stats_a.variance, stats_b.variance, _tree.sq_norm(differences, metric)),
        coordinate_variance=coordinates,
    )
    return jax.tree.map(lambda m, a: m.astype(jnp.result_type(a)), merged, grads_a), stats


def _groups_beside(stats: GradientStats, other: GradientStats) -> jax.Array:
    """The groups of one part; one for a gradient without noise that meets a measured one."""
    return jnp.where(~is_measured(stats) & (other.num_groups > 0), 1, stats.num_groups)


def _scatter(variance: jax.Array, stats: GradientStats) -> jax.Array:
    """M = (n − 1) S², zero for a part of one group."""
    return jnp.where(stats.num_groups > 1, (stats.num_groups - 1) * variance, 0)


def unbiased(scatter: jax.Array, num_groups: jax.Array) -> jax.Array:
    """M / (n − 1), NaN where fewer than two groups leave no degree of freedom."""
    enough = num_groups > 1
    return jnp.where(enough, scatter / jnp.where(enough, num_groups - 1, 1), jnp.nan)


def check_stats(stats: Any, name: str) -> None:
    """Raises TypeError unless `stats` is a `GradientStats`."""
    if not isinstance(stats, GradientStats):
        raise TypeError(
            f"Expected stats to be a GradientStats, got {type(stats).__name__}: pass the"
            " third result of adaoptax.value_grad_and_stats, as in"
            f" tx.update(grads, state, params, stats=stats) ({name} decides by them)."
        )


def ratio(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """Numerator/denominator; inf where the denominator is not positive, NaN for exactly 0/0."""
    positive = denominator > 0
    quotient = numerator / jnp.where(positive, denominator, 1)
    nothing = (
        jnp.isnan(numerator) | jnp.isnan(denominator) | ((numerator == 0) & (denominator == 0))
    )
    return jnp.where(positive, quotient, jnp.where(nothing, jnp.nan, jnp.inf))


def require_inner_product_variance(stats: GradientStats) -> jax.Array:
    """`inner_product_variance`, or a ValueError that says how to measure it."""
    return _require(stats, "inner_product_variance", "per_example()", "...")


def require_coordinate_variance(stats: GradientStats) -> ArrayTree:
    """`coordinate_variance`, or a ValueError that says how to measure it."""
    asked = "statistics=('norm', 'coordinate')"
    methods = f"per_example({asked}) or groups(n, {asked})"
    return _require(stats, "coordinate_variance", methods, f"..., {asked}")


def require_leave_one_out_variance(stats: GradientStats) -> jax.Array:
    """`leave_one_out_variance`, or a ValueError that says how to measure it."""
    asked = "statistics=('norm', 'inner', 'leave-one-out')"
    return _require(stats, "leave_one_out_variance", f"per_example({asked})", f"..., {asked}")


def _require(stats: GradientStats, field: str, methods: str, arguments: str) -> Any:
    value = getattr(stats, field)
    if value is None:
        raise ValueError(
            f"Expected stats.{field}, got None: these statistics were measured without it. Measure"
            f" with {methods} of adaoptax.measure, or form them from your own gradients with"
            f" adaoptax.stats_from_groups({arguments})."
        )
    return value
