"""The ratio of two means that scatter together, with an interval: on the host and in a step.

The functions take the array module, `numpy` or `jax.numpy`, so that the windows of a record
(`loop/noise_windows.py`) and the tracker in an optimizer (`noise_tracker.py`) share one formula.
"""

import statistics
from typing import Any, NamedTuple

import jax

from adaoptax import _validate


class RatioInterval(NamedTuple):
    """A ratio of means. All are NaN where the ratio is not known.

    Attributes:
        ratio: Mean above over mean below.
        low: Lower end of its interval, at least 0.
        high: Upper end.
    """

    ratio: Any
    low: Any
    high: Any


def ratio_interval(weights: Any, above: Any, below: Any, level: Any, xp: Any) -> RatioInterval:
    r"""Ratio of the weighted means and Fieller's interval.

    With :math:`w_k` that sum to one, :math:`a = \sum w_k a_k` and :math:`b = \sum w_k b_k`, the
    standard error of :math:`a - \rho b` is that of the jackknife which leaves out one entry at a
    time,

    .. math:: e(\rho)^2 = \frac{1}{1 - \sum_k w_k^2} \sum_k w_k^2
        \big( (a_k - \rho b_k) - (a - \rho b) \big)^2

    (:math:`1/(1 - \sum w^2)` is :math:`n/(n-1)` for equal weights, and unbiased for entries whose
    variance is inversely proportional to their weight). The interval is every :math:`\rho` with
    :math:`|a - \rho b| \le t\, e(\rho)`, t of Student's distribution with :math:`1/\sum w^2 - 1`
    degrees of freedom: the roots of a quadratic,

    .. math:: \rho = \frac{(ab - E_{ab}) \pm h}{b^2 - E_{bb}}, \qquad
        h^2 = E_{xx} - (E_{aa} E_{bb} - E_{ab}^2), \qquad x_k = a b_k - b a_k

    where :math:`E_{ab}` is :math:`t^2` times the covariance of the two means. Where b is below t
    standard errors the interval has no upper end, and the ratio is not known.

    Args:
        weights: [n], not negative; entries of weight zero are none.
        above: [n, ...], the numerators.
        below: [n, ...], the denominators.
        level: Probability that the interval holds the ratio.
        xp: `numpy` or `jax.numpy`.

    Returns:
        Arrays [...].

    References:
        Fieller, Some Problems in Interval Estimation, 1954.
    """
    total = xp.sum(weights)
    share = weights / xp.where(total > 0, total, 1)
    concentration = xp.sum(share * share)
    several = (concentration > 0) & (concentration < 1)
    concentration = xp.where(several, concentration, 0.5)
    t = student_quantile(level, xp.maximum(1 / concentration - 1, 1), xp)
    share = share.reshape(-1, *(1,) * (above.ndim - 1))
    # In units of the largest entry: squares of small gradients underflow in float32.
    above, unit_above = _in_own_unit(above, xp)
    below, unit_below = _in_own_unit(below, xp)
    a, b = xp.sum(share * above, axis=0), xp.sum(share * below, axis=0)
    off_a, off_b = share * (above - a), share * (below - b)
    square = t * t / (1 - concentration)
    spread = lambda x, y: square * xp.sum(x * y, axis=0)
    aa, ab, bb = spread(off_a, off_a), spread(off_a, off_b), spread(off_b, off_b)
    across = a * off_b - b * off_a
    half = xp.sqrt(xp.maximum(spread(across, across) - (aa * bb - ab * ab), 0))
    known = several & (b > 0) & (b * b > bb)
    divisor = xp.where(known, b * b - bb, 1)
    middle = a * b - ab
    unit = unit_above / unit_below
    number = lambda x: xp.where(known, unit * x, xp.nan)
    return RatioInterval(
        number(a / xp.where(known, b, 1)),
        number(xp.maximum((middle - half) / divisor, 0)),
        number((middle + half) / divisor),
    )


def _in_own_unit(x: Any, xp: Any) -> tuple[Any, Any]:
    largest = xp.max(xp.abs(x), axis=0)
    unit = xp.where(largest > 0, largest, 1)
    return x / unit, unit


def student_quantile(level: Any, freedom: Any, xp: Any) -> Any:
    """Two-sided quantile of Student's t, by the Cornish-Fisher series (1 % at 3, 0.01 % at 9)."""
    if _validate.is_number(level):
        z: Any = statistics.NormalDist().inv_cdf((1 + float(level)) / 2)
    else:
        z = jax.scipy.special.ndtri((1 + level) / 2)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    inverse = 1 / xp.asarray(freedom)
    return z + sum(term * inverse**power for power, term in enumerate(terms, start=1))


def check_level(level: Any) -> None:
    """Raises ValueError unless `level` is a probability between 0 and 1."""
    if _validate.is_number(level) and not 0 < level < 1:
        raise ValueError(f"Expected 0 < level < 1, got level={level!r}: 0.95 is usual.")
