"""What is saved: values as JSON and back, and checks before anything is restored from them."""

import base64
import json
import math
import sys
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from adaoptax._validate import whole_number

# As protocol buffers spell them in JSON; `float` reads them in every language.
_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}

_TAG = "__adaoptax__"
_COLLECTIONS = {"tuple": tuple, "set": set}
_BYTES = {"bytes": bytes, "bytearray": bytearray}


def to_strict(value: Any) -> Any:
    """`value` for strict JSON: inf and NaN become texts, NumPy numbers become plain ones."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {key: to_strict(item) for key, item in value.items()}
    return [to_strict(item) for item in value] if isinstance(value, (list, tuple)) else value


def from_strict(value: Any) -> Any:
    """What `to_strict` was given; the texts "NaN", "Infinity" and "-Infinity" become floats."""
    if isinstance(value, str):
        return _NOT_FINITE.get(value, value)
    if isinstance(value, dict):
        return {key: from_strict(item) for key, item in value.items()}
    return [from_strict(item) for item in value] if isinstance(value, list) else value


def to_plain(value: Any, name: str = "state") -> Any:
    """A state of a data iterator as a new tree that JSON can hold; `from_plain` turns it back.

    It may hold dicts, lists, tuples, sets, bytes, NumPy arrays and numbers, and torch tensors.
    Anything else is a TypeError that calls the state `name`: it is never pickled.
    """
    kind = type(value)
    if value is None or kind in (bool, int, float, str):
        return value
    if kind is dict:
        if all(type(key) is str for key in value) and _TAG not in value:
            return {key: to_plain(item, f"{name}[{key!r}]") for key, item in value.items()}
        pairs = [
            [to_plain(key, f"a key of {name}"), to_plain(item, f"{name}[{key!r}]")]
            for key, item in value.items()
        ]
        return {_TAG: "dict", "value": pairs}
    if kind in (list, tuple, set):
        items = [to_plain(item, f"{name}[{i}]") for i, item in enumerate(value)]
        return items if kind is list else {_TAG: kind.__name__, "value": items}
    if isinstance(value, (bytes, bytearray)):
        return {_TAG: kind.__name__, "value": base64.b64encode(value).decode()}
    if isinstance(value, (np.ndarray, np.generic)) and not value.dtype.hasobject:
        return _array_to_plain(value, "ndarray" if isinstance(value, np.ndarray) else "scalar")
    torch = sys.modules.get("torch")  # what holds a tensor has imported it
    if torch is not None and isinstance(value, torch.Tensor):
        return _array_to_plain(value.detach().cpu().numpy(), "torch")
    raise TypeError(
        f"Expected plain values, bytes, NumPy arrays or torch tensors in the state of the loop, "
        f"got {kind.__name__} at {name}: this is usually the state of the data source; let "
        "its get_state or state_dict return plain values."
    )


def _array_to_plain(array: Any, tag: str) -> dict[str, Any]:
    return {
        _TAG: tag,
        "dtype": array.dtype.str,
        "shape": list(array.shape),
        "value": base64.b64encode(array.tobytes()).decode(),
    }


def from_plain(value: Any) -> Any:
    """A new tree of what `to_plain` was given, also after a round trip through JSON."""
    if isinstance(value, list):
        return [from_plain(item) for item in value]
    if not isinstance(value, dict):
        return value
    if _TAG not in value:
        return {key: from_plain(item) for key, item in value.items()}
    tag, inner = value[_TAG], value["value"]
    if tag == "dict":
        return {from_plain(key): from_plain(item) for key, item in inner}
    if tag in _COLLECTIONS:
        return _COLLECTIONS[tag](from_plain(item) for item in inner)
    if tag in _BYTES:
        return _BYTES[tag](base64.b64decode(inner))
    if tag in ("ndarray", "scalar", "torch"):
        array = np.frombuffer(base64.b64decode(inner), np.dtype(value["dtype"]))
        array = array.reshape(value["shape"]).copy()
        if tag == "torch":
            import torch

            return torch.from_numpy(array)
        return array[()] if tag == "scalar" else array
    raise ValueError(
        f"Expected a known kind of value in the saved state, got {tag!r}: use the version of "
        "adaoptax that saved it."
    )


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


def require_layout(state: Any, version: int, keys: Iterable[str]) -> None:
    """Raises ValueError unless `state` has all `keys` and the layout that this version reads."""
    require_keys("state", state, ["version", *keys])
    require_equal(state, "version", version, "use the version that saved it.")


def require_stream(state: Any, kind: str, keys: Iterable[str]) -> None:
    """Raises ValueError unless the state of a stream has all `keys` and is of this `kind`."""
    require_keys("state['stream']", state, ["kind"])
    require_equal(state, "kind", kind, "pass the kind of source it was saved with.")
    require_keys("state['stream']", state, [*keys, "checksum"])


def require_equal(state: Mapping[str, Any], key: str, here: Any, remedy: str) -> None:
    """Raises ValueError unless what is saved under `key` is what holds `here`."""
    if not _equal(state[key], here):
        raise ValueError(
            f"Expected {key}={here!r} as here, got {key}={state[key]!r} saved: {remedy}"
        )


def saved_count(state: Mapping[str, Any], key: str) -> int:
    """The whole number >= 0 saved under `key`."""
    return whole_number(key, state[key], 0, "the saved state is damaged.")


def saved_number(key: str, saved: Any) -> bool | int | float:
    """The number `saved` under `key`, which may be one of the texts of `to_strict`."""
    try:
        number = float(saved) if isinstance(saved, str) else saved
        math.isfinite(number)
    except (TypeError, ValueError, OverflowError) as error:
        raise damaged(key, saved, "to be a number") from error
    return number


def damaged(key: str, saved: Any, expected: str) -> ValueError:
    """The ValueError for a saved value that `get_state` cannot have returned."""
    return ValueError(
        f"Expected {key} {expected}, got {key}={saved!r} saved: the saved state is damaged."
    )


def _equal(saved: Any, here: Any) -> bool:
    is_number = not getattr(saved, "ndim", 0) and isinstance(saved, bool) == isinstance(here, bool)
    return is_number and bool(saved == here)


def sealed(state: dict[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """`state` with a checksum of what is saved under `keys`."""
    return state | {"checksum": _checksum(state, keys)}


def require_seal(state: Mapping[str, Any], keys: Iterable[str]) -> None:
    """Raises ValueError unless what is saved under `keys` is what it was when it was saved."""
    try:
        here = _checksum(state, keys)
    except TypeError:  # keys of several types, which no saved state has
        here = None
    if here is None or not _equal(state["checksum"], here):
        raise ValueError(
            f"Expected {', '.join(keys)} as they were saved, got a checksum that does not fit "
            "them: the saved state is damaged, or was edited; pass what get_state() returned."
        )


def _checksum(state: Mapping[str, Any], keys: Iterable[str]) -> int:
    """Checksum of what is saved under `keys`, the same after a round trip through JSON."""
    text = json.dumps({key: state[key] for key in keys}, sort_keys=True, default=_to_json)
    return zlib.crc32(text.encode())


def _to_json(value: Any) -> Any:
    # What a checkpoint returns as NumPy numbers is equal to what was saved.
    return value.tolist() if hasattr(value, "tolist") else type(value).__name__
