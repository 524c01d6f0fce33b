"""Sources for tests: they note what is read, fail when told to, and save their place."""

import threading
from typing import Any

import numpy as np


class Examples(list):
    """Examples that note what was read and by whom; `fault(index)` runs first."""

    def __init__(self, examples, fault=lambda index: None):
        super().__init__(examples)
        self.fault, self.read, self.threads = fault, [], set()

    def __getitem__(self, index):
        self.threads.add(threading.current_thread())
        self.fault(index)
        self.read.append(index)
        return super().__getitem__(index)


class AtOnce:
    """Like a Hugging Face dataset: offers to read many examples at once."""

    def __init__(self, examples):
        self.examples, self.calls = examples, []

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, index):
        raise AssertionError("must read by __getitems__")

    def __getitems__(self, indices):
        assert all(type(index) is int for index in indices)
        self.calls.append(indices)
        return [self.examples[index] for index in indices]


class GetState:
    """Micro-batches like a grain iterator; where `fault` raises, it has moved on all the same."""

    def __init__(self, micro_batches, fault=lambda place: None):
        self.micro_batches, self.fault, self.place = micro_batches, fault, 0

    def __iter__(self):
        return self

    def __next__(self):
        if self.place == len(self.micro_batches):
            raise StopIteration
        self.place += 1
        self.fault(self.place)
        return self.micro_batches[self.place - 1]

    def get_state(self) -> Any:
        return {"place": self.place}

    def set_state(self, state):
        self.place = state["place"]


class StateDict:
    """Micro-batches like a Hugging Face IterableDataset: a state holds from the next `iter` on."""

    def __init__(self, micro_batches):
        self.micro_batches, self.place, self.start = micro_batches, 0, 0

    def __iter__(self):
        start, self.start = self.start, 0
        for place in range(start, len(self.micro_batches)):
            self.place = place + 1
            yield self.micro_batches[place]

    def state_dict(self):
        return {"place": (self.place, b"bytes")}

    def load_state_dict(self, state):
        self.start, _ = state["place"]


def cut(tree, rows):
    """Micro-batches of `rows` rows, of which the last may be short."""
    leaf = tree["y"] if isinstance(tree, dict) else tree
    part = lambda x, i: np.asarray(x[i : i + rows])
    return [
        {name: part(x, i) for name, x in tree.items()} if isinstance(tree, dict) else part(tree, i)
        for i in range(0, len(leaf), rows)
    ]


class Sometimes:
    """A fault at random moments."""

    def __init__(self, rate, seed=0):
        self.rate, self.rng, self.failures = rate, np.random.default_rng(seed), 0

    def __call__(self, place):
        if self.rng.random() < self.rate:
            self.failures += 1
            raise OSError(f"disk of {place}")


def once(index, error):
    """A fault of one place that happens once."""
    pending = [error]

    def fault(at):
        if at == index and pending:
            raise pending.pop()

    return fault
