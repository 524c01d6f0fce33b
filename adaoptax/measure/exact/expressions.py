"""What the model computes from parameters alone: casts, transposes, slices, normalised weights.

While the plan is made, a value of the traced loss is either data (it differs between examples), or
an expression: a small graph of equations over parameters and constants. A rule consumes an
expression, so its gradient has to find the way back to the parameters: `evaluate` says how the
expression came from them, and its transpose leads back.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core as jex

from adaoptax.measure.equations import Parameters

Place = tuple[int, ...]

# Every entry of the result is one entry of the operand, and none is taken twice: the transpose
# keeps norms.
_ISOMETRIES = frozenset(
    {"reshape", "transpose", "squeeze", "expand_dims", "rev", "slice", "dynamic_slice", "split"}
    | {"copy", "copy_p", "name", "reshard", "sharding_constraint"}
)


@dataclasses.dataclass(frozen=True, eq=False)
class Expression:
    """A value computed from parameters and constants alone, the same for all examples.

    Attributes:
        aval: Its shape and dtype.
        leaves: The parameters through which its gradient flows; none for a constant.
        needs: The parameters that its value depends on (more than `leaves` by `stop_gradient`).
        settled: Whether its constants are known, and the same in all turns of all scans.
        place: Where it arises.
    """

    aval: Any
    leaves: frozenset["Leaf"]
    needs: frozenset["Leaf"]
    settled: bool
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
    """

    scope: Place
    position: int


@dataclasses.dataclass(frozen=True, eq=False)
class Constant(Expression):
    """A constant of the trace, with its `value` if it is settled."""

    value: Any


@dataclasses.dataclass(frozen=True, eq=False)
class Apply(Expression):
    """Output number `index` of an equation whose inputs are all expressions."""

    eqn: Any
    inputs: tuple[Expression, ...]
    index: int


def leaf(aval: Any, scope: Place, position: int) -> Leaf:
    """A parameter; its place is negative, so that no equation has it."""
    none: frozenset[Leaf] = frozenset()
    self = Leaf(aval, none, none, True, (*scope, -1 - position), scope, position)
    object.__setattr__(self, "leaves", frozenset([self]))
    object.__setattr__(self, "needs", frozenset([self]))
    return self


def constant(value: Any) -> Constant:
    """A constant with a value."""
    return Constant(jax.typeof(value), frozenset(), frozenset(), True, (), value)


def unsettled(aval: Any) -> Constant:
    """A constant that changes from turn to turn of a scan."""
    return Constant(aval, frozenset(), frozenset(), False, (), None)


def apply(eqn: Any, inputs: Sequence[Expression], place: Place) -> list[Expression]:
    """The outputs of an equation on expressions."""
    union = lambda sets: frozenset().union(*sets)
    needs = union(x.needs for x in inputs)
    leaves = union(x.leaves for x in inputs)
    if eqn.primitive.name == "stop_gradient":
        leaves = frozenset()
    settled = all(x.settled for x in inputs)
    flows = lambda v: jnp.issubdtype(v.aval.dtype, jnp.inexact)
    return [
        Apply(
            v.aval,
            leaves if flows(v) else frozenset(),
            needs,
            settled,
            (*place, i),
            eqn,
            tuple(inputs),
            i,
        )
        for i, v in enumerate(eqn.outvars)
    ]


def is_isometry(eqn: Any) -> bool:
    """Whether the transpose of `eqn`, in its first operand, keeps norms."""
    name = eqn.primitive.name
    if not eqn.invars:
        return False
    operand = eqn.invars[0].aval
    if name == "convert_element_type":
        new_dtype, kinds = Parameters(eqn)["new_dtype"], (jnp.floating, jnp.complexfloating)
        return any(
            jnp.issubdtype(operand.dtype, kind) and jnp.issubdtype(new_dtype, kind)
            for kind in kinds
        )
    if name == "broadcast_in_dim":
        return math.prod(Parameters(eqn)["shape"]) == math.prod(operand.shape)
    return name in _ISOMETRIES


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
    name = expression.eqn.primitive.name
    which = [i for i, x in enumerate(expression.inputs) if x.leaves]
    if len(which) != 1 or not (name == "mul" or (name in ("div", "neg") and which == [0])):
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
            (times,) = _results(output.eqn, inputs)
            number = times if number is None else number * times
    return number


