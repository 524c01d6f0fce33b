"""How a loss depends on the length of its batch, seen by tracing it with two lengths.

The two programs have the same equations. A number that is written in them and differs counts rows:
the 32 in ``sum(losses) / 32`` is a 64 in that of 64 rows. A mean divides by one such number.
"""

from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adaoptax._tree import ArrayTree
from adaoptax.measure.exact.expressions import Place
from adaoptax.measure.programs import descriptions as read
from adaoptax.measure.programs.compare import same_kind
from adaoptax.measure.programs.describe import describe
from adaoptax.measure.programs.equations import all_equations
from adaoptax.measure.programs.evaluate import derivative_of, is_literal, trace
from adaoptax.measure.programs.places import describe_place
from adaoptax.measure.rows import count_rows
from adaoptax.measure.varying import manual_axes, varying_axes

LENGTH = """\
Expected loss_fn to take a batch of any length, got {error} with {rows} of its {num_rows} rows: a \
method calls it with parts of the batch, or has to know how it depends on its length. This usually \
means squeeze(), which also removes the axis of a single row (name the axis, as in \
squeeze(axis=-1)), sizes written out in reshape (take x.shape[0] for the rows), or an array with \
one entry for each row that loss_fn closes over (put it in the batch)."""


def length_message(error: Exception, rows: int, num_rows: int) -> str:
    """What is said of a loss that fails with another number of rows."""
    first = f"{type(error).__name__} ({(str(error).splitlines() or [''])[0]})"
    return LENGTH.format(error=first, rows=rows, num_rows=num_rows)


