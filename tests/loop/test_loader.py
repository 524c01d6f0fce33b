"""The loader: sizes, epochs, padding, prefetch, errors in the source."""

import gc
import itertools
import json
import math
import threading
import time
import traceback
import weakref

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fake_sources import Examples, GetState, Sometimes, cut

from adaoptax.loop import Batch, BatchLoader, capacities, epoch_permutation


def real(batch):
    return batch.data[batch.mask].tolist()


def order(n, seed, num_epochs):
    return [int(i) for epoch in range(num_epochs) for i in epoch_permutation(n, seed, epoch)]


def test_batch_larger_than_the_data_spans_epochs():
    loader = BatchLoader(np.arange(3), 8, seed=1)
    assert iter(loader) is loader
    batch = next(loader)
    assert isinstance(batch, Batch)
    assert real(batch) == order(3, 1, 3)[:8]
    assert (loader.epoch, loader.step, loader.examples_seen) == (8 / 3, 1, 8)


@pytest.mark.parametrize("prefetch", [0, 2])
def test_two_finite_epochs_of_103_examples(prefetch):
    loader = BatchLoader(
        np.arange(103), 16, micro_batch_size=8, num_epochs=2, seed=5, prefetch=prefetch
    )
    batches = []
    for batch in loader:
        batches.append(batch)
        loader.resize(min(loader.batch_size + 8, 40))
    assert [len(batch.mask) for batch in batches] == [16, 24, 32, 40, 40, 40, 16]
    assert [batch.num_examples for batch in batches] == [16, 24, 32, 40, 40, 40, 14]
    delivered = [i for batch in batches for i in real(batch)]
    assert delivered == order(103, 5, 2)
    assert sorted(delivered) == sorted(2 * list(range(103)))
    assert (loader.epoch, loader.examples_seen) == (2.0, 206)
    assert next(loader, None) is None
    loader.close()


@pytest.mark.parametrize("prefetch", [0, 2])
def test_padding_gives_one_shape_and_a_mask(prefetch):
    source = {"x": np.arange(1.0, 51.0, dtype=np.float32), "y": np.arange(50)[:, None]}
    traces: list[tuple[int, ...]] = []

    @jax.jit
    def step(data, mask):
        traces.append(mask.shape)
        return jnp.sum(data["x"] * mask)

    arguments = {"num_epochs": 1, "shuffle": False, "prefetch": prefetch}
    loader = BatchLoader(source, 4, max_batch_size=16, pad_to="max", **arguments)
    sizes: list[int] = []
    total = 0.0
    for batch in loader:
        first = sum(sizes)
        sizes.append(batch.num_examples)
        assert batch.mask.dtype == np.bool_
        assert batch.mask.tolist() == [i < sizes[-1] for i in range(16)]
        assert real(Batch(batch.data["y"][:, 0], batch.mask)) == list(range(first, sum(sizes)))
        np.testing.assert_array_equal(batch.data["y"][~batch.mask], first)
        total += float(step(batch.data, batch.mask))
        loader.resize(loader.batch_size * 2)
    loader.close()
    assert sizes == [4, 8, 16, 16, 6]
    assert total == sum(range(51))
    assert len(traces) == 1


@pytest.mark.parametrize(
    ("pad_to", "rows"),
    [
        (None, [4, 8, 12, 20, 24]),
        ("max", [24] * 5),
        ("ladder", [4, 8, 16, 24, 24]),
        ((12, 24), [12, 12, 12, 24, 24]),
        ([8, 20, 24], [8, 8, 20, 20, 24]),
    ],
)
def test_batches_are_padded_to_the_next_capacity(pad_to, rows):
    loader = BatchLoader(
        np.arange(100), 4, max_batch_size=24, pad_to=pad_to, shuffle=False, num_epochs=1
    )
    delivered = []
    for size, expected in zip([4, 8, 12, 20, 24], rows, strict=True):
        assert loader.resize(size) == size
        batch = next(loader)
        assert (len(batch.mask), loader.num_rows, batch.num_examples) == (expected, expected, size)
        delivered += real(batch)
    loader.resize(100)
    last = list(loader)
    assert [batch.num_examples for batch in last] == [24, 8]
    assert [len(batch.mask) for batch in last] == [24, 8 if pad_to in (None, "ladder") else rows[1]]
    assert delivered + [i for batch in last for i in real(batch)] == list(range(100))


