"""The code of the page on the optimal split runs, and its numbers are those of the command."""

import re
from pathlib import Path
from typing import Any

import pytest

from adaoptax import augmented_inner_product_test
from adaoptax.batch_tests import optimal_split
from benchmarks.optimal_split import (
    EPSILON,
    PUBLISHED,
    SAFEGUARD,
    compared,
    fires_on_noise,
    run,
)

PAGE = Path(__file__).parents[2] / "docs" / "methods" / "optimal_split.md"


def test_the_code_of_the_page_runs_and_prints_what_the_page_says(capsys):
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    namespace: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, PAGE.name, "exec"), namespace)
    said = re.findall(r"#.*?(\d\.\d+)(?:, ν = (\d\.\d+))?", "".join(blocks))
    printed = re.findall(r"\d\.\d+", capsys.readouterr().out)
    expected = [float(number) for pair in said for number in pair if number]
    assert len(expected) == 4
    assert [float(x) for x in printed] == pytest.approx(expected, abs=5e-3)


def test_the_shares_of_the_page():
    pair = augmented_inner_product_test(0.9, 5.84, signal="plug-in")
    assert fires_on_noise(pair, 100, draws=50) == 0.0
    assert fires_on_noise(optimal_split(EPSILON), 100, draws=50) == 1.0


def test_the_published_pair_stalls_and_the_safeguard_rescues_it(monkeypatch):
    monkeypatch.setattr("benchmarks.optimal_split.BUDGET", 2000)
    all_tests = compared()
    stalled, rescued = (run(*all_tests[name]) for name in (PUBLISHED, SAFEGUARD))
    assert set(stalled["size"]) == {8.0}
    assert rescued["size"][-1] > 8
    assert rescued["distance"][-1] < stalled["distance"][-1] / 3
