"""The walk: evaluates the traced loss of one example on all examples at once.

Data-dependent values carry the examples on axis 0; parameters stay as they are. Equations without
parameters run through `jax.vmap` in long stretches, which is the ordinary batched program.
Equations with a parameter do what the plan says: a rule, or the parameter repeated for each
example.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core as jex

from adaoptax.measure.equations import Parameters, read_scan
from adaoptax.measure.exact.expressions import (
    Place,
    by_variable,
    equation_function,
    input_variables,
    is_isometry,
    reached,
)
from adaoptax.measure.exact.planning import Root, WalkPlan, called, rematerialised
from adaoptax.measure.exact.roots import Carriers, open_root
from adaoptax.measure.exact.rules.rule import expand
from adaoptax.measure.exact.sums import Setting


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batched:
    """A value that differs between examples, which are its axis 0."""

    value: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Parameter:
    """A value computed from parameters alone.

    Attributes:
        value: Without examples.
        repeated: The same for each example, where something has no rule for it.
        squares: The carrier of squares, on the way to a root in the body of a scan.
    """

    value: jax.Array
    repeated: Batched | None = None
    squares: jax.Array | None = None


def walk(
    closed: Any,
    plan: WalkPlan,
    setting: Setting,
    carriers: Carriers,
    parameters: Sequence[jax.Array],
    data: Sequence[jax.Array],
) -> list[jax.Array]:
    """The outputs of the traced loss for each example, [B, ...].

    Args:
        closed: The loss of one example, of the parameters and then of data.
        plan: Its plan.
        setting: What to measure.
        carriers: With squares for every parameter.
        parameters: Leaves.
        data: Arrays with one entry for each example.
    """
    walker = _Walker(plan, setting, carriers, {})
    squares = carriers.squares or [None] * len(parameters)
    pairs = zip(parameters, squares, strict=True)
    inputs = walker.enter(
        plan.roots, (), {i: Parameter(x, None, s) for i, (x, s) in enumerate(pairs)}
    )
    outputs = walker.run(closed, [*inputs.values(), *map(Batched, data)], ())
    return [walker.batched(x).value for x in outputs]


@dataclasses.dataclass
class _Walker:
    plan: WalkPlan
    setting: Setting
    carriers: Carriers
    slots: dict[Place, Any]

    def enter(
        self, roots: Sequence[Root], scope: Place, parameters: Mapping[int, Parameter]
    ) -> dict[int, Parameter]:
        """Makes the slots of a scope's `roots`, and what the scope sees of its parameters."""
        for root in roots:
            own = [parameters[leaf.position] for leaf in root.leaves]
            squares = None if self.carriers.squares is None else [x.squares for x in own]
            carriers = self.carriers._replace(squares=squares)
            self.slots |= open_root(root, self.setting, [x.value for x in own], carriers)
        through = {leaf.place for leaf in self.plan.parents.values()}
        places = {i: (*scope, -1 - i) for i in parameters}
        # Gradients reach a parameter by its root alone.
        return {
            i: x
            if places[i] in through
            else self.repeat(Parameter(jax.lax.stop_gradient(x.value)), places[i])
            for i, x in parameters.items()
        }

    def repeat(self, parameter: Parameter, place: Place) -> Parameter:
        """`parameter`, repeated for each example if the plan expands what arises at `place`."""
        if place not in self.plan.expansions:
            return parameter
        repeated = Batched(expand(parameter.value, self.slots[place]))
        return dataclasses.replace(parameter, repeated=repeated)

    def batched(self, x: Any) -> Batched:
        """Any value, with the examples on axis 0."""
        if isinstance(x, Parameter):
            assert x.repeated is not None, "the plan expands all that no rule consumes"
            return x.repeated
        if isinstance(x, Batched):
            return x
        return Batched(jnp.broadcast_to(x, (self.setting.num_examples, *jnp.shape(x))))

    def run(self, closed: Any, inputs: Sequence[Any], place: Place) -> list[Any]:
        """Evaluates a jaxpr."""
        jaxpr = closed.jaxpr
        env: dict[Any, Any] = dict(zip(jaxpr.constvars, closed.consts, strict=True))
        env.update(zip(jaxpr.invars, inputs, strict=True))
        readers = _readers(jaxpr)
        waiting: list[int] = []

        def read(v: Any) -> Any:
            return v.val if isinstance(v, jex.Literal) else env[v]

        def catch_up() -> None:
            if waiting:
                stretch = [jaxpr.eqns[i] for i in waiting]
                needed = [
                    v for eqn in stretch for v in eqn.outvars if readers.get(v, set()) - {*waiting}
                ]
                env.update(zip(needed, _evaluate(stretch, needed, env), strict=True))
                waiting.clear()

        pending: set[Any] = set()
        for i, eqn in enumerate(jaxpr.eqns):
            operands = [v for v in eqn.invars if not isinstance(v, jex.Literal)]
            if not any(isinstance(env.get(v), Parameter) for v in operands):
                waiting.append(i)
                pending.update(eqn.outvars)
                continue
            if pending.intersection(operands):
                catch_up()
                pending.clear()
            outputs = self.equation(eqn, [read(v) for v in eqn.invars], (*place, i))
            env.update(zip(eqn.outvars, outputs, strict=True))
        catch_up()
        return [read(v) for v in jaxpr.outvars]

    def equation(self, eqn: Any, values: Sequence[Any], here: Place) -> Sequence[Any]:
        """Evaluates an equation with a parameter among its operands."""
        if (inner := called(eqn)) is not None:
            return self.run(inner, values, here)
        if not any(isinstance(x, Batched) for x in values):
            return self.parameters_only(eqn, values, here)
        if here in self.plan.scans:
            return self.scan(eqn, values, here)
        if (inner := rematerialised(eqn)) is not None:
            params = Parameters(eqn)
            options = {name: params[name] for name in ("policy", "prevent_cse")}
            return jax.checkpoint(lambda: self.run(inner, values, here), **options)()
        if here in self.plan.sites:
            rule = self.plan.sites[here].rule
            assert rule is not None
            w, x = values[rule.position], values[1 - rule.position]
            return [Batched(rule(x.value, w.value, self.slots[here]))]
        values = [self.batched(x) if isinstance(x, Parameter) else x for x in values]
        return _evaluate([eqn], eqn.outvars, by_variable(eqn, values))

    def parameters_only(self, eqn: Any, values: Sequence[Any], here: Place) -> Sequence[Any]:
        """Evaluates an equation without data; the repeated values take the same way."""
        pick = lambda choose: by_variable(
            eqn, [choose(x) if isinstance(x, Parameter) else x for x in values]
        )
        outputs = _evaluate([eqn], eqn.outvars, pick(lambda x: x.value))
        if eqn.primitive.name == "stop_gradient":
            return outputs
        repeated: Sequence[Any] = [None] * len(outputs)
        if any(isinstance(x, Parameter) and x.repeated is not None for x in values):
            repeated = _evaluate([eqn], eqn.outvars, pick(lambda x: x.repeated or x.value))
        squares: Sequence[Any] = [None] * len(outputs)
        first = values[0]
        if isinstance(first, Parameter) and first.squares is not None and is_isometry(eqn):
            cast = eqn.primitive.name == "convert_element_type"
            squares = (
                [first.squares]
                if cast
                else _evaluate([eqn], eqn.outvars, pick(lambda x: x.squares))
            )
        return [
            self.repeat(Parameter(*parts), (*here, i))
            if jnp.issubdtype(parts[0].dtype, jnp.inexact)
            else parts[0]  # no gradient flows through integers
            for i, parts in enumerate(zip(outputs, repeated, squares, strict=True))
        ]

    def scan(self, eqn: Any, values: Sequence[Any], here: Place) -> Sequence[Any]:
        """Evaluates a scan that uses parameters."""
        plan = self.plan.scans[here]
        num_consts, num_carry, closed, options = read_scan(eqn)
        end_of_carry = num_consts + num_carry
        is_root = lambda i: plan.sliced[i - end_of_carry]
        consts = values[:num_consts]
        carry = [
            self.batched(x) if data else x
            for x, data in zip(values[num_consts:end_of_carry], plan.carries_data, strict=True)
        ]
        # Slots of sites in the body have one entry a turn: their cotangents come back stacked.
        inside = {
            place: slot
            for place, slot in self.slots.items()
            if place in self.plan.sites and place[: len(here)] == here
        }

        def stacked(i: int, x: Any) -> Any:
            """Input i, with its turns on axis 0."""
            if isinstance(x, Parameter):
                x = dataclasses.replace(x, repeated=None) if is_root(i) else self.batched(x)
            return Batched(jnp.moveaxis(x.value, 1, 0)) if isinstance(x, Batched) else x

        xs = [stacked(i, x) for i, x in enumerate(values) if i >= end_of_carry]

        def body(carry: list[Any], turn: tuple) -> tuple[list[Any], list[Any]]:
            xs, slots = turn
            walker = dataclasses.replace(self, slots={**self.slots, **slots})
            inputs = [*consts, *carry, *xs]
            slices = {i: x for i, x in enumerate(inputs) if i >= end_of_carry and is_root(i)}
            entered = walker.enter(plan.roots, here, slices)
            inputs = [entered.get(i, x) for i, x in enumerate(inputs)]
            outputs = walker.run(closed, inputs, here)
            data = [*plan.carries_data, *plan.returns_data]
            outputs = [
                walker.batched(x) if differs else x
                for x, differs in zip(outputs, data, strict=True)
            ]
            return outputs[:num_carry], outputs[num_carry:]

        carry, ys = jax.lax.scan(body, carry, (xs, inside), **options)
        ys = [Batched(jnp.moveaxis(y.value, 0, 1)) if isinstance(y, Batched) else y for y in ys]
        return [*carry, *ys]


def _readers(jaxpr: Any) -> dict[Any, set[int]]:
    """For each variable the equations that read it; -1 stands for the outputs."""
    readers: dict[Any, set[int]] = {}
    for i, variables in [*enumerate(eqn.invars for eqn in jaxpr.eqns), (-1, jaxpr.outvars)]:
        for v in variables:
            if not isinstance(v, jex.Literal):
                readers.setdefault(v, set()).add(i)
    return readers


def _evaluate(eqns: Sequence[Any], outputs: Sequence[Any], env: dict) -> list[Any]:
    """`outputs` of equations on plain and batched values."""
    inputs = input_variables(eqns)
    values = [env[v] for v in inputs]
    axes = [0 if isinstance(x, Batched) else None for x in values]
    plain = [x.value if isinstance(x, Batched) else x for x in values]
    call = equation_function(eqns, outputs)
    if all(axis is None for axis in axes):
        return list(call(*plain))
    differs = reached(eqns, [v for v, axis in zip(inputs, axes, strict=True) if axis == 0])
    out_axes = [0 if v in differs else None for v in outputs]
    results = jax.vmap(call, axes, out_axes)(*plain)
    return [Batched(x) if axis == 0 else x for x, axis in zip(results, out_axes, strict=True)]
