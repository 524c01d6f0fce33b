"""What a `Checkpointer` asks of its folder, its loop and its state, one sentence an error."""

import pathlib
import tempfile
from typing import Any

import jax


def require_writable(directory: pathlib.Path) -> None:
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


def require_loop(loop: Any, *, needed: bool = False) -> None:
    """Raises TypeError unless `loop` can save its place; None passes unless it is needed."""
    if loop is None and not needed:
        return
    if not all(hasattr(loop, name) for name in ("get_state", "set_state", "step")):
        raise TypeError(
            f"Expected loop to have get_state, set_state and step, got {type(loop).__name__}: pass "
            "the BatchLoader, or the loop around it, that gives the batches."
        )


def require_arrays(state: Any) -> None:
    """Raises ValueError where a state has shapes only, and so cannot be a fresh start."""
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(state)):
        raise ValueError(
            "Expected arrays in state, got jax.ShapeDtypeStruct and no checkpoint to fill them "
            "from: pass the state as it is at a fresh start."
        )


def examples_seen(loop: Any) -> Any:
    """How far the loop is, beside its step; None where it does not tell."""
    return getattr(loop, "examples_seen", None)


def one_line(error: Exception) -> str:
    """An error in a few words: those of file systems and storage are pages long."""
    text = " ".join(str(error).split())
    if len(text) > 220:  # what was done stands first, and why it failed last
        text = f"{text[:80]} ... {text[-130:]}"
    return f"{type(error).__name__}: {text}"
