"""The smallest and the largest batch size: constants, or schedules over the examples seen."""

from collections.abc import Callable
from typing import Any

from adaoptax._numbers import whole_number
from adaoptax.loop.grid import Grid

# A size in examples, or a function from the number of examples seen to one.
SizeOrSchedule = int | Callable[[int], int]


class Bounds:
    """Smallest and largest size at any number of examples seen, both on the grid.

    Constants have to lie on the grid; what a schedule says is rounded up to it, as loaders do.
    """

    def __init__(self, low: SizeOrSchedule, high: SizeOrSchedule, grid: Grid) -> None:
        self._grid = grid
        self._low = _checked("min_batch_size", low, grid)
        self._high = _checked("max_batch_size", high, grid)
        for examples in sorted({0, *_thresholds(low), *_thresholds(high)}):
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

    def _size(self, bound: SizeOrSchedule, examples: int) -> int:
        if not callable(bound):
            return bound
        meaning = f"the schedule returned it after {examples} examples."
        return self._grid.up(whole_number("batch size", bound(examples), 1, meaning))


def _checked(name: str, bound: Any, grid: Grid) -> SizeOrSchedule:
    if callable(bound):
        return bound
    size = whole_number(name, bound, 1, "a batch holds examples.")
    if grid.up(size) != size:
        raise ValueError(
            f"Expected {name} to be {grid.describe()}, got {name}={size}: every size lies on that "
            f"grid; pass {name}={grid.up(size)}."
        )
    return size


def _thresholds(bound: Any) -> list[int]:
    """Where a staged schedule changes; none for constants and functions."""
    return [examples for examples, _ in getattr(bound, "stages", None) or ()]
