"""Resume: whatever the kills, sizes and prefetch depths, the delivered stream is the same."""

import copy
import json

import grain
import jax
import numpy as np
import pytest
from fake_sources import StateDict, cut

from adaoptax.loop import BatchLoader

N = 103
SIZES = [4, 4, 8, 8, 4, 16, 16]


def arrays():
    return {"x": np.repeat(np.arange(N, dtype=np.float32)[:, None], 2, 1), "y": np.arange(N)}


def examples():
    return [{"x": np.full(2, i, np.float32), "y": i} for i in range(N)]


def micro_batches():
    return StateDict(cut(arrays(), 4))


def take(loader, sizes):
    """The real rows of every batch, leaf by leaf."""
    batches = []
    for size in sizes:
        loader.resize(size)
        batch = next(loader, None)
        if batch is None:
            break
        assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(batch.data))
        batches.append([leaf[batch.mask].tolist() for leaf in jax.tree.leaves(batch.data)])
    return batches


def check_growth_and_resume(make, **arguments):
    """A kill after every step, with two lost steps: the stream goes on as if nothing had been."""
    expected = take(BatchLoader(make(), 4, **arguments), [*SIZES, 16])
    for saved in range(len(expected)):
        with BatchLoader(make(), 4, **arguments) as loader:
            take(loader, SIZES[:saved])
            state = json.loads(json.dumps(loader.get_state()))
            take(loader, [12, 12])  # lost
        with BatchLoader(make(), 4, **arguments) as loader:
            loader.set_state(state)
            assert loader.get_state() == state
            assert loader.step == saved
            assert take(loader, [*SIZES, 16][saved:]) == expected[saved:]
    return [value for batch in expected for value in batch[-1]]


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(arrays, id="arrays"),
        pytest.param(examples, id="list"),
        pytest.param(
            lambda: grain.MapDataset.source(examples()).seed(1).shuffle(), id="grain.MapDataset"
        ),
        pytest.param(micro_batches, id="state_dict"),
    ],
)
def test_growth_with_a_resume_after_every_step(make):
    assert len(check_growth_and_resume(make)) == sum(SIZES) + 16


def test_state_is_plain_and_fresh():
    loader = BatchLoader(arrays(), 4, seed=7)
    next(loader)
    state = loader.get_state()
    assert state == {
        "version": 1,
        "step": 1,
        "batch_size": 4,
        "micro_batch_size": 4,
        "stream": {
            "kind": "index",
            "cursor": 4,
            "seed": 7,
            "length": N,
            "shuffle": True,
            "num_epochs": None,
            "fingerprint": state["stream"]["fingerprint"],
            "checksum": state["stream"]["checksum"],
        },
    }
    assert {type(state["stream"][name]) for name in ("fingerprint", "checksum")} == {int}
    before = copy.deepcopy(state)
    next(loader)
    assert state == before


def test_restored_state_is_not_shared_with_the_iterator():
    loader = BatchLoader(micro_batches(), 4)
    next(loader)
    state = loader.get_state()
    saved = copy.deepcopy(state)
    loader.set_state(state)
    next(loader)
    assert state == saved


def changed(state, path, value):
    state = copy.deepcopy(state)
    *parents, last = path.split(".")
    inner = state
    for parent in parents:
        inner = inner[parent]
    inner[last] = value
    return state


@pytest.mark.topic("damaged states")
@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("version", 2, "Expected version=1 as here, got version=2 saved"),
        ("step", -1, "Expected step >= 0, got step=-1"),
        ("step", 1.5, "Expected step to be a whole number"),
        ("batch_size", 6, "multiple of micro_batch_size=4, got batch_size=6"),
        ("batch_size", 0, "multiple of micro_batch_size=4, got batch_size=0"),
        ("batch_size", 64, "batch_size <= max_batch_size=32, got batch_size=64"),
        ("micro_batch_size", 8, "Expected micro_batch_size=4 as here, got"),
        ("stream", [1], r"Expected state\['stream'\] to be a dict"),
        ("stream.kind", "iterator", "Expected kind='index' as here, got kind='iterator'"),
        ("stream.cursor", "9", "Expected cursor to be a whole number, got cursor='9'"),
        ("stream.cursor", 10**6, "Expected cursor <= 309"),
        ("stream.seed", 8, "Expected seed=7 as here, got seed=8 saved"),
        ("stream.shuffle", False, "Expected shuffle=True as here, got shuffle=False"),
        ("stream.length", 104, "Expected length=103 as here, got length=104.*other data"),
        ("stream.num_epochs", 2, "Expected num_epochs=3 as here, got num_epochs=2"),
        ("stream.num_epochs", None, "got num_epochs=None saved"),
        ("stream.cursor", 12, "got a checksum that does not fit"),
        ("stream.fingerprint", 1, "Expected fingerprint=.*other data"),
    ],
)
def test_refuses_damaged_and_foreign_states(path, value, message):
    def make():
        return BatchLoader(arrays(), 4, max_batch_size=32, seed=7, num_epochs=3)

    loader, untouched = make(), make()
    for each in (loader, untouched):
        each.resize(8)
        next(each)
    state = loader.get_state()
    with pytest.raises(ValueError, match=message):
        loader.set_state(changed(state, path, value))
    assert loader.get_state() == state
    np.testing.assert_equal(next(loader)._asdict(), next(untouched)._asdict())


