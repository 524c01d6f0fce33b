"""How one value inside a batch loss depends on the examples.

The loss is traced with B and with 2B rows. Axes whose size differs between the two traces are batch
axes, whatever reshapes they went through, and no other axis can be mistaken for one. A value is

    fixed      of no example: parameters, keys, dropout masks, also where they have a batch axis
    rows       along each axis in `rows`, entry i depends on example i alone
    sums       linear in a sum over the batch, as the mean loss; with `rows` also x - mean(x)
    mixed      examples are mixed for good: a nonlinear function of a sum over the batch, ...
    soft       mixed, or perhaps not: a maximum over the batch may only stabilise a softmax
    unknown    out of sight, and never a reason to complain
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from jax.extend import source_info_util

from adaoptax.measure.equations import Parameters

Shape = tuple[int, ...]
Scale = frozenset[float] | None

ONE: Scale = frozenset([1.0])
ANY = ("any",)  # the order of rows that were moved about in a way that is not followed
CROSSED = ("crossed",)  # rows of different order were added: (*CROSSED, where)


class Equation:
    """One equation of a jaxpr, as traced with B rows and with 2B rows.

    Attributes:
        name: Its primitive.
        params: Parameters of the primitive, with B rows.
        large_params: The same with 2B rows.
        ins: Shapes of every operand, as pairs (with B rows, with 2B rows).
        outs: The same of every result.
        integer: Whether the first result holds integers or bools.
    """

    def __init__(self, small: Any, large: Any, caller: Any = None) -> None:
        self.name: str = small.primitive.name
        self.params = Parameters(small)
        self.large_params = Parameters(large)
        self.ins = [(shape(a), shape(b)) for a, b in zip(small.invars, large.invars, strict=True)]
        self.outs = [
            (shape(a), shape(b)) for a, b in zip(small.outvars, large.outvars, strict=True)
        ]
        dtype = getattr(small.outvars[0].aval, "dtype", None) if small.outvars else None
        self.integer = getattr(dtype, "kind", "f") in "iub"
        self._eqn, self._caller = small, caller

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Equation) and self._eqn is other._eqn

    def __hash__(self) -> int:
        return hash(id(self._eqn))

    def axes_in(self, i: int = 0) -> set[int]:
        """Batch axes of operand `i`, also of a fixed one."""
        return batch_axes(*self.ins[i])

    def axes_out(self, i: int = 0) -> set[int]:
        """Batch axes of result `i`, also of a fixed one."""
        return batch_axes(*self.outs[i])

    def __str__(self) -> str:
        """Primitive, types of its operands, and the line of the user's that led to it."""
        operands = ", ".join(v.aval.str_short() for v in self._eqn.invars)
        inside = f" inside {self._caller.params.get('name')}" if self._caller else ""
        # Bodies of jax.numpy functions are cached with the line of whoever called them first.
        where = (self._caller or self._eqn).source_info
        scope = f" in {where.name_stack}" if str(where.name_stack) else ""
        return f"{self.name}({operands}){inside}{scope} at {source_info_util.summarize(where)}"


class Value(NamedTuple):
    """What is known of one value.

    Attributes:
        rows: Axes along which entry i belongs to example i; several for pairs of examples.
        sums: The equation that summed over the batch, if the value is linear in such a sum.
        mixed: What mixed the examples, as a clause; all other attributes are void then.
        soft: What may have mixed them, as a clause.
        unknown: Whether nothing is known.
        order: The order of the examples along `rows`; () is the order of the batch.
        faint: Whether pairs may yet be harmless: only added up so far, or met by a constant that
            may have left those of i = j alone.
        scale: Factors by which the additive terms of this value change from B to 2B rows, where
            rows themselves count as 1: a mean has 1/2. Empty for zero, None if not known.
    """

    rows: frozenset[int] = frozenset()
    sums: Equation | None = None
    mixed: str | None = None
    soft: str | None = None
    unknown: bool = False
    order: tuple = ()
    faint: bool = False
    scale: Scale = ONE

    @property
    def data(self) -> bool:
        """Whether the value depends on any example."""
        return bool(self.rows or self.sums or self.mixed or self.soft or self.unknown)

    @property
    def pairs(self) -> bool:
        """Whether entries depend on several examples, as in x @ x.T."""
        return len(self.rows) > 1


