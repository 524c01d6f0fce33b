"""The source code of Python's standard library as bytes, read where it is installed.

Nothing is downloaded or copied. The text differs between versions of Python by some percent, so
name `version` and `sha256` with every number that was measured on it.
"""

import hashlib
import pathlib
import platform
import sysconfig
import zlib
from typing import NamedTuple

import numpy as np

# Third-party packages live in the same folder, and tests repeat themselves.
_SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}


class Corpus(NamedTuple):
    """Bytes of the standard library.

    Attributes:
        train: Bytes to train on.
        validation: Bytes of other files: one in twenty, chosen by a checksum of their names.
        num_files: Number of files in both.
        version: Version of Python.
        sha256: First digits of the hash of all bytes.
    """

    train: np.ndarray
    validation: np.ndarray
    num_files: int
    version: str
    sha256: str

    def describe(self) -> str:
        """One line for people."""
        return (
            f"Python {self.version} standard library, {self.num_files} files,"
            f" {len(self.train):,} bytes to train on and {len(self.validation):,} to validate,"
            f" sha256 {self.sha256}"
        )


def read_standard_library(max_bytes: int | None = None) -> Corpus:
    """Reads all files, or as many as fit in `max_bytes`, in the order of their names."""
    root = pathlib.Path(sysconfig.get_paths()["stdlib"])
    parts: dict[bool, list[bytes]] = {True: [], False: []}
    total, num_files = 0, 0
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if _SKIPPED & set(name.parts):
            continue
        text = path.read_bytes() + b"\0"  # the end of a file
        if max_bytes is not None and total + len(text) > max_bytes:
            continue
        parts[zlib.crc32(name.as_posix().encode()) % 20 == 0].append(text)
        total, num_files = total + len(text), num_files + 1
    validation, train = b"".join(parts[True]), b"".join(parts[False])
    return Corpus(
        train=np.frombuffer(train, np.uint8),
        validation=np.frombuffer(validation, np.uint8),
        num_files=num_files,
        version=platform.python_version(),
        sha256=hashlib.sha256(train + validation).hexdigest()[:12],
    )


def windows(text: np.ndarray, length: int) -> np.ndarray:
    """Rows of length + 1 bytes that overlap by one: every byte is predicted once. No copy."""
    rows = (len(text) - 1) // length
    return np.lib.stride_tricks.as_strided(
        text, (rows, length + 1), (length * text.itemsize, text.itemsize), writeable=False
    )


def unigram_bits(text: np.ndarray) -> float:
    """Bits per byte of the best guess that looks at nothing before."""
    share = np.bincount(text, minlength=256) / len(text)
    share = share[share > 0]
    return float(-(share * np.log2(share)).sum())
