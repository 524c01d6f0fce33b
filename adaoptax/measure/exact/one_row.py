"""Whether a loss does the same to one row as to several, by its programs alone.

JAX writes less for an axis of one entry, which need not be broadcast, batched or moved. So the
programs are compared as they are without such axes: the same operations, on the same operands,
with the same numbers.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from adaoptax.measure.exact.sizes import Differs, begins_with, same_numbers, sizes_of
from adaoptax.measure.programs import descriptions as read
from adaoptax.measure.programs.compare import (
    constants_inside,
    grows_alike,
    is_size,
    only_shapes,
    same_operation,
)
from adaoptax.measure.programs.describe import describe
from adaoptax.measure.programs.equations import bodies_of
from adaoptax.measure.programs.evaluate import is_literal
from adaoptax.measure.programs.places import describe_place


def check_alike(programs: Sequence[Any], lengths: tuple[int, int, int]) -> None:
    """Raises `Differs` unless the closed jaxprs of a loss of so many rows do the same.

    Args:
        programs: Of one row, of two, and of all. Between the latter axes grow.
        lengths: Numbers of rows.
    """
    one, two, many = programs
    sizes_of(two, many, lengths[1:])
    _check_constants(one.consts, two.consts, "at the beginning")
    shorter, longer = _Program(one.jaxpr, one.jaxpr), _Program(two.jaxpr, many.jaxpr)
    _Comparison(lengths).compare(shorter, longer, "at the end")


class _Number(NamedTuple):
    """A number that is written in a program, and what it is for more rows."""

    value: Any
    longer: Any


class _Program:
    """A program without what only changes shapes, its values named by where they arise.

    Args:
        program: The jaxpr.
        longer: That of more rows, which tells which axes grow; itself for one row.
    """

    def __init__(self, program: Any, longer: Any) -> None:
        inputs = (*program.constvars, *program.invars)
        self._names: dict[Any, Any] = {v: ("input", i) for i, v in enumerate(inputs)}
        self.equations: list[tuple[Any, Any]] = []  # here, and in the longer one
        for eqn, other in zip(program.eqns, longer.eqns, strict=True):
            if _changes_nothing(eqn, other):
                self._names[eqn.outvars[0]] = self.name(eqn.invars[0], other.invars[0])
            else:
                here = len(self.equations)
                self._names.update({v: (here, i) for i, v in enumerate(eqn.outvars)})
                self.equations.append((eqn, other))
        self.results = list(map(self.name, program.outvars, longer.outvars))

    def name(self, v: Any, longer: Any) -> Any:
        """Where a value arises, or the number that it is."""
        return _Number(v.val, longer.val) if is_literal(v) else self._names[v]


class _Comparison:
    """Compares the program of one row with that of two, which has a longer one beside it."""

    def __init__(self, lengths: tuple[int, int, int]) -> None:
        self._lengths = lengths

    def compare(self, one: _Program, two: _Program, after: str) -> None:
        for pair, other_pair in zip(one.equations, two.equations, strict=False):
            here = describe_place(other_pair[0])
            if not self._same_operation(pair, other_pair):
                raise Differs(f"{here} is another operation for one row")
            self._check_values(_operands(one, pair), _operands(two, other_pair), here)
            _check_constants(constants_inside(pair[0]), constants_inside(other_pair[0]), here)
            inside = (zip(*map(bodies_of, each), strict=True) for each in (pair, other_pair))
            for body, other_body in zip(*inside, strict=True):
                self.compare(_Program(*body), _Program(*other_body), here)
        if len(one.equations) != len(two.equations):
            raise Differs(f"there are more or fewer operations for one row, {after}")
        self._check_values(one.results, two.results, after)

    def _check_values(self, one: Iterable[Any], two: Iterable[Any], here: str) -> None:
        for a, b in zip(one, two, strict=True):
            if isinstance(a, _Number) and isinstance(b, _Number):
                alike = self._counts_rows(a.value, b.value, b.longer)
            else:
                alike = not isinstance(a, _Number) and a == b
            if not alike:
                raise Differs(f"{here} takes another value for one row")

    def _counts_rows(self, one: Any, two: Any, many: Any) -> bool:
        """Whether numbers are the same, or go with a power of the number of rows."""
        if same_numbers(one, two) and same_numbers(two, many):
            return True
        numbers = [np.asarray(x) for x in (one, two, many)]
        if any(x.ndim or x.dtype.kind not in "iuf" for x in numbers):
            return False
        if numbers[0].dtype.kind in "iu":  # such as the last index
            return is_size([int(x) for x in numbers], self._lengths)
        if not all(x > 0 for x in numbers) and not all(x < 0 for x in numbers):
            return False
        power = np.log(many / two) / np.log(self._lengths[2] / self._lengths[1])
        return bool(np.isclose(two / one, 2.0 ** round(power), rtol=1e-6))

    def _same_operation(self, pair: tuple[Any, Any], other_pair: tuple[Any, Any]) -> bool:
        eqn, other = pair[0], other_pair[0]
        types = lambda eqn: [getattr(v.aval, "dtype", None) for v in eqn.outvars]
        bodies = lambda eqn: len(bodies_of(eqn))
        return (
            same_operation(eqn, other)
            and types(eqn) == types(other)
            and bodies(eqn) == bodies(other)
            and _on_axes(*pair) == _on_axes(*other_pair)
            and (grows_alike((eqn, *other_pair), self._lengths) or _loses_axes(eqn, other))
        )


def _operands(program: _Program, pair: tuple[Any, Any]) -> list[Any]:
    return list(map(program.name, pair[0].invars, pair[1].invars))


def _check_constants(one: Sequence[Any], two: Sequence[Any], here: str) -> None:
    alike = lambda few, many: few is many or begins_with(many, few)
    if len(one) != len(two) or not all(map(alike, one, two)):
        raise Differs(f"it computes with another constant for one row, {here}")


def _loses_axes(eqn: Any, other: Any) -> bool:
    """Whether there are fewer axes for one row, and `_on_axes` says all that is done to others."""
    known = read.Product | read.Transpose | read.Broadcast | read.Reduce | read.Along | read.Gather
    axes = lambda eqn: [getattr(v.aval, "ndim", 0) for v in (*eqn.invars, *eqn.outvars)]
    return isinstance(describe(eqn), known) and axes(eqn) != axes(other)


def _on_axes(eqn: Any, longer: Any) -> Any:
    """What an equation does to the axes that have more than one entry for one row."""
    operands = list(map(_axes, eqn.invars, longer.invars))
    results = list(map(_axes, eqn.outvars, longer.outvars))
    match describe(eqn):
        case read.Entrywise():  # where an operand has one entry, it is repeated
            there = [a for a, _ in results[0]]
            return [[there.index(a) for a, _ in axes] for axes in operands]
        case read.Product(contract, batch):
            place = lambda axes, a: axes.index(a) if a in axes else None
            return [
                [(place(contract[side], a), place(batch[side], a), size) for a, size in axes]
                for side, axes in enumerate(operands)
            ]
        case read.Transpose(order):
            there = [a for a, _ in operands[0]]
            return [there.index(a) for a in order if a in there]
        case read.Broadcast(dims):
            from_axes = {dims[a]: i for i, (a, _) in enumerate(operands[0])}
            return [from_axes.get(a, ("new", size)) for a, size in results[0]]
        case read.Reduce(gone) | read.Along(gone):
            return [[(a in gone, size) for a, size in axes] for axes in operands]
        case read.Gather() as does:
            indexed = lambda a: does.indexed.index(a) if a in does.indexed else None
            taken = [(indexed(a), a in does.collapsed, does.sizes[a]) for a, _ in operands[0]]
            places = [(a in does.offsets, size) for a, size in results[0]]
            sizes = [[size for _, size in axes] for axes in operands]
            return sizes, taken, places
        case _:
            return [[size for _, size in axes] for axes in (*operands, *results)]


def _axes(v: Any, longer: Any) -> list[tuple[int, int]]:
    """Number and size, for one row, of the axes of a value that have more than one entry."""
    shapes = (getattr(x.aval, "shape", ()) for x in (v, longer))
    sizes = (a if a == b else a // 2 for a, b in zip(*shapes, strict=True))  # of two rows
    return [(axis, size) for axis, size in enumerate(sizes) if size != 1]


def _changes_nothing(eqn: Any, longer: Any) -> bool:
    """Whether the result has the entries of the operand in the same order, for one row."""
    if isinstance(describe(eqn), read.Transpose | read.Broadcast):
        return bool(
            _on_axes(eqn, longer) == list(range(len(_axes(eqn.invars[0], longer.invars[0]))))
        )
    return only_shapes(eqn)
