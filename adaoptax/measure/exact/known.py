"""What is known of a value in the program of a loss, beside its shape.

    Expression   the same for all examples: parameters, constants, and `Shared` values of the batch
    Rows         differs between examples: entry b of its batch axis is of example b
    Total        linear in a sum over the examples, as the loss itself
    One          of one example, in a loop over them

A value that depends on data alone is as good as a constant, however it mixes the examples. Of what
depends on parameters too, `mixed` says what made one example depend on another.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from adaoptax.measure.exact.axes import Axis
from adaoptax.measure.exact.expressions import Expression, Place, shared


@dataclasses.dataclass(frozen=True)
class Rows:
    """Differs between examples.

    Attributes:
        axis: Where they are.
        learned: Whether it depends on parameters.
        mixed: What made an example depend on others through parameters; empty for nothing.
        power: The power of the number of examples B that it is proportional to, where it depends
            on that number otherwise than by its rows; None if it is no power.
        tied: Of data alone: where it met a value of the whole batch; empty if nowhere.
        placed: Of data alone: where it met a constant by the places of the rows.
        zero_along: Of products of every example with every other, of which only those with itself
            are left: the other axis of examples.
        pieces: Of indices that were just concatenated: the operands.
    """

    axis: Axis
    learned: bool = False
    mixed: str = ""
    power: float | None = 0
    tied: str = ""
    placed: str = ""
    zero_along: int | None = dataclasses.field(default=None, compare=False)
    pieces: tuple = dataclasses.field(default=(), compare=False)


@dataclasses.dataclass(frozen=True)
class Total:
    """A sum over the examples of what depends on parameters.

    Attributes:
        root: Whether it is the square root of such a sum.
        guard: Whether it is no number but says if one is finite.
        mixed, power: As for `Rows`.
        origin: How it came from the sums that the program takes, if that is known.
    """

    root: bool = False
    guard: bool = False
    mixed: str = ""
    power: float | None = 0
    origin: Expression | None = dataclasses.field(default=None, compare=False)


@dataclasses.dataclass(frozen=True)
class One:
    """In the body of a loop over the examples: of the example that has its turn.

    Attributes:
        learned, mixed, power, tied, placed: As for `Rows`.
    """

    learned: bool = False
    mixed: str = ""
    power: float | None = 0
    tied: str = ""
    placed: str = ""


Known = Expression | Rows | Total | One


def is_learned(x: Known) -> bool:
    """Whether a value depends on parameters."""
    if isinstance(x, Expression):
        return bool(x.needs) or any(part.learned for part in x.shared)
    return isinstance(x, Total) or x.learned


def mixed_in(values: Iterable[Known]) -> str:
    """What mixed the examples in one of `values`, if anything did."""
    for x in values:
        if not isinstance(x, Expression) and x.mixed:
            return x.mixed
        if isinstance(x, Expression):
            for part in x.shared:
                if part.mixed:
                    return part.mixed
    return ""


def power_of(x: Known) -> float | None:
    """The power of B of a value that is no expression."""
    return 0 if isinstance(x, Expression) else x.power


def of_batch(x: Known) -> bool:
    """Whether a value depends on the examples, on all of them together."""
    return isinstance(x, Expression) and any(part.data for part in x.shared)


def is_neutral(x: Known) -> bool:
    """Whether a value is a constant: neither of parameters nor of the examples."""
    return isinstance(x, Expression) and not is_learned(x) and not of_batch(x)


def whole(aval: Any, place: Place, values: Sequence[Known], why: str) -> Expression:
    """A value computed from `values` whose examples cannot be told apart, as `why` says."""
    learned = any(map(is_learned, values))
    mixed = (mixed_in(values) or why) if learned else ""
    data = any(not isinstance(x, Expression) or of_batch(x) for x in values)
    return shared(aval, place, data=data, learned=learned, mixed=mixed if data else "", why=why)


def join(a: Known, b: Known, place: Place, aval: Any) -> Known:
    """What is known of a value that is either `a` or `b`: of a carry, or of branches."""
    if is_neutral(a) or is_neutral(b):
        other = b if is_neutral(a) else a
        return shared(aval, place) if is_neutral(other) else other
    if isinstance(a, Rows) and isinstance(b, Rows) and a.axis == b.axis:
        return Rows(a.axis, *_either(a, b))
    if isinstance(a, Total) and isinstance(b, Total) and (a.root, a.guard) == (b.root, b.guard):
        return Total(a.root, a.guard, a.mixed or b.mixed, a.power if a.power == b.power else None)
    if isinstance(a, One) and isinstance(b, One):
        return One(*_either(a, b))
    if isinstance(a, Expression) and isinstance(b, Expression) and a is b:
        return a
    return whole(aval, place, [a, b], "is in one case another value than in the other")


def _either(a: Rows | One, b: Rows | One) -> tuple:
    """The fields that rows share, of a value that is either."""
    return (
        a.learned or b.learned,
        a.mixed or b.mixed,
        a.power if a.power == b.power else None,
        a.tied or b.tied,
        a.placed or b.placed,
    )


def alike(a: Sequence[Known], b: Sequence[Known]) -> bool:
    """Whether two lists say the same."""

    def kind(x: Known) -> Any:
        if isinstance(x, Expression):
            return (is_learned(x), of_batch(x), x.leaves, bool(mixed_in([x])))
        if isinstance(x, Total):
            return dataclasses.replace(x, mixed=str(bool(x.mixed)))
        said = [str(bool(words)) for words in (x.mixed, x.tied, x.placed)]
        return dataclasses.replace(x, mixed=said[0], tied=said[1], placed=said[2])

    return list(map(kind, a)) == list(map(kind, b))
