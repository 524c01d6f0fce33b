"""Records as TensorBoard scalars, in the format of tensorboardX; TensorBoard is not needed."""

import numbers
import os
import pathlib
import socket
import struct
import time
from collections.abc import Mapping
from typing import Any

from tensorboardX.crc32c import crc32c
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from adaoptax import _validate
from adaoptax.loop.json_lines import AppendFile

__all__ = ["TensorBoard"]


class TensorBoard:
    """Writes every number of every record to an event file: a callback of the training loop.

    All numbers of a record go into one event and are written at once, so that a killed process
    loses nothing. Every session writes a file of its own that begins with a mark from which on
    TensorBoard forgets what earlier sessions wrote: updates that are made again after a resume
    are shown once. Where the disk is full training goes on; what it refuses is written later.

    Args:
        directory: Folder of the run. Give every run one of its own.
        x: The horizontal axis: ``"examples"``, which compares runs whose batch sizes differ, or
            ``"step"``.

    Raises:
        ValueError: If `x` is none of these.

    Examples:
        >>> import pathlib, tempfile
        >>> from adaoptax.integrations.tensorboard import TensorBoard
        >>> folder = tempfile.mkdtemp()
        >>> write = TensorBoard(folder)
        >>> write({"step": 1, "examples": 32, "batch_size": 32, "loss": 2.31, "decision": "keep"})
        >>> write.close()
        >>> [path.name[:20] for path in pathlib.Path(folder).iterdir()]
        ['events.out.tfevents.']
    """

    def __init__(self, directory: str | os.PathLike[str], x: str = "examples") -> None:
        _validate.one_of("x", x, ("examples", "step"))
        self._directory, self._x = pathlib.Path(directory), x
        self._file: AppendFile | None = None

    def __call__(self, record: Mapping[str, Any]) -> None:
        """Writes the numbers of a record; texts and None are left out.

        Args:
            record: What the loop sends.
        """
        if self._file is None:
            self._open(first=0)
        found = {name: float(x) for name, x in record.items() if isinstance(x, numbers.Real)}
        values = [Summary.Value(tag=tag, simple_value=x) for tag, x in found.items()]
        self._write(Event(summary=Summary(value=values)), record[self._x])

    def resume(self, record: Mapping[str, Any] | None) -> None:
        """Begins a new file; what was written after the restored place is forgotten.

        Args:
            record: The last record before it; None for the start.
        """
        self.close()
        self._open(first=0 if record is None else record[self._x] + 1)

    def _open(self, first: int) -> None:
        """Begins a file that hides what other files say at `first` and after."""
        # TensorBoard reads the files of a run in the order of their names: time, host, number.
        number = len(list(self._directory.glob("events.out.tfevents.*")))
        name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{number:04}"
        self._file = AppendFile(self._directory / name)
        self._write(Event(file_version="brain.Event:2"), first)
        self._write(Event(session_log=SessionLog(status=SessionLog.START)), first)

    def _write(self, event: Event, step: int) -> None:
        assert self._file is not None
        event.step, event.wall_time = step, time.time()
        data = event.SerializeToString()
        length = struct.pack("<Q", len(data))
        self._file.write(length + _checksum(length) + data + _checksum(data))

    def close(self) -> None:
        """Closes the file; a later record goes on in it."""
        if self._file is not None:
            self._file.close()


def _checksum(data: bytes) -> bytes:
    """The masked CRC-32C of the TFRecord format."""
    value = crc32c(data)
    rotated = (value >> 15 | value << 17) + 0xA282EAD8
    return struct.pack("<I", rotated & 0xFFFFFFFF)
