"""The sizes that a batch may have: the rows it is padded to, the grid of a policy, its bounds."""

import bisect
import itertools
from collections.abc import Callable, Sequence
from typing import Any

from adaoptax._validate import round_down, round_up, whole_number

# A size in examples, or a function from the number of examples seen to one.
SizeOrSchedule = int | Callable[[int], int]


def capacities(micro_batch_size: int, max_batch_size: int) -> tuple[int, ...]:
    """The ladder of row counts: the micro-batch times powers of two, then the largest batch.

    A batch padded to the next of them is at most half padding, and the step is compiled at most
    ``ceil(log2(max_batch_size / micro_batch_size)) + 1`` times.

    Args:
        micro_batch_size: Examples of one micro-batch.
        max_batch_size: Largest batch, a multiple of it.

    Returns:
        Increasing row counts, the last of which is `max_batch_size`.

    Raises:
        ValueError: If `max_batch_size` is no multiple of `micro_batch_size`.

    Examples:
        >>> from adaoptax.loop import capacities
        >>> capacities(16, 256)
        (16, 32, 64, 128, 256)
        >>> capacities(16, 48)
        (16, 32, 48)
    """
    micro = whole_number("micro_batch_size", micro_batch_size, 1, "it counts examples.")
    largest = checked_max(max_batch_size, micro)
    doubled = (micro * 2**j for j in range((largest // micro).bit_length()))
    return tuple(sorted({*doubled, largest}))


def checked_max(max_batch_size: Any, micro_batch_size: int, batch_size: int = 1) -> int:
    """`max_batch_size` as an int: whole micro-batches, and no smaller than the first batch."""
    size = whole_number("max_batch_size", max_batch_size, 1, "it counts examples.")
    if size % micro_batch_size:
        raise ValueError(
            f"Expected max_batch_size to be a multiple of {micro_batch_size=}, got "
            f"max_batch_size={size}: a batch is a whole number of micro-batches; pass "
            f"max_batch_size={round_up(size, micro_batch_size)}, or a micro_batch_size."
        )
    if size < batch_size:
        raise ValueError(
            f"Expected max_batch_size >= {batch_size=}, got max_batch_size={size}: the first batch "
            "would be larger than the largest; pass a larger max_batch_size."
        )
    return size


def checked_pad_to(
    pad_to: Any, micro_batch_size: int, max_batch_size: int | None
) -> tuple[int, ...] | None:
    """The row counts that `BatchLoader` pads to; None for whole micro-batches only."""
    if pad_to is None:
        return None
    if max_batch_size is None:
        raise ValueError(
            f"Expected max_batch_size with {pad_to=}, got max_batch_size=None: it is the largest "
            "number of rows that a batch is padded to."
        )
    if isinstance(pad_to, str) and pad_to == "max":
        return (max_batch_size,)
    if isinstance(pad_to, str) and pad_to == "ladder":
        return capacities(micro_batch_size, max_batch_size)
    if isinstance(pad_to, str) or not isinstance(pad_to, Sequence) or not pad_to:
        raise ValueError(
            f'Expected pad_to to be None, "max", "ladder" or a tuple of row counts, got {pad_to=}: '
            "pass for example pad_to=step.capacities of adaoptax.accumulate."
        )
    counts = tuple(whole_number("pad_to", rows, 1, "it counts rows.") for rows in pad_to)
    whole = all(rows % micro_batch_size == 0 for rows in counts)
    if not (whole and _increasing(counts) and counts[-1] == max_batch_size):
        raise ValueError(
            f"Expected pad_to to hold increasing multiples of {micro_batch_size=} that end with "
            f"{max_batch_size=}, got pad_to={counts}: this usually means that it was made for "
            "other sizes; pass pad_to=adaoptax.loop.capacities(micro_batch_size, max_batch_size)."
        )
    return counts


class Grid:
    """The sizes of a policy: all positive multiples of `multiple_of`, or only those of `sizes`."""

    def __init__(self, multiple_of: Any, sizes: Sequence[int] | None) -> None:
        self._step = whole_number("multiple_of", multiple_of, 1, "sizes are multiples of it.")
        self._sizes: tuple[int, ...] | None = None
        if sizes is None:
            return
        meaning = "it counts examples."
        self._sizes = tuple(whole_number("each of sizes", size, 1, meaning) for size in sizes)
        if not (self._sizes and _increasing(self._sizes)):
            raise ValueError(
                f"Expected sizes to be increasing numbers of examples, got sizes={sizes!r}: they "
                "are the only sizes that a batch may have; pass for example (32, 64, 128)."
            )
        if off := [size for size in self._sizes if size % self._step]:
            raise ValueError(
                f"Expected sizes to be multiples of multiple_of={self._step}, got {off[0]} in "
                f"sizes={self._sizes}: drop one of the two arguments."
            )

    def up(self, number: float) -> int:
        """Smallest size that is at least the finite `number`; the largest there is if none is."""
        if self._sizes is None:
            return max(round_up(number, self._step), self._step)
        return self._sizes[min(bisect.bisect_left(self._sizes, number), len(self._sizes) - 1)]

    def down(self, number: float) -> int:
        """Largest size that is at most the finite `number`; the smallest there is if none is."""
        if self._sizes is None:
            return max(round_down(number, self._step), self._step)
        return self._sizes[max(bisect.bisect_right(self._sizes, number) - 1, 0)]

    def __str__(self) -> str:
        """What a size is, to be read after "to be"."""
        if self._sizes is None:
            return f"a multiple of multiple_of={self._step}"
        return f"one of {self._sizes}"


def _increasing(numbers: Sequence[int]) -> bool:
    return all(a < b for a, b in itertools.pairwise(numbers))


class Bounds:
    """Smallest and largest size of a policy at any number of examples seen, both on the grid.

    Constants have to lie on the grid; what a schedule says is rounded up to it, as loaders do.
    """

    def __init__(self, low: SizeOrSchedule, high: SizeOrSchedule, grid: Grid) -> None:
        self._grid = grid
        self._low = self._checked("min_batch_size", low)
        self._high = self._checked("max_batch_size", high)
        # A staged schedule is checked wherever it changes.
        stages = [*(getattr(low, "stages", None) or ()), *(getattr(high, "stages", None) or ())]
        for examples in sorted({0, *(threshold for threshold, _ in stages)}):
            self.at(examples)

    def at(self, examples: int) -> tuple[int, int]:
        """``(smallest, largest)`` size after `examples` examples."""
        low, high = self._size(self._low, examples), self._size(self._high, examples)
        if high < low:
            when = f" after {examples} examples" if examples else ""
            raise ValueError(
                f"Expected max_batch_size >= min_batch_size={low}{when}, got "
                f"max_batch_size={high}: there is no size between them; swap them, or raise the "
                "larger one."
            )
        return low, high

    @property
    def largest(self) -> int:
        """The largest size that there can ever be, or of a bare function the one at present."""
        if callable(self._high):
            wanted = getattr(self._high, "max_batch_size", None) or self._high(0)
            return self._grid.up(wanted)
        return self._high

    def _checked(self, name: str, bound: Any) -> SizeOrSchedule:
        if callable(bound):
            return bound
        size = whole_number(name, bound, 1, "a batch holds examples.")
        if self._grid.up(size) != size:
            raise ValueError(
                f"Expected {name} to be {self._grid}, got {name}={size}: every size lies on that "
                f"grid; pass {name}={self._grid.up(size)}."
            )
        return size

    def _size(self, bound: SizeOrSchedule, examples: int) -> int:
        if not callable(bound):
            return bound
        meaning = f"the schedule returned it after {examples} examples."
        return self._grid.up(whole_number("batch size", bound(examples), 1, meaning))
