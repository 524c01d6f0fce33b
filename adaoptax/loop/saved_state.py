"""Checks of a saved state before anything is restored from it: all errors are ValueErrors."""

from collections.abc import Iterable, Mapping
from typing import Any

from adaoptax.loop.sizes import whole_number


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
    if isinstance(saved, bool) != isinstance(here, bool) or saved != here:
        raise ValueError(f"Expected {name}={here!r} as here, got {name}={saved!r} saved: {remedy}")


def saved_count(state: Mapping[str, Any], key: str) -> int:
    """The whole number >= 0 saved under `key`."""
    return whole_number(key, state[key], 0, "the saved state is damaged.")
