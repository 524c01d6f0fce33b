"""Whole runs of the AdaScale experiments: their length, their end at S = 1, and divergence."""

import math

import pytest

from benchmarks.experiments.elastic import phases_of
from benchmarks.experiments.scaled_runs import Setting, run_adascale, run_fixed

TINY = Setting("digits_cnn", 4, 8, 256, 0.04)  # as in the experiment's own tiny runs


@pytest.mark.slow
def test_at_the_base_batch_adascale_is_sgd():
    phases = ((1, 1.0),)
    scaled = run_adascale(TINY, phases, 0).metrics
    fixed = run_fixed(TINY, phases, 0, float, TINY.steps * TINY.base_batch).metrics
    assert scaled["iterations"] == fixed["iterations"] == TINY.steps
    for name in ("train_loss", "test_loss"):
        assert scaled[name] == pytest.approx(fixed[name], rel=0.02)


@pytest.mark.slow
def test_a_run_ends_at_its_tau_and_shows_its_course():
    metrics, curve = run_adascale(TINY, ((4, 1.0),), 0)
    assert TINY.steps / 4 <= metrics["iterations"] < TINY.steps
    assert metrics["examples"] == 32 * metrics["iterations"]
    assert TINY.steps * 0.95 < curve["tau"][-1] < TINY.steps
    assert set(curve["scale"]) == {4}
    assert all(1 <= gain <= 4 for gain in curve["gain"])


@pytest.mark.slow
def test_a_run_that_diverges_ends_and_is_counted():
    wild = TINY._replace(learning_rate=1e20)
    metrics = run_adascale(wild, ((4, 1.0),), 0).metrics
    assert metrics["diverged"] == 1
    assert metrics["iterations"] < 60
    fixed = run_fixed(wild, ((4, 1.0),), 0, math.sqrt, TINY.steps * TINY.base_batch).metrics
    assert fixed["diverged"] == 1
    assert fixed["iterations"] == TINY.steps / 4


def test_phases_end_where_the_paper_changes_the_batch():
    assert phases_of("S = 8") == ((8, 1.0),)
    assert phases_of("S = 1 → 16 → 4") == ((1, 0.25), (16, 0.5), (4, 1.0))
