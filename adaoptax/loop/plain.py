"""States of foreign iterators as plain JSON values, and back: they hold tensors, bytes, tuples."""

import base64
import sys
from typing import Any

import numpy as np

from adaoptax.loop.kinds import is_a

_TYPE = "__type__"


def to_plain(value: Any) -> Any:
    """A copy of `value` that JSON stores without loss; what it does not know stays as it is."""
    if isinstance(value, dict):
        if all(isinstance(key, str) for key in value) and _TYPE not in value:
            return {key: to_plain(each) for key, each in value.items()}
        return {_TYPE: "dict", "items": [[to_plain(k), to_plain(v)] for k, v in value.items()]}
    if isinstance(value, list):
        return [to_plain(each) for each in value]
    if type(value) is tuple:
        return {_TYPE: "tuple", "items": [to_plain(each) for each in value]}
    if isinstance(value, bytes):
        return {_TYPE: "bytes", "data": base64.b64encode(value).decode()}
    if is_a(value, "torch.Tensor"):
        return {_TYPE: "tensor", "array": to_plain(value.numpy(force=True))}
    if isinstance(value, (np.ndarray, np.generic)) and not value.dtype.hasobject:
        data = to_plain(value.tobytes())["data"]
        return {_TYPE: "array", "dtype": value.dtype.str, "shape": list(value.shape), "data": data}
    return value


def from_plain(value: Any) -> Any:
    """The inverse of `to_plain`, in new objects."""
    if isinstance(value, list):
        return [from_plain(each) for each in value]
    if not isinstance(value, dict):
        return value
    match value.get(_TYPE):
        case "dict":
            return {from_plain(key): from_plain(each) for key, each in value["items"]}
        case "tuple":
            return tuple(from_plain(each) for each in value["items"])
        case "bytes":
            return base64.b64decode(value["data"])
        case "tensor":
            return sys.modules["torch"].from_numpy(from_plain(value["array"]))
        case "array":
            flat = np.frombuffer(base64.b64decode(value["data"]), value["dtype"])
            return flat.reshape(value["shape"]).copy()
    return {key: from_plain(each) for key, each in value.items()}
