"""A file that only grows: what a full disk refuses is kept and written later."""

import contextlib
import io
import os
import pathlib
import warnings


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

    def close(self) -> None:
        """Writes what it can and closes the file; a later `write` opens it again."""
        self.flush()
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None
        if self.pending:
            warnings.warn(
                f"Could not write the last {len(self.pending)} bytes of {self.path}: the disk "
                "refused them until the end, so that its last records are missing.",
                RuntimeWarning,
                stacklevel=3,
            )

    def __del__(self) -> None:
        # To forget `close` is no fault: all is written already.
        if self._file is not None:
            self._file.close()


def keep_aside(path: pathlib.Path) -> None:
    """Renames a file that holds something: ``a.jsonl`` to the first free of ``a.1.jsonl``, ..."""
    if path.exists() and path.stat().st_size:
        number = 1
        while (backup := path.with_name(f"{path.stem}.{number}{path.suffix}")).exists():
            number += 1
        os.rename(path, backup)
