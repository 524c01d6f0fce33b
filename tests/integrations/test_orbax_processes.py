"""Checkpoints of two real processes: any number restores them, and all stop at the same step."""

import os
import pathlib
import signal
import subprocess
import sys

import pytest
from local_processes import local_processes

ROOT = pathlib.Path(__file__).parents[2]
PROGRAM = str(ROOT / "tests" / "integrations" / "checkpoint_process.py")
ENVIRONMENT = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "examples")])}


def one(folder: pathlib.Path, steps: int) -> list[str]:
    done = subprocess.run(
        [sys.executable, PROGRAM, str(folder), str(steps), "0"],
        capture_output=True,
        text=True,
        env=os.environ | ENVIRONMENT,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()


def two(folder: pathlib.Path, number: int) -> list[list[str]]:
    """The lines of both; the second alone gets the signal `number` after three steps."""
    command = [sys.executable, PROGRAM, str(folder), "400", "0.1", "join"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with local_processes(command, 2, ENVIRONMENT, **pipes) as processes:
        stdout = processes[1].stdout
        assert stdout is not None
        begun = [stdout.readline() for _ in range(4)]  # the first says what was restored
        assert "step" in begun[-1]
        processes[1].send_signal(number)
        lines = [process.stdout.read().splitlines() for process in processes]  # type: ignore[union-attr]
        assert [process.wait(100) for process in processes] == [0, 0]
    return [lines[0], [line.strip() for line in begun] + lines[1]]


@pytest.mark.topic("other layouts", "signals")
@pytest.mark.slow
def test_a_signal_to_one_stops_all_at_one_step_and_one_or_two_go_on(tmp_path: pathlib.Path) -> None:
    stopped = two(tmp_path / "run", signal.SIGTERM)
    assert stopped[0][-1] == stopped[1][-1]
    first = int(stopped[0][-1].split()[1])
    assert first < 400
    assert str(first) in [path.name for path in (tmp_path / "run").iterdir()]
    assert f"restored {first}" in one(tmp_path / "run", first + 15)
    stopped = two(tmp_path / "run", signal.SIGINT)
    assert all(f"restored {first + 15}" in lines for lines in stopped)
    last = int(stopped[0][-1].split()[1])
    assert first + 15 < last < 400
    assert str(last) in [path.name for path in (tmp_path / "run").iterdir()]
    whole = one(tmp_path / "whole", last)
    assert [lines[-1] for lines in stopped] == [whole[-1]] * 2
