"""A checkpoint written by two real processes goes on in one, and the other way round."""

import contextlib
import json
import os
import pathlib
import sys
from typing import Any

import checkpoint_worker
import jax
import numpy as np
import pytest
from local_processes import local_processes, wait

ROOT = pathlib.Path(__file__).parents[1]
WORKER = pathlib.Path(checkpoint_worker.__file__)
SAVED, STEPS = 8, 16

pytestmark = [pytest.mark.slow, pytest.mark.topic("other layouts")]


def two_processes(path: pathlib.Path, **job: Any) -> list[dict[str, Any]]:
    """Runs a job of `checkpoint_worker` in two processes; what each of them read."""
    path.write_text(json.dumps(job))
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(path.with_suffix(".log").open("w+"))
        environment = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "examples")])}
        command = [sys.executable, str(WORKER), str(path)]
        with local_processes(command, 2, environment, stdout=log, stderr=log) as processes:
            status = wait(processes, timeout=120)
        log.seek(0)
        assert status == 0, log.read()[-4000:]
    return [json.loads(path.with_suffix(f".{i}.json").read_text()) for i in range(2)]


def one_process(**job: Any) -> dict[str, Any]:
    return checkpoint_worker.train(jax.devices()[:4], **job)


def same_stream(both: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    """Each process reads its block of every micro-batch of the one stream."""
    block = checkpoint_worker.MICRO // 2
    assert both[0]["first"] == both[1]["first"] == alone["first"]
    for first, second, whole in zip(both[0]["read"], both[1]["read"], alone["read"], strict=True):
        assert first["size"] == second["size"] == whole["size"] == len(whole["rows"])
        at = np.arange(len(whole["rows"])) // block % 2
        assert first["rows"] == np.array(whole["rows"])[at == 0].tolist()
        assert second["rows"] == np.array(whole["rows"])[at == 1].tolist()


def same_params(run: dict[str, Any], reference: dict[str, Any]) -> None:
    for name, value in reference["params"].items():
        np.testing.assert_allclose(run["params"][name], value, rtol=0, atol=2e-5)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The uninterrupted run of one process."""
    folder = str(tmp_path_factory.mktemp("whole"))
    return one_process(folder=folder, steps=STEPS, fixed=True)


def test_two_processes_go_on_in_one(tmp_path: pathlib.Path, whole: dict[str, Any]) -> None:
    folder = str(tmp_path / "checkpoints")
    before = two_processes(tmp_path / "job.json", folder=folder, steps=SAVED, fixed=True)
    same_stream(before, whole | {"read": whole["read"][:SAVED]})
    after = one_process(folder=folder, steps=STEPS, fixed=True)
    assert after["first"] == SAVED
    assert after["read"] == whole["read"][SAVED:]
    same_params(after, whole)


def test_one_process_goes_on_in_two(tmp_path: pathlib.Path, whole: dict[str, Any]) -> None:
    folder = str(tmp_path / "checkpoints")
    one_process(folder=folder, steps=SAVED, fixed=True)
    after = two_processes(tmp_path / "job.json", folder=folder, steps=STEPS, fixed=True)
    same_stream(after, {"first": SAVED, "read": whole["read"][SAVED:]})
    for run in after:
        same_params(run, whole)


def test_two_processes_repeat_their_own_run_bit_for_bit(tmp_path: pathlib.Path) -> None:
    """Growth by the norm test, saved and resumed in the middle of it, by two processes."""
    job = {"folder": str(tmp_path / "whole"), "steps": STEPS}
    expected = two_processes(tmp_path / "whole.json", **job)
    sizes = [step["size"] for step in expected[0]["read"]]
    assert max(sizes) >= 3 * sizes[0], "the run has to grow for this test to mean anything"
    folder = str(tmp_path / "parts")
    parts = [
        two_processes(tmp_path / f"{steps}.json", folder=folder, steps=steps)
        for steps in (SAVED, STEPS)
    ]
    for process in range(2):
        read = [step for part in parts for step in part[process]["read"]]
        assert read == expected[process]["read"]
        assert parts[-1][process]["params"] == expected[process]["params"]
