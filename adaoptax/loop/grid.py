"""The sizes that a batch may have: all multiples of a step, or the rungs of a ladder."""

import bisect
import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, Protocol

from adaoptax._numbers import round_down, round_up, whole_number


class Grid(Protocol):
    """Sizes in increasing order; all numbers are finite and at least 1."""

    def up(self, number: float) -> int:
        """Smallest size that is at least `number`; the largest there is if none is."""

    def down(self, number: float) -> int:
        """Largest size that is at most `number`; the smallest there is if none is."""

    def describe(self) -> str:
        """What the sizes are, to be read after "to be"."""


@dataclasses.dataclass(frozen=True)
class Multiples:
    """All positive multiples of `step`."""

    step: int

    def up(self, number: float) -> int:
        """Rounds up to the next multiple."""
        return max(round_up(number, self.step), self.step)

    def down(self, number: float) -> int:
        """Rounds down to a multiple."""
        return max(round_down(number, self.step), self.step)

    def describe(self) -> str:
        """Names the step."""
        return f"a multiple of multiple_of={self.step}"


@dataclasses.dataclass(frozen=True)
class Ladder:
    """A few declared sizes."""

    sizes: tuple[int, ...]

    def up(self, number: float) -> int:
        """The rung at or above."""
        return self.sizes[min(bisect.bisect_left(self.sizes, number), len(self.sizes) - 1)]

    def down(self, number: float) -> int:
        """The rung at or below."""
        return self.sizes[max(bisect.bisect_right(self.sizes, number) - 1, 0)]

    def describe(self) -> str:
        """Lists the rungs."""
        return f"one of {self.sizes}"


def make_grid(multiple_of: Any, sizes: Sequence[int] | None) -> Grid:
    """The grid of `GrowthPolicy`: the multiples, or those sizes only."""
    step = whole_number("multiple_of", multiple_of, 1, "sizes are multiples of it.")
    if sizes is None:
        return Multiples(step)
    rungs = tuple(whole_number("each of sizes", size, 1, "it counts examples.") for size in sizes)
    if not rungs or any(a >= b for a, b in itertools.pairwise(rungs)):
        raise ValueError(
            f"Expected sizes to be increasing numbers of examples, got sizes={sizes!r}: they are "
            "the only sizes that a batch may have; pass for example (32, 64, 128)."
        )
    off = [size for size in rungs if size % step]
    if off:
        raise ValueError(
            f"Expected sizes to be multiples of multiple_of={step}, got {off[0]} in "
            f"sizes={rungs}: drop one of the two arguments."
        )
    return Ladder(rungs)
