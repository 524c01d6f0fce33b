"""A loop's state as JSON: plain values as they are, bytes, tuples and arrays with a tag."""

import base64
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

_TAG = "__adaoptax__"


def encode(value: Any, name: str = "state") -> Any:
    """Returns a new tree of dicts, lists and plain values that JSON can hold.

    Args:
        value: Plain values, dicts, lists, tuples, bytes, sets, NumPy arrays and numbers, or torch
            tensors, as the states of data iterators hold them.
        name: What to call `value` in an error.

    Returns:
        What `decode` turns back, also after a round trip through JSON.

    Raises:
        TypeError: If there is anything else; it is never pickled.

    Examples:
        >>> decode(encode({"place": (1, b"ab"), "at": np.arange(2)}))
        {'place': (1, b'ab'), 'at': array([0, 1])}
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Mapping) and type(value) is dict:
        if all(type(key) is str for key in value) and _TAG not in value:
            return {key: encode(item, f"{name}[{key!r}]") for key, item in value.items()}
        pairs = [
            [encode(key, f"a key of {name}"), encode(item, f"{name}[{key!r}]")]
            for key, item in value.items()
        ]
        return {_TAG: "dict", "value": pairs}
    for kind, tag in ((list, None), (tuple, "tuple"), (set, "set")):
        if type(value) is kind:
            items = [encode(item, f"{name}[{i}]") for i, item in enumerate(value)]
            return items if tag is None else {_TAG: tag, "value": items}
    if isinstance(value, (bytes, bytearray)):
        return {_TAG: type(value).__name__, "value": base64.b64encode(value).decode()}
    if isinstance(value, (np.ndarray, np.generic)) and not value.dtype.hasobject:
        return _encode_array(value, "ndarray" if isinstance(value, np.ndarray) else "scalar")
    torch = sys.modules.get("torch")  # what holds a tensor has imported it
    if torch is not None and isinstance(value, torch.Tensor):
        return _encode_array(value.detach().cpu().numpy(), "torch")
    raise TypeError(
        f"Expected plain values, bytes, NumPy arrays or torch tensors in the state of the loop, "
        f"got {type(value).__name__} at {name}: this is usually the state of the data source; let "
        "its get_state or state_dict return plain values."
    )


def _encode_array(array: Any, tag: str) -> dict[str, Any]:
    return {
        _TAG: tag,
        "dtype": array.dtype.str,
        "shape": list(array.shape),
        "value": base64.b64encode(array.tobytes()).decode(),
    }


def decode(value: Any) -> Any:
    """Returns what `encode` was given.

    Args:
        value: What `encode` returned, also after a round trip through JSON.

    Returns:
        A new tree with the types of the first one.

    Raises:
        ValueError: If a tag is not known.

    Examples:
        >>> import json
        >>> decode(json.loads(json.dumps(encode({"place": (1, 2)}))))
        {'place': (1, 2)}
    """
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    if _TAG not in value:
        return {key: decode(item) for key, item in value.items()}
    tag, inner = value[_TAG], value["value"]
    if tag == "dict":
        return {decode(key): decode(item) for key, item in inner}
    if tag == "tuple":
        return tuple(decode(item) for item in inner)
    if tag == "set":
        return {decode(item) for item in inner}
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
