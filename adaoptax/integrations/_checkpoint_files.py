"""The checkpoints in one folder: written in the background, read only where no bit has changed."""

import contextlib
import json
import logging
import os
import pathlib
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from adaoptax.integrations._state_leaves import abstract_leaves, describe_leaves, named_leaves
from adaoptax.loop.background import BackgroundThread
from adaoptax.loop.saved_state import to_plain

_FORMAT = 1
_CHECKSUMS = "checksums.json"


class CheckpointFiles:
    """An open folder of checkpoints, each in a folder that is named by its step.

    Attributes:
        manager: Orbax's, which writes and deletes them.
    """

    def __init__(self, directory: pathlib.Path, keep: int | None) -> None:
        _require_writable(directory)
        self._directory = directory
        logging.getLogger("absl").addFilter(_is_worth_logging)
        options = ocp.CheckpointManagerOptions(max_to_keep=keep)
        self.manager = ocp.CheckpointManager(directory, options=options)
        self._thread = BackgroundThread("adaoptax-checksums")
        self._checksums: Future[None] | None = None

    def close(self) -> None:
        """Finishes what is being written."""
        self._thread.close()
        self.manager.close()
        logging.getLogger("absl").removeFilter(_is_worth_logging)

    @property
    def steps(self) -> list[int]:
        """The steps that have a checkpoint, also one that is being written, in order."""
        return sorted(self.manager.all_steps())

    def read_header(self, step: int) -> Mapping[str, Any]:
        """The format, the names of the leaves ("leaves"), and the state of the loop ("loop").

        Raises:
            ValueError: If the checkpoint is damaged or was written by something else.
        """
        folder = self._directory / str(step)
        damage = _find_damage_together(folder)
        if damage is not None:
            raise self._damaged(step, damage)
        try:
            header = json.loads((folder / "loop" / "metadata").read_text())
            version, leaves, _ = header["format"], header["leaves"], header["loop"]
            if not isinstance(leaves, dict):
                raise TypeError("leaves")
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = "loop/metadata is damaged, or was not written by a Checkpointer"
            raise self._damaged(step, reason) from error
        if version != _FORMAT:
            raise ValueError(
                f"Expected format={_FORMAT} in step {step} of {self._directory}, got "
                f"format={version!r}: use the version of adaoptax that saved it."
            )
        return header

    def read_arrays(self, step: int, state: Any) -> Mapping[str, Any]:
        """The arrays by name, with the types and places of those in `state`."""
        target = ocp.args.StandardRestore(abstract_leaves(state))
        try:
            with jax.transfer_guard("allow"):  # processes wait for each other in a collective
                return self.manager.restore(step, args=ocp.args.Composite(state=target))["state"]
        except Exception as error:
            raise self._damaged(step, one_line(error)) from error

    def start_writing(self, step: int, content: ocp.args.Composite) -> None:
        """Copies the arrays of `content_of` and begins to write them."""
        if self._checksums is not None:  # the new one may replace what they are written into
            self._checksums.result()
        with jax.transfer_guard("allow"):  # processes wait for each other in a collective
            self.manager.save(step, args=content, force=True)

    def finish_writing(self, step: int) -> None:
        """Waits until all is written, then begins to write the checksums."""
        self.manager.wait_until_finished()
        if jax.process_index() == 0:
            folder = self._directory / str(step)
            self._checksums = self._thread.submit(_write_checksums, folder)

    def take_over(self, restored_step: int | None) -> None:
        """Deletes what is later than the restored step, and what was left unfinished.

        Raises:
            ValueError: If there are checkpoints and none of them was restored.
        """
        if restored_step is None and self.steps:
            raise ValueError(
                f"Expected a directory without checkpoints for a fresh run, got "
                f"directory={str(self._directory)!r} with the steps {self.steps}: call restore() "
                "first, or pass another directory."
            )
        for step in self.steps:
            if restored_step is not None and step > restored_step:
                self.manager.delete(step)
        if jax.process_index() == 0:
            self.delete_unfinished()

    def delete_unfinished(self) -> None:
        """Deletes what was written of saves that failed or were killed."""
        for path in self._directory.glob("*.orbax-checkpoint-tmp*"):
            shutil.rmtree(path, ignore_errors=True)

    def _damaged(self, step: int, reason: str) -> ValueError:
        """The error that names the step, the folder, and the other steps to go back to."""
        others = [other for other in self.steps if other != step]
        good = [other for other in others if _find_damage(self._directory / str(other)) is None]
        remedy = f"pass step= one of {good} to go back to that" if good else "there is no other one"
        return ValueError(
            f"Expected a complete checkpoint, got step {step} of {self._directory} in which "
            f"{reason}: {remedy}, or delete the folder {self._directory / str(step)}."
        )


