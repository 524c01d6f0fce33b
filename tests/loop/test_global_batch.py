"""Global arrays from local rows, on one process; `tests/test_processes.py` starts real ones."""

from typing import Any

import jax
import numpy as np
import pytest
from jax import NamedSharding, P

from adaoptax.loop import Batch, BatchLoader, check_same_everywhere, data_process, global_batch

pytestmark = pytest.mark.topic("devices")


def make_mesh(kind="Auto", **axes):
    types = (getattr(jax.sharding.AxisType, kind),) * len(axes)
    return jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=types)


def make_batch(rows=32):
    data = {"x": np.arange(3.0 * rows, dtype=np.float32).reshape(rows, 3), "y": np.arange(rows)}
    return Batch(data, np.arange(rows) < rows - 5)


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_one_process_puts_rows_on_all_devices(kind):
    batch, sharding = make_batch(), NamedSharding(make_mesh(kind, data=8), P("data"))
    with jax.transfer_guard("disallow"):
        placed = global_batch(batch, sharding, 32)
    jax.tree.map(np.testing.assert_array_equal, placed, batch)
    assert all(leaf.sharding.spec == P("data") for leaf in jax.tree.leaves(placed))
    assert placed.num_examples == 27


def test_groups_have_rows_of_every_device():
    batch, sharding = make_batch(), NamedSharding(make_mesh(data=4, model=2), P("data"))
    placed = global_batch(batch, sharding, 32, num_groups=4)
    assert placed.data["x"].shape == (4, 8, 3)
    assert placed.mask.shape == (4, 8)
    np.testing.assert_array_equal(placed.data["y"], batch.data["y"].reshape(4, 8))
    for leaf in jax.tree.leaves(placed):
        assert leaf.sharding.spec == P(None, "data")
        assert {shard.data.shape[:2] for shard in leaf.addressable_shards} == {(4, 2)}


def test_leaves_of_fewer_axes_take_the_first_entries_of_the_spec():
    tokens = Batch(np.zeros((8, 6), np.int32), np.ones(8, bool))
    placed: Any = global_batch(tokens, NamedSharding(make_mesh(data=4, seq=2), P("data", "seq")), 8)
    assert placed.data.sharding.spec == P("data", "seq")
    assert placed.mask.sharding.spec == P("data")


def test_rows_may_be_replicated_or_cut_by_two_axes():
    mesh = make_mesh(data=4, model=2)
    placed: Any = global_batch(make_batch(), NamedSharding(mesh, P()), 32)
    assert placed.mask.sharding.is_fully_replicated
    placed = global_batch(make_batch(), NamedSharding(mesh, P(("data", "model"))), 32)
    assert {shard.data.shape for shard in placed.mask.addressable_shards} == {(4,)}


@pytest.mark.parametrize(
    ("rows", "num_rows", "num_groups", "message"),
    [
        (32, 64, None, "num_rows=64 rows over the 1 processes.*got 32 on process 0"),
        (12, 12, None, "divide over the 8 parts of .*data.* on the mesh {'data': 8}, got 12: "),
        (32, 32, 8, "got 4 in each group: choose a micro_batch_size that is a multiple of 8"),
        (32, 32, 5, "num_groups to divide the 32 rows of each process, got num_groups=5"),
        (32, 0, None, "Expected num_rows >= 1, got num_rows=0"),
        (32, 32, 0, "Expected num_groups >= 1"),
    ],
)
def test_refuses_rows_that_do_not_fit(rows, num_rows, num_groups, message):
    sharding = NamedSharding(make_mesh(data=8), P("data"))
    with pytest.raises(ValueError, match=message):
        global_batch(make_batch(rows), sharding, num_rows, num_groups=num_groups)


def test_a_loader_of_another_process_count_is_refused():
    sharding = NamedSharding(make_mesh(data=8), P("data"))
    loader = BatchLoader(np.arange(100), 16, process=(0, 2))
    with pytest.raises(ValueError, match="got 8 on process 0: this usually means that the loader"):
        global_batch(next(loader), sharding, loader.num_rows)


class Interleaved:
    """What `data_process` needs of a sharding whose devices belong to two processes."""

    def __init__(self, process_of_device, parts, spec):
        self.device_set = set(range(len(process_of_device)))
        self.spec, self.mesh = spec, make_mesh(data=8)
        self._processes, self._parts = process_of_device, parts

    def devices_indices_map(self, shape):
        class Device:
            def __init__(self, process_index):
                self.process_index = process_index

        size = shape[0] // self._parts
        return {
            Device(process): (slice(i % self._parts * size, (i % self._parts + 1) * size),)
            for i, process in enumerate(self._processes)
        }


@pytest.mark.parametrize(
    ("processes", "parts", "expected"),
    [
        ([0, 0, 1, 1], 4, [(0, 2), (1, 2)]),  # a data axis over everything
        ([1, 1, 0, 0], 4, [(1, 2), (0, 2)]),  # devices in another order than processes
        ([0, 1, 0, 1], 4, [(0, 2), (1, 2)]),  # interleaved
        ([0, 0, 1, 1], 2, [(0, 1), (0, 1)]),  # both processes hold every row
        ([0, 1, 0, 1], 2, [(0, 2), (1, 2)]),  # two copies of each row in one process
        ([0, 1, 2, 3], 1, [(0, 1)] * 4),  # the model axis spans all processes
        ([0, 1, 2, 3], 2, [(0, 2), (1, 2), (0, 2), (1, 2)]),  # pairs of processes share rows
    ],
)
def test_processes_are_numbered_by_the_rows_that_they_hold(processes, parts, expected, monkeypatch):
    for index, answer in enumerate(expected):
        monkeypatch.setattr("jax.process_index", lambda index=index: index)
        sharding: Any = Interleaved(processes, parts, P("data"))
        assert data_process(sharding) == answer


@pytest.mark.parametrize(
    ("processes", "parts", "index", "message"),
    [
        ([0, 0, 0, 1], 4, 0, "the same rows or none in common"),
        ([0, 1, 1, 0, 0, 0], 3, 0, "the same rows or none in common"),
        ([0, 0, 1, 1], 4, 2, "devices of every process.*without one of process 2"),
    ],
)
def test_refuses_uneven_parts(processes, parts, index, message, monkeypatch):
    monkeypatch.setattr("jax.process_index", lambda: index)
    sharding: Any = Interleaved(processes, parts, P("data"))
    with pytest.raises(ValueError, match=message):
        data_process(sharding)


def test_one_process_agrees_with_itself():
    with jax.transfer_guard("disallow"):
        check_same_everywhere(batch_size=8, examples_seen=2**62, less=-1)
    with pytest.raises(ValueError, match="Expected batch_size to be a whole number"):
        check_same_everywhere(**{"batch_size": 8.5})  # type: ignore[arg-type]


def test_names_the_number_that_differs(monkeypatch):
    def gather(words):
        other = words.view(np.int64) + np.array([0, 2**40])
        return np.stack([words, other.view(np.uint32)])

    monkeypatch.setattr("jax.experimental.multihost_utils.process_allgather", gather)
    with pytest.raises(ValueError, match=rf"seen to be the same .* got \[5, {5 + 2**40}\]"):
        check_same_everywhere(size=1, seen=5)
