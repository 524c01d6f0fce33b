"""A train state that never makes a second compilation: strongly typed arrays, each in its place."""

from typing import Any

import jax
import numpy as np
from jax import NamedSharding


def committed_state(state: Any, everywhere: NamedSharding | None) -> Any:
    """`state` with all leaves strongly typed, on devices for good, and no array in it twice.

    `jax.jit` compiles again where a leaf has another type or place than before: a Python number, a
    weak type, or an array that is not bound to its device in the first step, and is after it.

    Args:
        state: Any pytree of arrays and numbers.
        everywhere: Where what has no place yet goes; None for the default device.

    Returns:
        `state` itself if nothing was to be done.
    """
    leaves, structure = jax.tree.flatten(state)
    ready: list[jax.Array] = []
    seen: set[int] = set()
    changed = False
    for leaf in leaves:
        is_ready = isinstance(leaf, jax.Array) and leaf.committed and not _weak(leaf)
        new = leaf if is_ready and id(leaf) not in seen else _placed(leaf, everywhere, seen)
        seen.add(id(leaf))
        changed |= new is not leaf
        ready.append(new)
    return jax.tree.unflatten(structure, ready) if changed else state


def _placed(leaf: Any, everywhere: NamedSharding | None, seen: set[int]) -> jax.Array:
    keep = isinstance(leaf, jax.Array) and (leaf.committed or everywhere is None)
    place = leaf.sharding if keep else everywhere
    if not isinstance(leaf, jax.Array) or _weak(leaf):
        leaf = jax.device_put(np.asarray(jax.device_get(leaf)), place)
        return leaf if leaf.committed else jax.device_put(leaf, leaf.sharding)
    # What stands in two places of the state cannot be given away twice.
    return jax.device_put(leaf, place, may_alias=None if id(leaf) not in seen else False)


def _weak(leaf: jax.Array) -> bool:
    return bool(getattr(leaf, "weak_type", False))


def committed_args(args: tuple, everywhere: NamedSharding | None) -> tuple:
    """Extra arguments on the devices, by explicit transfers."""

    def place(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array) and (everywhere is None or leaf.committed):
            return leaf
        return jax.device_put(leaf, everywhere)

    return jax.tree.map(place, args)
