"""The noise scale over a run and how well it is known: ratios of means with intervals."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from adaoptax import _validate


class NoiseWindow(NamedTuple):
    """The noise scale over some updates in a row.

    Attributes:
        first: Index of the first record of the window.
        last: Index of its last record.
        num_steps: Number of its updates that measured noise.
        noise_scale: Ratio of means, in examples; NaN where it is not known yet.
        low: Lower end of the interval; NaN where it is not known yet.
        high: Upper end of the interval; NaN where it is not known yet.
    """

    first: int
    last: int
    num_steps: int
    noise_scale: float
    low: float
    high: float


def noise_windows(
    records: Sequence[Mapping[str, Any]],
    *,
    num_windows: int = 24,
    min_steps: int = 8,
    level: float = 0.95,
) -> list[NoiseWindow]:
    r"""The noise scale in windows of a run, each with an interval of confidence.

    A window holds updates t with variance :math:`S^2_t`, signal :math:`G_t` (which is negative in
    many steps where the batch is small) and batch size :math:`B_t`. Its noise scale is the ratio
    of means, in which every example weighs the same:

    .. math:: \hat{\mathcal{B}} = \frac{\bar v}{\bar s}, \qquad
        \bar v = \frac{\sum_t B_t S^2_t}{\sum_t B_t}, \qquad
        \bar s = \frac{\sum_t B_t G_t}{\sum_t B_t}

    Its interval is Fieller's: all :math:`\rho` for which :math:`\bar v - \rho \bar s` differs
    from zero by at most t standard errors, these from the scatter over the steps of the window.
    It is the delta method (:math:`\pm t` times the scatter of :math:`S^2_t -
    \hat{\mathcal{B}} G_t` over :math:`\bar s`) where the signal is well known, and lopsided where
    it is not. Where :math:`\bar s` is below t standard errors the interval has no upper end: the
    window says that the noise scale is not known yet, and gives no number.

    Args:
        records: Records of a run. Those without a finite "variance" and "signal" (steps that did
            not measure) count as time, not as measurements.
        num_windows: Windows to cut the run into, equally long in examples.
        min_steps: Measurements that a window must hold; it is longer where it has to be. Below 8
            the interval rests on too few.
        level: Probability that the interval holds the noise scale. It is approximate: heavy tails
            need more steps, and the drift of the noise scale inside a window makes it wider.

    Returns:
        Windows in order, without a gap between them. None where nothing was measured; the last
        one is longer, to take in the rest.

    Raises:
        ValueError: If an argument is out of range.

    Examples:
        >>> from adaoptax.loop import noise_windows
        >>> record = {"batch_size": 10, "variance": 6.0}
        >>> signals = [1.9, 2.0, 2.1] * 4  # the signal is known well, and then not at all
        >>> runs = [{**record, "signal": s} for s in [*signals, *(-1.0, 0.0, 1.5) * 4]]
        >>> for at, part in enumerate((runs[:12], runs[12:])):
        ...     window = noise_windows(part, num_windows=1)[0]
        ...     print(f"{window.low:.2f} < {window.noise_scale:.2f} < {window.high:.2f}")
        2.92 < 3.00 < 3.08
        nan < nan < nan

    References:
        Fieller, Some Problems in Interval Estimation, 1954; McCandlish et al., `An Empirical Model
        of Large-Batch Training <https://arxiv.org/abs/1812.06162>`_, 2018, appendix A.
    """
    _validate.count("num_windows", num_windows, 1, "it is the number of parts of the run.")
    _validate.count("min_steps", min_steps, 3, "a scatter needs some steps; 8 or more is usual.")
    if not 0 < level < 1:
        raise ValueError(f"Expected 0 < level < 1, got level={level!r}: 0.95 is usual.")
    sizes = np.array([record["batch_size"] for record in records], float)
    variance, signal = _numbers(records, "variance"), _numbers(records, "signal")
    known = np.isfinite(variance) & np.isfinite(signal) & (sizes > 0)
    windows = []
    for first, last in _cuts(sizes, known, num_windows, min_steps):
        chosen = first + np.flatnonzero(known[first : last + 1])
        t = _student(level, len(chosen) - 1)
        estimate = _ratio_of_means(sizes[chosen], variance[chosen], signal[chosen], t)
        windows.append(NoiseWindow(first, last, len(chosen), *estimate))
    return windows


def _numbers(records: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
    """A column of floats, NaN where there is no number."""
    return np.array([math.nan if (x := r.get(name)) is None else x for r in records], float)


def _cuts(
    sizes: np.ndarray, known: np.ndarray, num_windows: int, min_steps: int
) -> list[tuple[int, int]]:
    """First and last index of every window."""
    # In parts of the run: 1 / num_windows after the last cut, but on a grid, so that what one
    # window takes too much the next one lacks. A little less, for the rounding of the division.
    parts = np.cumsum(sizes) / sizes.sum() * num_windows + 1e-9
    cuts: list[tuple[int, int]] = []
    first, end, enough = 0, 1, min_steps
    for index, steps in enumerate(np.cumsum(known)):
        if parts[index] >= end and steps >= enough:
            cuts.append((first, index))
            first, end, enough = index + 1, math.floor(parts[index]) + 1, steps + min_steps
    if cuts and first < len(sizes):
        cuts[-1] = cuts[-1][0], len(sizes) - 1
    return cuts


def _ratio_of_means(
    weights: np.ndarray, above: np.ndarray, below: np.ndarray, t: float
) -> tuple[float, float, float]:
    """Ratio of the weighted means and Fieller's interval; NaN where it has no upper end."""
    a, b = np.average([above, below], axis=1, weights=weights)
    scatter = weights / weights.sum() * np.array([above - a, below - b])
    aa, ab, bb = (scatter @ scatter.T)[[0, 0, 1], [0, 1, 1]] * t**2 * len(above) / (len(above) - 1)
    square = b * b - bb
    if not (b > 0 and square > 0):
        return math.nan, math.nan, math.nan
    middle = a * b - ab
    half = math.sqrt(max(middle * middle - square * (a * a - aa), 0))
    return a / b, max((middle - half) / square, 0.0), (middle + half) / square


def _student(level: float, freedom: int) -> float:
    """Two-sided quantile of Student's t, by the Cornish-Fisher series (1 % at 3, 0.01 % at 9)."""
    z = statistics.NormalDist().inv_cdf((1 + level) / 2)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, start=1))
