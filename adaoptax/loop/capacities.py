"""Numbers of rows that batches are padded to: one program is compiled for each."""

import itertools
from collections.abc import Sequence
from typing import Any

from adaoptax._numbers import round_up, whole_number


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


def checked_max(max_batch_size: Any, micro_batch_size: int) -> int:
    """`max_batch_size` as a plain int, or a ValueError where micro-batches do not fill it."""
    size = whole_number("max_batch_size", max_batch_size, 1, "it counts examples.")
    if size % micro_batch_size:
        raise ValueError(
            f"Expected max_batch_size to be a multiple of {micro_batch_size=}, got "
            f"max_batch_size={size}: a batch is a whole number of micro-batches; pass "
            f"max_batch_size={round_up(size, micro_batch_size)}, or a micro_batch_size."
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
    if isinstance(pad_to, str) and pad_to in ("max", "ladder"):
        return (
            (max_batch_size,) if pad_to == "max" else capacities(micro_batch_size, max_batch_size)
        )
    if isinstance(pad_to, str) or not isinstance(pad_to, Sequence) or not pad_to:
        raise ValueError(
            f'Expected pad_to to be None, "max", "ladder" or a tuple of row counts, got {pad_to=}: '
            "pass for example pad_to=step.capacities of adaoptax.accumulate."
        )
    counts = tuple(whole_number("pad_to", rows, 1, "it counts rows.") for rows in pad_to)
    whole = all(rows % micro_batch_size == 0 for rows in counts)
    increasing = all(a < b for a, b in itertools.pairwise(counts))
    if not (whole and increasing and counts[-1] == max_batch_size):
        raise ValueError(
            f"Expected pad_to to hold increasing multiples of {micro_batch_size=} that end with "
            f"{max_batch_size=}, got pad_to={counts}: this usually means that it was made for "
            "other sizes; pass pad_to=adaoptax.loop.capacities(micro_batch_size, max_batch_size)."
        )
    return counts
