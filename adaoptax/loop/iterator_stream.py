"""Rows of an iterator of ready micro-batches; its state holds the iterator's own."""

from collections.abc import Mapping
from typing import Any

import jax

from adaoptax.loop.iterators import SavingIterator
from adaoptax.loop.plain import from_plain, to_plain
from adaoptax.loop.rows import join_micro_batches, num_rows
from adaoptax.loop.saved_state import (
    checksum,
    require_checksum,
    require_equal,
    require_keys,
    saved_count,
)
from adaoptax.loop.share import Share
from adaoptax.loop.signature import Signature
from adaoptax.loop.tensors import to_host

_SEALED = ("kind", "cursor", "ended", "iterator")


class IteratorStream:
    """Reads whole batches or nothing: after an error it goes back to where the batch began.

    Every process reads the micro-batches of all and keeps its own rows: only so the place is the
    same on all of them, and holds for another number of processes.

    Attributes:
        cursor: Number of examples delivered, over all processes.
        length: None, since an iterator does not tell its length.
    """

    length = None

    def __init__(self, iterator: SavingIterator, share: Share) -> None:
        self.cursor = 0
        self._iterator = iterator
        self._share, self._micro = share, share.micro
        self._ended = False
        self._signature = Signature()
        # Where an undelivered batch began (a tuple, because a place may be None).
        self._undelivered: tuple[Any] | None = None
        self._end_reached = False

    def read(self, num_micro_batches: int) -> tuple[Any, int]:
        """Returns this process's rows of the next batch and the batch's number of examples.

        At the end of the data there are fewer. Does not move.
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
            self._signature.check(part)
            parts.append(part)
            total += count
            if count < self._micro:
                self._require_end(count)
                break
        if not parts:
            self.advance(0)
            raise StopIteration
        rows = join_micro_batches(parts)
        if self._share.num_rows(total):
            return jax.tree.map(self._share.take, rows), total
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
        return state | {"checksum": checksum(state, _SEALED)}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes to a saved place, or raises ValueError and stays."""
        require_keys("state['stream']", state, ["kind"])
        require_equal(
            "kind", state["kind"], "iterator", "pass the kind of source it was saved with."
        )
        require_keys("state['stream']", state, [*_SEALED, "checksum"])
        cursor = saved_count(state, "cursor")
        if not isinstance(state["ended"], bool):
            raise ValueError(
                f"Expected ended to be True or False, got ended={state['ended']!r} saved: the "
                "saved state is damaged."
            )
        require_checksum(state, _SEALED)
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
