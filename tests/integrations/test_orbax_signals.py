"""SIGTERM, Ctrl-C and `kill -9` of a real training program, which then goes on unchanged."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import checkpoint_problem as problem
import jax.numpy as jnp
import numpy as np
import pytest

from adaoptax.integrations.orbax import Checkpointer
from adaoptax.loop import BatchLoader

ROOT = pathlib.Path(__file__).parents[2]
STEPS = 30


def start(folder: pathlib.Path, *, every: int = 1000, pause: float = 0.0) -> subprocess.Popen[str]:
    program = ROOT / "tests" / "integrations" / "checkpoint_problem.py"
    return subprocess.Popen(
        [sys.executable, str(program), str(folder), str(STEPS), str(every), str(pause)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


def wait_for_step(process: subprocess.Popen[str], step: int) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line == f"step {step}\n":
            return
    raise AssertionError("it ended before")


def result(process: subprocess.Popen[str]) -> Any:
    out, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    return json.loads(out.splitlines()[-1])


@pytest.fixture(scope="module")
def whole(made_once: Any) -> Any:
    """What the uninterrupted run gives."""
    folder = made_once(
        "orbax_signals",
        lambda path: (path / "result.json").write_text(json.dumps(result(start(path / "run")))),
    )
    return json.loads((folder / "result.json").read_text())


@pytest.mark.topic("signals")
@pytest.mark.slow
def test_a_signal_saves_ends_well_and_the_run_goes_on(tmp_path: pathlib.Path, whole: Any) -> None:
    seen: dict[str, Any] = {}
    last = None
    for number in (signal.SIGTERM, signal.SIGINT, None):
        process = start(tmp_path / "run", pause=0.05 if number else 0.0)
        if number:
            wait_for_step(process, (last or 0) + 7)
            process.send_signal(number)
        part = result(process)
        assert part["restored"] == last
        assert not set(seen) & set(part["seen"])
        seen |= part["seen"]
        last = max(map(int, seen))
        assert str(last) in [path.name for path in (tmp_path / "run").iterdir()]
        assert last < STEPS or number is None
    assert seen == whole["seen"]
    assert part["digest"] == whole["digest"]


@pytest.mark.topic("signals")
@pytest.mark.slow
def test_a_second_ctrl_c_ends_at_once_and_keeps_what_was_saved(
    tmp_path: pathlib.Path, whole: Any
) -> None:
    first = start(tmp_path / "run", every=1, pause=5.0)
    wait_for_step(first, 3)
    first.send_signal(signal.SIGINT)
    assert first.stderr is not None
    for line in first.stderr:
        if "press Ctrl-C again to stop at once" in line:  # two signals may arrive as one
            break
    first.send_signal(signal.SIGINT)
    _, error = first.communicate(timeout=60)
    assert first.returncode == -signal.SIGINT, error
    assert "KeyboardInterrupt" in error
    second = result(start(tmp_path / "run"))
    assert second["restored"] == 2
    assert second["digest"] == whole["digest"]


@pytest.mark.topic("kill -9")
@pytest.mark.slow
def test_kill_9_at_random_moments_changes_nothing(
    tmp_path: pathlib.Path, whole: Any, tried: Callable[[str, int], None]
) -> None:
    rng = np.random.default_rng(0)
    for case in range(3):
        folder, kills, final = tmp_path / str(case), 0, None
        while final is None:
            process = start(folder, every=int(rng.integers(1, 4)), pause=0.02)
            if kills < 4:
                assert process.stdout is not None
                process.stdout.readline()  # it trains
                try:
                    process.wait(rng.uniform(0, 0.5))
                except subprocess.TimeoutExpired:
                    process.kill()
                    kills += 1
                    process.communicate()
                    continue
            final = result(process)
        assert final["digest"] == whole["digest"], f"{case=} {kills=}"
        for step, examples in final["seen"].items():
            assert examples == whole["seen"][step], f"{case=} {step=}"
        tried("kills", kills)


@pytest.mark.topic("signals")
def test_handlers_are_put_back(tmp_path: pathlib.Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    for _ in range(2):
        with Checkpointer(tmp_path):
            assert signal.getsignal(signal.SIGTERM) is not before[1]
            assert signal.getsignal(signal.SIGINT) is not before[0]
        assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
    with pytest.raises(ZeroDivisionError), Checkpointer(tmp_path):
        raise ZeroDivisionError
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
    with Checkpointer(tmp_path, handle_signals=False):
        assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.topic("signals")
def test_ignored_signals_stay_ignored(tmp_path: pathlib.Path) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Checkpointer(tmp_path):
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.topic("signals")
def test_another_thread_saves_without_handlers(tmp_path: pathlib.Path) -> None:
    steps = []

    def run() -> None:
        steps.append(problem.train(tmp_path, 3, 1)[2].restored_step)

    for _ in range(2):
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    assert steps == [None, 3]


@pytest.mark.topic("signals")
def test_signals_are_read_after_the_step(
    tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    loader = BatchLoader(np.arange(40), 4)
    with Checkpointer(tmp_path / "a") as saver:
        next(loader)
        assert not saver.after_step(jnp.ones(2), loader)
        signal.raise_signal(signal.SIGTERM)
        next(loader)
        assert saver.after_step(jnp.ones(2), loader)
        assert saver.steps == [2]
    with saver:  # once more: that signal was for the first time
        next(loader)
        assert not saver.after_step(jnp.ones(2), loader)
    with Checkpointer(tmp_path / "b"):
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert capfd.readouterr().err.count("press Ctrl-C again") == 1


@pytest.mark.topic("signals")
def test_two_ctrl_c_in_a_row_interrupt_a_save_that_hangs_not_the_checkpoints(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = BatchLoader(np.arange(40), 4)
    next(loader)
    with Checkpointer(tmp_path) as saver:
        saver.save(jnp.ones(2), loader)
    next(loader)

    def hangs(*args: Any, **kwargs: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    def run() -> None:
        with Checkpointer(tmp_path) as saver:
            saver.restore(jnp.ones(2))
            monkeypatch.setattr(saver._files.manager, "save", hangs)  # type: ignore[union-attr]
            saver.save(jnp.ones(2), loader)

    with pytest.raises(KeyboardInterrupt):
        run()
    with Checkpointer(tmp_path) as saver:
        assert saver.steps == [1]
