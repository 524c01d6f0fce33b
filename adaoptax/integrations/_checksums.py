"""Checksums of the files of a checkpoint: bits that changed on the disk are found, not loaded."""

import contextlib
import json
import os
import pathlib
import zlib
from collections.abc import Iterator

_NAME = "checksums.json"
_BLOCK = 2**20


def write_checksums(folder: pathlib.Path) -> None:
    """Writes the size and CRC-32 of every file of a finished checkpoint into its folder."""
    # Without it the checkpoint is still good: it may just have been replaced by newer ones.
    with contextlib.suppress(OSError):
        sums = {name: [_size(path), _crc(path)] for name, path in _files(folder)}
        unfinished = folder / f"{_NAME}.unfinished"
        unfinished.write_text(json.dumps(sums))
        os.replace(unfinished, folder / _NAME)


def find_damage(folder: pathlib.Path, part: int = 0, parts: int = 1) -> str | None:
    """What is wrong with the files of a checkpoint, in words; None where all is as written.

    Args:
        folder: Folder of one checkpoint.
        part: Number of the caller among `parts` that read a share of the files each.
        parts: Number of callers.
    """
    try:
        sums = json.loads((folder / _NAME).read_text())
        if not isinstance(sums, dict):
            return f"{_NAME} cannot be read"
        for name, (size, checksum) in sorted(sums.items())[part::parts]:
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if _size(path) != size:
                return f"{name} has {_size(path)} bytes instead of {size}"
            if _crc(path) != checksum:
                return f"{name} has other bytes than were written"
    except FileNotFoundError:
        # The program was killed between the checkpoint and its checksums.
        return None if any(_files(folder)) else "the folder is empty"
    except (OSError, ValueError, TypeError) as error:
        return f"{_NAME} cannot be read ({error})"
    return None


def _files(folder: pathlib.Path) -> Iterator[tuple[str, pathlib.Path]]:
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not name.startswith(_NAME):
            yield name, path


def _size(path: pathlib.Path) -> int:
    return path.stat().st_size


def _crc(path: pathlib.Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            checksum = zlib.crc32(block, checksum)
    return checksum
