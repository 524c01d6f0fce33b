"""The noise scale over a run and how well it is known: ratios of means with intervals."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from adaoptax import _validate
from adaoptax.ratio_interval import check_level, ratio_interval


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
    check_level(level)
    sizes = np.array([record["batch_size"] for record in records], float)
    variance, signal = _column(records, "variance"), _column(records, "signal")
    known = np.isfinite(variance) & np.isfinite(signal) & (sizes > 0)
    windows = []
    for first, last in _cuts(sizes, known, num_windows, min_steps):
        chosen = first + np.flatnonzero(known[first : last + 1])
        estimate = ratio_interval(sizes[chosen], variance[chosen], signal[chosen], level, np)
        windows.append(NoiseWindow(first, last, len(chosen), *map(float, estimate)))
    return windows


def _column(records: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
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
