"""Iterators of ready micro-batches: their two protocols, and the stream of rows that reads one."""

import copy
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import jax

from adaoptax.loop.packages import is_a, to_host
from adaoptax.loop.processes import RowBlock
from adaoptax.loop.rows import SameKind, join_micro_batches, num_rows
from adaoptax.loop.saved_state import (
    damaged,
    from_plain,
    require_seal,
    require_stream,
    saved_count,
    sealed,
    to_plain,
)

_SEALED = ("kind", "cursor", "ended", "iterator")


class SavingIterator(Protocol):
    """An iterator of ready micro-batches whose place can be saved and loaded."""

    def read(self) -> Any:
        """Returns the next micro-batch, or raises StopIteration."""

    def save(self) -> Any:
        """Returns the place, as a copy that later reads leave alone."""

    def load(self, place: Any) -> None:
        """Goes to a saved place."""


class _GetState:
    """An iterator with `get_state` (a dict, or bytes in older grain) and `set_state`."""

    def __init__(self, iterator: Any) -> None:
        self._iterator = iterator

    def read(self) -> Any:
        return next(self._iterator)

    def save(self) -> Any:
        return copy.deepcopy(self._iterator.get_state())

    def load(self, place: Any) -> None:
        self._iterator.set_state(copy.deepcopy(place))


class _StateDict:
    """An iterable with `state_dict` and `load_state_dict` (Hugging Face datasets, torchdata).

    There the place belongs to the iterable: a loaded place holds from its next `iter` on, and
    until then `state_dict` may still tell the old one.
    """

    def __init__(self, iterable: Any) -> None:
        self._iterable = iterable
        self._iterator: Iterator[Any] | None = None
        self._loaded: tuple[Any] | None = None  # a tuple, because a place may be None

    def read(self) -> Any:
        if self._iterator is None:
            self._iterator = iter(self._iterable)
        micro_batch = next(self._iterator)
        self._loaded = None
        return micro_batch

    def save(self) -> Any:
        return copy.deepcopy(self._loaded[0] if self._loaded else self._iterable.state_dict())

    def load(self, place: Any) -> None:
        self._iterable.load_state_dict(copy.deepcopy(place))
        self._iterator, self._loaded = None, (copy.deepcopy(place),)


def as_saving_iterator(source: Any) -> SavingIterator | None:
    """Wraps `source` for reading one after another; None where it cannot save its place."""
    if is_a(source, "datasets.iterable_dataset.IterableDataset"):
        _refuse_shuffle_buffer(source)
    if _has(source, "__iter__", "state_dict", "load_state_dict"):
        return _StateDict(source)
    # A grain IterDataset or DataLoader saves its place in the iterator that `iter` makes. What
    # has a length is left alone, for a torch DataLoader would start its workers here.
    if _has(source, "__iter__") and not (hasattr(source, "__next__") or hasattr(source, "__len__")):
        source = iter(source)
    if _has(source, "__next__", "get_state", "set_state"):
        return _GetState(source)
    return None


def _refuse_shuffle_buffer(dataset: Any) -> None:
    """Raises ValueError for a shuffle buffer, which is not in the state of its dataset."""
    nodes = [getattr(dataset, "_ex_iterable", None)]
    while nodes:
        node = nodes.pop()
        if type(node).__name__ == "BufferShuffledExamplesIterable":
            raise ValueError(
                "Expected a source that resumes exactly, got a Hugging Face IterableDataset with a "
                "shuffle buffer, whose examples a resume would lose: leave out .shuffle() and "
                "store the examples in random order, or pass a map-style Dataset, which the loader "
                "shuffles."
            )
        nodes += [getattr(node, "ex_iterable", None)] if hasattr(node, "ex_iterable") else []
        nodes += getattr(node, "ex_iterables", [])


def _has(source: Any, *names: str) -> bool:
    return all(hasattr(source, name) for name in names)


