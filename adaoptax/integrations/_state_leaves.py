"""The leaves of a training state: strongly typed, in one place, and known by name."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from adaoptax.loop.train_state import committed_state


def as_restored(state: Any) -> Any:
    """Makes a first state of the kind that a restored one is, so that both compile once.

    What has no place yet goes to the mesh of the other leaves, or to their device.

    Args:
        state: Any pytree of arrays and numbers; `jax.ShapeDtypeStruct` get a place.

    Raises:
        TypeError: If a leaf is neither an array nor a number.
        ValueError: If an array was deleted.
    """
    for path, leaf in jax.tree.leaves_with_path(state):
        _require_array(path, leaf)
    return committed_state(state, _home(jax.tree.leaves(state)))


def _home(leaves: list[Any]) -> Sharding | None:
    """Where leaves without a place belong: with those that have one."""
    placed = [leaf.sharding for leaf in leaves if getattr(leaf, "committed", False)]
    meshes = [sharding.mesh for sharding in placed if isinstance(sharding, NamedSharding)]
    if meshes:
        return NamedSharding(max(meshes, key=lambda mesh: mesh.size), PartitionSpec())
    return placed[0] if placed and len(placed[0].device_set) == 1 else None


def _require_array(path: Any, leaf: Any) -> None:
    if isinstance(leaf, jax.Array) and leaf.is_deleted():
        raise ValueError(
            f"Expected a state whose arrays exist, got a deleted one at state{_key(path)}: "
            "this usually means that it was donated to a jitted step; pass the state that the "
            "step returned."
        )
    of_numpy = isinstance(leaf, (np.ndarray, np.generic)) and leaf.dtype.kind not in "OSUMm"
    numbers = (bool, int, float, complex, jax.Array, jax.ShapeDtypeStruct)
    if not (of_numpy or isinstance(leaf, numbers)):
        raise TypeError(
            f"Expected arrays and numbers in state, got {type(leaf).__name__} at "
            f"state{_key(path)}: leave it out of the state, or keep it in a field that is no leaf "
            "of the pytree."
        )


def require_values(state: Any) -> None:
    """Raises ValueError where a state has shapes only, and so cannot be a fresh start."""
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(state)):
        raise ValueError(
            "Expected arrays in state, got jax.ShapeDtypeStruct and no checkpoint to fill them "
            "from: pass the state as it is at a fresh start."
        )


def named_leaves(state: Any) -> dict[str, Any]:
    """The leaves by their names in Python, such as ``[0]['w']``; empty arrays are left out.

    The files hold this flat dict: it keeps the names of any pytree apart, and Orbax refuses
    arrays without elements.
    """
    named = jax.tree.leaves_with_path(state)
    leaves = {_key(path): leaf for path, leaf in named if leaf.size}
    assert len(leaves) == sum(bool(leaf.size) for _, leaf in named), "two leaves of one name"
    return leaves


def describe_leaves(state: Any) -> dict[str, str]:
    """Type and shape of every leaf by name, such as ``float32[3,4]``."""
    shape = lambda leaf: ",".join(map(str, leaf.shape))
    named = jax.tree.leaves_with_path(state)
    return {_key(path): f"{leaf.dtype}[{shape(leaf)}]" for path, leaf in named}


def abstract_leaves(state: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """What the file shall be read into: the types, shapes and places of `named_leaves`."""
    abstract = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
    return {name: abstract(leaf) for name, leaf in named_leaves(state).items()}


def with_leaves(state: Any, leaves: Mapping[str, Any]) -> Any:
    """The state with the arrays that were read, and its own empty ones."""
    return jax.tree.map_with_path(lambda path, leaf: leaves.get(_key(path), leaf), state)


def require_same_leaves(where: str, saved: Mapping[str, str], here: Mapping[str, str]) -> None:
    """Raises ValueError that names the first leaf in which a checkpoint differs from the state."""
    remedy = "build the model and the optimizer as they were when it was saved."
    for name in [*here, *saved]:
        if name not in saved:
            found = f"{here[name]} at state{name}, which the checkpoint does not have"
        elif name not in here:
            found = f"no state{name}, where the checkpoint has {saved[name]}"
        elif saved[name] != here[name]:
            found = f"{here[name]} at state{name}, where the checkpoint has {saved[name]}"
        else:
            continue
        raise ValueError(f"Expected the state that was saved in {where}, got {found}: {remedy}")


def _key(path: Any) -> str:
    return jax.tree_util.keystr(path)
