"""Whether equations do the same in two programs of one loss, for batches of two lengths."""

import enum
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core as jex

from adaoptax.measure.programs.describe import describe
from adaoptax.measure.programs.descriptions import (
    Along,
    Concatenate,
    Convolution,
    Entrywise,
    Loop,
    Product,
    Reduce,
    Stack,
    Transpose,
    Unstack,
)

_WITHOUT_SIZES = (Entrywise, Transpose, Reduce, Along, Concatenate, Stack, Unstack, Product)
_WITH_COUNTS = (Loop, Convolution)  # turns, and groups of kernels


def same_kind(a: jex.JaxprEqn, b: jex.JaxprEqn, lengths: tuple[int, int]) -> bool:
    """Whether equations of programs of so many rows do the same to the same axes, but for sizes."""
    one, two = describe(a), describe(b)
    if not same_operation(a, b) or (isinstance(one, _WITHOUT_SIZES) and one != two):
        return False
    counts = isinstance(one, _WITH_COUNTS) or _numbers_of(a) == _numbers_of(b)
    return counts and grows_alike((a, b), lengths)


def same_operation(a: jex.JaxprEqn, b: jex.JaxprEqn) -> bool:
    """Whether two equations do the same, perhaps to other axes."""
    if a.primitive is not b.primitive or len(a.invars) != len(b.invars):
        return False
    numbers = int | float if isinstance(describe(a), Entrywise) else bool
    kinds = numbers | str | enum.Enum
    return _numbers_of(a, kinds) == _numbers_of(b, kinds)


def _numbers_of(eqn: jex.JaxprEqn, kind: Any = int | float) -> dict[str, Any]:
    return {name: x for name, x in eqn.params.items() if isinstance(x, kind)}


def grows_alike(eqns: Sequence[jex.JaxprEqn], lengths: Sequence[int]) -> bool:
    """Whether equations of programs of so many rows have the same parameters, but for sizes.

    A size is the same for all lengths, or grows by a whole number of entries a row, or as they do.
    What is inside of equations is left out.
    """
    one, *others = (eqn.params for eqn in eqns)
    return all(each.keys() == one.keys() for each in others) and all(
        _grow([params[name] for params in (one, *others)], lengths) for name in one
    )


def _grow(values: Sequence[Any], lengths: Sequence[int]) -> bool:
    first = values[0]
    if any(x is None for x in values):
        return all(x is None for x in values)
    if isinstance(first, tuple | list):
        same = all(isinstance(x, type(first)) and len(x) == len(first) for x in values)
        return same and all(_grow(each, lengths) for each in zip(*values, strict=True))
    if isinstance(first, int) and not isinstance(first, bool):
        return is_size(values, lengths)
    if isinstance(first, bool | str | float | enum.Enum | np.dtype):
        return all(x == first or (x != x and first != first) for x in values)  # NaN is NaN
    return True


def is_size(values: Sequence[int], lengths: Sequence[int]) -> bool:
    """Whether whole numbers, one for each length, are the same, or grow as `grows_alike` says."""
    grown = [x - values[0] for x in values]
    rows = [length - lengths[0] for length in lengths]
    slope = grown[1] // rows[1]
    affine = all(more == slope * row for more, row in zip(grown, rows, strict=True))
    ratios = [x * lengths[0] for x in values], [values[0] * length for length in lengths]
    return affine or ratios[0] == ratios[1]


def constants_inside(eqn: jex.JaxprEqn) -> list[Any]:
    """The constants of the closed programs right inside of an equation."""
    inside = jax.tree.leaves(list(eqn.params.values()), is_leaf=_is_closed)
    return [value for each in inside if _is_closed(each) for value in each.consts]


def _is_closed(x: Any) -> bool:
    return isinstance(x, jex.ClosedJaxpr)


def only_shapes(eqn: jex.JaxprEqn) -> bool:
    """Whether the result has the entries of the operand in the same order, in another shape."""
    keeps_order = eqn.params.get("dimensions") is None  # of a reshape
    return eqn.primitive.name in ("squeeze", "expand_dims") or (
        eqn.primitive.name == "reshape" and keeps_order
    )