def shapes_of_length(batch: ArrayTree, num_rows: int) -> ArrayTree:
    """Shapes of a batch like `batch` of another length, which no mesh has to divide."""
    if any(map(varying_axes, jax.tree.leaves(batch))):  # inside of jax.shard_map
        times = -(-num_rows // count_rows(batch))
        # Values, which nothing reads: shapes do not say on which devices they differ.
        return jax.tree.map(lambda x: jnp.concatenate([x] * times)[:num_rows], batch)
    another = lambda x: x.update(shape=(num_rows, *x.shape[1:]), sharding=None)
    return jax.tree.map(another, jax.eval_shape(lambda tree: tree, batch))


class Differs(ValueError):
    """The programs of a batch and of a longer one differ in more than sizes, as it says."""


def trace_of_length(
    fn: Callable[..., Any], params: ArrayTree, batch: ArrayTree, *more: Any, num_rows: int
) -> tuple[Any, Any]:
    """The trace of ``fn(params, batch, *more)`` with a batch of another length.

    Raises:
        ValueError: If `fn` takes only batches of the length of this one.
    """
    try:
        return trace(fn, params, shapes_of_length(batch, num_rows), *more)
    except (TypeError, ValueError, IndexError, AssertionError) as error:
        trace(fn, params, batch, *more)  # if this is no better, it is not the number of rows
        raise ValueError(length_message(error, num_rows, count_rows(batch))) from error


class Sizes(NamedTuple):
    """What of a program grows with the batch.

    Attributes:
        powers: For each place the operands that are numbers which count rows, with the power of B.
        growing: For each place and operand the axes that are longer for more rows.
        counts: As `powers`, of integers; None for what is no power.
        turns: Places of loops that turn more often for more rows.
    """

    powers: Mapping[Place, Mapping[int, int]]
    growing: Mapping[Place, Mapping[int, tuple[int, ...]]]
    counts: Mapping[Place, Mapping[int, int | None]]
    turns: frozenset[Place]

    def within(self, place: Place) -> bool:
        """Whether anything at a place, or in the bodies there, depends on the number of rows."""
        every = (*self.powers, *self.growing, *self.counts, *self.turns)
        return any(other[: len(place)] == place for other in every)


def sizes_of(small: Any, large: Any, lengths: tuple[int, int]) -> Sizes:
    """What differs between the programs of batches of two `lengths`, of which the first is shorter.

    Raises:
        Differs: If the programs are not the same but for sizes.
    """
    every = list(_Lengths(*lengths).differences(small, large, ()))
    return Sizes(
        {found.place: found.powers for found in every if found.powers},
        {found.place: found.growing for found in every if found.growing},
        {found.place: found.counts for found in every if found.counts},
        frozenset(found.place for found in every if found.turns),
    )


class _Found(NamedTuple):
    """What differs at one equation, see `Sizes`."""

    place: Place
    powers: dict[int, int]
    growing: dict[int, tuple[int, ...]]
    counts: dict[int, int | None]
    turns: bool


class _Lengths:
    """Compares the programs of `few` and of `many` rows."""

    def __init__(self, few: int, many: int) -> None:
        self._lengths = (few, many)
        self._times = Fraction(many, few)
        self._deriving = False  # inside of a derivative, which may hold the function again

    def differences(self, small: Any, large: Any, place: Place) -> Iterator[_Found]:
        """All that differs, equation by equation, at any depth."""
        if len(small.jaxpr.eqns) != len(large.jaxpr.eqns):
            raise Differs(
                "it has more equations for more examples, as if it looped over them in Python"
            )
        for a, b in zip(small.consts, large.consts, strict=True):
            if a is not b and not begins_with(b, a):
                raise Differs("it computes with a constant that depends on the number of examples")
        one, two = small.jaxpr, large.jaxpr
        partners: dict[Any, Any] = {}
        meet = lambda a, b: partners.update(zip(a, b, strict=True))
        alike = lambda a, b: is_literal(b) if is_literal(a) else partners[a] is b
        meet((*one.constvars, *one.invars), (*two.constvars, *two.invars))
        for i, (eqn, other) in enumerate(zip(one.eqns, two.eqns, strict=True)):
            here = (*place, i)
            same = same_kind(eqn, other, self._lengths)
            if not same or not all(map(alike, eqn.invars, other.invars)):
                raise Differs(f"{describe_place(eqn)} is another operation for more examples")
            yield self._found(eqn, other, here)
            yield from self._inside(eqn, other, here)
            meet(eqn.outvars, other.outvars)
        for a, b in zip(one.outvars, two.outvars, strict=True):
            if not alike(a, b) or (is_literal(a) and not same_numbers(a.val, b.val)):
                raise Differs("it returns another value for more examples")

    def _inside(self, eqn: Any, other: Any, here: Place) -> Iterator[_Found]:
        match describe(eqn), describe(other):
            case read.Branch() as one, read.Branch() as two:
                for j, programs in enumerate(zip(one.programs, two.programs, strict=True)):
                    yield from self.differences(*programs, (*here, j))
            case read.Call(custom=False) as one, read.Call() as two:
                yield from self.differences(one.program, two.program, here)
            case read.Loop() as one, read.Loop() as two:
                yield from self.differences(one.program, two.program, here)
            case (read.Call() | read.While()) as one, (read.Call() | read.While()) as two:
                found = list(self.differences(one.program, two.program, here))
                if isinstance(one, read.Call) and one.backward and not self._deriving:
                    found += self._inside_derivative(eqn, other, here)
                if isinstance(one, read.While) and isinstance(two, read.While):
                    found += self.differences(one.condition, two.condition, condition_at(here))
                if any(inside.powers for inside in found):
                    raise Differs(f"{describe_place(eqn)} computes with the number of examples")
                yield from found

    def _inside_derivative(self, eqn: Any, other: Any, here: Place) -> Iterator[_Found]:
        """What differs where the user wrote what flows back; one that counts rows is refused."""
        if manual_axes():  # JAX traces no derivative by itself inside of shard_map
            return
        small, large = derivative_of(eqn)[0], derivative_of(other)[0]
        self._deriving = True
        found = list(self.differences(small, large, (*here, "derivative")))
        self._deriving = False
        shapes = lambda program: [
            v.aval
            for inside, _ in all_equations(program.jaxpr)
            if isinstance(describe(inside), read.Create)
            for v in inside.outvars
        ]
        if shapes(small) != shapes(large) or any(each.powers or each.turns for each in found):
            raise Differs(f"the derivative of {describe_place(eqn)} counts examples")
        yield from found

    def _found(self, eqn: Any, other: Any, here: Place) -> _Found:
        one, two = describe(eqn), describe(other)
        loops = isinstance(one, read.Loop) and isinstance(two, read.Loop)
        turns = loops and one.options["length"] != two.options["length"]  # type: ignore[union-attr]
        growing = self._growing(eqn, other)
        if isinstance(one, read.Slice):
            fixed = [a for a in range(len(one.strides)) if a not in growing.get(0, ())]
            cut = lambda does: [[ends[a] for a in fixed] for ends in (*does.starts, *does.limits)]
            if cut(one) != cut(two):
                raise Differs(f"{describe_place(eqn)} cuts at a place that depends on their number")
        return _Found(here, self._powers(eqn, other), growing, self._counts(eqn, other), turns)

    def _counts(self, eqn: Any, other: Any) -> dict[int, int | None]:
        return {
            i: 1 if int(b) == int(a) * self._times else None
            for i, a, b in _different_numbers(eqn, other)
            if _is_integer(a)
        }

    def _powers(self, eqn: Any, other: Any) -> dict[int, int]:
        found = {}
        for i, a, b in _different_numbers(eqn, other):
            if _is_integer(a):
                continue  # in `_counts`: often the size of an axis, to which an index is compared
            ratio = b / a if a else 0
            positive = np.imag(ratio) == 0 and np.real(ratio) > 0
            power = np.log(float(np.real(ratio))) / np.log(float(self._times)) if positive else 0.5
            if abs(power - round(power)) > 1e-6:
                raise Differs(
                    f"{describe_place(eqn)} computes with {a}, which is {b} for {self._times} times"
                    " as many examples"
                )
            found[i] = round(power)
        return found

    def _growing(self, eqn: Any, other: Any) -> dict[int, tuple[int, ...]]:
        shape = lambda v: getattr(v.aval, "shape", ())
        found = {}
        for i, (a, b) in enumerate(zip(eqn.invars, other.invars, strict=True)):
            axes = tuple(
                axis
                for axis, (one, two) in enumerate(zip(shape(a), shape(b), strict=True))
                if one != two
            )
            if any(shape(b)[axis] != shape(a)[axis] * self._times for axis in axes):
                raise Differs(
                    f"{describe_place(eqn)} has an axis that does not grow as their number"
                )
            if axes:
                found[i] = axes
        return found


def condition_at(place: Place) -> Place:
    """The place of the condition of a `while` at `place`."""
    return (*place, "condition")


def _different_numbers(eqn: Any, other: Any) -> Iterator[tuple[int, Any, Any]]:
    """Operands that are different numbers in two equations: which, and both."""
    for i, (a, b) in enumerate(zip(eqn.invars, other.invars, strict=True)):
        if is_literal(a) and is_literal(b) and not same_numbers(a.val, b.val):
            yield i, a.val, b.val


def _is_integer(number: Any) -> bool:
    return np.issubdtype(np.asarray(number).dtype, np.integer)


def begins_with(large: Any, small: Any) -> bool:
    """Whether a constant is the beginning of another, along every axis."""
    if isinstance(small, jax.core.Tracer) or isinstance(large, jax.core.Tracer):
        return np.shape(small) != np.shape(large) or same_numbers(small, large)
    return same_numbers(large[tuple(slice(size) for size in np.shape(small))], small)


def same_numbers(a: Any, b: Any) -> bool:
    """Whether constants are equal."""
    if isinstance(a, jax.core.Tracer) or isinstance(b, jax.core.Tracer):
        return a is b
    if jax.dtypes.issubdtype(getattr(a, "dtype", None), jax.dtypes.prng_key):
        a, b = jax.random.key_data(a), jax.random.key_data(b)
    return bool(
        np.array_equal(np.asarray(a), np.asarray(b), equal_nan=np.asarray(a).dtype.kind in "fc")
    )
