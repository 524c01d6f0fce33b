"""Records on disk: strict JSON, nothing lost, resumes, torn lines, a full disk."""

import errno
import io
import json
import math
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adaoptax.loop import JsonLines, read_json_lines


def records(count: int, start: int = 1) -> list[dict[str, Any]]:
    kinds = [math.inf, math.nan, None, 12.5]
    return [
        {"step": i, "examples": 8 * i, "required": kinds[i % 4], "decision": "keep", "loss": 1 / i}
        for i in range(start, start + count)
    ]


def write(path: pathlib.Path, rows: list[dict[str, Any]]) -> None:
    callback = JsonLines(path)
    for row in rows:
        callback(row)
    callback.close()


def no_constant(name: str) -> Any:
    raise AssertionError(f"{name} is not strict JSON")


def test_every_line_is_strict_json(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "deep" / "records.jsonl"
    write(path, records(4))
    lines = [json.loads(line, parse_constant=no_constant) for line in path.read_text().splitlines()]
    assert [line["required"] for line in lines] == ["NaN", None, 12.5, "Infinity"]


FLOATS = st.floats(allow_nan=True, allow_infinity=True)
PLAIN = st.one_of(FLOATS, st.integers(), st.booleans(), st.none(), st.text().map(lambda t: "t" + t))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.dictionaries(st.text(), st.one_of(PLAIN, st.lists(PLAIN))), max_size=5))
def test_reading_gives_back_every_value_bit_for_bit(rows: list[dict[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "records.jsonl")
        path.touch()
        write(path, rows)
        assert repr(read_json_lines(path)) == repr(rows)


def test_numpy_scalars_are_plain_numbers(tmp_path: pathlib.Path) -> None:
    row = {"a": np.float32(0.1), "b": np.int64(2**60), "c": np.float64("-inf"), "d": np.bool_(True)}
    write(tmp_path / "r.jsonl", [row])
    assert read_json_lines(tmp_path / "r.jsonl") == [
        {"a": float(np.float32(0.1)), "b": 2**60, "c": -math.inf, "d": True}
    ]


def test_an_array_is_refused_and_leaves_no_piece_of_a_line(tmp_path: pathlib.Path) -> None:
    callback = JsonLines(tmp_path / "r.jsonl")
    callback({"step": 1})
    with pytest.raises(TypeError, match=r"plain numbers.*jax\.device_get"):
        callback({"step": 2, "loss": np.zeros(3)})
    assert read_json_lines(tmp_path / "r.jsonl") == [{"step": 1}]


def test_a_new_run_keeps_the_file_of_the_old_one(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "records.jsonl"
    for count in (1, 2, 3):
        write(path, records(count))
        JsonLines(path).close()  # touches nothing before its first record
    found = {f.name: len(read_json_lines(f)) for f in tmp_path.iterdir()}
    assert found == {"records.1.jsonl": 1, "records.2.jsonl": 2, "records.jsonl": 3}


@pytest.mark.topic("resumes")
@pytest.mark.parametrize("restored", range(1, 11))
@pytest.mark.parametrize("torn", [None, b"", b'{"step": 11, "exa', b"\x00\x00\x00", b"\n\n"])
def test_a_resumed_file_equals_the_uninterrupted_one(
    tmp_path: pathlib.Path, restored: int, torn: bytes | None
) -> None:
    write(tmp_path / "whole.jsonl", records(15))
    path = tmp_path / "killed.jsonl"
    write(path, records(10))
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] if torn is None else whole + torn)  # None: only its end is torn off
    callback = JsonLines(path)
    callback.resume({"step": restored, "examples": 8 * restored})
    for row in records(15 - restored, start=restored + 1):
        callback(row)
    callback.close()
    assert path.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_going_back_within_one_process_cuts_or_keeps_aside(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "r.jsonl"
    callback = JsonLines(path)
    for row in records(6):
        callback(row)
    callback.resume({"step": 4})
    callback(records(1, start=5)[0])
    callback.resume({"step": 2})
    callback(records(1, start=3)[0])
    assert [row["step"] for row in read_json_lines(path)] == [1, 2, 3]
    callback.resume(None)
    callback(records(1)[0])
    assert len(read_json_lines(path)) == 1
    assert len(read_json_lines(tmp_path / "r.1.jsonl")) == 3


@pytest.mark.parametrize("content", ["my notes\n", '{"step": 9}\n', '{"a": 1}\n[1]\n', "torn"])
def test_a_file_without_a_line_to_go_on_from_is_never_destroyed(
    tmp_path: pathlib.Path, content: str
) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(content)
    callback = JsonLines(path)
    callback.resume({"step": 5, "examples": 40})
    callback({"step": 6})
    assert (tmp_path / "r.1.jsonl").read_text() == content
    assert read_json_lines(path) == [{"step": 6}]


def test_a_gap_is_said(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "r.jsonl"
    write(path, records(3))
    with pytest.warns(RuntimeWarning, match=r"up to step=7.*step=3 as the last"):
        JsonLines(path).resume({"step": 7, "examples": 56})
    assert len(read_json_lines(path)) == 3


def test_another_file_or_a_folder_is_refused(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text('{"step": 1}\nnonsense\n{"step": 3}\n')
    with pytest.raises(ValueError, match="line 2: this is another file or a damaged one"):
        read_json_lines(path)
    with pytest.raises(ValueError, match=r"is a folder: pass .*records\.jsonl"):
        JsonLines(tmp_path)


class FullDisk(io.FileIO):
    """A file on a disk that takes `room` more bytes."""

    room = 10**9

    def write(self, data: Any) -> int:
        taken = min(len(data), FullDisk.room)
        if not taken:
            raise OSError(errno.ENOSPC, "No space left on device")
        FullDisk.room -= taken
        return super().write(bytes(data)[:taken])


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> type[FullDisk]:
    opened = lambda path, mode, buffering: FullDisk(path, mode)
    monkeypatch.setattr("adaoptax.loop.json_lines.open", opened, raising=False)
    monkeypatch.setattr(FullDisk, "room", 10**9)
    return FullDisk


@pytest.mark.topic("full disks")
@pytest.mark.parametrize("room", [0, 1, 30, 85, 200])
def test_a_full_disk_loses_no_line_and_warns_once(
    tmp_path: pathlib.Path, disk: type[FullDisk], room: int
) -> None:
    write(tmp_path / "whole.jsonl", records(10))
    path = tmp_path / "r.jsonl"
    callback = JsonLines(path)
    disk.room = room
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for row in records(6):
            callback(row)
    assert ["No space left" in str(warning.message) for warning in caught] == [True]
    disk.room = 10**9
    for row in records(4, start=7):
        callback(row)
    callback.close()
    assert path.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


@pytest.mark.topic("full disks")
def test_a_disk_that_stays_full_is_said_at_the_end(
    tmp_path: pathlib.Path, disk: type[FullDisk]
) -> None:
    callback = JsonLines(tmp_path / "r.jsonl")
    callback({"step": 1})
    disk.room = 5
    with pytest.warns(RuntimeWarning, match="kept in memory"):
        callback({"step": 2})
    with pytest.warns(RuntimeWarning, match="last records are missing"):
        callback.close()
    assert read_json_lines(tmp_path / "r.jsonl") == [{"step": 1}]  # and a torn line


@pytest.mark.topic("full disks")
@pytest.mark.parametrize("restored", range(1, 7))
def test_a_resume_on_a_full_disk_keeps_what_waits_in_memory(
    tmp_path: pathlib.Path, disk: type[FullDisk], restored: int
) -> None:
    write(tmp_path / "whole.jsonl", records(restored))
    callback = JsonLines(tmp_path / "r.jsonl")
    for row in records(3):
        callback(row)
    disk.room = 20
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for row in records(3, start=4):
            callback(row)
        callback.resume({"step": restored, "examples": 8 * restored})
    disk.room = 10**9
    callback.close()
    assert (tmp_path / "r.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


WRITER = """
import sys
from adaoptax.loop import JsonLines
write = JsonLines(sys.argv[1])
step = 0
while True:
    step += 1
    write({"step": step, "examples": 8 * step})
    print(step, flush=True)
"""


@pytest.mark.topic("kill -9")
def test_a_kill_loses_no_line_that_was_written(
    tmp_path: pathlib.Path, tried: Callable[[str, int], None]
) -> None:
    path = tmp_path / "r.jsonl"
    command = [sys.executable, "-c", WRITER, str(path)]
    environment = os.environ | {"PYTHONPATH": str(pathlib.Path(__file__).parents[2])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        while int(process.stdout.readline()) < 500:
            pass
        process.send_signal(signal.SIGKILL)
    steps = [row["step"] for row in read_json_lines(path)]
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) >= 500
    tried("kills", 1)
