"""The verdicts on cost and on convex problems follow the rows."""

import math
from typing import Any

import pytest

from benchmarks.experiments import convex_report, cost_report
from benchmarks.experiments.experiment import show_verdict
from benchmarks.experiments.store import Store


def cost_store(tmp_path, seconds):
    """Two loops, five seeds; NaN where the loss was not reached."""
    store = Store(tmp_path, "cost")
    for method, of_seed in seconds.items():
        case = {"problem": "digits_cnn", "method": method, "learning_rate": 0.1, "target": 0.05}
        for seed, x in enumerate(of_seed):
            row = {"reached": float(not math.isnan(x)), "seconds_to_target": x, "updates": 9}
            names = ("examples_to_target", "us_an_example", "programs", "programs_later")
            row |= dict.fromkeys((*names, "compile_seconds", "host_share"), 1.0)
            curve = {"at_seconds": [0.0, 1.0], "at_examples": [0.0, 9.0], "loss": [2.3, 0.1]}
            store.add(case, seed, row, curve)
    return store


@pytest.mark.parametrize(
    ("adaptive", "faster", "ratio"),
    [
        ([1, 2, 3], ["adaptive, exact"], "reached in 3 of 3 runs; 0.50× (0.50 to 0.50)"),
        ([1, 2, 7], "no adaptive loop", "0.50× (0.50 to 1.17)"),  # slower in one seed
        ([1, 2, math.nan], "no adaptive loop", "reached in 2 of 3 runs; 0.50×"),
        ([math.nan] * 3, "no adaptive loop", "reached in 0 of 3 runs."),
    ],
)
def test_faster_means_in_every_seed(tmp_path, adaptive, faster, ratio):
    seconds = {"fixed small": [2, 4, 6], "adaptive, exact": adaptive}
    verdict: Any = cost_report.report(cost_store(tmp_path, seconds)).parts[3]
    assert verdict["Faster in every seed"] == faster
    assert ratio in show_verdict(verdict)


@pytest.mark.parametrize(
    ("errors", "said"),
    [
        ([0.01, 0.011, 0.012], "better than"),
        ([0.41, 0.411, 0.412], "worse than"),
        ([0.0, 0.2, 0.4], "not to be told from"),
    ],
)
def test_the_inner_product_test_is_judged_by_its_error(tmp_path, errors, said):
    store = Store(tmp_path, "convex")
    for method, found in {"norm": [0.2, 0.201, 0.202], "inner product": errors}.items():
        case = {"penalty": "L2", "data": "cancer", "signal": "plug-in", "method": method}
        for seed, error in enumerate(found):
            metrics = {"error": error, "iterations": 5, "last_batch": 64, "to_0.1": math.nan}
            store.add(case, seed, metrics, {"at": [0, 5], "error": [1.0, error + 1e-9]})
    verdict: Any = convex_report.report(store).parts[0]
    assert f"inner product is {said} norm" in verdict["L2, cancer"]