def evaluate(expressions: Sequence[Expression], values: Mapping[Any, Any]) -> list[Any]:
    """The values of `expressions`, given those of the leaves and constants."""
    done: dict[tuple[int, ...], list[Any]] = {}

    def value(x: Expression) -> Any:
        if x in values:
            return values[x]
        assert isinstance(x, Apply)
        key = (id(x.eqn), *(id(y) for y in x.inputs))
        if key not in done:
            done[key] = _results(x.eqn, map(value, x.inputs))
        return done[key][x.index]

    return [value(x) for x in expressions]


def rearrange(expression: Expression, array: Any, values: Mapping[Any, Any]) -> Any:
    """The entries of an `array` of any dtype that `expression` has of its `similar_leaf`."""
    for output, _, scales in reversed(_steps(expression)):
        if not scales and output.eqn.primitive.name != "convert_element_type":
            operands = [array, *evaluate(output.inputs[1:], values)]
            array = _results(output.eqn, operands)[output.index]
    return array


def indices_of(expression: Expression) -> list[Expression]:
    """What `rearrange` reads beside the array: the indices of slices."""
    moves = [step.output for step in _steps(expression) if not step.scales]
    return [index for output in moves for index in output.inputs[1:]]


def constants_of(expressions: Sequence[Expression]) -> list[Constant]:
    """The distinct constants inside `expressions`."""
    found: dict[Expression, None] = {}

    def visit(x: Expression) -> None:
        if x not in found:
            found[x] = None
            for y in x.inputs if isinstance(x, Apply) else ():
                visit(y)

    for x in expressions:
        visit(x)
    return [x for x in found if isinstance(x, Constant)]


def by_variable(eqn: Any, values: Iterable[Any]) -> dict[Any, Any]:
    """The values of an equation's operands, by variable; literals need none."""
    pairs = zip(eqn.invars, values, strict=True)
    return {v: x for v, x in pairs if not isinstance(v, jex.Literal)}


def _results(eqn: Any, values: Iterable[Any]) -> list[Any]:
    """The results of one equation, from the values of its operands."""
    return equation_function([eqn])(*by_variable(eqn, values).values())


def reached(eqns: Sequence[Any], variables: Iterable[Any]) -> set[Any]:
    """`variables` and all that `eqns`, in order, compute from them."""
    found = set(variables)
    for eqn in eqns:
        if any(v in found for v in eqn.invars if not isinstance(v, jex.Literal)):
            found.update(eqn.outvars)
    return found


def input_variables(eqns: Sequence[Any]) -> list[Any]:
    """The distinct variables that `eqns` read and do not write, in order."""
    written = {v for eqn in eqns for v in eqn.outvars}
    read = (v for eqn in eqns for v in eqn.invars if not isinstance(v, jex.Literal))
    return list(dict.fromkeys(v for v in read if v not in written))


def equation_function(
    eqns: Sequence[Any], outputs: Sequence[Any] | None = None
) -> Callable[..., Any]:
    """Equations as a function of `input_variables`, by JAX's public interface.

    Args:
        eqns: Equations of one jaxpr, in order.
        outputs: Variables to return; by default all that the last equation writes.
    """
    effects = frozenset().union(*(eqn.effects for eqn in eqns))
    outputs = list(eqns[-1].outvars if outputs is None else outputs)
    unnamed = jex.DebugInfo("adaoptax.measure.exact", "equation_function", None, None)
    jaxpr = jex.Jaxpr([], input_variables(eqns), outputs, list(eqns), effects, unnamed)
    return jex.jaxpr_as_fun(jex.ClosedJaxpr(jaxpr, []))
