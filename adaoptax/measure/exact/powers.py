"""How the loss depends on the number B of examples, and on their places in the batch.

A mean divides by B. Every value that is proportional to a power of B has that power; a loss of
power -1 is the mean over its rows. Sizes of the batch are known from two traces (`sizes.py`).
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from adaoptax.measure.exact.expressions import (
    Expression,
    Place,
    drawn_by,
    is_known,
    known_value,
    varies_along,
    varies_between_rows,
)
from adaoptax.measure.exact.following import Follower, numbered
from adaoptax.measure.exact.known import (
    Known,
    Rows,
    Total,
)
from adaoptax.measure.programs import descriptions as read
from adaoptax.measure.programs.describe import describe
from adaoptax.measure.programs.places import describe_place

DRAWN = ", numbers drawn from a random key for the rows"
KEEPS_ENTRIES = (
    read.Entrywise
    | read.Broadcast
    | read.Reshape
    | read.Transpose
    | read.Concatenate
    | read.Stack
    | read.Tile
)


class Powers(Follower):
    """Powers of B, and places of rows."""

    def power(self, eqn: Any, does: Any, values: Sequence[Known], here: Place) -> float | None:
        """The power of B that the results of an equation have."""
        assert self.sizes is not None
        powers = [self.own_power(x) for x in values]
        if any(power != 0 for power in powers) and _rounds(eqn, does):
            return None
        asks = isinstance(does, read.Entrywise) and does.how in ("equal", "logic")
        if asks and any(isinstance(x, Total) for x in values):
            return 0  # if a sum is finite: see `totals.py`
        if isinstance(does, read.Entrywise) and does.how in ("add", "select"):
            terms = values[1:] if does.how == "select" else values
            if any(isinstance(x, Total) and not x.guard for x in terms):
                plain = all(self.own_power(x) == 0 for x in values[: len(values) - len(terms)])
                return self.power_of_sum(terms) if plain else None
        if isinstance(does, read.Entrywise) and does.how == "select":
            cases = self.taken(values)
            if cases is not None:
                return self.own_power(cases)
        longer = self.sizes.growing.get(here, {})
        counted = [
            (values[i], axis)
            for i, axes in longer.items()
            for axis in axes
            if not (isinstance(values[i], Rows) and axis == values[i].axis.axis)  # type: ignore[union-attr]
        ]
        for x in values:
            gone = does.axes if isinstance(does, read.Reduce) and does.sums else ()
            other = x.zero_along if isinstance(x, Rows) else None
            if other is not None and other not in gone:
                return None
        if not counted or isinstance(does, KEEPS_ENTRIES):
            return _power(does, powers)
        match does:
            case read.Reduce(axes=axes) | read.Along(axes=axes, kept=None):
                counted = [(x, axis) for x, axis in counted if axis in axes]
            case read.Unstack():
                counted = [(x, axis) for x, axis in counted if axis == does.axis]
            case read.Slice():
                counted = [(x, axis) for x, axis in counted if not _takes_all(does, x, axis)]
            case read.Along(kept=kept):
                counted = [(x, axis) for x, axis in counted if axis >= kept]  # type: ignore[operator]
        if not counted:
            return _power(does, powers)
        # What joins such entries depends on their number, in its own way if they are not alike.
        alone = [isinstance(x, Rows) and x.zero_along == axis for x, axis in counted]
        varies = lambda x, axis: (
            isinstance(x, Rows) or (isinstance(x, Expression) and varies_along(x, axis))
        )
        if any(varies(*each) for each, zero in zip(counted, alone, strict=True) if not zero):
            return None
        match does:
            case read.Reduce(sums=True):
                zeros = [x.zero_along for x, _ in counted if isinstance(x, Rows)]
                times = sum(axis not in zeros for _, axis in counted)
                return None if powers[0] is None else powers[0] + times
            case read.Reduce() | read.Along(kept=None):
                alike = all(isinstance(x, Expression) for x, _ in counted)
                chooses = does.permutes if isinstance(does, read.Along) else does.chooses
                return _power(does, powers) if alike and chooses else None
            case read.Product():
                joined = any(
                    axis in does.contract[i] and not self.meets_rows(does, values, i, axis)
                    for i, axes in longer.items()
                    for axis in axes
                    if not (isinstance(values[i], Rows) and values[i].axis.axis == axis)  # type: ignore[union-attr]
                )
                return None if joined else _power(does, powers)
            case read.Slice() | read.Scatter() | read.Window() | read.Create():
                return _power(does, powers)
            case read.Gather(batch=batch) if all(x is values[0] and a in batch for x, a in counted):
                return _power(does, powers)
        return None

    def power_of_sum(self, terms: Sequence[Known]) -> float | None:
        """The power of sums over the examples and of what is added to them.

        A mean and a penalty are as large for every batch: power -1 beside power 0. What is added to
        a sum over the rows would have to grow with their number, or is divided by it later.
        """
        power = _same([self.own_power(x) for x in terms if isinstance(x, Total)])
        if power is None or not all(self.fits_beside(x, power) for x in terms):
            return None
        return power

    def fits_beside(self, x: Known, power: float | None) -> bool:
        """Whether a value may stand beside a sum over the examples that has this power of B."""
        if power is None or isinstance(x, Total):
            return power is not None
        if isinstance(x, Expression):
            return is_zero(x) or self.own_power(x) == power + 1
        return self.own_power(x) == power

    def meets_rows(self, does: read.Product, values: Sequence[Known], i: int, axis: int) -> bool:
        """Whether a contracted axis of an operand meets the examples of the other."""
        other = values[1 - i]
        if axis not in does.contract[i] or not isinstance(other, Rows):
            return False
        return does.contract[1 - i][does.contract[i].index(axis)] == other.axis.axis

    def taken(self, values: Sequence[Known]) -> Known | None:
        """The case that a selection takes everywhere, if its condition is known."""
        which, *cases = values
        if not isinstance(which, Expression) or not is_known(which) or self.own_power(which) != 0:
            return None
        taken = {int(i) for i in np.unique(known_value(which))}
        return cases[taken.pop()] if len(taken) == 1 else None

    def with_power(self, x: Known, power: float | None, place: str) -> Known:
        if isinstance(x, Expression):
            if power != 0:
                self.powers[x] = power
            return x
        if isinstance(x, Rows) and not x.learned:
            return dataclasses.replace(x, power=power, placed=x.placed or place)
        return dataclasses.replace(x, power=power)

    def place_of_rows(self, eqn: Any, values: Sequence[Known], here: Place) -> str:
        """Where rows meet a constant by their place in the batch; empty if they do not."""
        assert self.sizes is not None
        if any(x in self.pairs for x in values if isinstance(x, Expression)):
            return ""  # the diagonal is where the rows are
        does = describe(eqn)
        counted = isinstance(does, read.Gather | read.Scatter) and numbered(does, eqn, values)
        for i, x in enumerate(values):
            if isinstance(x, Rows) and x.placed and not (i == 1 and counted and counted != does):
                return x.placed
        for i, axes in self.sizes.growing.get(here, {}).items():
            x = values[i]
            if isinstance(x, Expression) and (not x.shared & self.keys or x in self.key_places):
                rows = [y.axis for y in values if isinstance(y, Rows) and y.axis.axis in axes]
                if isinstance(does, read.Entrywise) and rows:
                    varies = varies_between_rows(x, rows[0], self.num_rows)
                else:
                    varies = any(varies_along(x, axis) for axis in axes)
                if varies:
                    drawn = drawn_by(x)
                    return (
                        self.named(eqn)
                        if drawn is None
                        else f"{describe_place(drawn, [eqn])}{DRAWN}"
                    )
        return ""


def _takes_all(does: read.Slice, x: Known, axis: int) -> bool:
    """Whether all parts of a slice have all of an axis."""
    if not isinstance(x, Expression) or does.strides[axis] != 1:
        return False
    ends = zip(does.starts, does.limits, strict=True)
    return all(limit[axis] - start[axis] == x.aval.shape[axis] for start, limit in ends)


def _power(does: Any, powers: Sequence[float | None]) -> float | None:
    """The power of B of a result, from those of the operands; None if it is no power of B."""
    if not any(power != 0 for power in powers):
        return 0
    if any(power is None for power in powers):
        return None
    known = [power for power in powers if power is not None]
    match does:
        case read.Entrywise(how="mul") | read.Product() | read.Convolution():
            return sum(known)
        case read.Entrywise(how="div"):
            return known[0] - known[1]
        case read.Entrywise(how="square"):
            return 2 * known[0]
        case read.Entrywise(how="sqrt"):
            return known[0] / 2
        case read.Entrywise(how="finite"):
            return 0
        case read.Entrywise(how="select"):
            return _same(known[1:]) if known[0] == 0 else None
        case read.Entrywise(how="other" | "logic" | "equal") | read.Unknown() | read.Scatter():
            return None
        case read.Gather() | read.Window() | read.Along() if any(known[1:]):
            return None
        case read.Entrywise() | read.Concatenate() | read.Stack():
            return _same(known)
    return known[0] if not any(known[1:]) else None


def _rounds(eqn: Any, does: Any) -> bool:
    """Whether results are rounded to whole numbers."""
    if not isinstance(does, read.Entrywise) or does.how not in ("cast", "div"):
        return False
    whole = [not jnp.issubdtype(v.aval.dtype, jnp.inexact) for v in (eqn.outvars[0], eqn.invars[0])]
    return whole[0] and (does.how == "div" or not whole[1])


def is_zero(x: Known) -> bool:
    """Whether a value is known to be zero."""
    return isinstance(x, Expression) and is_known(x) and not known_value(x).any()


def _same(powers: Sequence[float | None]) -> float | None:
    return powers[0] if len(set(powers)) == 1 else None
