"""Reading one checkpoint: its files are compared with their checksums before they are believed."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from adaoptax.integrations._checkpoint_checks import one_line
from adaoptax.integrations._checksums import find_damage
from adaoptax.integrations._state_leaves import abstract_leaves

FORMAT = 1


def read_header(directory: pathlib.Path, step: int, steps: Sequence[int]) -> Mapping[str, Any]:
    """The format, the names of the leaves, and the state of the loop.

    Args:
        directory: Folder of all checkpoints.
        step: The one to read.
        steps: All that there are, to say which others are good.

    Raises:
        ValueError: If the checkpoint is damaged or was written by something else.
    """
    folder = directory / str(step)
    damage = _find_damage_together(folder)
    if damage is not None:
        raise damaged(directory, step, damage, steps)
    try:
        header = json.loads((folder / "loop" / "metadata").read_text())
        version, leaves, _ = header["format"], header["leaves"], header["loop"]
        if not isinstance(leaves, dict):
            raise TypeError("leaves")
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = "loop/metadata is damaged, or was not written by a Checkpointer"
        raise damaged(directory, step, reason, steps) from error
    if version != FORMAT:
        raise ValueError(
            f"Expected format={FORMAT} in step {step} of {directory}, got format={version!r}: use "
            "the version of adaoptax that saved it."
        )
    return header


def read_arrays(
    manager: ocp.CheckpointManager,
    directory: pathlib.Path,
    step: int,
    state: Any,
    steps: Sequence[int],
) -> Mapping[str, Any]:
    """The arrays by name, with the types and places of those in `state`."""
    target = ocp.args.StandardRestore(abstract_leaves(state))
    try:
        with jax.transfer_guard("allow"):  # processes wait for each other in a collective
            return manager.restore(step, args=ocp.args.Composite(state=target))["state"]
    except Exception as error:
        raise damaged(directory, step, one_line(error), steps) from error


def damaged(directory: pathlib.Path, step: int, reason: str, steps: Sequence[int]) -> ValueError:
    """The error that names the step, the folder, and the other steps to go back to."""
    others = [other for other in steps if other != step]
    good = [other for other in others if find_damage(directory / str(other)) is None]
    remedy = f"pass step= one of {good} to go back to that" if good else "there is no other one"
    return ValueError(
        f"Expected a complete checkpoint, got step {step} of {directory} in which {reason}: "
        f"{remedy}, or delete the folder {directory / str(step)}."
    )


def _find_damage_together(folder: pathlib.Path) -> str | None:
    """The damage that any process finds in its share of the files."""
    parts = jax.process_count()
    damage = find_damage(folder, jax.process_index(), parts)
    if parts > 1:
        with jax.transfer_guard("allow"):
            found = multihost_utils.process_allgather(np.array([damage is not None]))
        if damage is None and np.any(found):
            damage = "another process has found damage"
    return damage
