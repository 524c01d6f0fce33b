"""Statistics from group gradients that the user has already stacked."""

import jax
import jax.numpy as jnp
import numpy as np

from adaoptax import _tree
from adaoptax._metric import as_metric
from adaoptax._tree import ArrayTree
from adaoptax.measure import moments as m
from adaoptax.measure.rows import count_rows
from adaoptax.stats import GradientStats
from adaoptax.typing import Scalar


def stats_from_groups(
    group_grads: ArrayTree,
    group_size: Scalar,
    *,
    statistics: tuple[str, ...] = ("norm", "inner"),
    preconditioner: ArrayTree | None = None,
) -> tuple[ArrayTree, GradientStats]:
    r"""Mean gradient and statistics of groups whose gradients are already at hand.

    .. math:: S^2 = \frac{1}{n-1} \sum_k m_k \lVert h_k - g \rVert^2, \qquad
        g = \sum_k m_k h_k / \sum_k m_k

    Args:
        group_grads: Pytree whose leaves have a leading axis of n groups: the **mean** gradient
            of each group. With ``group_size=1`` these are per-example gradients.
        group_size: Examples in each group: one number, or an array [n] for unequal groups
            (0 for a group of padding only).
        statistics: What to compute: any of ``"norm"`` (always), ``"inner"``, ``"coordinate"`` and
            ``"leave-one-out"`` (inner products with the mean of the other groups).
        preconditioner: Pytree like one group's gradient, as in `value_grad_and_stats`.

    Returns:
        ``(grads, stats)``: the mean over all examples, in the dtype of `group_grads`, and its
        statistics, in float32 or wider.

    Raises:
        ValueError: If there are fewer than two groups, if leading axes disagree, if a size is
            negative, or if a name in `statistics` is unknown.

    Examples:
        >>> import adaoptax, jax.numpy as jnp
        >>> halves = jnp.array([[1.5, 1.0], [2.5, -1.0]])  # mean gradients of two examples each
        >>> grads, stats = adaoptax.stats_from_groups(halves, group_size=2)
        >>> float(stats.num_examples), float(stats.variance)
        (4.0, 5.0)
    """
    m.check_statistics(statistics, m.OF_STACKED_GRADIENTS, "stats_from_groups")
    num_groups = count_rows(group_grads, "group_grads")
    if num_groups < 2:
        raise ValueError(
            "Expected group_grads of at least 2 groups, got 1: the noise is what differs between"
            " groups, so one group cannot tell it; cut the batch in more groups."
        )
    if not isinstance(group_size, jax.core.Tracer) and np.any(np.asarray(group_size) < 0):
        raise ValueError(
            f"Expected group_size >= 0, got group_size={group_size}: it counts examples."
        )
    if np.ndim(group_size) and np.shape(group_size) != (num_groups,):
        raise ValueError(
            f"Expected group_size to be a number or of shape ({num_groups},), got shape"
            f" {np.shape(group_size)}: give one count for each group of group_grads."
        )
    dtype = _tree.scalar_dtype(group_grads)
    weight = jnp.broadcast_to(jnp.asarray(group_size, dtype), (num_groups,))
    metric = as_metric(preconditioner, jax.tree.map(lambda h: h[0], group_grads))
    moments = m.chunk_moments(group_grads, weight, "coordinate" in statistics, metric)
    inner = others = None
    if "inner" in statistics or "leave-one-out" in statistics:
        products = m.centred_inner_products(group_grads, moments.mean, metric)
    if "inner" in statistics:
        inner = m.inner_scatter(products, weight)
    if "leave-one-out" in statistics:
        # A group of padding only may hold NaN: its weight of zero would not remove it.
        zero = lambda x: jnp.where(weight > 0, x, 0)
        squares = zero(m.sq_deviations(group_grads, moments.mean, metric))
        others = m.leave_one_out_scatter(zero(products), squares, weight)
    grads = jax.tree.map(lambda g, h: g.astype(jnp.result_type(h)), moments.mean, group_grads)
    return grads, m.to_stats(moments, m.totals_of(weight), inner, others, metric=metric)
