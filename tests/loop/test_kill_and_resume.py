"""More than a thousand runs, killed at random: sources, sizes, epochs and process counts vary."""

import itertools
import json
from collections.abc import Iterator
from typing import Any

import datasets
import grain
import numpy as np
import pytest
from fake_sources import AtOnce, Examples, GetState, Sometimes, StateDict, cut
from test_loader_processes import assemble

from adaoptax.loop import BatchLoader, epoch_permutation

pytestmark = pytest.mark.topic("dropped loaders")

STEPS = 25


def values_of(leaf):
    return leaf["y"] if isinstance(leaf, dict) else leaf


INDEXED = {
    "array": np.arange,
    "list": lambda n: list(range(n)),
    "flaky list": lambda n: Examples(range(n), Sometimes(0.01, n)),
    "at once": lambda n: AtOnce(range(n)),
    "dicts": lambda n: [{"x": np.zeros(2), "y": i} for i in range(n)],
    "grain.MapDataset": grain.MapDataset.range,
    "datasets.Dataset": lambda n: datasets.Dataset.from_dict({"y": list(range(n))}),
}
ITERATED = {
    "get_state": lambda values, micro: GetState(cut(values, micro), Sometimes(0.02, len(values))),
    "state_dict": lambda values, micro: StateDict(cut(values, micro)),
    "grain iterator": lambda values, micro: (
        grain.MapDataset.source(values).batch(micro).to_iter_dataset()
    ),
}


class Run:
    """One run: its random settings, and what has to come out of it, derived without a loader."""

    def __init__(self, seed):
        self.rng = rng = np.random.default_rng(seed)
        self.n = int(rng.integers(1, 60))
        self.micro = int(rng.integers(1, 13))
        self.max = self.micro * int(rng.integers(2, 17))
        self.pad = bool(rng.random() < 0.3)
        self.kind = str(rng.choice([*INDEXED, *ITERATED]))
        self.counts = [count for count in (1, 2, 3, 4) if self.micro % count == 0]
        num_epochs = int(rng.integers(1, 9))
        walk = np.cumsum(rng.integers(-2, 6, size=STEPS) * self.micro / 4)
        self.sizes = [float(size) for size in walk.clip(1, 1.2 * self.max)]
        self.shared: dict[str, Any] = {
            "max_batch_size": self.max,
            "pad_to": "max" if self.pad else None,
        }
        if self.kind in INDEXED:
            shuffle, endless = bool(rng.random() < 0.8), bool(rng.random() < 0.3)
            epochs = itertools.count() if endless else range(num_epochs)
            self.stream: Iterator[int] = (
                int(i)
                for epoch in epochs
                for i in (epoch_permutation(self.n, seed, epoch) if shuffle else range(self.n))
            )
            self.shared |= {"seed": seed, "shuffle": shuffle}
            self.shared |= {"num_epochs": None if endless else num_epochs}
        else:
            self.all = [int(i) for e in range(num_epochs) for i in epoch_permutation(self.n, 0, e)]
            self.stream = iter(self.all)

    def expected(self):
        """The examples of every batch: of the size that the resize before it asked for."""
        size, batches = self.micro, []
        for wanted in self.sizes:
            batches.append(list(itertools.islice(self.stream, size)))
            size = min(int(-(-max(wanted, 1) // self.micro)) * self.micro, self.max)
        return batches

    def group(self, count, prefetch):
        """The loaders of `count` processes."""
        shared = self.shared | ({"prefetch": prefetch} if self.kind in INDEXED else {})

        def source():
            if self.kind in INDEXED:
                return INDEXED[self.kind](self.n)
            return ITERATED[self.kind](self.all, self.micro)

        return [
            BatchLoader(source(), self.micro, process=(i, count), **shared) for i in range(count)
        ]


def insist(function, *arguments):
    """Tries again after what the flaky sources raise."""
    for _ in range(1000):
        try:
            return function(*arguments)
        except OSError:
            continue
    raise AssertionError("the same error again and again")


def step(group, run, size):
    """The real examples of the next batch of all processes together, then a resize."""
    batches = [insist(next, loader, None) for loader in group]
    assert len({loader.resize(size) for loader in group}) == 1
    states = {json.dumps(loader.get_state(), allow_nan=False) for loader in group}
    if run.kind != "flaky list":  # (whose fingerprint may fail on one process)
        assert len(states) == 1, "the state has to be the same on every process"
    state = states.pop()
    if None in batches:
        assert not any(batches), "all processes end together"
        return [], state
    rows = [batch._replace(data=values_of(batch.data)) for batch in batches]
    values, mask = assemble(rows, run.micro)
    real = int(mask.sum())
    assert mask[:real].all()
    assert {(loader.num_examples, loader.num_rows) for loader in group} == {(real, len(mask))}
    assert len(mask) == (run.max if run.pad else -(-real // run.micro) * run.micro)
    return values[mask].tolist(), state


@pytest.mark.parametrize("runs_in_all", [120, pytest.param(1020, marks=pytest.mark.slow)])
@pytest.mark.parametrize("block", range(12))
def test_random_kills_deliver_the_uninterrupted_stream(block, runs_in_all, tried):
    runs = all_kills = 0
    for seed in range(block, runs_in_all, 12):
        run = Run(seed)
        rng, expected = run.rng, run.expected()
        group = run.group(int(rng.choice(run.counts)), int(rng.integers(0, 4)))
        delivered, saved = {}, (0, None)
        place = kills = 0
        where = f"{seed=} {run.kind}"
        while place < STEPS:
            delivered[place], state = step(group, run, run.sizes[place])
            assert delivered[place] == expected[place], f"{where} {place=} {kills=}"
            place += 1
            if rng.random() < 0.3:
                saved = place, state
            if saved[1] and kills < 6 and rng.random() < 0.25:  # what came after is lost
                kills += 1
                for loader in group:
                    loader.close()
                group = run.group(int(rng.choice(run.counts)), int(rng.integers(0, 4)))
                place = saved[0]
                for loader in group:
                    insist(loader.set_state, json.loads(saved[1]))
        for loader in group:
            loader.close()
        runs, all_kills = runs + 1, all_kills + kills
        # Each epoch exactly once: the values are the indices.
        seen = [i for batch in delivered.values() for i in batch]
        for epoch in range(len(seen) // run.n):
            of_epoch = sorted(seen[epoch * run.n : (epoch + 1) * run.n])
            assert of_epoch == list(range(run.n)), f"{where} {epoch=}"
        if run.shared.get("num_epochs", 1) is not None and not expected[-1]:
            assert len(seen) % run.n == 0, f"{where}: the last epoch is cut"
    tried("runs", runs)
    tried("kills", all_kills)
