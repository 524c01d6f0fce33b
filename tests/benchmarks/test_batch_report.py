"""The verdict on batch tests says what the rows say, whichever way they point."""

from typing import Any

import pytest

from benchmarks.experiments import batch_report
from benchmarks.experiments.experiment import show_verdict
from benchmarks.experiments.store import Store
from benchmarks.experiments.summary import pick

RAMPS = {"ramp mild": (1.0, 800), "ramp early": (4.0, 200)}  # loss, updates


def store_of(tmp_path, loss, updates, spread=0.01, diverged=0):
    store = Store(tmp_path, "batch_tests")
    small = {"constant small": (0.9, 1000)}
    for sizes, (level, steps) in {**RAMPS, **small, "norm 2": (loss, updates)}.items():
        case: dict[str, Any] = {
            "problem": "mnist1d",
            "optimizer": "SGD",
            "learning_rate": 0.1,
            "sizes": sizes,
        }
        for seed in range(5):
            own = seed * spread if sizes == "norm 2" else 0.0
            common = {"largest": 512, "accuracy": 0.9, "train_seconds": 1.0, "updates": steps}
            lost = diverged if sizes == "ramp mild" else 0
            metrics = {"loss": level + 0.1 * seed + own, "diverged": lost, **common}
            curve: dict[str, Any] = {"updates": [0, steps], "seen": [0, 9000], "loss": [2.3, level]}
            store.add(case, seed, metrics, curve)
    return store


def duels_of(store):
    return batch_report.duels_of(batch_report.methods_of(store.rows))["SGD", 0.1, "norm 2"]


def verdict_of(store) -> Any:
    return batch_report.report(store).parts[0]


@pytest.mark.parametrize(
    ("loss", "outcome"), [(0.5, "better"), (1.5, "worse"), (0.98, "no difference seen")]
)
def test_a_test_is_compared_with_the_best_ramp_seed_by_seed(tmp_path, loss, outcome):
    store = store_of(tmp_path, loss, updates=500)
    best, _ = duels_of(store)
    assert best.ramp == "ramp mild"
    assert best.outcome == outcome
    # Pairing takes out what seeds have in common: 0.1 from one to the next.
    assert best.difference.value == pytest.approx(loss - 1 + 0.02)
    assert best.difference.error == pytest.approx(0.01 * 2.5**0.5 / 5**0.5)
    assert best.updates == 500 / 800
    verdict = verdict_of(store)
    assert f"1 {outcome}" in verdict["Beside the best ramp"]
    assert f"for {int(outcome != 'worse')} of 1 tests" in verdict["The claim holds"]
    assert f"**: {outcome}: norm 2 (" in show_verdict(batch_report.report(store).parts[3])  # type: ignore[arg-type]


def test_a_batch_that_hardly_grows_proves_nothing(tmp_path):
    store = store_of(tmp_path, 0.98, updates=950)
    assert duels_of(store)[0].outcome == "no difference seen"
    assert "for 0 of 1 tests" in verdict_of(store)["The claim holds"]


@pytest.mark.parametrize(("loss", "outcome"), [(1.5, "better"), (2.5, "worse")])
def test_ramps_of_as_many_updates_are_interpolated(tmp_path, loss, outcome):
    # Halfway between 200 and 800 updates, in factors, lies the loss halfway between 4 and 1.
    store = store_of(tmp_path, loss, updates=400)
    between = duels_of(store)[1]
    assert between is not None
    theirs = [((4 + 0.1 * seed) * (1 + 0.1 * seed)) ** 0.5 for seed in range(5)]
    own = [loss + 0.11 * seed for seed in range(5)]
    assert between.difference.value == pytest.approx((sum(own) - sum(theirs)) / 5)
    assert between.outcome == outcome
    assert f"1 {outcome}" in verdict_of(store)["Beside ramps of as many updates"]


def test_fewer_updates_than_every_ramp_are_said(tmp_path):
    store = store_of(tmp_path, 1.5, updates=100)
    assert duels_of(store)[1] is None
    said = verdict_of(store)["Beside ramps of as many updates"]
    assert "1 had fewer or more updates than all of them" in said


def test_a_ramp_that_diverged_is_never_the_best(tmp_path):
    store = store_of(tmp_path, 1.5, updates=500, diverged=1)
    assert duels_of(store)[0].ramp == "ramp early"
    assert "5 of 5" in batch_report.report(store).parts[4]
    assert len(pick(store.rows, sizes="norm 2")) == 5


def test_a_test_that_diverged_is_worse_whatever_its_loss(tmp_path):
    store = store_of(tmp_path, 0.5, updates=500)
    next(row for row in store.rows if row["sizes"] == "norm 2")["diverged"] = 1
    assert [duel.outcome for duel in duels_of(store)] == ["worse", "worse"]
