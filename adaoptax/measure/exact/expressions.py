"""What the model computes from parameters alone: casts, transposes, slices, normalised weights.

While the plan is made, a value of the traced loss that does not differ between examples is an
expression: a small graph of equations over parameters and constants. A rule consumes an
expression, so its gradient has to find the way back to the parameters: `evaluate` says how the
expression came from them, and its transpose leads back.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adaoptax.measure.programs import descriptions as read
from adaoptax.measure.programs.describe import describe
from adaoptax.measure.programs.evaluate import evaluate_equation

Place = tuple[Any, ...]
# Constants with more entries are not evaluated for a proof.
_EVALUATED = 2**20


def result_at(place: Place, i: int) -> Place:
    """The place of result number `i` of the equation at `place`."""
    return (*place, "result", i)


def input_at(place: Place, i: int) -> Place:
    """The place of input number `i` of the body at `place`."""
    return (*place, "input", i)


@dataclasses.dataclass(frozen=True, eq=False)
class Expression:
    """A value computed from parameters and constants alone, the same for all examples.

    Attributes:
        aval: Its shape and dtype.
        leaves: The parameters through which its gradient flows; none for a constant.
        needs: The parameters that its value depends on (more than `leaves` by `stop_gradient`).
        shared: The values inside that are known only where the program runs.
        place: Where it arises.
    """

    aval: Any
    leaves: frozenset["Leaf"]
    needs: frozenset["Leaf"]
    shared: frozenset["Shared"]
    place: Place

    @property
    def size(self) -> int:
        """The number of its entries."""
        return math.prod(self.aval.shape)


@dataclasses.dataclass(frozen=True, eq=False)
class Leaf(Expression):
    """A parameter, or the slice of it that one turn of a scan sees.

    Attributes:
        scope: Place of the scan in whose body it is a slice; () for a parameter as it is.
        position: Which input it is.
        fed: Whether its statistics leave the scan with the turns, and not by a root in the body.
    """

    scope: Place
    position: int
    fed: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Constant(Expression):
    """A constant of the program, with its `value`."""

    value: Any


@dataclasses.dataclass(frozen=True, eq=False)
class Shared(Expression):
    """A value that all examples share, and that is known only where the program runs.

    A normaliser of the batch, a counter of a loop, a statistic of BatchNorm.

    Attributes:
        data: Whether it depends on the examples.
        learned: Whether it depends on parameters, too.
        mixed: If both, what mixed the examples.
        why: If it depends on the examples, where their axis ended.
    """

    data: bool
    learned: bool
    mixed: str
    why: str


@dataclasses.dataclass(frozen=True, eq=False)
class Apply(Expression):
    """Output number `index` of an equation whose inputs are all expressions."""

    eqn: Any
    inputs: tuple[Expression, ...]
    index: int


def leaf(aval: Any, scope: Place, position: int, fed: bool = False) -> Leaf:
    """A parameter."""
    none: frozenset[Any] = frozenset()
    self = Leaf(aval, none, none, none, input_at(scope, position), scope, position, fed)
    object.__setattr__(self, "leaves", frozenset([self]))
    object.__setattr__(self, "needs", frozenset([self]))
    return self


def constant(value: Any) -> Constant:
    """A constant with a value."""
    none: frozenset[Any] = frozenset()
    return Constant(jax.typeof(value), none, none, none, (), value)


def shared(
    aval: Any,
    place: Place,
    *,
    data: bool = False,
    learned: bool = False,
    mixed: str = "",
    why: str = "",
) -> Shared:
    """A value that is known where the program runs."""
    none: frozenset[Any] = frozenset()
    self = Shared(aval, none, none, none, place, data, learned, mixed, why)
    object.__setattr__(self, "shared", frozenset([self]))
    return self


def apply(eqn: Any, inputs: Sequence[Expression], place: Place) -> list[Expression]:
    """The outputs of an equation on expressions."""
    union = lambda sets: frozenset().union(*sets)
    needs = union(x.needs for x in inputs)
    leaves = union(x.leaves for x in inputs)
    known_later = union(x.shared for x in inputs)
    does = describe(eqn)
    if isinstance(does, read.Entrywise) and does.drops_gradient:
        leaves = frozenset()
    flows = lambda v: jnp.issubdtype(v.aval.dtype, jnp.inexact)
    return [
        Apply(
            v.aval,
            leaves if flows(v) else frozenset(),
            needs,
            known_later,
            result_at(place, i),
            eqn,
            tuple(inputs),
            i,
        )
        for i, v in enumerate(eqn.outvars)
    ]


def is_isometry(eqn: Any) -> bool:
    """Whether the transpose of `eqn`, in its first operand, keeps norms.

    Every entry of the result is then one entry of the operand, and none is taken twice.
    """
    does = describe(eqn)
    if not eqn.invars:
        return False
    operand, result = eqn.invars[0].aval, eqn.outvars[0].aval
    match does:
        case read.Entrywise(how="cast"):
            kinds = (jnp.floating, jnp.complexfloating)
            return any(
                jnp.issubdtype(operand.dtype, kind) and jnp.issubdtype(result.dtype, kind)
                for kind in kinds
            )
        case read.Entrywise(how=how):
            return how == "same"
        case read.Broadcast() | read.Reduce(sums=True):
            return math.prod(result.shape) == math.prod(operand.shape)
        case read.Along(permutes=permutes):
            return permutes
        case read.Window(arrays=arrays):
            return arrays == 1
    return isinstance(does, read.Reshape | read.Transpose | read.Slice | read.Unstack)


def isometric_leaf(expression: Expression) -> Leaf | None:
    """The parameter that `expression` is a rearranged part of, if it is one."""
    scaled = any(step.scales for step in _steps(expression))
    return None if scaled else similar_leaf(expression)


def similar_leaf(expression: Expression) -> Leaf | None:
    """The parameter that `expression` is `multiple` times a rearranged part of, if it is one."""
    first = ([expression] + [step.operand for step in _steps(expression)])[-1]
    return first if isinstance(first, Leaf) else None


class _Step(NamedTuple):
    """An `output` that is its `operand` rearranged, or times a number if it `scales`."""

    output: Apply
    operand: Expression
    scales: bool


def _steps(expression: Expression) -> list[_Step]:
    """The steps from `expression` back to its `similar_leaf`, or as far as they go."""
    steps: list[_Step] = []
    while isinstance(expression, Apply):
        rearranged, scaled = _rearranged(expression), _scaled(expression)
        operand = rearranged or scaled
        if operand is None:
            break
        steps.append(_Step(expression, operand, rearranged is None))
        expression = operand
    return steps


def _rearranged(expression: Apply) -> Expression | None:
    """What `expression` is an isometry of."""
    moves = is_isometry(expression.eqn) and expression.inputs[0].leaves
    return expression.inputs[0] if moves else None


def _scaled(expression: Apply) -> Expression | None:
    """What `expression` is a multiple of, by one number through which no gradient flows."""
    does = describe(expression.eqn)
    how = does.how if isinstance(does, read.Entrywise) else ""
    which = [i for i, x in enumerate(expression.inputs) if x.leaves]
    if len(which) != 1 or not (how == "mul" or (how in ("div", "neg") and which == [0])):
        return None
    operand = expression.inputs[which[0]]
    others = [x for x in expression.inputs if x is not operand]
    alike = operand.aval.shape == expression.aval.shape
    return operand if alike and all(x.aval.shape == () for x in others) else None


def multiple(expression: Expression, values: Mapping[Any, Any]) -> Any:
    """The number that `expression` is times its rearranged `similar_leaf`; None for one."""
    number = None
    for output, operand, scales in _steps(expression):
        if scales:
            one = jnp.ones([], operand.aval.dtype)
            inputs = [one if x is operand else evaluate([x], values)[0] for x in output.inputs]
            (times,) = evaluate_equation(output.eqn, inputs)
            number = times if number is None else number * times
    return number


def evaluate(expressions: Sequence[Expression], values: Mapping[Any, Any]) -> list[Any]:
    """The values of `expressions`, given those of the leaves and constants."""
    done: dict[tuple[int, ...], list[Any]] = {}

    def value(x: Expression) -> Any:
        if x in values:
            return values[x]
        if isinstance(x, Constant):
            return x.value
        assert isinstance(x, Apply)
        key = (id(x.eqn), *(id(y) for y in x.inputs))
        if key not in done:
            done[key] = evaluate_equation(x.eqn, list(map(value, x.inputs)))
        return done[key][x.index]

    return [value(x) for x in expressions]


def rearrange(expression: Expression, array: Any, values: Mapping[Any, Any]) -> Any:
    """The entries of an `array` of any dtype that `expression` has of its `similar_leaf`."""
    for output, _, scales in reversed(_steps(expression)):
        if not scales and describe(output.eqn) != read.Entrywise("cast"):
            operands = [array, *evaluate(output.inputs[1:], values)]
            array = evaluate_equation(output.eqn, operands)[output.index]
    return array


def indices_of(expression: Expression) -> list[Expression]:
    """What `rearrange` reads beside the array: the indices of slices."""
    moves = [step.output for step in _steps(expression) if not step.scales]
    return [index for output in moves for index in output.inputs[1:]]


def constants_of(expressions: Sequence[Expression]) -> list[Constant]:
    """The distinct constants inside `expressions`, but for those that are `Shared`."""
    found: dict[Expression, None] = {}

    def visit(x: Expression) -> None:
        if x not in found:
            found[x] = None
            for y in x.inputs if isinstance(x, Apply) else ():
                visit(y)

    for x in expressions:
        visit(x)
    return [x for x in found if isinstance(x, Constant)]


def is_known(expression: Expression) -> bool:
    """Whether a value is settled by the program alone: no parameter, no data, no argument."""
    return (
        not expression.needs
        and not expression.shared
        and not any(isinstance(x.value, jax.core.Tracer) for x in constants_of([expression]))
    )


def known_value(expression: Expression) -> Any:
    """The value of what `is_known`, as a numpy array."""
    done: dict[Expression, Any] = {}

    def value(x: Expression) -> Any:
        if isinstance(x, Constant):
            return x.value
        assert isinstance(x, Apply)
        if x not in done:
            # A copy says where a value is, which matters nothing here.
            copies = describe(x.eqn) == read.Entrywise("same")
            inputs = list(map(value, x.inputs))
            done[x] = inputs[0] if copies else evaluate_equation(x.eqn, inputs)[x.index]
        return done[x]

    with jax.ensure_compile_time_eval():
        return np.asarray(value(expression))


def varies_along(expression: Expression, axis: int) -> bool:
    """Whether the entries of a value may differ along an axis; False only if they cannot."""
    if expression.aval.shape[axis] == 1:
        return False
    if jnp.issubdtype(expression.aval.dtype, jax.dtypes.extended):
        return True
    if isinstance(expression, Constant):
        if isinstance(expression.value, jax.core.Tracer):
            return True
        value = np.asarray(expression.value)
        return not np.array_equal(value, np.broadcast_to(value.take([0], axis), value.shape))
    if not isinstance(expression, Apply):
        return True
    inputs = expression.inputs
    match does := describe(expression.eqn):
        case read.Broadcast():
            inside = axis in does.dims
            return inside and varies_along(inputs[0], does.dims.index(axis))
        case read.Entrywise():
            return any(varies_along(x, axis) for x in inputs if x.aval.shape)
        case read.Transpose():
            return varies_along(inputs[0], does.order[axis])
        case read.Reduce():
            kept = [a for a in range(len(inputs[0].aval.shape)) if a not in does.axes]
            return varies_along(inputs[0], kept[axis])
        case read.Product():
            ndims = tuple(len(x.aval.shape) for x in inputs)
            return any(
                varies_along(x, a)
                for side, x in enumerate(inputs)
                for a in range(ndims[side])
                if does.place(side, a, ndims) == axis  # type: ignore[arg-type]
            )
        case read.Slice():
            return varies_along(inputs[0], axis)
        case read.Along(kept=None):
            return axis in does.axes or varies_along(inputs[0], axis)
        case read.Concatenate():
            return axis == does.axis or any(varies_along(x, axis) for x in inputs)
        case read.Stack():
            moved = axis - (axis > does.axis)
            return axis == does.axis or any(varies_along(x, moved) for x in inputs)
        case read.Reshape(order=None):
            before = lambda shape, a: (math.prod(shape[:a]), shape[a])
            old, here = inputs[0].aval.shape, before(expression.aval.shape, axis)
            same = [a for a in range(len(old)) if before(old, a) == here]
            return not same or varies_along(inputs[0], same[0])
    if expression.size > _EVALUATED or not is_known(expression):
        return True
    value = known_value(expression)
    return not np.array_equal(value, np.broadcast_to(value.take([0], axis), value.shape))


def varies_between_rows(expression: Expression, axis: Any, num_rows: int) -> bool:
    """Whether the entries of a value may differ between the rows on a batch axis."""
    if not varies_along(expression, axis.axis):
        return False
    if expression.size > _EVALUATED or not is_known(expression):
        return True
    value = known_value(expression)
    before, after = value.shape[: axis.axis], value.shape[axis.axis + 1 :]
    value = value.reshape(*before, axis.outer, num_rows, axis.inner, *after)
    first = value.take([0], axis=axis.axis + 1)
    return not np.array_equal(value, np.broadcast_to(first, value.shape))


def drawn_by(expression: Expression) -> Any:
    """The equation that draws the random numbers which a value comes from; None if none does."""
    seen: set[Expression] = set()
    waiting = [expression]
    while waiting:
        x = waiting.pop()
        if isinstance(x, Apply) and x not in seen:
            seen.add(x)
            does = describe(x.eqn)
            if isinstance(does, read.Create) and does.draws:
                return x.eqn
            waiting += x.inputs
    return None
