"""What may be a source: each kind gives the same rows, everything else is refused clearly."""

import collections
import json
import re
from typing import NamedTuple

import grain
import jax.numpy as jnp
import numpy as np
import pytest
from fake_sources import AtOnce, GetState, StateDict, cut

from adaoptax.loop import BatchLoader

N = 12
X, Y = np.repeat(np.arange(N, dtype=np.float32)[:, None], 2, axis=1), np.arange(N)
PAIRS = [(X[i], i) for i in range(N)]
DICTS = [{"x": X[i], "y": i} for i in range(N)]


class Pair(NamedTuple):
    x: np.ndarray
    y: np.ndarray


class MapStyle:
    """Like a map-style torch dataset: no iteration protocol, examples are tuples."""

    def __len__(self):
        return N

    def __getitem__(self, index):
        return PAIRS[index]


class Bytes(GetState):
    """Like an iterator of an older grain: its state is bytes."""

    def get_state(self):
        return str(self.place).encode()

    def set_state(self, state):
        self.place = int(state)


@pytest.mark.topic("real sources")
@pytest.mark.parametrize(
    ("source", "leaves"),
    [
        pytest.param({"x": X, "y": Y}, lambda d: (d["x"], d["y"]), id="dict"),
        pytest.param((X, Y), lambda d: d, id="tuple"),
        pytest.param(Pair(X, Y), lambda d: (d.x, d.y), id="NamedTuple"),
        pytest.param(
            {"x": jnp.asarray(X), "y": (Y, None)}, lambda d: (d["x"], d["y"][0]), id="jax"
        ),
        pytest.param(DICTS, lambda d: (d["x"], d["y"]), id="list"),
        pytest.param([(jnp.asarray(x), y) for x, y in PAIRS], lambda d: d, id="list of jax"),
        pytest.param(MapStyle(), lambda d: d, id="map style"),
        pytest.param(AtOnce(PAIRS), lambda d: d, id="getitems"),
        pytest.param(
            grain.MapDataset.source(DICTS), lambda d: (d["x"], d["y"]), id="grain.MapDataset"
        ),
    ],
)
@pytest.mark.parametrize("prefetch", [0, 2])
def test_random_access(source, leaves, prefetch):
    with BatchLoader(source, 4, shuffle=False, num_epochs=1, prefetch=prefetch) as loader:
        batches = list(loader)
    for number, batch in enumerate(batches):
        x, y = leaves(batch.data)
        assert type(x) is np.ndarray
        assert x.dtype == np.float32
        np.testing.assert_array_equal(y, np.arange(4 * number, 4 * number + 4))
        np.testing.assert_array_equal(x, np.repeat(y[:, None], 2, axis=1))
    assert len(batches) == 3


def test_single_array_and_scalar_examples():
    for source in (Y, jnp.asarray(Y), range(5)):
        assert next(BatchLoader(source, 3, shuffle=False)).data.tolist() == [0, 1, 2]


def test_batches_are_copies_of_arrays():
    source = Y.copy()
    next(BatchLoader(source, 3, shuffle=False)).data[:] = 99
    np.testing.assert_array_equal(source, Y)


def test_getitems_reads_a_batch_in_one_call():
    source = AtOnce(PAIRS)
    next(BatchLoader(source, 4, shuffle=False))
    assert source.calls == [[0, 1, 2, 3]]


def test_grain_augmentation_is_fresh_in_each_epoch_and_the_same_again():
    def epochs():
        source = grain.MapDataset.source(list(range(N))).seed(3)
        source = source.random_map(lambda i, rng: {"i": i, "noise": rng.random()})
        loader = BatchLoader(source, N, seed=1)
        return [next(loader).data for _ in range(2)]

    first, second = epochs()
    assert sorted(first["i"]) == sorted(second["i"]) == list(range(N))
    assert not set(first["noise"]) & set(second["noise"])
    np.testing.assert_array_equal(second["noise"], epochs()[1]["noise"])


@pytest.mark.parametrize("kind", ["dataset", "iterator", "state_dict", "get_state", "bytes"])
def test_iterators_of_micro_batches(kind):
    dataset = grain.MapDataset.source([{"y": i} for i in range(N)]).batch(4).to_iter_dataset()
    source = {
        "dataset": lambda: dataset,
        "iterator": lambda: iter(dataset),
        "state_dict": lambda: StateDict(cut({"y": Y}, 4)),
        "get_state": lambda: GetState(cut({"y": Y}, 4)),
        "bytes": lambda: Bytes(cut({"y": Y}, 4)),
    }[kind]()
    loader = BatchLoader(source, 8, micro_batch_size=4)
    first = loader.get_state()
    assert next(loader).data["y"].tolist() == list(range(8))
    state = loader.get_state()
    assert json.loads(json.dumps(state)) == state
    last = next(loader)
    assert (last.data["y"].tolist(), last.num_examples) == ([8, 9, 10, 11], 4)
    assert loader.epoch is None
    end = loader.get_state()
    for place, expected in [(state, [8, 9, 10, 11]), (first, list(range(8))), (end, None)]:
        loader.set_state(place)
        assert loader.get_state() == place
        if expected is not None:
            assert next(loader).data["y"].tolist() == expected
        else:
            assert next(loader, None) is None
    del loader, source


