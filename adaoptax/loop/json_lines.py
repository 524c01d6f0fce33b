"""Records of updates in a file that only grows: one line of strict JSON for each update."""

import contextlib
import io
import json
import os
import pathlib
import warnings
from collections.abc import Mapping
from typing import Any

from adaoptax.loop.saved_state import from_strict, to_strict


class JsonLines:
    """Appends a line of strict JSON for every record: a callback of the training loop.

    Every line is written at once, so that a killed process loses at most a part of its last
    line. JSON has no numbers beyond the finite ones: they become the texts ``"Infinity"``,
    ``"-Infinity"`` and ``"NaN"``, and None becomes ``null``, so that "all noise", "undefined" and
    "not measured" stay apart. `read_json_lines` gives every number back bit for bit.

    Nothing that a file holds is lost. A run from the start that finds one renames it to the first
    free of ``records.1.jsonl``, ``records.2.jsonl``, ... A resumed run cuts what came after the
    restored place, since it will write these lines again: the file ends up as that of a run that
    was never interrupted. Where the disk is full training goes on: a warning is given once, and
    the lines wait in memory.

    Args:
        path: The file, usually ``.../records.jsonl``. It is made with its folders at the first
            record.

    Raises:
        ValueError: If `path` is a folder.

    Examples:
        >>> import pathlib, tempfile
        >>> from adaoptax.loop import JsonLines, read_json_lines
        >>> path = pathlib.Path(tempfile.mkdtemp(), "records.jsonl")
        >>> write = JsonLines(path)
        >>> write({"step": 1, "examples": 32, "required": float("inf"), "gain": None})
        >>> write.close()
        >>> print(path.read_text(), end="")
        {"step": 1, "examples": 32, "required": "Infinity", "gain": null}
        >>> read_json_lines(path)
        [{'step': 1, 'examples': 32, 'required': inf, 'gain': None}]
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = pathlib.Path(path)
        if self._path.is_dir():
            raise ValueError(
                f"Expected path to be a file, got path={str(path)!r}, which is a folder: pass "
                f"{str(self._path / 'records.jsonl')!r}."
            )
        self._file: AppendFile | None = None

    def __call__(self, record: Mapping[str, Any]) -> None:
        """Appends one record.

        Args:
            record: Names and plain values: numbers, texts, bools, None, also in lists and dicts.

        Raises:
            TypeError: If JSON has no form for a value.
        """
        line = _line(record)
        if self._file is None:
            _keep_aside(self._path)
            self._file = AppendFile(self._path)
        self._file.write(line)

    def resume(self, record: Mapping[str, Any] | None) -> None:
        """Goes back to a restored place: cuts the lines that come after it.

        Args:
            record: The last record before that place, of which "step" is read; None for the
                start, where the file that is there is kept aside.
        """
        pending = b"" if self._file is None else self._file.release()
        self._file = None
        if record is None:
            return
        written = self._path.read_bytes() if self._path.exists() else b""
        step = int(record["step"])
        stop, last_step = _end_of_step(written + pending, step)
        if last_step is None:  # no line to go on from: as at the start
            _keep_aside(self._path)
        elif stop < len(written):
            os.truncate(self._path, stop)
        self._file = AppendFile(self._path)
        kept = (written + pending)[len(written) : stop]
        if not (kept or written[:stop]).endswith(b"\n") and last_step is not None:
            kept += b"\n"  # a whole line whose end was torn off
        if kept:
            self._file.write(kept)
        if last_step is not None and last_step < step:
            warnings.warn(
                f"Expected lines up to step={step} in {self._path}, got step={last_step} as the "
                "last: some were never written (a full disk, a machine that went down, or an "
                "older copy of the file); the new lines follow after this gap.",
                RuntimeWarning,
                stacklevel=2,
            )

    def close(self) -> None:
        """Closes the file; a later record opens it again and goes on."""
        if self._file is not None:
            self._file.close()


def read_json_lines(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Reads what `JsonLines` wrote, with every number as it was.

    Args:
        path: The file, also while a run still writes it: a torn last line is left out.

    Returns:
        One dict a line. The texts "Infinity", "-Infinity" and "NaN" come back as floats.

    Raises:
        ValueError: If a line that is not the last one is no JSON object.

    Examples:
        >>> import pathlib, tempfile
        >>> from adaoptax.loop import read_json_lines
        >>> path = pathlib.Path(tempfile.mkdtemp(), "records.jsonl")
        >>> _ = path.write_text('{"step": 1, "required": "NaN"}' + chr(10) + '{"step": 2, "requ')
        >>> read_json_lines(path)
        [{'step': 1, 'required': nan}]
    """
    *lines, torn = pathlib.Path(path).read_bytes().split(b"\n")
    records = []
    for number, line in enumerate(lines, start=1):
        record = _parsed(line)
        if record is None:
            raise ValueError(
                f"Expected a JSON object in every line of {path}, got {line[:40]!r} in line "
                f"{number}: this is another file or a damaged one; remove that line."
            )
        records.append(record)
    last = _parsed(torn)  # whole, where only its end of line is missing
    return records if last is None else [*records, last]


