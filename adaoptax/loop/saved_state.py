"""Checks of a saved state before anything is restored from it: all errors are ValueErrors."""

import json
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

from adaoptax._numbers import whole_number


def require_keys(name: str, state: Any, keys: Iterable[str]) -> None:
    """Raises ValueError unless `state` is a mapping that has all `keys`."""
    if not isinstance(state, Mapping):
        raise ValueError(
            f"Expected {name} to be a dict as get_state() returns it, got "
            f"{type(state).__name__}: decode it first if it was stored as text."
        )
    missing = [key for key in keys if key not in state]
    if missing:
        raise ValueError(
            f"Expected {name} with the key {missing[0]!r}, got only the keys "
            f"{sorted(map(str, state))}: it was damaged or saved by another object; pass what "
            "get_state() returned."
        )


def require_equal(name: str, saved: Any, here: Any, remedy: str) -> None:
    """Raises ValueError unless what was `saved` is what holds `here`."""
    if not _equal(saved, here):
        raise ValueError(f"Expected {name}={here!r} as here, got {name}={saved!r} saved: {remedy}")


def saved_count(state: Mapping[str, Any], key: str) -> int:
    """The whole number >= 0 saved under `key`."""
    return whole_number(key, state[key], 0, "the saved state is damaged.")


def _equal(saved: Any, here: Any) -> bool:
    is_number = not getattr(saved, "ndim", 0) and isinstance(saved, bool) == isinstance(here, bool)
    return is_number and bool(saved == here)


def checksum(state: Mapping[str, Any], keys: Iterable[str]) -> int:
    """Checksum of what is saved under `keys`: the same after a round trip through JSON."""
    text = json.dumps({key: state[key] for key in keys}, sort_keys=True, default=_to_json)
    return zlib.crc32(text.encode())


def require_checksum(state: Mapping[str, Any], keys: Iterable[str]) -> None:
    """Raises ValueError unless what is saved under `keys` is what it was when it was saved."""
    try:
        here = checksum(state, keys)
    except TypeError:  # keys of several types, which no saved state has
        here = None
    if here is None or not _equal(state["checksum"], here):
        raise ValueError(
            f"Expected {', '.join(keys)} as they were saved, got a checksum that does not fit "
            "them: the saved state is damaged, or was edited; pass what get_state() returned."
        )


def _to_json(value: Any) -> Any:
    # What a checkpoint returns as NumPy numbers is equal to what was saved.
    return value.tolist() if hasattr(value, "tolist") else type(value).__name__
