"""Two real processes on loopback: they decide alike, and train as one process does."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import process_worker
import pytest
from local_processes import free_port, local_processes, wait

pytestmark = [pytest.mark.slow, pytest.mark.topic("processes")]
ROOT = pathlib.Path(__file__).parents[1]
WORKER = pathlib.Path(process_worker.__file__)
STEPS, SAVED = 14, 6


def two_processes(path: pathlib.Path, **job: Any) -> list[dict[str, Any]]:
    """Runs a job of `process_worker` in two processes; what each of them found."""
    path.write_text(json.dumps(job))
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(path.with_suffix(".log").open("w+"))
        command = [sys.executable, "-W", "error", str(WORKER), str(path)]
        environment = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "examples")])}
        with local_processes(command, 2, environment, stdout=log, stderr=log) as processes:
            status = wait(processes, timeout=60)
        log.seek(0)
        assert status == 0, log.read()[-4000:]
    return results(path)


def results(path: pathlib.Path) -> list[dict[str, Any]]:
    """What the processes of a job wrote beside it."""
    return [json.loads(path.with_suffix(f".{i}.json").read_text()) for i in range(2)]


def one_process(**job: Any) -> dict[str, Any]:
    return process_worker.train(jax.devices()[:4], **job)


def column(run: dict[str, Any], name: str) -> list[Any]:
    return [record[name] for record in run["records"]]


@pytest.fixture(scope="module")
def both(made_once: Any) -> list[dict[str, Any]]:
    """The whole run, in two processes."""
    job = {"steps": STEPS, "save_at": SAVED, "check_refusals": True}
    folder = made_once("processes", lambda path: two_processes(path / "whole.json", **job))
    return results(folder / "whole.json")


def test_both_decide_alike_to_the_last_bit(both: list[dict[str, Any]]) -> None:
    first, second = both
    for name in first["records"][0].keys() - {"rows"}:
        assert column(first, name) == column(second, name), name
    assert first["params"] == second["params"]
    assert first["state"] == second["state"]
    sizes = column(first, "size")
    assert sizes[0] == process_worker.MICRO
    assert max(sizes) >= 4 * sizes[0], "the run has to grow for this test to mean anything"


def same_training(run: dict[str, Any], reference: dict[str, Any]) -> None:
    for name in ("size", "examples"):
        assert column(run, name) == column(reference, name)
    names = ("loss", "required", "gain", "variance", "group_variance", "host_variance")
    for name in (*names, "device_variance"):
        # (the requirement divides by a debiased signal, a difference of nearly equal numbers)
        rtol = 1e-5 if name == "required" else 1e-6
        np.testing.assert_allclose(column(run, name), column(reference, name), rtol, err_msg=name)
    # From equal parameters the requirement is the same, too.
    for name in ("required", "gain"):
        first, expected = run["records"][0][name], reference["records"][0][name]
        np.testing.assert_allclose(first, expected, 1e-6, err_msg=name)
    for name, value in reference["params"].items():
        np.testing.assert_allclose(run["params"][name], value, rtol=0, atol=1e-6)


def same_stream(run: list[dict[str, Any]], reference: dict[str, Any]) -> None:
    """Each process reads its block of every micro-batch of the one global stream."""
    block = process_worker.MICRO // 2
    parts = zip(column(run[0], "rows"), column(run[1], "rows"), strict=True)
    for (first, second), whole in zip(parts, column(reference, "rows"), strict=True):
        at = np.arange(len(whole)) // block % 2
        np.testing.assert_array_equal(first, np.array(whole)[at == 0])
        np.testing.assert_array_equal(second, np.array(whole)[at == 1])


def test_they_train_as_one_process_does(both: list[dict[str, Any]]) -> None:
    alone = one_process(steps=STEPS, sizes=column(both[0], "decided"))
    same_stream(both, alone)
    same_training(both[0], alone)


@pytest.mark.topic("other layouts")
def test_their_state_continues_in_one_process_and_back(
    both: list[dict[str, Any]], tmp_path: pathlib.Path
) -> None:
    decided = column(both[0], "decided")
    rest = [run | {"records": run["records"][SAVED:]} for run in both]
    alone = one_process(steps=STEPS - SAVED, state=both[0]["state"], sizes=decided[SAVED:])
    same_stream(rest, alone)
    same_training(rest[0], alone)

    before = one_process(steps=SAVED, save_at=SAVED, sizes=decided[:SAVED])
    job = {"state": before["state"], "steps": STEPS - SAVED, "sizes": decided[SAVED:]}
    back = two_processes(tmp_path / "back.json", **job)
    same_stream(back, alone)
    same_training(back[0], alone)


def test_they_join_a_cluster_that_jax_detects() -> None:
    source = (
        "import os; index = os.environ['SLURM_PROCID'] = os.environ['JAX_PROCESS_ID'];"
        "[os.environ.pop(name) for name in list(os.environ) if name[:4] == 'JAX_' "
        "and name != 'JAX_COORDINATOR_PORT'];"
        "import jax, local_processes as p; p.end_with_parent(); p.use_host_devices(1); p.join();"
        "assert (jax.process_index(), jax.process_count()) == (int(index), 2)"
    )
    variables = {
        "SLURM_JOB_ID": "1",
        "SLURM_STEP_NODELIST": "127.0.0.1",
        "SLURM_NTASKS": "2",
        "SLURM_LOCALID": "0",
        "JAX_COORDINATOR_PORT": str(free_port()),
        "PYTHONPATH": str(ROOT / "examples"),
    }
    with local_processes([sys.executable, "-c", source], 2, variables) as processes:
        assert wait(processes, timeout=60) == 0


@contextlib.contextmanager
def scripts(source: str, count: int = 2) -> Iterator[list[subprocess.Popen]]:
    """Processes without JAX, to see how they end."""
    command = [sys.executable, "-c", source]
    with local_processes(command, count, stderr=subprocess.DEVNULL) as processes:
        yield processes


def gone(pid: int) -> bool:
    """Whether a process has ended (one that nobody has waited for yet counts as ended)."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


def test_a_process_that_fails_ends_the_others() -> None:
    source = "import os, time; time.sleep(60 * (os.environ['JAX_PROCESS_ID'] == '0')); os._exit(3)"
    with scripts(source) as processes:
        assert wait(processes, timeout=20) == 3
    assert all(gone(process.pid) for process in processes)


def test_processes_that_hang_are_ended() -> None:
    hang = scripts("import time; time.sleep(60)")
    with pytest.raises(TimeoutError, match="all processes to end in 0 s"), hang as processes:
        wait(processes, timeout=0)
    assert all(gone(process.pid) for process in processes)


@pytest.mark.skipif(not pathlib.Path("/proc/self/stat").exists(), reason="needs /proc")
def test_processes_end_with_a_parent_that_is_killed(tmp_path: pathlib.Path) -> None:
    child = "import time, local_processes as p; p.end_with_parent(); print(1); time.sleep(60)"
    parent = (
        "import sys, local_processes as p\n"
        f"with p.local_processes([sys.executable, '-uc', {child!r}], 2, stdout=-1) as children:\n"
        "    for child in children: child.stdout.readline()\n"
        "    print(*[child.pid for child in children], flush=True)\n"
        "    p.wait(children)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT / "examples")}
    with subprocess.Popen(
        [sys.executable, "-c", parent], env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        pids = [int(pid) for pid in process.stdout.readline().split()]
        assert len(pids) == 2
        process.send_signal(signal.SIGKILL)
    end = time.monotonic() + 10
    while not all(map(gone, pids)) and time.monotonic() < end:
        time.sleep(0.05)
    assert all(map(gone, pids))
