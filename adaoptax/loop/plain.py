"""States of iterators and loops as JSON, and back: they may hold tensors, bytes and tuples."""

import base64
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

_TAG = "__adaoptax__"


def to_plain(value: Any, name: str = "state") -> Any:
    """Returns a new tree of dicts, lists and plain values that JSON can hold.

    Args:
        value: Plain values, dicts, lists, tuples, bytes, sets, NumPy arrays and numbers, or torch
            tensors, as the states of data iterators hold them.
        name: What to call `value` in an error.

    Returns:
        What `from_plain` turns back, also after a round trip through JSON.

    Raises:
        TypeError: If there is anything else; it is never pickled.

    Examples:
        >>> from_plain(to_plain({"place": (1, b"ab"), "at": np.arange(2)}))
        {'place': (1, b'ab'), 'at': array([0, 1])}
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Mapping) and type(value) is dict:
        if all(type(key) is str for key in value) and _TAG not in value:
            return {key: to_plain(item, f"{name}[{key!r}]") for key, item in value.items()}
        pairs = [
            [to_plain(key, f"a key of {name}"), to_plain(item, f"{name}[{key!r}]")]
            for key, item in value.items()
        ]
        return {_TAG: "dict", "value": pairs}
    for kind, tag in ((list, None), (tuple, "tuple"), (set, "set")):
        if type(value) is kind:
            items = [to_plain(item, f"{name}[{i}]") for i, item in enumerate(value)]
            return items if tag is None else {_TAG: tag, "value": items}
    if isinstance(value, (bytes, bytearray)):
        return {_TAG: type(value).__name__, "value": base64.b64encode(value).decode()}
    if isinstance(value, (np.ndarray, np.generic)) and not value.dtype.hasobject:
        return _array_to_plain(value, "ndarray" if isinstance(value, np.ndarray) else "scalar")
    torch = sys.modules.get("torch")  # what holds a tensor has imported it
    if torch is not None and isinstance(value, torch.Tensor):
        return _array_to_plain(value.detach().cpu().numpy(), "torch")
    raise TypeError(
        f"Expected plain values, bytes, NumPy arrays or torch tensors in the state of the loop, "
        f"got {type(value).__name__} at {name}: this is usually the state of the data source; let "
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
    """Returns what `to_plain` was given.

    Args:
        value: What `to_plain` returned, also after a round trip through JSON.

    Returns:
        A new tree with the types of the first one.

    Raises:
        ValueError: If a tag is not known.

    Examples:
        >>> import json
        >>> from_plain(json.loads(json.dumps(to_plain({"place": (1, 2)}))))
        {'place': (1, 2)}
    """
    if isinstance(value, list):
        return [from_plain(item) for item in value]
    if not isinstance(value, dict):
        return value
    if _TAG not in value:
        return {key: from_plain(item) for key, item in value.items()}
    tag, inner = value[_TAG], value["value"]
    if tag == "dict":
        return {from_plain(key): from_plain(item) for key, item in inner}
    if tag == "tuple":
        return tuple(from_plain(item) for item in inner)
    if tag == "set":
        return {from_plain(item) for item in inner}
    if tag == "bytes":
        return base64.b64decode(inner)
    if tag == "bytearray":
        return bytearray(base64.b64decode(inner))
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
