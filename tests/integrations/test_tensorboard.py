"""Event files, read back with the messages and checksums of their format."""

import math
import pathlib
import struct
import warnings
from typing import Any

import pytest

pytest.importorskip("tensorboardX")

from tensorboardX.crc32c import crc32c
from tensorboardX.proto.event_pb2 import Event, SessionLog

from adaoptax.integrations.tensorboard import TensorBoard


def events(path: pathlib.Path) -> list[Any]:
    content, found = path.read_bytes(), []
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        data = content[12 : 12 + length]
        for start, part in ((8, content[:8]), (12 + length, data)):
            (masked,) = struct.unpack("<I", content[start : start + 4])
            rotated = (masked - 0xA282EAD8) % 2**32
            assert (rotated >> 17 | rotated << 15) & 0xFFFFFFFF == crc32c(part)
        found.append(Event.FromString(data))
        content = content[16 + length :]
    return found


def shown(folder: pathlib.Path, tag: str) -> list[tuple[int, float]]:
    """What TensorBoard shows: a start mark at a step hides what came before at that step on."""
    points: list[tuple[int, float]] = []
    for path in sorted(folder.iterdir()):
        for event in events(path):
            if event.session_log.status == SessionLog.START:
                points = [point for point in points if point[0] < event.step]
            points += [(event.step, v.simple_value) for v in event.summary.value if v.tag == tag]
    return points


def record(step: int, **numbers: Any) -> dict[str, Any]:
    return {"step": step, "examples": 32 * step, "batch_size": 32, **numbers}


def test_all_numbers_of_a_record_are_one_event(tmp_path: pathlib.Path) -> None:
    write = TensorBoard(tmp_path)
    write(record(1, loss=0.5, required=math.inf, gain=None, decision="keep", measured=True))
    write.close()
    (path,) = tmp_path.iterdir()
    version, start, event = events(path)
    assert version.file_version == "brain.Event:2"
    assert start.session_log.status == SessionLog.START
    assert event.step == 32
    values = {value.tag: value.simple_value for value in event.summary.value}
    assert values == {
        "step": 1, "examples": 32, "batch_size": 32, "loss": 0.5, "required": math.inf,
        "measured": 1,
    }  # fmt: skip


@pytest.mark.parametrize(("x", "unit"), [("examples", 32), ("step", 1)])
def test_updates_that_are_made_again_are_shown_once(
    tmp_path: pathlib.Path, x: str, unit: int
) -> None:
    killed = TensorBoard(tmp_path, x)
    for step in range(1, 11):
        killed(record(step, loss=step))
    resumed = TensorBoard(tmp_path, x)
    resumed.resume(record(6))
    for step in range(7, 13):
        resumed(record(step, loss=step + 100))
    resumed.close()
    expected = [(unit * s, float(s if s <= 6 else s + 100)) for s in range(1, 13)]
    assert shown(tmp_path, "loss") == expected
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.topic("kill -9")
def test_a_run_killed_before_its_first_checkpoint_starts_again(tmp_path: pathlib.Path) -> None:
    for loss in (1.0, 2.0):
        write = TensorBoard(tmp_path)
        write(record(1, loss=loss))
        write.close()
    assert shown(tmp_path, "loss") == [(32, 2.0)]


def test_going_back_within_one_process_hides_what_came_after(tmp_path: pathlib.Path) -> None:
    write = TensorBoard(tmp_path)
    for step in (1, 2, 3):
        write(record(step, loss=step))
    write.resume(record(1))
    write(record(2, loss=20))
    write.close()
    assert shown(tmp_path, "loss") == [(32, 1.0), (64, 20.0)]


@pytest.mark.topic("kill -9")
def test_nothing_waits_in_memory_for_a_kill(tmp_path: pathlib.Path) -> None:
    write = TensorBoard(tmp_path)
    for step in (1, 2, 3):
        write(record(step, loss=step))
        assert len(shown(tmp_path, "loss")) == step


@pytest.mark.topic("full disks")
def test_a_refused_write_stops_nothing(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = TensorBoard(tmp_path)
    write(record(1, loss=1))
    assert write._file is not None

    class Full:
        def write(self, data: bytes) -> int:
            raise OSError(28, "No space left on device")

        def close(self) -> None: ...

    monkeypatch.setattr(write._file, "_file", Full())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        write(record(2, loss=2))
        write(record(3, loss=3))
    assert len(caught) == 1
    monkeypatch.undo()
    write(record(4, loss=4))
    write.close()
    assert shown(tmp_path, "loss") == [(32 * step, float(step)) for step in (1, 2, 3, 4)]


def test_an_unknown_axis_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match="Expected x to be one of 'examples', 'step'"):
        TensorBoard(tmp_path, x="time")