@pytest.mark.topic("damaged states")
def test_refuses_other_data_of_the_same_length():
    state = BatchLoader(np.arange(50), 5).get_state()
    BatchLoader(np.arange(50), 5).set_state(state)
    for other in (np.arange(50) + 1, np.arange(50.0), np.arange(50)[::-1], np.ones((50, 2), int)):
        with pytest.raises(ValueError, match="this is other data"):
            BatchLoader(other, 5).set_state(state)


def test_data_that_varies_on_purpose_has_no_fingerprint():
    class Augmented(list):
        rng = np.random.default_rng(0)

        def __getitem__(self, index):
            return super().__getitem__(index) + self.rng.random()

    loader = BatchLoader(Augmented(range(20)), 5)
    state = loader.get_state()
    assert state["stream"]["fingerprint"] is None
    loader.set_state(state)


def test_objects_count_by_type_only_in_the_fingerprint():
    def make():
        return BatchLoader(np.array([object() for _ in range(9)], dtype=object), 3)

    make().set_state(make().get_state())


def test_training_can_be_extended_by_editing_the_number_of_epochs():
    loader = BatchLoader(np.arange(7), 4, num_epochs=1)
    list(loader)
    state = loader.get_state()
    state["stream"]["num_epochs"] = 2
    longer = BatchLoader(np.arange(7), 4, num_epochs=2)
    longer.set_state(state)
    assert sorted(i for b in longer for i in b.data[b.mask].tolist()) == list(range(7))


class Careless(StateDict):
    """Has already moved when it finds that a state is not its own."""

    def load_state_dict(self, state):
        self.place = self.start = 17  # of 26
        super().load_state_dict(state)


@pytest.mark.topic("damaged states")
def test_refuses_a_state_that_an_iterator_does_not_take():
    loader = BatchLoader(Careless(cut(arrays(), 4)), 4)
    expected = take(BatchLoader(micro_batches(), 4), [8, 8])
    assert take(loader, [8]) == expected[:1]
    state = loader.get_state()
    foreign = BatchLoader(grain.MapDataset.range(N).batch(4).to_iter_dataset(), 4).get_state()
    with pytest.raises(ValueError, match=r"a state that source accepts, but it raised KeyError"):
        loader.set_state(foreign)
    with pytest.raises(ValueError, match="Expected ended to be True or False, got ended=1"):
        loader.set_state(changed(state, "stream.ended", 1))
    with pytest.raises(ValueError, match="Expected kind='iterator' as here, got kind='index'"):
        loader.set_state(BatchLoader(np.arange(9), 4).get_state())
    assert loader.get_state() == state
    assert take(loader, [8]) == expected[1:]


class Restarting:
    """Like torchdata's StatefulDataLoader: past its end it begins a new epoch."""

    def __init__(self):
        self.place = 0

    def __iter__(self):
        while self.place < 3:
            self.place += 1
            yield np.full(4, self.place)
        self.place = 0

    def state_dict(self):
        return {"place": self.place}

    def load_state_dict(self, state):
        self.place = state["place"]


@pytest.mark.parametrize("size", [4, 8, 12])
def test_the_end_of_an_iterator_is_the_end_also_after_a_resume(size):
    loader = BatchLoader(Restarting(), 4)
    loader.resize(size)
    assert sum(batch.num_examples for batch in loader) == 12
    assert next(loader, None) is None
    resumed = BatchLoader(Restarting(), 4)
    resumed.set_state(loader.get_state())
    assert next(resumed, None) is None
    assert resumed.examples_seen == 12
