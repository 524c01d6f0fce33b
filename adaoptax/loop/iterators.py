"""Iterators that can save their place: one face for the two protocols in use."""

import copy
from collections.abc import Iterator
from typing import Any, Protocol

from adaoptax.loop.kinds import is_a


class SavingIterator(Protocol):
    """An iterator of ready micro-batches whose place can be saved and loaded."""

    def read(self) -> Any:
        """Returns the next micro-batch, or raises StopIteration."""

    def save(self) -> Any:
        """Returns the place, as a copy that later reads leave alone."""

    def load(self, place: Any) -> None:
        """Goes to a saved place."""


class GetStateIterator:
    """An iterator with `get_state` and `set_state`, as grain has them."""

    def __init__(self, iterator: Any) -> None:
        self._iterator = iterator

    def read(self) -> Any:
        """Returns the next micro-batch, or raises StopIteration."""
        return next(self._iterator)

    def save(self) -> Any:
        """Returns a copy of the iterator's state (a dict, or bytes in older grain)."""
        return copy.deepcopy(self._iterator.get_state())

    def load(self, place: Any) -> None:
        """Goes to a saved place."""
        self._iterator.set_state(copy.deepcopy(place))


class StateDictIterable:
    """An iterable with `state_dict` and `load_state_dict` (Hugging Face datasets, torchdata).

    There the place belongs to the iterable: a loaded place holds from its next `iter` on, and
    until then `state_dict` may still tell the old one.
    """

    def __init__(self, iterable: Any) -> None:
        self._iterable = iterable
        self._iterator: Iterator[Any] | None = None
        self._loaded: tuple[Any] | None = None  # a tuple, because a place may be None

    def read(self) -> Any:
        """Returns the next micro-batch, or raises StopIteration."""
        if self._iterator is None:
            self._iterator = iter(self._iterable)
        micro_batch = next(self._iterator)
        self._loaded = None
        return micro_batch

    def save(self) -> Any:
        """Returns a copy of the iterable's state."""
        place = self._loaded[0] if self._loaded else self._iterable.state_dict()
        return copy.deepcopy(place)

    def load(self, place: Any) -> None:
        """Goes to a saved place."""
        self._iterable.load_state_dict(copy.deepcopy(place))
        self._iterator, self._loaded = None, (copy.deepcopy(place),)


def as_saving_iterator(source: Any) -> SavingIterator | None:
    """Wraps `source` for reading one after another; None where it cannot save its place."""
    if is_a(source, "datasets.iterable_dataset.IterableDataset"):
        _refuse_shuffle_buffer(source)
    if _has(source, "__iter__", "state_dict", "load_state_dict"):
        return StateDictIterable(source)
    # A grain IterDataset or DataLoader saves its place in the iterator that `iter` makes. What
    # has a length is left alone, for a torch DataLoader would start its workers here.
    if _has(source, "__iter__") and not (hasattr(source, "__next__") or hasattr(source, "__len__")):
        source = iter(source)
    if _has(source, "__next__", "get_state", "set_state"):
        return GetStateIterator(source)
    return None


def _refuse_shuffle_buffer(dataset: Any) -> None:
    """The state of a Hugging Face dataset leaves out what its shuffle buffer holds."""
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
