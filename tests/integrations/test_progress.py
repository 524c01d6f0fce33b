"""The progress bar, read back from its screen."""

import io
import math
import re
from typing import Any

import pytest

pytest.importorskip("tqdm")

from adaoptax.integrations.progress import ProgressBar


def record(step: int, size: int = 32, **numbers: Any) -> dict[str, Any]:
    return {"step": step, "examples": size * step, "batch_size": size, **numbers}


def test_the_bar_counts_examples_and_shows_size_need_and_loss() -> None:
    screen = io.StringIO()
    bar = ProgressBar(320, file=screen, mininterval=0)
    for step in range(1, 11):
        bar(record(step, required=math.inf if step == 10 else 70.2, loss=1 / step))
    bar.close()
    shown = screen.getvalue().split("\r")
    assert any("160/320" in line and "batch=32, needs=70, loss=0.2" in line for line in shown)
    assert "100%" in shown[-1]
    assert "batch=32, needs=inf, loss=0.1" in shown[-1]


def test_what_was_not_recorded_is_left_out() -> None:
    screen = io.StringIO()
    bar = ProgressBar(file=screen)
    bar(record(1, required=None))
    bar.close()
    assert "batch=32]" in screen.getvalue()
    assert "need" not in screen.getvalue()


def test_a_resumed_bar_starts_at_its_place_and_counts_speed_from_there() -> None:
    screen = io.StringIO()
    bar = ProgressBar(3200, file=screen)
    bar.resume(record(60))
    assert "1.92k/3.20k" in screen.getvalue()
    assert bar._bar.initial == 1920
    bar(record(61))
    assert bar._bar.n == 1952
    bar.resume(None)
    bar(record(1))
    assert (bar._bar.initial, bar._bar.n) == (32, 32)
    bar.close()


def test_close_leaves_the_last_state_on_the_screen_also_twice_and_unused() -> None:
    screen = io.StringIO()
    bar = ProgressBar(320, file=screen, mininterval=1000)
    bar.close()
    bar(record(1))
    bar(record(2))
    bar.close()
    bar.close()
    assert "64.0/320" in screen.getvalue().split("\r")[-1]
    assert screen.getvalue().endswith("\n")
    bar(record(3))  # a loop that goes on after its `with`
    bar.close()
    assert "96.0/320" in screen.getvalue()


def test_changes_of_size_are_announced_once_each() -> None:
    screen = io.StringIO()
    bar = ProgressBar(file=screen, announce=True)
    seen = 0
    for size in (32, 32, 64, 64, 48):
        seen += size
        bar({"step": 1, "examples": seen, "batch_size": size})
    bar.close()
    announced = re.findall(r"([\d,]+) examples: batch size (\d+) -> (\d+)", screen.getvalue())
    assert announced == [("64", "32", "64"), ("192", "64", "48")]


def test_a_disabled_bar_writes_nothing() -> None:
    screen = io.StringIO()
    bar = ProgressBar(320, file=screen, disable=True)
    bar(record(1))
    bar(record(2))
    bar.close()
    assert screen.getvalue() == ""
