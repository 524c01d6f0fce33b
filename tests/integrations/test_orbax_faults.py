"""Damaged, foreign and unwritable checkpoints: each is one clear sentence, never a silent skip."""

import json
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import checkpoint_problem as problem
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaoptax.integrations.orbax import Checkpointer
from adaoptax.loop import BatchLoader

ROOT = pathlib.Path(__file__).parents[2]
# Where one read fails, others may end after Orbax has closed their event loop.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

STATE = {"b": jnp.zeros(3), "w": jnp.asarray(np.random.default_rng(0).normal(size=(40, 5)))}


def loader_at(step: int) -> BatchLoader:
    loader = BatchLoader(np.arange(400), 4)
    for _ in range(step):
        next(loader)
    return loader


def save_steps(folder: pathlib.Path, *steps: int, state: Any = STATE) -> None:
    for step in steps:
        with Checkpointer(folder, keep=None) as saver:
            saver.restore(state)
            saver.save(state, loader_at(step))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder with the steps 2, 4 and 6."""
    folder = tmp_path_factory.mktemp("written")
    save_steps(folder, 2, 4, 6)
    return folder


@pytest.fixture
def run(written: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    """A copy of it to be damaged."""
    return pathlib.Path(shutil.copytree(written, tmp_path / "run"))


def files_of(step: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in step.rglob("*") if path.is_file())


def restore(folder: pathlib.Path, state: Any = STATE, **options: Any) -> Any:
    with Checkpointer(folder) as saver:
        return saver.restore(state, **options)


def remove(path: pathlib.Path) -> None:
    path.unlink()


def cut(path: pathlib.Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: pathlib.Path) -> None:
    os.truncate(path, 0)


def flip(path: pathlib.Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.write_bytes(data)


@pytest.mark.topic("bad checkpoints")
@pytest.mark.parametrize("damage", [remove, cut, empty, flip])
def test_damage_to_any_file_is_found_and_the_good_steps_are_named(
    run: pathlib.Path, damage: Callable[[pathlib.Path], None]
) -> None:
    files = [path for path in files_of(run / "6") if path.stat().st_size]
    assert len(files) >= 8
    for path in files:
        content = path.read_bytes()
        if (path.name, damage) == ("checksums.json", remove):
            continue  # as after a kill between the checkpoint and its checksums
        damage(path)
        loader = loader_at(1)
        with pytest.raises(ValueError, match=r"Expected a complete checkpoint, got step 6") as info:
            restore(run, loop=loader)
        path.write_bytes(content)
        message = str(info.value)
        if path.name != "checksums.json" or damage is not flip:  # (then a file seems damaged)
            assert path.relative_to(run / "6").as_posix() in message
        assert "pass step= one of [2, 4]" in message
        assert "\n" not in message
        assert loader.step == 1
    with pytest.warns(RuntimeWarning, match=r"later steps \[6\]"):
        state = restore(run, step=4)
    np.testing.assert_array_equal(state["w"], STATE["w"])


@pytest.mark.topic("bad checkpoints")
@pytest.mark.parametrize("damage", [remove, cut, empty])
def test_damage_is_found_without_checksums_where_the_format_shows_it(
    run: pathlib.Path, damage: Callable[[pathlib.Path], None]
) -> None:
    (run / "6" / "checksums.json").unlink()
    restore(run)
    largest = max(files_of(run / "6" / "state"), key=lambda path: path.stat().st_size)
    for path in (largest, run / "6" / "state" / "manifest.ocdbt", run / "6" / "loop" / "metadata"):
        content = path.read_bytes()
        damage(path)
        with pytest.raises(ValueError, match=r"got step 6 .*pass step= one of \[2, 4\]"):
            restore(run)
        path.write_bytes(content)


def test_no_other_step_is_offered_where_none_is_good(run: pathlib.Path) -> None:
    for step in (2, 4, 6):
        cut(run / str(step) / "loop" / "metadata")
    with pytest.raises(ValueError, match="there is no other one, or delete the folder"):
        restore(run)


@pytest.mark.topic("bad checkpoints")
def test_foreign_folders_are_no_checkpoints(run: pathlib.Path) -> None:
    (run / "7").mkdir()
    with pytest.raises(ValueError, match=r"got step 7 .* the folder is empty: pass step="):
        restore(run)
    (run / "7" / "weights.bin").write_bytes(b"1234")
    with pytest.raises(ValueError, match=r"got step 7 .*not written by a Checkpointer"):
        restore(run)
    (run / "7" / "loop").mkdir()
    (run / "7" / "loop" / "metadata").write_text('{"step": 3}')
    with pytest.raises(ValueError, match=r"got step 7 .*not written by a Checkpointer"):
        restore(run)
    shutil.rmtree(run / "7")
    (run / "notes.txt").write_text("notes")
    (run / "best").mkdir()
    restore(run)


def edit_header(step: pathlib.Path, **changes: Any) -> None:
    path = step / "loop" / "metadata"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    (step / "checksums.json").unlink()


def test_a_checkpoint_without_the_state_of_a_loop_restores_the_arrays(run: pathlib.Path) -> None:
    edit_header(run / "6", loop=None)
    with pytest.raises(ValueError, match=r"without one: pass loop=None to restore the state"):
        restore(run, loop=loader_at(0))
    restore(run)


@pytest.mark.topic("bad checkpoints")
def test_a_later_format_is_named(run: pathlib.Path) -> None:
    edit_header(run / "6", format=2)
    with pytest.raises(ValueError, match=r"Expected format=1 in step 6 .*, got format=2: use"):
        restore(run)


@pytest.mark.topic("bad checkpoints")
@pytest.mark.parametrize(
    ("state", "message"),
    [
        (STATE | {"w": jnp.zeros((5, 40))}, r"float\d+\[5,40\] at state\['w'\], where .*\[40,5\]"),
        (STATE | {"b": jnp.zeros(3, jnp.bfloat16)}, r"bfloat16\[3\] at state\['b'\], where"),
        (STATE | {"c": jnp.zeros(1)}, r"float32\[1\] at state\['c'\], which the checkpoint does"),
        ({"w": STATE["w"]}, r"no state\['b'\], where the checkpoint has float32\[3\]"),
        (tuple(STATE.values()), r"float32\[3\] at state\[0\], which the checkpoint does not"),
        (STATE | {"b": jax.random.key(0)}, r"key<fry>\[\] at state\['b'\], where"),
    ],
)
def test_another_model_is_named_by_its_leaf(run: pathlib.Path, state: Any, message: str) -> None:
    loader = loader_at(1)
    with pytest.raises(ValueError, match=f"Expected the state that was saved in step 6.*{message}"):
        restore(run, state, loop=loader)
    assert loader.step == 1


def test_other_data_is_refused_by_the_loop(run: pathlib.Path) -> None:
    with pytest.raises(ValueError, match="Expected length=401 as here, got length=400 saved"):
        restore(run, loop=BatchLoader(np.arange(401), 4))


@pytest.mark.topic("bad checkpoints")
def test_a_directory_that_cannot_be_written_is_refused_at_once(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for folder in (file, file / "below", pathlib.Path("/proc/nothing")):
        with pytest.raises(ValueError, match=r"folder that can be written to, got directory="):
            Checkpointer(folder).__enter__()


@pytest.mark.topic("bad checkpoints")
def test_the_folder_of_another_run_is_not_overwritten(run: pathlib.Path) -> None:
    loader = loader_at(9)
    with (
        pytest.raises(ValueError, match=r"with the steps \[2, 4, 6\]: call restore\(\) first"),
        Checkpointer(run, every=1) as saver,
    ):
        saver.after_step(STATE, loader)
    with Checkpointer(run) as saver:
        assert saver.steps == [2, 4, 6]


@pytest.fixture
def full_disk() -> Iterator[Callable[[bool], None]]:
    """``full_disk(True)``: no file may become larger than 100 kB, as writes really fail."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(on: bool) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]) if on else before)

    yield limit
    limit(False)


