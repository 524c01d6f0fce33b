"""States of foreign iterators as JSON: nothing is lost, and nothing is shared."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaoptax.loop.saved_state import from_plain, to_plain

KEYS = st.one_of(st.text(max_size=4), st.integers(), st.just("__adaoptax__"), st.booleans())
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(), st.binary(),
    st.binary().map(bytearray),
)  # fmt: skip
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.sets(st.integers() | st.text(), max_size=3),
        st.dictionaries(KEYS, inner, max_size=3),
    ),
)


def types(value):
    if isinstance(value, dict):
        return [(types(key), types(each)) for key, each in value.items()]
    if isinstance(value, (list, tuple)):
        return type(value), [types(each) for each in value]
    return type(value)


@given(VALUES)
def test_a_round_trip_through_json_gives_the_same_value(value):
    again = from_plain(json.loads(json.dumps(to_plain(value))))
    assert again == value
    assert types(again) == types(value)


@pytest.mark.parametrize(
    "array", [np.arange(6).reshape(2, 3), np.float32(1.5), np.zeros((0, 3)), np.array(["a", "bc"])]
)
def test_arrays_keep_type_shape_and_bits(array):
    again = from_plain(json.loads(json.dumps(to_plain({"a": array}))))["a"]
    assert (again.dtype, again.shape) == (array.dtype, array.shape)
    np.testing.assert_array_equal(again, array)


def test_tensors_keep_type_and_values():
    torch = pytest.importorskip("torch")
    state = torch.Generator().manual_seed(3).get_state()
    again = from_plain(json.loads(json.dumps(to_plain(state))))
    assert again.dtype == torch.uint8
    assert torch.equal(again, state)


def test_the_copy_shares_nothing():
    state: dict[str, Any] = {"a": [1, {"b": [2]}]}
    plain = to_plain(state)
    state["a"][1]["b"].append(3)
    assert plain == {"a": [1, {"b": [2]}]}
    from_plain(plain)["a"].append(4)
    assert plain == {"a": [1, {"b": [2]}]}


def test_what_is_unknown_is_refused_by_its_name():
    with pytest.raises(TypeError, match=r"got object at state\['x'\]\[1\]: this is usually"):
        to_plain({"x": [1, object()]})


def test_a_tag_of_a_later_version_is_refused():
    with pytest.raises(ValueError, match="got 'quaternion': use the version of adaoptax"):
        from_plain({"__adaoptax__": "quaternion", "value": [1]})
