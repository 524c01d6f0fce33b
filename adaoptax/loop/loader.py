"""Batches whose size the host may change before every step, with exact resume."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import numpy as np

from adaoptax._validate import real_number, round_up, whole_number
from adaoptax.loop.index_stream import IndexStream
from adaoptax.loop.iterator_stream import IteratorStream, as_saving_iterator
from adaoptax.loop.permutation import seed_number
from adaoptax.loop.processes import RowBlock, row_block
from adaoptax.loop.rows import Batch, pad_rows
from adaoptax.loop.saved_state import damaged, require_equal, require_layout, saved_count
from adaoptax.loop.sizes import checked_max, checked_pad_to
from adaoptax.loop.sources import as_random_access
from adaoptax.typing import Scalar

_VERSION = 1

_UNKNOWN_SOURCE = """\
Expected as source one of the two kinds that can be resumed exactly, got {kind}. Pass either \
(a) random access: arrays with equal leading lengths (a dict, tuple or NamedTuple of them), a \
list of examples, or an object with __len__ and __getitem__ (grain.MapDataset, a map-style torch \
dataset instead of its DataLoader, a Hugging Face Dataset, tfds.data_source instead of a \
tf.data.Dataset, list(...) of a set or generator); or \
(b) an iterator of ready micro-batches that can save its place: get_state/set_state (a grain \
iterator) or state_dict/load_state_dict (torchdata's StatefulDataLoader, a Hugging Face \
IterableDataset)."""


class BatchLoader:
    """Iterator over batches that may grow or shrink before every `next`.

    A batch is a whole number of micro-batches of one fixed size, in one leading axis of rows.
    Epochs follow each other without a seam, also inside a batch, and each delivers every example
    exactly once. The place is the number of examples delivered: it holds for every later batch
    size and prefetch depth, so that a resume in the middle of growth is exact.

    A batch is delivered whole or not at all: where reading fails, the error is raised, the place
    stays, and the next `next` tries the same examples again.

    Where several processes train together, each has a loader of its own and gives it the same
    arguments. Of every micro-batch each process reads its block of rows, the first the first.
    Sizes, place and state count the examples of **all** processes and are the same on each, so
    that a state saved by one number of processes continues the same stream on any other. Give
    `resize` the same number everywhere: one that comes from a replicated array.

    Sources are either (a) random access: a pytree of arrays with equal leading lengths, a list of
    examples, or any object with `__len__` and `__getitem__`; or (b) an iterator of ready
    micro-batches of `micro_batch_size` examples each (the last may be short) that can save its
    place, such as a grain iterator or a torchdata `StatefulDataLoader`. For (b) shuffling, seed
    and epochs are those of the source, and every process reads the micro-batches of all, of which
    it keeps its rows. With arrays `prefetch=0` is fastest; where reading an
    example takes long, 2 to 4 micro-batches are enough.

    Args:
        source: Where examples come from.
        batch_size: Examples wanted in the first batch; see `resize` for the rounding.
        micro_batch_size: Examples of one micro-batch, by default `batch_size`.
        max_batch_size: Largest size that `resize` may choose, a multiple of `micro_batch_size`.
        pad_to: Row counts that batches are padded to, with padding masked out, so that a jitted
            step compiles once for each: ``"max"`` pads all to `max_batch_size`, ``"ladder"`` each
            to the next of `capacities`, a tuple of row counts (``step.capacities`` of
            `accumulate`) each to the next of them. None pads to whole micro-batches only.
        shuffle: Whether each epoch has its own order, see `epoch_permutation`.
        seed: Chooses the orders.
        num_epochs: Number of epochs, or None for no end. The last batch may be short; it is
            padded to whole micro-batches.
        prefetch: Micro-batches that a background thread reads ahead, 0 for none.
        process: Number of this process and number of all, ``(index, count)``. None asks JAX, which
            starts its backend: call `jax.distributed.initialize` before. Pass ``(0, 1)`` for a
            loader whose rows are all for this process, and `data_process` of the sharding where
            the devices of one row belong to several processes.

    Raises:
        TypeError: If `source` is of a kind that cannot be resumed.
        ValueError: If an argument is outside its range, or if the source is empty, endless, or
            has arrays of unequal lengths.

    Examples:
        >>> import numpy as np
        >>> from adaoptax.loop import BatchLoader
        >>> images, labels = np.zeros((100, 28, 28)), np.arange(100)
        >>> loader = BatchLoader({"x": images, "y": labels}, batch_size=8, max_batch_size=32)
        >>> next(loader).data["x"].shape
        (8, 28, 28)
        >>> loader.resize(20.3)
        24
        >>> batch = next(loader)
        >>> batch.data["y"].shape, batch.num_examples, loader.examples_seen
        ((24,), 24, 32)
        >>> state = loader.get_state()
        >>> resumed = BatchLoader({"x": images, "y": labels}, batch_size=8, max_batch_size=32)
        >>> resumed.set_state(state)
        >>> bool((next(resumed).data["y"] == next(loader).data["y"]).all())
        True
    """

    def __init__(
        self,
        source: Any,
        batch_size: int,
        *,
        micro_batch_size: int | None = None,
        max_batch_size: int | None = None,
        pad_to: Literal["max", "ladder"] | Sequence[int] | None = None,
        shuffle: bool = True,
        seed: int = 0,
        num_epochs: int | None = None,
        prefetch: int = 0,
        process: tuple[int, int] | None = None,
    ) -> None:
        batch_size = whole_number("batch_size", batch_size, 1, "a batch holds examples.")
        if micro_batch_size is None:
            micro_batch_size = batch_size
        self._micro = whole_number("micro_batch_size", micro_batch_size, 1, "it counts examples.")
        self._max = None
        if max_batch_size is not None:
            self._max = checked_max(max_batch_size, self._micro, batch_size)
        self._capacities = checked_pad_to(pad_to, self._micro, self._max)
        self._block = row_block(process, self._micro)
        self._stream = _open_stream(source, self._block, shuffle, seed, num_epochs, prefetch)
        self._step = self._num_examples = self._num_rows = 0
        self._batch_size = round_up(batch_size, self._micro)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        rows, num_examples = self._stream.read(self._batch_size // self._micro)
        num_rows = round_up(num_examples, self._micro)
        if self._capacities is not None:
            num_rows = next(rows for rows in self._capacities if rows >= num_rows)
        own_rows = num_rows // self._block.count
        mask = np.arange(own_rows) < self._block.num_rows(num_examples)
        batch = Batch(pad_rows(rows, own_rows), mask)
        # Only now, when nothing can fail any more, the examples count as delivered.
        self._stream.advance(num_examples)
        self._step += 1
        self._num_examples, self._num_rows = num_examples, num_rows
        return batch

    def resize(self, n: Scalar) -> int:
        """Sets how many examples the next batch shall have.

        It takes effect at the very next `next`; nothing that was prefetched becomes stale.

        Args:
            n: Examples wanted: any real number (Python, NumPy or a JAX scalar), which is rounded
                up to whole micro-batches, at least one, and capped at `max_batch_size`. Infinity
                asks for `max_batch_size`.

        Returns:
            The size in force.

        Raises:
            ValueError: If `n` is NaN, or infinite where there is no `max_batch_size`.

        Examples:
            >>> import numpy as np
            >>> from adaoptax.loop import BatchLoader
            >>> loader = BatchLoader(np.arange(100), batch_size=8, max_batch_size=64)
            >>> loader.resize(17), loader.resize(float("inf")), loader.resize(0.5)
            (24, 64, 8)
        """
        wanted = real_number("n", n)
        if math.isnan(wanted):
            raise ValueError(
                "Expected a number of examples, got n=nan: this usually means that the required "
                "batch size was undefined at this step; keep the size (GrowthPolicy does)."
            )
        if self._max is not None:
            wanted = min(wanted, self._max)
        if wanted == math.inf:
            raise ValueError(
                "Expected a finite number of examples, got n=inf without a max_batch_size: the "
                "gradient is all noise and no batch is large enough; pass max_batch_size."
            )
        self._batch_size = round_up(max(wanted, 1), self._micro)
        return self._batch_size

    @property
    def batch_size(self) -> int:
        """Examples of the next batch, over all processes."""
        return self._batch_size

    @property
    def micro_batch_size(self) -> int:
        """Examples of one micro-batch of all processes; batch sizes are multiples of it."""
        return self._micro

    @property
    def max_batch_size(self) -> int | None:
        """Largest batch size, or None."""
        return self._max

    @property
    def num_examples(self) -> int:
        """Real examples of the batch delivered last, over all processes; 0 before the first."""
        return self._num_examples

    @property
    def num_rows(self) -> int:
        """Rows of the batch delivered last, padding included, over all processes."""
        return self._num_rows

    @property
    def examples_seen(self) -> int:
        """Number of examples delivered so far, over all processes."""
        return self._stream.cursor

    @property
    def examples_per_epoch(self) -> int | None:
        """Number of examples in the source; None for iterator sources."""
        return self._stream.length

    @property
    def epoch(self) -> float | None:
        """Epochs delivered so far, with their fraction; None for iterator sources."""
        length = self.examples_per_epoch
        return None if length is None else self.examples_seen / length

    @property
    def step(self) -> int:
        """Number of batches delivered so far."""
        return self._step

    def get_state(self) -> dict[str, Any]:
        """Returns what a resume needs, the same on every process: the place and the batch size.

        The state describes the batches that were delivered; what was prefetched does not count.

        Returns:
            A new dict of plain ints, strings and bools that `json.dumps` takes. For iterator
            sources it holds a copy of the iterator's own state, in which arrays, torch tensors,
            bytes and tuples are encoded for JSON.

        Examples:
            >>> import numpy as np
            >>> from adaoptax.loop import BatchLoader
            >>> loader = BatchLoader(np.arange(100), batch_size=8)
            >>> batch = next(loader)
            >>> state = loader.get_state()
            >>> state["step"], state["batch_size"], state["stream"]["cursor"]
            (1, 8, 8)
        """
        return {
            "version": _VERSION,
            "step": self._step,
            "batch_size": self._batch_size,
            "micro_batch_size": self._micro,
            "stream": self._stream.get_state(),
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes to a saved place and takes over its batch size.

        Everything is checked first: after an error the loader is as it was before.

        Args:
            state: What `get_state` returned, also after a round trip through JSON.

        Raises:
            ValueError: If the state is damaged, or was saved with other data, another seed,
                micro-batch size, shuffling or number of epochs. (The number of processes may be
                another one.)

        Examples:
            >>> import numpy as np
            >>> from adaoptax.loop import BatchLoader
            >>> loader = BatchLoader(np.arange(100), batch_size=8)
            >>> state = loader.get_state()
            >>> first = next(loader)
            >>> loader.set_state(state)
            >>> bool((next(loader).data == first.data).all())
            True
        """
        require_layout(state, _VERSION, ["step", "batch_size", "micro_batch_size", "stream"])
        remedy = "pass the saved value to BatchLoader."
        require_equal(state, "micro_batch_size", self._micro, remedy)
        step, batch_size = saved_count(state, "step"), saved_count(state, "batch_size")
        if batch_size < 1 or batch_size % self._micro:
            wanted = f"to be a multiple of micro_batch_size={self._micro}"
            raise damaged("batch_size", batch_size, wanted)
        if self._max is not None and batch_size > self._max:
            raise ValueError(
                f"Expected batch_size <= max_batch_size={self._max}, got batch_size={batch_size} "
                "saved: pass a larger max_batch_size, or set state['batch_size'] to a smaller one."
            )
        self._stream.set_state(state["stream"])
        self._step, self._batch_size = step, batch_size

    def close(self) -> None:
        """Stops the prefetching thread, if there is one; the loader gives no batches after it."""
        self._stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _open_stream(
    source: Any, block: RowBlock, shuffle: bool, seed: int, num_epochs: int | None, prefetch: int
) -> IndexStream | IteratorStream:
    """Opens `source` by its kind, or raises TypeError where its place could not be saved."""
    seed = seed_number(seed)
    prefetch = whole_number("prefetch", prefetch, 0, "it counts micro-batches.")
    if num_epochs is not None:
        num_epochs = whole_number("num_epochs", num_epochs, 1, "pass None for no end.")
    rows = as_random_access(source)
    if rows is not None:
        return IndexStream(rows, block, bool(shuffle), seed, num_epochs, prefetch)
    iterator = as_saving_iterator(source)
    if iterator is None:
        kind = "None" if source is None else f"an object of type {type(source).__name__}"
        raise TypeError(_UNKNOWN_SOURCE.format(kind=kind))
    for name, value in {"num_epochs": num_epochs, "prefetch": prefetch}.items():
        if value:
            raise ValueError(
                f"Expected no {name} with an iterator as source, got {name}={value}: the iterator "
                "decides it; set it where the iterator is made."
            )
    return IteratorStream(iterator, block)
