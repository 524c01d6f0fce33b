r"""How much progress to promise, and how well to solve: predicted log-progress per second.

Small working sets are solved fast and gain little. With the promised progress ξ, the accuracy ε of
the subproblem (its gap as a share of the gap Δ), and the size s(ξ) of its working set,

.. math:: \max_{\xi, \varepsilon}
    \frac{-\log(\Delta'/\Delta)}{T_0 + C_s\, s(\xi) \log(1/\varepsilon)}, \qquad
    \Delta'/\Delta = \max(\varepsilon,\; 1 - (1-\varepsilon)\, \xi\, C_p) .

T_0 (seconds outside of the subproblem), C_s (seconds a unit of size) and C_p (progress made over
progress promised) are medians of what the last iterations measured. As in BlitzWS, but for
log(1/ε) in the place of 1/ε: the proximal Newton method of `newton.py` converges at least linearly.
"""

from collections import deque
from typing import NamedTuple

import numpy as np

PROGRESS = np.logspace(-6, 0, 125)
ACCURACIES = np.array([0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.2, 0.3, 0.5, 0.7])
FIRST_SIZE = 100  # features of the first working set, before anything was measured
PAST_PROGRESS, PAST_TIMES = 2, 5  # iterations that the medians remember


class Plan(NamedTuple):
    """What to do next.

    Attributes:
        progress: ξ, promised.
        accuracy: ε, the gap of the subproblem as a share of the gap.
    """

    progress: float
    accuracy: float


class Scheduler:
    """Chooses ξ and ε from the measurements of earlier iterations."""

    def __init__(self) -> None:
        self._ratios: deque[float] = deque(maxlen=PAST_PROGRESS)
        self._solve: deque[float] = deque(maxlen=PAST_TIMES)
        self._overhead: deque[float] = deque(maxlen=PAST_TIMES)

    def choose(self, critical: np.ndarray, sizes: np.ndarray, always: np.ndarray) -> Plan:
        """The plan of the best predicted log-progress per second.

        Args:
            critical: ξ_j of every feature, see `critical_progress`.
            sizes: What a feature costs in a sweep.
            always: Which features are in every working set: the support.
        """
        if not self._solve:
            enough = (
                np.partition(critical, FIRST_SIZE - 1)[FIRST_SIZE - 1]
                if (len(critical) > FIRST_SIZE)
                else 1.0
            )
            return Plan(float(np.clip(enough, PROGRESS[0], 1.0)), 0.3)
        needed = np.where(always, 0.0, critical)
        order = np.argsort(needed)
        total = np.concatenate([[0.0], np.cumsum(sizes[order])])
        size = total[np.searchsorted(needed[order], PROGRESS, side="right")]
        return predict(size, *(float(np.median(x)) for x in self._measured()))

    def _measured(self) -> tuple[deque[float], deque[float], deque[float]]:
        return self._ratios, self._solve, self._overhead

    def learn(
        self, plan: Plan, before: float, after: float, size: float, solving: float, other: float
    ) -> None:
        """Takes what one iteration did.

        Args:
            plan: What was promised.
            before: The gap before.
            after: The gap after.
            size: Cost of the working set, in units of `sizes`.
            solving: Seconds in the subproblem.
            other: Seconds outside of it.
        """
        made = max(1 - after / before, 0.0)
        self._ratios.append(max(made, 1e-3) / ((1 - plan.accuracy) * plan.progress))
        self._solve.append(solving / (max(size, 1.0) * np.log(1 / plan.accuracy)))
        self._overhead.append(other)


def predict(size: np.ndarray, ratio: float, per_size: float, overhead: float) -> Plan:
    """The best of all plans, given s(ξ) for each ξ of `PROGRESS` and the three constants."""
    xi, accuracy = PROGRESS[:, None], ACCURACIES[None, :]
    left = np.maximum(accuracy, 1 - (1 - accuracy) * xi * ratio)
    seconds = overhead + per_size * np.maximum(size, 1.0)[:, None] * np.log(1 / accuracy)
    rate = -np.log(left) / np.maximum(seconds, 1e-12)
    row, column = np.unravel_index(np.argmax(rate), rate.shape)
    return Plan(float(PROGRESS[row]), float(ACCURACIES[column]))
