"""The share of one process in the rows of a batch: the same block of every micro-batch."""

import dataclasses
from typing import Any

import jax
import numpy as np

from adaoptax._numbers import round_up, whole_number


@dataclasses.dataclass(frozen=True)
class Share:
    """Process `index` out of `count` that read one stream together.

    Attributes:
        index: Number of this process, from 0.
        count: Number of processes.
        micro: Examples of one micro-batch of all processes; `count` divides it.
    """

    index: int
    count: int
    micro: int

    @property
    def micro_rows(self) -> int:
        """Rows of this process in one micro-batch."""
        return self.micro // self.count

    def num_rows(self, num_examples: int) -> int:
        """How many of the next `num_examples` examples are rows of this process."""
        whole, rest = divmod(num_examples, self.micro)
        in_the_last = rest - self.index * self.micro_rows
        return whole * self.micro_rows + min(max(in_the_last, 0), self.micro_rows)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """The rows of this process out of `rows`, which begin with a micro-batch."""
        if self.count == 1:
            return rows
        return rows[np.arange(len(rows)) // self.micro_rows % self.count == self.index]


def share_of(process: Any, micro_batch_size: int) -> Share:
    """Checks ``(index, count)``; None asks JAX, which starts its backend."""
    if process is None:
        process = jax.process_index(), jax.process_count()
    if not (isinstance(process, (tuple, list)) and len(process) == 2):
        raise ValueError(
            f"Expected process to be a pair (index, count), got process={process!r}: pass for "
            "example (jax.process_index(), jax.process_count()), or None, which means the same."
        )
    index = whole_number("index of process", process[0], 0, "processes are counted from 0.")
    count = whole_number("count of process", process[1], 1, "at least this process reads.")
    if index >= count:
        raise ValueError(
            f"Expected process=(index, count) with index < count, got process={(index, count)}: "
            "processes are counted from 0."
        )
    if micro_batch_size % count:
        raise ValueError(
            f"Expected micro_batch_size to be a multiple of the {count} processes, got "
            f"micro_batch_size={micro_batch_size}: sizes count the examples of all processes, and "
            "each process reads an equal part; pass for example "
            f"micro_batch_size={round_up(micro_batch_size, count)}."
        )
    return Share(index, count, micro_batch_size)
