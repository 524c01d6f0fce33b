"""Resume: whatever the kills, sizes and prefetch depths, the delivered stream is the same."""

import copy
import json

import grain
import numpy as np
import pytest

from adaoptax.loop import BatchLoader

N = 103


def examples():
    return [{"x": np.full(2, i, np.float32), "y": i} for i in range(N)]


def arrays():
    return {"x": np.repeat(np.arange(N, dtype=np.float32)[:, None], 2, 1), "y": np.arange(N)}


class StateDict:
    """Like a Hugging Face IterableDataset: a loaded state holds from the next `iter` on."""

    def __init__(self):
        self.place, self.start = 0, 0

    def __iter__(self):
        start, self.start = self.start, 0
        for place in range(start, -(-N // 4)):
            self.place = place + 1
            yield {name: leaf[4 * place : 4 * place + 4] for name, leaf in arrays().items()}

    def state_dict(self):
        return {"place": self.place}

    def load_state_dict(self, state):
        self.start = state["place"]


def map_dataset():
    return grain.MapDataset.source(examples()).seed(1).shuffle()


SOURCES = {
    "arrays": arrays,
    "list": examples,
    "grain.MapDataset": map_dataset,
    "grain iterator": lambda: map_dataset().batch(4).to_iter_dataset(),
    "grain filter": lambda: (
        map_dataset().to_iter_dataset().filter(lambda example: example["y"] % 5 != 0).batch(4)
    ),
    "state_dict": StateDict,
}
SIZES = [4, 4, 4, 8, 8, 8, 16, 16, 16, 32]


def take(loader, sizes):
    batches = []
    for size in sizes:
        loader.resize(size)
        batch = next(loader, None)
        if batch is None:
            break
        batches.append((loader.batch_size, batch.data["x"].tolist(), batch.data["y"].tolist()))
    return batches


@pytest.mark.topic("resumes")
@pytest.mark.parametrize("kind", SOURCES)
def test_growth_with_a_resume_after_every_step(kind):
    loader = BatchLoader(SOURCES[kind](), 4)
    expected = take(loader, SIZES)
    assert len(expected) >= 8
    for saved in range(len(expected)):
        loader = BatchLoader(SOURCES[kind](), 4)
        take(loader, SIZES[:saved])
        state = json.loads(json.dumps(loader.get_state()))
        take(loader, [12, 12])  # these steps are lost
        loader = BatchLoader(SOURCES[kind](), 4)
        loader.set_state(state)
        assert loader.get_state() == state
        assert loader.step == saved
        assert take(loader, SIZES[saved:]) == expected[saved:]
    del loader


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
    loader = BatchLoader(StateDict(), 4)
    next(loader)
    state = loader.get_state()
    loader.set_state(state)
    next(loader)
    assert state["stream"]["iterator"] == {"place": 1}


def change(path, value):
    def apply(state):
        state = copy.deepcopy(state)
        *parents, last = path.split(".")
        inner = state
        for parent in parents:
            inner = inner[parent]
        if value is KeyError:
            del inner[last]
        else:
            inner[last] = value
        return state

    return apply


@pytest.mark.topic("damaged states")
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change("version", 2), "Expected version=1 as here, got version=2 saved"),
        (change("version", KeyError), "the key 'version'"),
        (change("step", KeyError), "the key 'step'"),
        (change("step", -1), "Expected step >= 0, got step=-1"),
        (change("step", 1.5), "Expected step to be a whole number"),
        (change("batch_size", KeyError), "the key 'batch_size'"),
        (change("batch_size", 6), "multiple of micro_batch_size=4, got batch_size=6"),
        (change("batch_size", 0), "multiple of micro_batch_size=4, got batch_size=0"),
        (change("batch_size", 64), "batch_size <= max_batch_size=32, got batch_size=64"),
        (change("micro_batch_size", 8), "Expected micro_batch_size=4 as here, got"),
        (change("stream", KeyError), "the key 'stream'"),
        (change("stream", [1]), r"Expected state\['stream'\] to be a dict"),
        (change("stream.kind", "iterator"), "Expected kind='index' as here, got kind='iterator'"),
        (change("stream.kind", KeyError), "the key 'kind'"),
        (change("stream.cursor", KeyError), "the key 'cursor'"),
        (change("stream.cursor", "9"), "Expected cursor to be a whole number, got cursor='9'"),
        (change("stream.cursor", 10**6), "Expected cursor <= 309"),
        (change("stream.seed", 8), "Expected seed=7 as here, got seed=8 saved"),
        (change("stream.shuffle", False), "Expected shuffle=True as here, got shuffle=False"),
        (change("stream.length", 104), "Expected length=103 as here, got length=104.*other data"),
        (change("stream.num_epochs", 2), "Expected num_epochs=3 as here, got num_epochs=2"),
        (change("stream.num_epochs", None), "got num_epochs=None saved"),
        (change("stream.cursor", 12), "got a checksum that does not fit"),
        (change("stream.checksum", KeyError), "the key 'checksum'"),
        (change("stream.fingerprint", 1), "Expected fingerprint=.*other data"),
        (lambda state: json.dumps(state), "Expected state to be a dict"),
        (lambda state: None, "Expected state to be a dict"),
    ],
)
def test_refuses_damaged_and_foreign_states(damage, message):
    def make():
        return BatchLoader(arrays(), 4, max_batch_size=32, seed=7, num_epochs=3)

    loader, untouched = make(), make()
    for each in (loader, untouched):
        each.resize(8)
        next(each)
    state = loader.get_state()
    with pytest.raises(ValueError, match=message):
        loader.set_state(damage(state))
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
        self.place = self.start = 17
        super().load_state_dict(state)


@pytest.mark.topic("damaged states")
def test_refuses_a_state_that_an_iterator_does_not_take():
    loader = BatchLoader(Careless(), 4)
    expected = take(BatchLoader(StateDict(), 4), [8, 8])
    assert take(loader, [8]) == expected[:1]
    state = loader.get_state()
    foreign = BatchLoader(map_dataset().batch(4).to_iter_dataset(), 4).get_state()
    with pytest.raises(ValueError, match=r"a state that source accepts, but it raised KeyError"):
        loader.set_state(foreign)
    with pytest.raises(ValueError, match="Expected ended to be True or False, got ended=1"):
        loader.set_state(change("stream.ended", 1)(state))
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