LARGE = {"w": jnp.asarray(np.random.default_rng(0).normal(size=200_000).astype(np.float32))}


@pytest.mark.topic("full disks")
def test_a_full_disk_is_a_warning_and_tried_again(
    tmp_path: pathlib.Path, full_disk: Callable[[bool], None], caplog: pytest.LogCaptureFixture
) -> None:
    loader, caught = loader_at(0), {}
    with Checkpointer(tmp_path, every=10, keep=2) as saver:
        for _ in range(45):
            next(loader)
            full_disk(12 <= loader.step < 27)
            with warnings.catch_warnings(record=True) as heard:
                warnings.simplefilter("always")
                assert not saver.after_step(LARGE, loader)
                if loader.step % 10 == 0 or 20 <= loader.step < 30:
                    while saver._files.manager.is_saving_in_progress():  # type: ignore[union-attr]
                        pass
            if heard:
                caught[loader.step] = [str(warning.message) for warning in heard]
            if loader.step == 26:
                assert saver.steps == [10]
        assert saver.steps == [28, 38]
    assert list(caught) == [21, 23, 25, 27]  # one step after each trial
    for (message,) in caught.values():
        assert "could not be saved in" in message
        assert "File too large" in message
        assert "make room on the disk" in message
        assert "\n" not in message
    assert not [record for record in caplog.records if record.exc_info]  # one sentence is enough
    with Checkpointer(tmp_path) as saver:
        assert saver.steps == [38, 45]
        np.testing.assert_array_equal(saver.restore(LARGE)["w"], LARGE["w"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["38", "45"]


@pytest.mark.topic("full disks")
def test_the_last_save_raises_and_the_earlier_ones_stay(
    tmp_path: pathlib.Path, full_disk: Callable[[bool], None]
) -> None:
    loader = loader_at(0)

    def run() -> None:
        with Checkpointer(tmp_path, every=2) as saver:
            for _ in range(3):
                next(loader)
                saver.after_step(LARGE, loader)
            saver._settle()
            full_disk(True)

    with pytest.raises(RuntimeError, match=r"Step 3 could not be saved in .*make room"):
        run()
    full_disk(False)
    with Checkpointer(tmp_path) as saver:
        assert saver.steps == [2]
        saver.restore(LARGE)
        full_disk(True)
        with pytest.raises(RuntimeError, match=r"Step 3 could not be saved"):
            saver.save(LARGE, loader)
        full_disk(False)
        saver.save(LARGE, loader)
        assert saver.steps == [2, 3]


@pytest.mark.topic("full disks")
def test_an_error_of_the_user_is_not_hidden_by_a_full_disk(
    tmp_path: pathlib.Path, full_disk: Callable[[bool], None]
) -> None:
    loader = loader_at(1)

    def run() -> None:
        with Checkpointer(tmp_path, every=1) as saver:
            full_disk(True)
            saver.after_step(LARGE, loader)
            raise ZeroDivisionError

    with (
        pytest.warns(RuntimeWarning, match="could not be saved"),
        pytest.raises(ZeroDivisionError),
    ):
        run()


def test_a_save_that_fails_at_once_is_a_warning_too(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = loader_at(1)

    def no_space(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    with Checkpointer(tmp_path, every=1) as saver:
        with monkeypatch.context() as patch:
            patch.setattr(saver._files.manager, "save", no_space)  # type: ignore[union-attr]
            with pytest.warns(RuntimeWarning, match="No space left on device"):
                assert not saver.after_step(LARGE, loader)
        next(loader)
        assert not saver.after_step(LARGE, loader)
    with Checkpointer(tmp_path) as saver:
        assert saver.steps == [2]


@pytest.mark.topic("bad checkpoints")
def test_what_a_kill_left_unfinished_is_ignored_and_cleared_away(run: pathlib.Path) -> None:
    left = run / "8.orbax-checkpoint-tmp"
    shutil.copytree(run / "6", left)
    (left / "checksums.json").unlink()
    loader = loader_at(0)
    with Checkpointer(run) as saver:
        saver.restore(STATE, loader)
        assert saver.restored_step == 6
        assert left.exists()  # one who only reads deletes nothing
        saver.save(STATE, loader_at(7))
    assert not left.exists()


WRITER = """
import sys; sys.path[:0] = ["tests/integrations"]
import jax.numpy as jnp, numpy as np
from adaoptax.integrations.orbax import Checkpointer
from test_orbax_faults import loader_at
folder, size = sys.argv[1], int(sys.argv[2])
loader = loader_at(0)
state = jnp.asarray(np.random.default_rng(0).normal(size=size).astype(np.float32))
with Checkpointer(folder, every=1, keep=3) as saver:
    state = saver.restore(state, loader)
    print("ready", flush=True)
    while True:
        next(loader)
        state = state + 1
        saver.after_step(state, loader)
"""


@pytest.mark.topic("kill -9")
@pytest.mark.slow
def test_kill_9_in_the_middle_of_saves_leaves_only_whole_checkpoints(
    tmp_path: pathlib.Path, tried: Callable[[str, int], None]
) -> None:
    """It saves without pause 40 MB a time, so that nearly every kill hits a save."""
    rng, unfinished, restored = np.random.default_rng(0), 0, []
    size = 10_000_000
    first = np.random.default_rng(0).normal(size=size).astype(np.float32)
    for _ in range(8):
        command = [sys.executable, "-c", WRITER, str(tmp_path), str(size)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            try:
                process.wait(rng.uniform(0.05, 1.5))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                tried("kills", 1)
        unfinished += any(tmp_path.glob("*tmp*"))
        loader = loader_at(0)
        with Checkpointer(tmp_path) as saver:
            state = saver.restore(jnp.zeros(size), loader)
            step = saver.restored_step or 0
        if step:
            assert loader.step == step
            expected = first.copy()
            for _ in range(step):
                expected += 1
            np.testing.assert_array_equal(state, expected)
        restored.append(step)
    assert restored == sorted(restored)
    assert restored[-1] > 0
    assert unfinished >= 2


def test_the_problem_of_these_tests_is_bit_reproducible(tmp_path: pathlib.Path) -> None:
    digests = {problem.digest(problem.train(tmp_path / str(i), 12, 5)[0]) for i in range(2)}
    assert len(digests) == 1
