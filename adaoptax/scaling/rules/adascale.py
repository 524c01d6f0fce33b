"""The AdaScale gain as a rule of statistics."""

import jax

from adaoptax.scaling.gain import adascale_gain
from adaoptax.scaling.rules.arguments import sizes
from adaoptax.stats import GradientStats, check_stats, signal
from adaoptax.typing import Scalar


def adascale(batch_size: Scalar, base_batch_size: Scalar, stats: GradientStats) -> jax.Array:
    r"""The AdaScale gain, from measured noise and signal.

    .. math:: \frac{\mathrm{lr}(B)}{\mathrm{lr}(B_0)} =
        \frac{S^2 / B_0 + \mu^2}{S^2 / B + \mu^2}, \qquad \mu^2 = \lVert g \rVert^2 - S^2 / B'

    where :math:`B'` is the batch on which the statistics were measured. It is `mccandlish` at the
    measured noise scale :math:`S^2 / \mu^2`. `scale_by_batch` averages noise and signal over steps
    before it asks. `scale_by_adascale` is the complete algorithm, with its own clock for schedules.

    Args:
        batch_size: :math:`B`, in examples.
        base_batch_size: :math:`B_0`, the size at which the learning rate was tuned, in examples.
        stats: A `GradientStats`. One step gives a rough value.

    Returns:
        A scalar factor between 1 and :math:`B / B_0`, 1 at the base batch; NaN where neither noise
        nor signal was found, or nothing was measured.

    Raises:
        ValueError: If a size is not positive.
        TypeError: If `stats` is not a `GradientStats`.

    Examples:
        >>> import adaoptax, jax.numpy as jnp
        >>> from adaoptax.scaling import rules
        >>> rows = jnp.array([[1., 0.], [3., 0.], [2., 2.], [2., -2.]])
        >>> _, stats = adaoptax.stats_from_groups(rows, group_size=32)
        >>> round(float(rules.adascale(128, 32, stats)), 4)
        1.625

    References:
        Johnson et al., `AdaScale SGD: A User-Friendly Algorithm for Distributed Training
        <https://arxiv.org/abs/2007.05105>`_, 2020, section 3.
    """
    check_stats(stats, "rules.adascale")
    batch, base = sizes(batch_size, base_batch_size)
    return adascale_gain(stats.variance / base, signal(stats), batch / base)
