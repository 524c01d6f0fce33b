"""Orbax: the training state and the loop's place in one checkpoint, saved and resumed exactly."""

import os
import pathlib
import warnings
from types import TracebackType
from typing import Any, Self, TypeVar

import jax

from adaoptax._tree import ArrayTree
from adaoptax._validate import whole_number
from adaoptax.integrations._checkpoint_files import CheckpointFiles, content_of, one_line
from adaoptax.integrations._signals import StopSignals
from adaoptax.integrations._state_leaves import (
    as_restored,
    describe_leaves,
    require_same_leaves,
    require_values,
    with_leaves,
)
from adaoptax.loop.saved_state import from_plain

__all__ = ["Checkpointer"]

State = TypeVar("State")


class Checkpointer:
    """Saves parameters, optimizer state and the loop's place together, and resumes them exactly.

    Use it in a ``with`` block around the loop. There SIGTERM (which clusters send before they end
    a job) and Ctrl-C ask it to stop: `after_step` saves and returns True. A second Ctrl-C raises
    KeyboardInterrupt at once.

    How the block ends decides what is saved last:

    - At its end, by ``break`` or ``return``, the last state given to `after_step` is saved.
    - By an error (a second Ctrl-C is one), nothing new is saved, since the state may be what is
      wrong; a save that is under way is finished. At most `every` steps are lost.
    - By ``kill -9`` an unfinished save is lost, and the one before it holds.

    A step that cannot be written while training (a full disk) is a warning, and is tried again
    after a tenth of `every`; the checkpoints before it stay. The last save of the block, and
    `save`, raise instead. Where several processes train, every failed save raises, since the
    others cannot know of it.

    Saving copies the arrays and writes them in the background: the state may be donated to the
    next step. Each checkpoint has checksums of its files, which `restore` compares.

    With several processes each has a Checkpointer of its own with the same arguments, a folder
    that all of them see, and a state that lies on all devices; all make the same calls.

    Args:
        directory: Folder of this run's checkpoints and of nothing else; it is made if it is not
            there. One run at a time may write to it.
        every: Steps between two saves, counted by ``loop.step``.
        keep: How many checkpoints stay, the newest; None for all.
        handle_signals: Whether SIGTERM and Ctrl-C stop the loop in order, rather than at once.

    Raises:
        ValueError: If an argument is outside its range.

    Examples:
        >>> import tempfile, adaoptax, jax, jax.numpy as jnp, numpy as np
        >>> from adaoptax.integrations.orbax import Checkpointer
        >>> step = jax.jit(lambda state, batch: state + batch.data.sum())
        >>> folder = tempfile.mkdtemp()
        >>> def train(num_steps):
        ...     loop = adaoptax.BatchLoader(np.arange(100.0), 8)
        ...     with Checkpointer(folder, every=10) as saver:
        ...         state = saver.restore(jnp.zeros([]), loop)
        ...         for batch in loop:
        ...             state = step(state, batch)
        ...             if saver.after_step(state, loop) or loop.step == num_steps:
        ...                 break
        ...     return float(state), saver.restored_step
        >>> first = train(5)
        >>> second = train(25)  # goes on after step 5
        >>> second[1]
        5
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        every: int = 100,
        keep: int | None = 2,
        handle_signals: bool = True,
    ) -> None:
        if "://" in os.fspath(directory):
            raise ValueError(
                f"Expected directory to be a folder of the file system, got "
                f"directory={os.fspath(directory)!r}: mount the bucket and pass its folder."
            )
        self._directory = pathlib.Path(directory).absolute()
        self._every = whole_number("every", every, 1, "it counts steps.")
        self._keep = keep
        if keep is not None:
            self._keep = whole_number("keep", keep, 1, "it counts checkpoints; None keeps all.")
        self._handle_signals = bool(handle_signals)
        self._signals = StopSignals()
        self._files: CheckpointFiles | None = None
        self._restored_step: int | None = None
        self._saved_step: int | None = None  # the last one written in this block
        self._writing: int | None = None  # the one that is being written
        self._next_save = 0
        self._owns_folder = False  # known once, before the first save
        self._last: tuple[int, Any, Any, Any] | None = None

    @property
    def directory(self) -> pathlib.Path:
        """Folder of the checkpoints; each is in a folder that is named by its step."""
        return self._directory

    @property
    def restored_step(self) -> int | None:
        """The step that `restore` went back to; None for a fresh start."""
        return self._restored_step

    @property
    def steps(self) -> list[int]:
        """The steps that can be restored, in order."""
        return [step for step in self._open_files().steps if step != self._writing]

    def __enter__(self) -> Self:
        # The other processes could not know of a save that failed on one.
        self._alone = jax.process_count() == 1
        self._files = CheckpointFiles(self._directory, self._keep)
        self._next_save = self._every
        if self._handle_signals:
            self._signals.install()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        files = self._open_files()
        try:
            if error is None:
                self._save_last()
            else:
                self._settle(warn=True)  # a second error would hide the first
        finally:
            self._last = None
            self._signals.remove()
            self._files = None
            files.close()

    def restore(self, state: State, loop: Any = None, step: int | None = None) -> State:
        """Goes back to the newest checkpoint, or makes a fresh start if there is none.

        Args:
            state: The state as it is at a fresh start: any pytree of arrays and numbers. It tells
                structure, types, and how the arrays lie on devices. To save memory its leaves
                may be `jax.ShapeDtypeStruct` with a sharding, where a checkpoint exists.
            loop: What has the place in the data and the batch size (`get_state`, `set_state` and
                `step`): a `BatchLoader` or a loop around it. None restores the state alone.
            step: The checkpoint to go back to, None for the newest. When training goes on from
                an earlier one, the later ones are deleted at the first save.

        Returns:
            The state that was saved, or `state` itself; either way strongly typed and committed
            to its devices (what lies nowhere in particular goes to the mesh of the rest), so that
            a jitted step compiles once for both. Numbers become arrays.

        Raises:
            ValueError: If the checkpoint is damaged, was not written by a `Checkpointer`, holds
                another state, or does not suit the loop; nothing is changed then. The message
                names the other steps that can be restored.
            TypeError: If the state has leaves that are neither arrays nor numbers.
        """
        files = self._open_files()
        if loop is not None:
            _require_loop(loop)
        state = as_restored(state)
        steps = files.steps
        if step is None and not steps:
            require_values(state)
            return state
        wanted = steps[-1] if step is None else whole_number("step", step, 0, "a checkpoint.")
        if wanted not in steps:
            raise ValueError(
                f"Expected step to be one of the checkpoints {steps} in {self._directory}, got "
                f"step={wanted}: pass one of them, or None for the newest."
            )
        header = files.read_header(wanted)
        where = f"step {wanted} of {self._directory}"
        require_same_leaves(where, header["leaves"], describe_leaves(state))
        if loop is not None and header["loop"] is None:
            raise ValueError(
                f"Expected a checkpoint with the state of a loop, got {where} without one: pass "
                "loop=None to restore the state alone."
            )
        arrays = files.read_arrays(wanted, state)
        if loop is not None:
            loop.set_state(from_plain(header["loop"]))
        later = [other for other in steps if other > wanted]
        if later:
            warnings.warn(
                f"Restored {where}; the later steps {later} will be deleted at the first save.",
                RuntimeWarning,
                stacklevel=2,
            )
        self._restored_step = self._saved_step = wanted
        self._next_save = wanted + self._every
        return with_leaves(state, arrays)

    def after_step(self, state: ArrayTree, loop: Any) -> bool:
        """Saves when it is time to, and says whether to stop; call it after every step.

        Args:
            state: The state after the step. It is not used any more once the next step is
                called, and so may be donated.
            loop: The same as for `restore`. Call it when the batch of this step is the last that
                the loop has delivered.

        Returns:
            True after SIGTERM or Ctrl-C, with the state saved: leave the loop. On several
            processes it is True on all of them after the same step.

        Raises:
            RuntimeError: If it is time to stop and the state cannot be saved.
            ValueError: If the folder has checkpoints of a run that was not restored.
        """
        _require_loop(loop)
        step = int(loop.step)
        self._last = step, _examples_seen(loop), state, loop
        if self._reached_stop(step):
            self._save_last()
            return True
        if self._writing is not None and not self._open_files().manager.is_saving_in_progress():
            self._settle(warn=self._alone)
        if step >= self._next_save:
            self._next_save = step + self._every
            self._start(state, loop, warn=self._alone)
        return False

    def save(self, state: ArrayTree, loop: Any) -> None:
        """Saves now, and returns when the checkpoint is on the disk.

        A step that has a checkpoint is not saved again.

        Args:
            state: The state after the last step.
            loop: The same as for `after_step`.

        Raises:
            RuntimeError: If it cannot be written.
            ValueError: If the folder has checkpoints of a run that was not restored.
        """
        _require_loop(loop)
        self._settle(warn=self._alone)
        if int(loop.step) != self._saved_step:
            self._next_save = int(loop.step) + self._every
            self._start(state, loop)
            self._settle()

    def _reached_stop(self, step: int) -> bool:
        if self._handle_signals and jax.distributed.is_initialized():
            # All processes agree on one step; from there on all of them are to stop.
            self._signals.received |= self._open_files().manager.reached_preemption(step)
        return self._signals.received

    def _save_last(self) -> None:
        """Saves the last state given to `after_step`, unless that has happened."""
        self._settle(warn=self._alone)
        if self._last is None:
            return
        step, seen, state, loop = self._last
        if step == self._saved_step:
            return
        if (int(loop.step), _examples_seen(loop)) != (step, seen):
            warnings.warn(
                f"Step {step} was not saved at the end, because the loop has delivered another "
                "batch since: leave the loop after `after_step`, or call it before.",
                RuntimeWarning,
                stacklevel=3,
            )
            return
        self.save(state, loop)

    def _start(self, state: Any, loop: Any, *, warn: bool = False) -> None:
        """Copies the arrays and starts to write them."""
        files = self._open_files()
        self._settle(warn=warn)
        step = int(loop.step)
        content = content_of(as_restored(state), loop)
        if not self._owns_folder:
            files.take_over(self._restored_step)
            self._owns_folder = True
        try:
            files.start_writing(step, content)
            self._writing = step
        except Exception as error:
            self._failed(step, error, warn)

    def _settle(self, *, warn: bool = False) -> None:
        """Waits for the save under way, then has its files summed up."""
        if self._writing is None:
            return
        step, self._writing = self._writing, None
        try:
            self._open_files().finish_writing(step)
            self._saved_step = step
        except Exception as error:
            self._failed(step, error, warn)

    def _failed(self, step: int, error: Exception, warn: bool) -> None:
        if self._alone:  # what was written of it would keep the disk full
            self._open_files().delete_unfinished()
        message = (
            f"Step {step} could not be saved in {self._directory} ({one_line(error)}): make room "
            f"on the disk; the checkpoints before it are good."
        )
        if not warn:
            raise RuntimeError(message) from error
        wait = max(1, self._every // 10)
        self._next_save = step + wait if self._last is None else self._last[0] + wait
        warnings.warn(f"{message} Trying again later.", RuntimeWarning, stacklevel=4)

    def _open_files(self) -> CheckpointFiles:
        if self._files is None:
            raise RuntimeError(
                "Expected an open Checkpointer, got one outside its with block: write `with "
                "Checkpointer(...) as saver:` around the loop."
            )
        return self._files


def _require_loop(loop: Any) -> None:
    if not all(hasattr(loop, name) for name in ("get_state", "set_state", "step")):
        raise TypeError(
            f"Expected loop to have get_state, set_state and step, got {type(loop).__name__}: pass "
            "the BatchLoader, or the loop around it, that gives the batches."
        )


def _examples_seen(loop: Any) -> Any:
    """How far the loop is, beside its step; None where it does not tell."""
    return getattr(loop, "examples_seen", None)
