"""Several processes, simulated in one: together they deliver the stream of a single process."""

import json

import numpy as np
import pytest
from fake_sources import Examples, StateDict, cut

from adaoptax.loop import BatchLoader

pytestmark = pytest.mark.topic("processes")

COUNTS = (1, 2, 4)


def iterator():
    return StateDict(cut(np.arange(103), 4))


def assemble(batches, micro):
    """The rows of all processes in the order of one process, and its mask."""
    blocks = micro // len(batches)

    def join(parts):
        return np.concatenate([part.reshape(-1, blocks, *part.shape[1:]) for part in parts], 1)

    leaf = join([batch.data for batch in batches])
    mask = join([batch.mask for batch in batches])
    return leaf.reshape(-1, *leaf.shape[2:]), mask.reshape(-1)


@pytest.mark.topic("other layouts")
@pytest.mark.parametrize("before", COUNTS)
@pytest.mark.parametrize("after", COUNTS)
def test_an_iterator_continues_on_another_number_of_processes(before, after):
    def make(count):
        return [BatchLoader(iterator(), 4, process=(index, count)) for index in range(count)]

    def take(group, sizes):
        out = []
        for size in sizes:
            for loader in group:
                loader.resize(size)
            batches = [next(loader) for loader in group]
            rows, mask = assemble(batches, 4)
            out.append((rows[mask].tolist(), mask.tolist()))
        return out

    sizes = [4, 8, 8, 16, 32, 32, 4]  # 103 examples: the last batch has 3 of them
    expected = take(make(1), sizes)
    assert expected[-1] == ([100, 101, 102], [True, True, True, False])
    for at in range(len(sizes)):
        group = make(before)
        assert take(group, sizes[:at]) == expected[:at]
        states = [json.dumps(loader.get_state()) for loader in group]
        assert len(set(states)) == 1
        group = make(after)
        for loader in group:
            loader.set_state(json.loads(states[0]))
        assert take(group, sizes[at:]) == expected[at:]


@pytest.mark.parametrize(
    ("source", "first", "arguments"),
    [
        (lambda: np.arange(11), 8, {"shuffle": False, "num_epochs": 1}),
        (lambda: list(range(11)), 8, {"shuffle": False, "num_epochs": 1, "prefetch": 2}),
        (iterator, 100, {}),
    ],
)
def test_a_process_without_a_real_row_gets_padding_of_the_same_shape(source, first, arguments):
    group = [BatchLoader(source(), 4, process=(i, 4), **arguments) for i in range(4)]
    last = [list(loader)[-1] for loader in group]
    assert [batch.mask.tolist() for batch in last] == [[True], [True], [True], [False]]
    assert [batch.data.tolist() for batch in last] == [[first], [first + 1], [first + 2], [first]]
    assert [batch.num_examples for batch in last] == [1, 1, 1, 0]
    assert {(loader.num_examples, loader.num_rows) for loader in group} == {(3, 4)}
    for loader in group:
        loader.close()


def test_each_process_reads_its_own_rows_only():
    sources = [Examples(range(32)) for _ in range(2)]
    for index, source in enumerate(sources):
        loader = BatchLoader(source, 8, micro_batch_size=4, shuffle=False, process=(index, 2))
        next(loader)
    assert [source.read for source in sources] == [[0, 1, 4, 5], [2, 3, 6, 7]]


def test_sizes_count_the_examples_of_all_processes():
    loader = BatchLoader(np.arange(100), 8, max_batch_size=32, pad_to="max", process=(1, 2))
    assert (loader.num_examples, loader.num_rows) == (0, 0)
    batch = next(loader)
    assert batch.data.shape == (16,)
    assert batch.mask.tolist() == [True] * 4 + [False] * 12
    assert (loader.batch_size, loader.micro_batch_size, loader.max_batch_size) == (8, 8, 32)
    assert (loader.num_examples, loader.num_rows, loader.examples_seen) == (8, 32, 8)


def test_the_default_is_what_jax_says(monkeypatch):
    assert len(next(BatchLoader(np.arange(100), 8)).mask) == 8
    monkeypatch.setattr("jax.process_index", lambda: 1)
    monkeypatch.setattr("jax.process_count", lambda: 2)
    assert next(BatchLoader(np.arange(100), 8, shuffle=False)).data.tolist() == [4, 5, 6, 7]
    assert len(next(BatchLoader(np.arange(100), 8, process=(0, 1))).mask) == 8
    with pytest.raises(ValueError, match="multiple of the 2 processes, got micro_batch_size=9"):
        BatchLoader(np.arange(100), 9)


@pytest.mark.parametrize(
    ("process", "message"),
    [
        ((0, 3), "multiple of the 3 processes, got micro_batch_size=8.*micro_batch_size=9"),
        ((2, 2), r"index < count, got process=\(2, 2\)"),
        ((-1, 2), "Expected index of process >= 0, got index of process=-1"),
        ((0, 0), "Expected count of process >= 1"),
        ((0.0, 1), "index of process to be a whole number"),
        (1, r"a pair \(index, count\), got process=1"),
        ((0, 1, 2), "a pair"),
    ],
)
def test_refuses_what_is_no_process(process, message):
    with pytest.raises(ValueError, match=message):
        BatchLoader(np.arange(100), 8, process=process)
