"""The plan is the one of the best predicted log-progress per second."""

import itertools
import math

import numpy as np
import pytest
from blitzws.scheduler import ACCURACIES, PROGRESS, Plan, Scheduler, predict


def rate(plan: Plan, size: float, ratio: float, per_size: float, overhead: float) -> float:
    """Predicted progress per second, from the definition."""
    left = max(plan.accuracy, 1 - (1 - plan.accuracy) * plan.progress * ratio)
    return -math.log(left) / (overhead + per_size * size * math.log(1 / plan.accuracy))


@pytest.mark.parametrize("ratio", [0.5, 3.0, 100.0])
@pytest.mark.parametrize("per_size", [1e-6, 1e-3])
@pytest.mark.parametrize("overhead", [1e-4, 1.0])
def test_no_other_plan_is_predicted_to_be_better(
    ratio: float, per_size: float, overhead: float
) -> None:
    sizes = 5 + 10_000 * PROGRESS**0.7
    plan = predict(sizes, ratio, per_size, overhead)
    rates = {
        Plan(xi, e): rate(Plan(xi, e), size, ratio, per_size, overhead)
        for (xi, size), e in itertools.product(zip(PROGRESS, sizes, strict=True), ACCURACIES)
    }
    assert rates[plan] == pytest.approx(max(rates.values()), rel=1e-12)


def test_costly_overhead_asks_for_more_progress_and_costly_sizes_for_less() -> None:
    sizes = 1 + 10_000 * PROGRESS
    # Twenty times as much progress as promised: the promise need not be all of the gap.
    cheap, dear = predict(sizes, 20.0, 1e-5, 1e-6), predict(sizes, 2.0, 1e-5, 10.0)
    assert dear.progress > cheap.progress
    costly, easy = predict(1 + sizes**2, 20.0, 1e-2, 0.1), predict(1 + sizes**2, 2.0, 1e-12, 0.1)
    assert costly.progress < easy.progress


def test_the_first_working_set_has_a_hundred_features() -> None:
    critical = np.linspace(0.001, 0.9, 1000)
    plan = Scheduler().choose(critical, np.ones(1000), np.zeros(1000, bool))
    assert np.count_nonzero(critical <= plan.progress) == 100
    few = Scheduler().choose(critical[:50], np.ones(50), np.zeros(50, bool))
    assert few.progress == 1.0


def test_medians_forget_one_odd_measurement() -> None:
    def learnt(odd: bool) -> Plan:
        scheduler, plan = Scheduler(), Plan(0.1, 0.1)
        for i in range(5):
            slow = 1000.0 if odd and i == 2 else 1.0
            scheduler.learn(plan, 1.0, 0.5, size=50, solving=0.01 * slow, other=0.1 * slow)
        critical = np.linspace(0, 1, 500)
        return scheduler.choose(critical, np.ones(500), np.zeros(500, bool))

    assert learnt(odd=True) == learnt(odd=False)


def test_an_iteration_without_progress_does_not_end_the_scheduling() -> None:
    scheduler = Scheduler()
    scheduler.learn(Plan(0.01, 0.3), 1.0, 1.0, size=0, solving=0.0, other=0.0)
    plan = scheduler.choose(np.linspace(0, 2, 500), np.ones(500), np.zeros(500, bool))
    assert 0 < plan.progress <= 1
    assert plan.accuracy in ACCURACIES
