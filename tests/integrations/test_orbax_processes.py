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


def two(
    folder: pathlib.Path, steps: int, *, pause: float = 0.0, number: int | None = None
) -> list[list[str]]:
    """The lines of both; the second alone gets the signal `number` after step 3."""
    command = [sys.executable, PROGRAM, str(folder), str(steps), str(pause), "join"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with local_processes(command, 2, ENVIRONMENT, **pipes) as processes:
        if number is not None:
            stdout = processes[1].stdout
            assert stdout is not None
            assert any("step 3" in line for line in stdout)
            processes[1].send_signal(number)
        lines = [process.stdout.read().splitlines() for process in processes]  # type: ignore[union-attr]
        assert [process.wait(100) for process in processes] == [0, 0]
    return lines


@pytest.mark.topic("other layouts")
@pytest.mark.slow
def test_one_and_two_processes_go_on_from_each_other(tmp_path: pathlib.Path) -> None:
    two(tmp_path / "run", 15)
    assert "restored 15" in one(tmp_path / "run", 30)
    last = two(tmp_path / "run", 45)
    assert all("restored 30" in lines for lines in last)
    whole = one(tmp_path / "whole", 45)
    assert [lines[-1] for lines in last] == [whole[-1]] * 2


@pytest.mark.topic("signals")
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_one_stops_all_at_the_same_step(
    tmp_path: pathlib.Path, number: signal.Signals
) -> None:
    lines = two(tmp_path / "run", 400, pause=0.1, number=number)
    assert lines[0][-1] == lines[1][-1]
    step = int(lines[0][-1].split()[1])
    assert step < 400
    assert str(step) in [path.name for path in (tmp_path / "run").iterdir()]
    assert f"restored {step}" in one(tmp_path / "run", step + 1)