FIXED = Value()
UNKNOWN = Value(unknown=True, scale=None)


def mixed(reason: str) -> Value:
    """A value in which examples are mixed."""
    return Value(mixed=reason, scale=None)


def mixed_by(sums: Equation, eqn: Equation) -> Value:
    """The result of `eqn`, not linear in the sum over the batch that `sums` took."""
    return mixed(f"{sums} sums over the examples, and {eqn} is not linear in that sum")


def verdict(values: Iterable[Value]) -> Value | None:
    """What any function of `values` is if one of them is mixed or unknown, else None."""
    values = list(values)
    found = next((value for value in values if value.mixed), None)
    return found or (UNKNOWN if any(value.unknown for value in values) else None)


def merge(values: Sequence[Value], eqn: Equation | None, scale: Scale) -> Value:
    """A value that depends on whatever one of `values` depends on, as their sum does.

    Rows of different order that meet in `eqn` are crossed; without `eqn` they do not meet.
    """
    values = [value for value in values if value.data]
    if not values:
        return FIXED._replace(scale=scale)
    found = verdict(values)
    if found:
        return found
    rows = frozenset().union(*(value.rows for value in values))
    return Value(
        rows=rows,
        sums=next((value.sums for value in values if value.sums), None),
        soft=values[0].soft if all(value.soft for value in values) else None,
        order=_common_order([value for value in values if value.rows], eqn),
        faint=len(rows) > 1 and all(value.faint for value in values if value.pairs),
        scale=scale,
    )


def _common_order(values: list[Value], eqn: Equation | None) -> tuple:
    orders = {value.order for value in values}
    crossed = next((order for order in orders if order[:1] == CROSSED), None)
    if crossed or len(orders) < 2:
        return crossed or (orders.pop() if orders else ())
    meet = any(a.rows & b.rows and a.order != b.order for a in values for b in values)
    if eqn is None or ANY in orders or not meet:
        return ANY
    return (*CROSSED, f"{eqn} adds rows of different examples (shifted, reversed or sliced)")


def sum_scale(values: Sequence[Value]) -> Scale:
    """The scale of a sum; its fixed terms count only if there are no others."""
    data = [value for value in values if value.data]
    scales = [value.scale for value in data or values]
    if any(scale is None for scale in scales):
        return None
    terms = frozenset(factor for scale in scales for factor in scale or ())
    return terms if data or len(terms) < 2 else None


def product_scale(values: Sequence[Value], divide: bool = False) -> Scale:
    """The scale of a product, or of the first value over the second."""
    a, b = (value.scale for value in values)
    if a is None or b is None or (divide and len(b) != 1) or len(a) * len(b) > 4:
        return None
    return frozenset(x / y if divide else x * y for x in a for y in b)


def nonlinear_scale(values: Sequence[Value]) -> Scale:
    """The scale of a nonlinear function: known only where no argument changes."""
    return ONE if all(value.scale in (ONE, frozenset()) for value in values) else None


def shape(variable: Any) -> Shape:
    """The shape of a variable or literal; () for what has none."""
    return getattr(variable.aval, "shape", ())


def batch_axes(small: Shape, large: Shape) -> set[int]:
    """Axes whose size changes with the number of rows."""
    return {axis for axis, (a, b) in enumerate(zip(small, large, strict=True)) if a != b}


def renumber(axes: Iterable[int], gone: Iterable[int]) -> frozenset[int]:
    """`axes` without those that are `gone`, numbered anew."""
    gone = set(gone)
    return frozenset(a - sum(g < a for g in gone) for a in axes if a not in gone)


def one_batch_axis(eqn: Equation, i: int = 0) -> Value:
    """Rows in any order along the only batch axis of a result; unknown if there is not one."""
    axes = eqn.axes_out(i)
    return Value(rows=frozenset(axes), order=ANY, scale=None) if len(axes) == 1 else UNKNOWN