@pytest.mark.parametrize("micro", [1, 3, 16])
def test_the_ladder_of_capacities(micro):
    for k in range(1, 70):
        rows = capacities(micro, k * micro)
        assert rows[-1] == k * micro
        assert rows[0] == micro
        assert all(a < b <= 2 * a for a, b in itertools.pairwise(rows))
        assert len(rows) == math.ceil(math.log2(k)) + 1
        assert all(n % micro == 0 for n in rows)


def test_resize_rounds_up_and_caps():
    loader = BatchLoader(np.arange(100), 8, micro_batch_size=4, max_batch_size=24)
    assert (loader.batch_size, loader.micro_batch_size, loader.max_batch_size) == (8, 4, 24)
    wanted = [9, 12, 12.0001, np.float32(16.5), jnp.float32(5), 0, -3, 1e30, float("inf")]
    sizes = [loader.resize(n) for n in wanted]
    assert sizes == [12, 12, 16, 20, 8, 4, 4, 24, 24]
    assert all(type(size) is int for size in sizes)
    assert loader.batch_size == 24
    assert len(next(loader).mask) == 24
    assert BatchLoader(np.arange(100), 10, micro_batch_size=4).batch_size == 12


@pytest.mark.parametrize("prefetch", [0, 1, 7])
def test_resize_takes_effect_at_the_next_batch(prefetch):
    rng = np.random.default_rng(prefetch)
    delivered = []
    with BatchLoader(np.arange(37), 3, seed=2, prefetch=prefetch) as loader:
        for wanted in rng.integers(1, 30, size=20):
            size = loader.resize(wanted)
            batch = next(loader)
            assert len(batch.mask) == batch.num_examples == size
            delivered += real(batch)
    assert delivered == order(37, 2, 20)[: len(delivered)]


def test_runs_under_the_transfer_guard():
    with jax.transfer_guard("disallow"):
        loader = BatchLoader(np.arange(10), 2, max_batch_size=8)
        next(loader)
        loader.resize(jax.device_put(np.float32(3.0)))
        assert len(next(loader).mask) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "Expected batch_size >= 1, got batch_size=0"),
        ({"batch_size": 2.5}, "Expected batch_size to be a whole number, got batch_size=2.5"),
        ({"batch_size": True}, "Expected batch_size to be a whole number, got batch_size=True"),
        ({"micro_batch_size": 0}, "Expected micro_batch_size >= 1"),
        ({"micro_batch_size": 4, "max_batch_size": 10}, "pass max_batch_size=12"),
        ({"max_batch_size": 4, "micro_batch_size": 4}, "max_batch_size >= batch_size=8"),
        ({"pad_to": "max"}, "max_batch_size with pad_to='max'"),
        ({"pad_to": "largest", "max_batch_size": 16}, "got pad_to='largest'"),
        ({"pad_to": True, "max_batch_size": 16}, "got pad_to=True"),
        ({"pad_to": (), "max_batch_size": 16}, r"got pad_to=\(\)"),
        ({"pad_to": (8, 8, 16), "max_batch_size": 16}, r"got pad_to=\(8, 8, 16\)"),
        (
            {"pad_to": (8, 12, 16), "max_batch_size": 16},
            "increasing multiples of micro_batch_size=8",
        ),
        ({"pad_to": (8,), "max_batch_size": 16}, "that end with max_batch_size=16"),
        ({"pad_to": (8.5, 16), "max_batch_size": 16}, "pad_to to be a whole number"),
        ({"num_epochs": 0}, "Expected num_epochs >= 1"),
        ({"prefetch": -1}, "Expected prefetch >= 0"),
        ({"seed": -1}, "Expected seed >= 0"),
    ],
)
def test_refuses_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        BatchLoader(np.arange(10), **({"batch_size": 8} | arguments))


@pytest.mark.parametrize(
    ("n", "message"),
    [
        (float("nan"), "got n=nan.*undefined"),
        (float("inf"), "got n=inf without a max_batch_size"),
        (np.array([3.0]), r"got an array of shape \(1,\)"),
    ],
)
def test_resize_refuses_what_is_no_size(n, message):
    loader = BatchLoader(np.arange(10), 2)
    with pytest.raises(ValueError, match=message):
        loader.resize(n)
    assert loader.batch_size == 2


def drain(loader, rng):
    """All examples, by trying again after every error; saves and restores now and then."""
    delivered: list[int] = []
    errors = 0
    for _ in range(10_000):
        try:
            before = loader.examples_seen, loader.step
            batch = next(loader)
        except OSError:
            assert (loader.examples_seen, loader.step) == before
            errors += 1
            if rng.random() < 0.3:
                loader.set_state(loader.get_state())
            continue
        except StopIteration:
            return delivered, errors
        delivered += real(batch)
        loader.resize(int(rng.integers(1, 20)))
    raise AssertionError("the same error again and again")


