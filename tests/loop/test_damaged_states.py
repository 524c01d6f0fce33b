"""Whatever happens to a saved state: it is refused, or it continues the same stream."""

import copy
import json

import numpy as np
import pytest
from fake_sources import GetState, cut
from hypothesis import given, settings
from hypothesis import strategies as st

from adaoptax.loop import BatchLoader

pytestmark = pytest.mark.topic("damaged states")

N = 60


def index_loader():
    return BatchLoader(np.arange(N), 8, micro_batch_size=4, max_batch_size=32, seed=7, num_epochs=3)


def iterator_loader():
    return BatchLoader(GetState(cut(np.arange(3 * N), 4)), 8, micro_batch_size=4, max_batch_size=32)


MAKERS = {"index": index_loader, "iterator": iterator_loader}


def advanced(kind, steps=3):
    loader = MAKERS[kind]()
    for _ in range(steps):
        next(loader)
        loader.resize(loader.batch_size + 4)
    return loader


def rest(loader):
    return [i for batch in loader for i in batch.data[batch.mask].tolist()]


def paths(state, above=()):
    for key, value in state.items():
        yield (*above, key)
        if isinstance(value, dict):
            yield from paths(value, (*above, key))


STATES = {kind: advanced(kind).get_state() for kind in MAKERS}
PATHS = {kind: sorted(paths(state)) for kind, state in STATES.items()}
RESTS = {kind: rest(advanced(kind)) for kind in MAKERS}
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.integers(-4, 200),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=3),
    st.dictionaries(st.one_of(st.integers(), st.text(max_size=2)), st.integers(), max_size=3),
    st.sampled_from([8.0, "24", b"24", 24 + 0j, np.int64(24), np.zeros(3), object()]),
)


@pytest.mark.parametrize("kind", MAKERS)
@settings(max_examples=700)
@given(data=st.data())
def test_a_changed_state_is_refused_or_continues_the_same_stream(kind, data):
    state = copy.deepcopy(STATES[kind])
    for _ in range(data.draw(st.integers(1, 2))):
        path = data.draw(st.sampled_from(PATHS[kind]))
        inner = state
        for key in path[:-1]:
            inner = inner.get(key) if isinstance(inner, dict) else None
        if not isinstance(inner, dict):
            continue
        change = data.draw(st.sampled_from(["value", "drop", "near", "swap"]))
        if change == "drop":
            inner.pop(path[-1], None)
        elif change == "near" and type(inner.get(path[-1])) is int:
            inner[path[-1]] += data.draw(st.sampled_from([-4, -1, 1, 4, 8]))
        elif change == "swap":
            other = data.draw(st.sampled_from(sorted(inner, key=str) or [path[-1]]))
            inner[path[-1]], inner[other] = inner.get(other), inner.get(path[-1])
        else:
            inner[path[-1]] = data.draw(VALUES)
    loader = MAKERS[kind]()
    next(loader)
    before = loader.get_state()
    try:
        loader.set_state(state)
    except ValueError:
        assert loader.get_state() == before
        assert loader.examples_seen == 8
        if kind == "iterator":
            assert next(loader).data.tolist() == list(range(8, 16))
    else:
        assert rest(loader) == RESTS[kind]


@pytest.mark.parametrize("kind", MAKERS)
def test_every_key_is_needed(kind):
    for path in PATHS[kind]:
        state = copy.deepcopy(STATES[kind])
        inner = state
        for key in path[:-1]:
            inner = inner[key]
        del inner[path[-1]]
        ours = "iterator" not in path[:-1]  # else the checksum tells
        with pytest.raises(ValueError, match=f"the key '{path[-1]}'" if ours else "checksum"):
            MAKERS[kind]().set_state(state)


@pytest.mark.parametrize("kind", MAKERS)
def test_a_truncated_text_never_becomes_a_state(kind, tried):
    text = json.dumps(STATES[kind])
    for stop in range(len(text)):
        with pytest.raises(ValueError, match="line 1 column"):  # of json.loads
            MAKERS[kind]().set_state(json.loads(text[:stop]))
    tried("truncated texts", len(text))


@pytest.mark.parametrize(
    "foreign", [{}, {"params": 1}, [], 3, None, "{}", {"version": 1, "stream": 2}]
)
def test_foreign_objects_are_refused(foreign):
    for make in MAKERS.values():
        with pytest.raises(ValueError, match="Expected state"):
            make().set_state(foreign)