def _line(record: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(to_strict(dict(record)), allow_nan=False).encode() + b"\n"
    except TypeError as error:
        raise TypeError(
            f"Expected records of plain numbers, texts and None, got {dict(record)!r} ({error}): "
            "read arrays with jax.device_get and float first."
        ) from error


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return from_strict(record) if isinstance(record, dict) else None


def _end_of_step(content: bytes, step: int) -> tuple[int, int | None]:
    """Where the last line of at most this step ends, and its step; ``(0, None)`` without one."""
    stop = len(content)
    while stop:  # from the end, since few lines are to be cut of many
        start = content.rfind(b"\n", 0, stop - 1) + 1
        found = (_parsed(content[start:stop]) or {}).get("step")
        if isinstance(found, int) and found <= step:
            return stop, found
        stop = start
    return 0, None


def _keep_aside(path: pathlib.Path) -> None:
    """Renames a file that holds something: ``a.jsonl`` to the first free of ``a.1.jsonl``, ..."""
    if path.exists() and path.stat().st_size:
        number = 1
        while (backup := path.with_name(f"{path.stem}.{number}{path.suffix}")).exists():
            number += 1
        os.rename(path, backup)


class AppendFile:
    """Appends bytes at once; training goes on when the disk is full.

    Nothing waits in a buffer, so that a killed process loses nothing that was written. What the
    disk refuses is kept in memory, from the first byte that it refused, and is tried again with
    the next write: the file never holds a torn piece in its middle.

    Args:
        path: The file, which is made with its folders at the first write.

    Attributes:
        path: The file.
        pending: Bytes that the disk refused so far.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self.pending = bytearray()
        self._file: io.FileIO | None = None
        self._warned = False

    def write(self, data: bytes) -> None:
        """Appends `data`, now or as soon as the disk takes it; an OSError if it cannot open."""
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115
        self.pending += data
        self.flush()

    def flush(self) -> None:
        """Tries to write what is pending; warns once where it cannot."""
        try:
            while self.pending and self._file is not None:
                del self.pending[: self._file.write(self.pending)]
            self._warned = False
        except OSError as error:
            if not self._warned:
                self._warned = True
                warnings.warn(
                    f"Cannot write {self.path} ({error.strerror}): its records are kept in memory "
                    "and written when that is possible; free some space.",
                    RuntimeWarning,
                    stacklevel=4,
                )

    def release(self) -> bytes:
        """Writes what it can and closes the file; returns what the disk refused."""
        self.flush()
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None
        return bytes(self.pending)

    def close(self) -> None:
        """Closes the file, with a warning if the disk refused something; `write` opens it again."""
        if refused := self.release():
            warnings.warn(
                f"Could not write the last {len(refused)} bytes of {self.path}: the disk "
                "refused them until the end, so that its last records are missing.",
                RuntimeWarning,
                stacklevel=3,
            )

    def __del__(self) -> None:
        # To forget `close` is no fault: all is written already.
        if self._file is not None:
            self._file.close()