@pytest.mark.topic("faulty sources")
@pytest.mark.parametrize("prefetch", [0, 1, 3])
@pytest.mark.parametrize("seed", range(5))
def test_failing_source_loses_nothing(prefetch, seed):
    fault = Sometimes(0.05, seed)
    source = Examples(range(53), fault)
    with BatchLoader(source, 4, seed=seed, num_epochs=2, prefetch=prefetch) as loader:
        delivered, errors = drain(loader, np.random.default_rng(seed))
    assert 0 < errors <= fault.failures  # none is raised twice
    assert delivered == order(53, seed, 2)


@pytest.mark.topic("faulty sources")
@pytest.mark.parametrize("seed", range(5))
def test_failing_iterator_loses_nothing(seed):
    fault = Sometimes(0.2, seed)
    loader = BatchLoader(GetState(cut(range(203), 4), fault), 4)
    delivered, errors = drain(loader, np.random.default_rng(seed))
    assert 0 < errors == fault.failures
    assert delivered == list(range(203))


@pytest.mark.topic("faulty sources")
def test_failing_grain_pipeline_loses_nothing():
    fault = Sometimes(0.02)
    dataset = grain.MapDataset.range(101).map(lambda i: fault(i) or i).batch(4).to_iter_dataset()
    loader = BatchLoader(dataset, 4)
    delivered, errors = drain(loader, np.random.default_rng(1))
    assert errors > 0
    assert delivered == list(range(101))
    del loader


@pytest.mark.topic("faulty sources")
def test_state_can_be_saved_while_the_source_fails():
    fault = Sometimes(1.0)
    loader = BatchLoader(Examples(range(20), fault), 4)
    state = loader.get_state()
    assert state["stream"]["fingerprint"] is None
    fault.rate = 0.0
    loader.set_state(state)
    assert real(next(loader)) == order(20, 0, 1)[:4]


def test_error_of_the_background_thread_keeps_its_traceback():
    with (
        BatchLoader(Examples(range(20), Sometimes(1.0)), 4, prefetch=2) as loader,
        pytest.raises(OSError, match="disk of") as caught,
    ):
        next(loader)
    assert "__getitem__" in "".join(traceback.format_tb(caught.value.__traceback__))


def wait_until(condition):
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_prefetch_reads_the_stated_number_ahead_in_one_thread():
    source = Examples(range(1000))
    with BatchLoader(source, 4, prefetch=3) as loader:
        next(loader)
        wait_until(lambda: len(source.read) == 4 + 3 * 4)
        loader.resize(8)
        next(loader)
        wait_until(lambda: len(source.read) == 4 + 8 + 3 * 4)
        time.sleep(0.02)
        assert len(source.read) == 4 + 8 + 3 * 4
        loader.get_state()
    assert len(source.threads) == 1
    assert threading.current_thread() not in source.threads


def test_delivered_rows_are_not_kept():
    with BatchLoader(np.arange(1000), 4, prefetch=2) as loader:
        delivered = weakref.ref(next(loader).data)
        next(loader)
        gc.collect()
        assert delivered() is None


@pytest.mark.parametrize("how", ["close", "with", "forget"])
def test_no_thread_is_left_behind(how):
    def ours():
        return {thread for thread in threading.enumerate() if "adaoptax" in thread.name}

    before = ours()
    loader = BatchLoader(Examples(range(1000)), 4, prefetch=2)
    next(loader)
    (thread,) = ours() - before
    assert thread.daemon  # never keeps the program from ending
    if how == "close":
        loader.close()
        loader.close()
    elif how == "with":
        with loader:
            next(loader)
    else:
        del loader
        gc.collect()
    # close() waits for the thread, so that the source is not read any more after it.
    assert how == "forget" or not thread.is_alive()
    wait_until(lambda: not thread.is_alive())


@pytest.mark.parametrize("prefetch", [0, 2])
def test_closed_loader_gives_no_batch_but_still_its_state(prefetch):
    loader = BatchLoader(np.arange(10), 4, prefetch=prefetch)
    next(loader)
    loader.close()
    with pytest.raises(RuntimeError, match=r"after close\(\)"):
        next(loader)
    assert json.loads(json.dumps(loader.get_state()))["stream"]["cursor"] == 4
