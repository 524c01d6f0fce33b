"""Sources that fail or change while they are read: one clear error, and nothing is lost."""

import threading
from typing import Any

import numpy as np
import pytest
from fake_sources import Examples, GetState, once

from adaoptax.loop import BatchLoader

pytestmark = pytest.mark.topic("faulty sources")


@pytest.mark.parametrize("prefetch", [0, 1, 3])
@pytest.mark.parametrize(
    "error", [OSError("disk"), KeyboardInterrupt(), SystemExit(1), GeneratorExit(), MemoryError()]
)
def test_whatever_a_source_raises_surfaces_once_and_the_stream_goes_on(error, prefetch):
    source = Examples(range(24), once(9, error))
    with BatchLoader(source, 4, shuffle=False, num_epochs=1, prefetch=prefetch) as loader:
        delivered, caught = [], []
        threads = {thread.name for thread in threading.enumerate()}
        while loader.examples_seen < 24:
            try:
                delivered += next(loader).data.tolist()
            except BaseException as raised:
                assert loader.examples_seen == len(delivered) == 8
                caught.append(raised)
        assert {thread.name for thread in threading.enumerate()} == threads
    assert caught == [error]
    assert delivered == list(range(24))


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("change", ["shrinks", "grows"])
def test_a_source_whose_length_changes_is_refused(change, prefetch):
    source = Examples(range(24))
    with BatchLoader(source, 4, shuffle=False, prefetch=prefetch) as loader:
        next(loader)
        loader.get_state()  # in the thread, after all that is read ahead
        if change == "shrinks":
            del source[10:]
        else:
            source.append(24)
        for _ in range(prefetch):  # what was read before the change
            next(loader)
        with pytest.raises(ValueError, match=f"with 24 examples as at first, got {len(source)}"):
            next(loader)
        place, state = loader.examples_seen, loader.get_state()
        with pytest.raises(ValueError, match="as at first"):
            next(loader)
        assert loader.examples_seen == place
    with (
        BatchLoader(source, 4, shuffle=False) as other,
        pytest.raises(ValueError, match=f"Expected length={len(source)} as here, got length=24"),
    ):
        other.set_state(state)


def test_a_source_that_shrinks_while_a_batch_is_read_says_so():
    source = Examples(range(24))
    source.fault = lambda index: source.__delitem__(slice(2, None)) if index == 2 else None
    with pytest.raises(ValueError, match="with 24 examples as at first, got 2"):
        next(BatchLoader(source, 4, shuffle=False))


def test_an_index_error_of_the_source_itself_is_raised_as_it_is():
    source = Examples(range(24), once(2, IndexError("line 7 of the file")))
    with pytest.raises(IndexError, match="line 7 of the file"):
        next(BatchLoader(source, 4, shuffle=False))


@pytest.mark.parametrize("prefetch", [0, 1])
def test_stop_iteration_of_a_source_is_not_the_end_of_the_data(prefetch):
    source = Examples(range(4), once(0, StopIteration()))
    with pytest.raises(RuntimeError, match="it raised StopIteration"):
        next(BatchLoader(source, 2, shuffle=False, prefetch=prefetch))


F32, F64 = np.float32, np.float64
CHANGES: dict[str, Any] = {
    "type": (lambda: [np.zeros(2, F32)] * 8 + [np.zeros(2, F64)] * 8, r"float32\[2\]'?, got .*64"),
    "shape": (lambda: [np.zeros(2)] * 8 + [np.zeros(3)] * 8, r"\[2\]'?, got .*\[3\]"),
    "rank": (lambda: [np.zeros(2)] * 8 + [np.zeros((2, 1))] * 8, r"\[2\]'?, got .*\[2, 1\]"),
    "keys": (lambda: [{"a": 1}] * 8 + [{"b": 1}] * 8, "'a': .*, got .*'b'"),
    "kind": (lambda: [(1, 2)] * 8 + [[1, 2]] * 8, r"\(.*\), got .*\["),
    "number": (lambda: [1] * 8 + [1.5] * 8, "int64.*, got .*float64"),
    "hole": (lambda: [np.ones(2)] * 8 + [None] * 8, r"source\[8\], got None"),
}


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("kind", CHANGES)
@pytest.mark.parametrize("size", [4, 8])
def test_examples_that_change_in_the_middle_are_refused(kind, size, prefetch):
    make, message = CHANGES[kind]
    with BatchLoader(make(), 4, max_batch_size=16, shuffle=False, prefetch=prefetch) as loader:
        next(loader)
        next(loader)
        loader.resize(size)
        for _ in range(2):  # nothing is skipped by trying again
            with pytest.raises(ValueError, match=message):
                next(loader)
        assert loader.examples_seen == 8


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (np.zeros((4, 2), F32), np.zeros((4, 2), F64)),
        (np.zeros((4, 2)), np.zeros((4, 3))),
        ({"a": np.zeros(4)}, {"b": np.zeros(4)}),
    ],
)
@pytest.mark.parametrize("size", [4, 8])
def test_micro_batches_that_change_in_the_middle_are_refused(first, second, size):
    loader = BatchLoader(GetState([first, second, second]), size, micro_batch_size=4)
    if size == 4:
        next(loader)
    for _ in range(2):
        with pytest.raises(ValueError, match="the source changed in the middle"):
            next(loader)
    assert loader.examples_seen == (4 if size == 4 else 0)


def test_texts_may_have_any_length():
    loader = BatchLoader(["a", "bb", "ccc", "dddd"], 2, shuffle=False)
    assert [next(loader).data.tolist() for _ in range(2)] == [["a", "bb"], ["ccc", "dddd"]]


def test_a_slow_source_delays_and_loses_nothing():
    go_on = threading.Semaphore(12)

    def wait(index):
        assert go_on.acquire(timeout=10)

    source = Examples(range(24), wait)
    with BatchLoader(source, 4, shuffle=False, prefetch=2) as loader:
        assert next(loader).data.tolist() == [0, 1, 2, 3]  # while the next is not read yet
        loader.resize(8)
        go_on.release(100)
        assert next(loader).data.tolist() == list(range(4, 12))
    assert source.read[:12] == list(range(12))


def test_close_does_not_wait_for_more_than_the_example_being_read():
    started, go_on = threading.Event(), threading.Event()

    def wait(index):
        if index == 4:
            started.set()
            assert go_on.wait(10)

    source = Examples(range(1000), wait)
    loader = BatchLoader(source, 4, shuffle=False, prefetch=100)
    next(loader)
    assert started.wait(10)
    go_on.set()
    loader.close()
    with pytest.raises(RuntimeError, match=r"after close\(\)"):
        next(loader)
