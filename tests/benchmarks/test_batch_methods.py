"""The sizes of the experiment on batch tests: on the grid, and as they are named."""

import pytest

from benchmarks.experiments import batch_tests
from benchmarks.experiments.batch_methods import RAMPS, contender, is_test
from benchmarks.experiments.experiment import Case, Size


def test_ramps_by_hand_are_those_that_their_names_say():
    case: Case = {
        "optimizer": "SGD",
        "learning_rate": 0.1,
        "small": 32,
        "large": 512,
        "examples": 1000,
    }
    stages = {name: str(contender(case | {"sizes": name}).sizes) for name in RAMPS}
    assert stages == {
        "ramp mild": "0:32 500:64 750:128",
        "ramp late": "0:32 500:128 750:512",
        "ramp doubling": "0:32 200:64 400:128 600:256 800:512",
        "ramp early": "0:32 100:128 300:512",
    }


@pytest.mark.parametrize("size", ["tiny", "default", "full"])
def test_every_case_is_a_method_whose_sizes_are_compiled(size: Size):
    cases = batch_tests.cases(size)
    keys = {tuple(case.items()) for case in cases}
    assert len(keys) == len(cases)
    for case in cases:
        found = contender(case)
        small, large = int(case["small"]), int(case["large"])
        allowed = {small << i for i in range(20) if small << i <= large}
        sizes = found.sizes
        if is_test(str(case["sizes"])):
            assert sizes == (small, large)
        else:
            points = range(0, int(case["examples"]), int(case["examples"]) // 97)
            assert {sizes(n) if callable(sizes) else sizes for n in points} <= allowed
        # A test or a gain without statistics would be refused, so that none is missing here.
        assert bool(found.statistics) == (
            is_test(str(case["sizes"])) or case["optimizer"] == "AdaScale"
        )
