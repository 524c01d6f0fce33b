"""A train state that never makes a second compilation: strongly typed arrays, each in its place."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, Sharding, SingleDeviceSharding


def committed_state(state: Any, everywhere: Sharding | None) -> Any:
    """`state` with all leaves strongly typed, on devices for good, and no array in it twice.

    `jax.jit` compiles again where a leaf has another type or place than before: a Python number, a
    weak type, or an array that is not bound to its device in the first step, and is after it.

    Args:
        state: Any pytree of arrays and numbers; `jax.ShapeDtypeStruct` get a place.
        everywhere: Where what has no place yet goes; None for the default device.

    Returns:
        `state` itself if nothing was to be done.
    """
    leaves, structure = jax.tree.flatten(state)
    ready: list[Any] = []
    seen: set[int] = set()
    changed = False
    for leaf in leaves:
        is_ready = isinstance(leaf, jax.Array) and leaf.committed and not _weak(leaf)
        new = leaf if is_ready and id(leaf) not in seen else _placed(leaf, everywhere, seen)
        seen.add(id(leaf))
        changed |= new is not leaf
        ready.append(new)
    return jax.tree.unflatten(structure, ready) if changed else state


def _placed(leaf: Any, everywhere: Sharding | None, seen: set[int]) -> Any:
    if isinstance(leaf, jax.ShapeDtypeStruct):
        place = leaf.sharding or everywhere or SingleDeviceSharding(jax.devices()[0])
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)
    keep = isinstance(leaf, jax.Array) and (leaf.committed or everywhere is None)
    place = leaf.sharding if keep else everywhere
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable and _weak(leaf):
        leaf = jax.lax.convert_element_type(leaf, leaf.dtype)  # of several processes: stays there
    if not isinstance(leaf, jax.Array) or _weak(leaf):
        leaf = _put(np.asarray(jax.device_get(leaf)), place)
        return leaf if leaf.committed else jax.device_put(leaf, leaf.sharding)
    if id(leaf) in seen:  # what stands in two places of the state cannot be given away twice
        leaf = jax.device_put(leaf, leaf.sharding, may_alias=False)
    return leaf if leaf.committed and leaf.sharding == place else _put(leaf, place)


def _put(leaf: Any, place: Any) -> jax.Array:
    """`jax.device_put`, also to the devices of other processes, without asking them."""
    if place is None or place.is_fully_addressable:
        return jax.device_put(leaf, place)
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = _put(jax.random.key_data(leaf), place)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    value = np.asarray(jax.device_get(leaf))
    value = value.astype(jax.eval_shape(lambda x: x, value).dtype)
    with jax.transfer_guard_host_to_device("allow"):  # explicit, though JAX does not count it so
        return jax.make_array_from_callback(value.shape, place, lambda index: value[index])


def _weak(leaf: jax.Array) -> bool:
    return bool(getattr(leaf, "weak_type", False))


def committed_args(args: tuple, everywhere: NamedSharding | None) -> tuple:
    """Extra arguments on the devices, by explicit transfers."""

    def place(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array) and (everywhere is None or leaf.committed):
            return leaf
        return _put(leaf, everywhere)

    return jax.tree.map(place, args)
