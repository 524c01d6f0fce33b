"""Rows of a random-access source, one after another: the whole state is one integer."""

import itertools
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

import numpy as np

from adaoptax.loop.background import BackgroundThread
from adaoptax.loop.permutation import epoch_permutation
from adaoptax.loop.processes import RowBlock
from adaoptax.loop.rows import checksum_of_rows, join_micro_batches
from adaoptax.loop.saved_state import (
    require_equal,
    require_seal,
    require_stream,
    saved_count,
    sealed,
)
from adaoptax.loop.sources import RandomAccess

# What may not be edited in a saved state; the number of epochs and the fingerprint may.
_SEALED = ("kind", "cursor", "seed", "length", "shuffle")


class IndexStream:
    """Reads the epochs of a source in order, without a seam between them.

    Positions count the examples of all epochs and of all processes, so that the cursor means the
    same for every batch size, prefetch depth and number of processes.

    Attributes:
        cursor: Position of the next example, that is the number of examples delivered.
        length: Number of examples of one epoch.
    """

    def __init__(
        self,
        source: RandomAccess,
        block: RowBlock,
        shuffle: bool,
        seed: int,
        num_epochs: int | None,
        prefetch: int,
    ) -> None:
        self.cursor = 0
        self.length = source.length
        self._source = source
        self._block, self._micro = block, block.micro
        self._shuffle, self._seed, self._num_epochs = shuffle, seed, num_epochs
        self._end = None if num_epochs is None else num_epochs * source.length
        self._order: tuple[int, np.ndarray] | None = None
        self._fingerprint: tuple[int | None] | None = None
        self._prefetch = prefetch
        self._futures: dict[int, Future[Any]] = {}  # micro-batches read ahead, by position
        self._thread = BackgroundThread("adaoptax-prefetch") if prefetch else None
        self._closed = False

    def read(self, num_micro_batches: int) -> tuple[Any, int]:
        """Returns this process's rows of the next batch and the batch's number of examples.

        At the end of the data there are fewer. The place stays until `advance`.
        """
        if self._closed:
            raise RuntimeError("Expected an open loader, got one after close(): make a new one.")
        stop = self._clip(self.cursor + num_micro_batches * self._micro)
        if stop == self.cursor:
            raise StopIteration
        if self._thread is None:
            return self._rows(self.cursor, stop), stop - self.cursor
        futures = self._reading(stop)
        try:
            parts = [future.result() for future in futures]
        except BaseException:
            self._forget_failures()
            raise
        return join_micro_batches(parts), stop - self.cursor

    def advance(self, num_examples: int) -> None:
        """Moves past examples that were delivered, and starts to read what comes next."""
        self.cursor += num_examples
        if self._thread is not None:
            for start in [start for start in self._futures if start < self.cursor]:
                del self._futures[start]
            for start in self._starts(self._clip(self.cursor + self._prefetch * self._micro)):
                if start not in self._futures:
                    stop = self._clip(start + self._micro)
                    self._futures[start] = self._thread.submit(self._rows, start, stop)

    def _reading(self, stop: int) -> list[Future[Any]]:
        """What was read ahead of the rows up to `stop`, and the rest of them as one job."""
        assert self._thread is not None
        starts = self._starts(stop)
        ahead = list(itertools.takewhile(self._futures.__contains__, starts))
        futures = [self._futures[start] for start in ahead]
        if len(ahead) < len(starts):
            rest = starts[len(ahead)]
            futures.append(self._thread.submit(self._rows, rest, stop))
        return futures

    def _starts(self, stop: int) -> list[int]:
        """Where the micro-batches up to `stop` begin: those with rows of this process, or one."""
        starts = range(self.cursor, stop, self._micro)
        return [at for at in starts if self._block.num_rows(stop - at)] or list(starts[:1])

    def _clip(self, position: int) -> int:
        return position if self._end is None else min(position, self._end)

    def _rows(self, start: int, stop: int) -> Any:
        """This process's rows of start, ..., stop - 1; at least one, to be copied as padding."""
        indices = self._indices(start, stop)
        own = self._block.take(indices)
        return self._source.gather(own if len(own) else indices[:1])

    def _indices(self, start: int, stop: int) -> np.ndarray:
        """Indices into the source of the positions start, ..., stop - 1."""
        parts = []
        while start < stop:
            epoch, first = divmod(start, self.length)
            last = min(self.length, first + stop - start)
            indices = (
                self._epoch_order(epoch)[first:last] if self._shuffle else np.arange(first, last)
            )
            parts.append(indices + epoch * self.length if self._source.knows_epochs else indices)
            start += last - first
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _epoch_order(self, epoch: int) -> np.ndarray:
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, epoch_permutation(self.length, self._seed, epoch)
        return self._order[1]

    def _forget_failures(self) -> None:
        """Drops what failed, so that the next `read` tries the same rows again."""
        for start, future in list(self._futures.items()):
            if future.done() and future.exception() is not None:
                del self._futures[start]

    def get_state(self) -> dict[str, Any]:
        """Returns the place as a new dict of plain numbers."""
        try:
            data = self._data_fingerprint()
        except Exception:  # a source that fails just now must not cost the checkpoint
            data = None
        state = {
            "kind": "index",
            "cursor": self.cursor,
            "seed": self._seed,
            "length": self.length,
            "shuffle": self._shuffle,
            "num_epochs": self._num_epochs,
            "fingerprint": data,
        }
        return sealed(state, _SEALED)

    def _data_fingerprint(self) -> int | None:
        if self._fingerprint is None:
            if self._thread is None:
                value = _fingerprint(self._source)
            else:  # in the reading thread: many sources must not be read by two at a time
                value = self._thread.submit(_fingerprint, self._source).result()
            self._fingerprint = (value,)
        return self._fingerprint[0]

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes to a saved place, or raises ValueError and stays."""
        require_stream(state, "index", [*_SEALED, "num_epochs", "fingerprint"])
        cursor = saved_count(state, "cursor")
        again = "the order of the examples would differ; pass the saved value to BatchLoader."
        require_equal(state, "seed", self._seed, again)
        require_equal(state, "shuffle", self._shuffle, again)
        other_data = "this is other data; pass the source that was used when it was saved"
        require_equal(state, "length", self.length, f"{other_data}.")
        longer = (
            "pass the saved value to BatchLoader, or set state['stream']['num_epochs'] to the new "
            "one to train for longer."
        )
        require_equal(state, "num_epochs", self._num_epochs, longer)
        if self._clip(cursor) != cursor:
            raise ValueError(
                f"Expected cursor <= {self._end} (num_epochs={self._num_epochs} of "
                f"{self.length} examples), got cursor={cursor} saved: pass a larger num_epochs."
            )
        require_seal(state, _SEALED)
        here = self._data_fingerprint() if state["fingerprint"] is not None else None
        if here is not None:
            varies = (
                f"{other_data}; if its examples vary on purpose (random augmentation), set "
                "state['stream']['fingerprint'] = None."
            )
            require_equal(state, "fingerprint", here, varies)
        self._drop_futures()
        self.cursor = cursor

    def _drop_futures(self) -> None:
        for future in self._futures.values():
            future.cancel()
        self._futures.clear()

    def close(self) -> None:
        """Stops the background thread; what it read ahead is dropped."""
        self._closed = True
        self._drop_futures()
        if self._thread is not None:
            self._thread.close()
            self._thread = None


def _fingerprint(source: RandomAccess) -> int | None:
    """Checksum of the first, middle and last example; None where reading twice gives two.

    It notices a restore into other data of the same length.
    """
    probes = np.array([0, source.length // 2, source.length - 1])
    checksum = checksum_of_rows(source.gather(probes))
    # A source that augments at random has no fingerprint: it would refuse its own checkpoints.
    return checksum if checksum == checksum_of_rows(source.gather(probes)) else None