def content_of(state: Any, loop: Any) -> ocp.args.Composite:
    """What a checkpoint holds of a state and a loop."""
    header = {
        "format": _FORMAT,
        "leaves": describe_leaves(state),
        "loop": to_plain(loop.get_state()),
    }
    return ocp.args.Composite(
        state=ocp.args.StandardSave(named_leaves(state)), loop=ocp.args.JsonSave(header)
    )


def one_line(error: Exception) -> str:
    """An error in a few words: those of file systems and storage are pages long."""
    text = " ".join(str(error).split())
    if len(text) > 220:  # what was done stands first, and why it failed last
        text = f"{text[:80]} ... {text[-130:]}"
    return f"{type(error).__name__}: {text}"


def _require_writable(directory: pathlib.Path) -> None:
    """Makes the folder; raises ValueError where nothing could be written to it."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise ValueError(
            f"Expected directory to be a folder that can be written to, got "
            f"directory={str(directory)!r} ({error.strerror}): pass a folder of your own."
        ) from error


def _is_worth_logging(record: logging.LogRecord) -> bool:
    """False for errors that Orbax also raises: a full disk would log hundreds of lines."""
    of_orbax = "orbax" in record.pathname
    return not (of_orbax and (record.exc_info or "raised an exception" in record.msg))


def _write_checksums(folder: pathlib.Path) -> None:
    """Writes the size and CRC-32 of every file of a finished checkpoint into its folder."""
    # Without it the checkpoint is still good: it may just have been replaced by newer ones.
    with contextlib.suppress(OSError):
        sums = {name: [path.stat().st_size, _crc(path)] for name, path in _files(folder)}
        unfinished = folder / f"{_CHECKSUMS}.unfinished"
        unfinished.write_text(json.dumps(sums))
        os.replace(unfinished, folder / _CHECKSUMS)


def _find_damage(folder: pathlib.Path, part: int = 0, parts: int = 1) -> str | None:
    """What is wrong with the files of a checkpoint, in words; None where all is as written.

    Args:
        folder: Folder of one checkpoint.
        part: Number of the caller among `parts` that read a share of the files each.
        parts: Number of callers.
    """
    try:
        sums = json.loads((folder / _CHECKSUMS).read_text())
        if not isinstance(sums, dict):
            return f"{_CHECKSUMS} cannot be read"
        for name, (size, checksum) in sorted(sums.items())[part::parts]:
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != size:
                return f"{name} has {path.stat().st_size} bytes instead of {size}"
            if _crc(path) != checksum:
                return f"{name} has other bytes than were written"
    except FileNotFoundError:
        # The program was killed between the checkpoint and its checksums.
        return None if any(_files(folder)) else "the folder is empty"
    except (OSError, ValueError, TypeError) as error:
        return f"{_CHECKSUMS} cannot be read ({error})"
    return None


def _find_damage_together(folder: pathlib.Path) -> str | None:
    """The damage that any process finds in its share of the files."""
    parts = jax.process_count()
    damage = _find_damage(folder, jax.process_index(), parts)
    if parts > 1:
        with jax.transfer_guard("allow"):
            found = multihost_utils.process_allgather(np.array([damage is not None]))
        if damage is None and np.any(found):
            damage = "another process has found damage"
    return damage


def _files(folder: pathlib.Path) -> Iterator[tuple[str, pathlib.Path]]:
    """Name and path of every file but the checksums."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not name.startswith(_CHECKSUMS):
            yield name, path


def _crc(path: pathlib.Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(2**20):
            checksum = zlib.crc32(block, checksum)
    return checksum