class IteratorStream:
    """Reads whole batches or nothing: after an error it goes back to where the batch began.

    Every process reads the micro-batches of all and keeps its own rows: only so the place is the
    same on all of them, and holds for another number of processes.

    Attributes:
        cursor: Number of examples delivered, over all processes.
        length: None, since an iterator does not tell its length.
    """

    length = None

    def __init__(self, iterator: SavingIterator, block: RowBlock) -> None:
        self.cursor = 0
        self._iterator = iterator
        self._block, self._micro = block, block.micro
        self._ended = False
        self._kind = SameKind()
        # Where an undelivered batch began (a tuple, because a place may be None).
        self._undelivered: tuple[Any] | None = None
        self._end_reached = False

    def read(self, num_micro_batches: int) -> tuple[Any, int]:
        """Returns this process's rows of the next batch and the batch's number of examples.

        At the end of the data there are fewer. The place stays until `advance`.
        """
        if self._ended:
            raise StopIteration
        self._go_back()
        self._undelivered = (self._iterator.save(),)
        self._end_reached = False
        parts: list[Any] = []
        total = 0
        while len(parts) < num_micro_batches:
            try:
                part = self._iterator.read()
            except StopIteration:
                self._end_reached = True
                break
            count = self._checked_rows(part)
            part = jax.tree.map(to_host, part)
            self._kind.check(part)
            parts.append(part)
            total += count
            if count < self._micro:
                self._require_end(count)
                break
        if not parts:
            self.advance(0)
            raise StopIteration
        rows = join_micro_batches(parts)
        if self._block.num_rows(total):
            return jax.tree.map(self._block.take, rows), total
        return jax.tree.map(lambda leaf: leaf[:1], rows), total  # to be copied as padding

    def advance(self, num_examples: int) -> None:
        """Moves past examples that were delivered."""
        self._undelivered = None
        self._ended = self._end_reached
        self.cursor += num_examples

    def _checked_rows(self, part: Any) -> int:
        rows = num_rows(part)
        if not 1 <= rows <= self._micro:
            raise ValueError(
                f"Expected micro-batches of micro_batch_size={self._micro} examples from source, "
                f"got one of {rows}: batch the source into that size, or pass its size as "
                "micro_batch_size."
            )
        return rows

    def _require_end(self, rows: int) -> None:
        """Only the last micro-batch may be short: anywhere else it would break every count."""
        try:
            self._iterator.read()
        except StopIteration:
            self._end_reached = True
            return
        raise ValueError(
            f"Expected micro-batches of micro_batch_size={self._micro} examples from source, got "
            f"one of {rows} that is not the last: this usually means that the source is batched "
            "before it is repeated; repeat first, or drop the remainder."
        )

    def _go_back(self) -> None:
        if self._undelivered is not None:
            self._iterator.load(self._undelivered[0])
            self._undelivered = None

    def get_state(self) -> dict[str, Any]:
        """Returns the place as a new dict, which holds a copy of the iterator's own state."""
        self._go_back()
        state = {
            "kind": "iterator",
            "cursor": self.cursor,
            "ended": self._ended,
            "iterator": to_plain(self._iterator.save()),
        }
        return sealed(state, _SEALED)

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes to a saved place, or raises ValueError and stays."""
        require_stream(state, "iterator", _SEALED)
        cursor = saved_count(state, "cursor")
        if not isinstance(state["ended"], bool):
            raise damaged("ended", state["ended"], "to be True or False")
        require_seal(state, _SEALED)
        self._go_back()
        self._undelivered = (self._iterator.save(),)
        try:
            self._iterator.load(from_plain(state["iterator"]))
        except Exception as error:  # the next use goes back to the place just saved
            raise ValueError(
                "Expected a state that source accepts, but it raised "
                f"{type(error).__name__} ({error}): build the source as it was when it was saved."
            ) from error
        self._undelivered = None
        self.cursor, self._ended = cursor, state["ended"]

    def close(self) -> None:
        """Does nothing: the iterator belongs to whoever made it."""