def test_short_last_micro_batch_is_padded_and_masked():
    loader = BatchLoader(GetState(cut({"y": Y[:10]}, 4)), 12, micro_batch_size=4)
    batch = next(loader)
    assert batch.data["y"].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 0]
    assert batch.mask.tolist() == [True] * 10 + [False] * 2
    assert (batch.num_examples, loader.examples_seen) == (10, 10)
    assert next(loader, None) is None


class DataLoader:
    """Like torch's: a length and batches, but no place that could be saved."""

    def __len__(self):
        return 3

    def __iter__(self):
        raise AssertionError("would start worker processes")


class TensorFlow(DataLoader):
    """Like a tf.data.Dataset."""

    def as_numpy_iterator(self):
        raise AssertionError("would start to read")


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (None, TypeError, "got None"),
        (TensorFlow(), TypeError, r"tfds\.data_source instead of a tf\.data\.Dataset"),
        (zip(X, Y, strict=True), TypeError, "got an object of type zip"),
        (map(abs, Y), TypeError, "got an object of type map"),
        (lambda: 1, TypeError, "got an object of type function"),
        ("mnist", TypeError, "the name of a dataset; load it first"),
        ((y for y in Y), TypeError, "got an object of type generator"),
        ({"x": X}.values(), TypeError, "got an object of type dict_values"),
        (iter([1, 2]), TypeError, "got an object of type list_iterator"),
        (DataLoader(), TypeError, "map-style torch dataset instead of its DataLoader"),
        ({1, 2, 3}, TypeError, r"list\(...\) of a set"),
        (3, TypeError, "got an object of type int"),
        ("train.csv", TypeError, "usually means a path"),
        (collections.UserDict(train=[1]), TypeError, "pass one of its values"),
        ([], ValueError, "at least one example, got none"),
        (np.zeros((0, 3)), ValueError, "at least one example, got none"),
        (np.zeros(()), ValueError, "the array: no rows"),
        ({}, ValueError, "got no array"),
        ({"x": X, "y": Y[:5]}, ValueError, r"\['x'\]: 12, \['y'\]: 5"),
        ({"x": X, "y": [1, 2]}, TypeError, r"got int at source\['y'\]\[0\]"),
        (({"x": 1}, {"x": 2}), TypeError, "pass a list where the elements are examples"),
        (grain.MapDataset.range(5).repeat(), ValueError, r"pass the dataset without .repeat\(\)"),
    ],
)
def test_refuses_other_sources_at_construction(source, error, message):
    with pytest.raises(error, match=message):
        BatchLoader(source, 2)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([{"x": 1}, {"y": 1}], r"one structure, got .*'x'.* at source\[0\].*'y'.* at source\[1\]"),
        ([np.zeros(2), np.zeros(3)], r"got \(2,\) at source\[0\] and \(3,\) at source\[1\]"),
        ([np.zeros(2), np.zeros((2, 1))], r"got \(2,\) at source\[0\] and \(2, 1\) at source\[1\]"),
        ([np.zeros(2), X[0]], r"got float64 at source\[0\] and float32 at source\[1\]"),
        ([1, None], r"an example at source\[1\], got None"),
        (grain.MapDataset.range(4).filter(lambda i: i > 0), r"source\[0\], got None.*\.filter\(\)"),
    ],
)
def test_refuses_uneven_examples_when_read(source, message):
    with pytest.raises(ValueError, match=message):
        next(BatchLoader(source, 2, shuffle=False))


def test_refuses_a_wrong_number_of_examples_from_getitems():
    class Forgetful(AtOnce):
        def __getitems__(self, indices):
            return super().__getitems__(indices)[1:]

    with pytest.raises(ValueError, match=r"Expected 3 examples from source\.__getitems__, got 2"):
        next(BatchLoader(Forgetful(PAIRS), 3))


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([{"y": np.arange(5)}], "micro_batch_size=4 examples from source, got one of 5"),
        ([{"y": np.arange(0)}], "got one of 0"),
        ([{"y": np.arange(3)}, {"y": np.arange(4)}], "one of 3 that is not the last"),
        ([{"x": np.arange(4), "y": np.arange(3)}], r"\['x'\]: 4, \['y'\]: 3"),
        ([{"x": [1, 2, 3, 4]}], "lists of numbers"),
    ],
)
def test_refuses_micro_batches_of_another_size(batches, message):
    loader = BatchLoader(GetState(batches), 8, micro_batch_size=4)
    for _ in range(2):  # the error stays: nothing is skipped by trying again
        with pytest.raises(ValueError, match=message):
            next(loader)
    assert loader.get_state()["stream"]["iterator"] == {"place": 0}


@pytest.mark.parametrize(("name", "value"), [("num_epochs", 2), ("prefetch", 3)])
def test_refuses_arguments_that_an_iterator_decides(name, value):
    with pytest.raises(ValueError, match=re.escape(f"got {name}={value}")):
        BatchLoader(GetState(cut(Y, 4)), 4, **{name: value})
