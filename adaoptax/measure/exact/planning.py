"""The plan: which equation consumes which parameter, and by which rule.

`make_plan` follows every parameter through the traced loss of one example: through rearrangements,
through calls and rematerialised blocks, and into the bodies of scans. It evaluates nothing. The
walk later takes the same path and does what the plan says at each place.

A *place* names an equation by its position in the traced loss: (3, 1) is equation 1 inside of
equation 3.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

from jax.extend import core as jex

from adaoptax.measure.equations import Parameters, body_of_call, read_scan
from adaoptax.measure.exact import rules
from adaoptax.measure.exact.expressions import (
    Apply,
    Expression,
    Leaf,
    Place,
    apply,
    constant,
    isometric_leaf,
    leaf,
    reached,
    unsettled,
)
from adaoptax.measure.exact.rules.rule import Rule

# Stands for every value that differs between examples.
DATA = Expression(None, frozenset(), frozenset(), False, ())

_CALLS = ("jit", "pjit", "closed_call", "core_call")
_REMAT = ("remat2", "checkpoint", "remat")
# A parameter is expanded where an expression of it is smallest, if that saves this much.
_SHRINKS = 4


@dataclasses.dataclass(frozen=True, eq=False)
class Site:
    """One use of a parameter.

    Attributes:
        place: Where it is used; for an expansion, where the expanded expression arises.
        expression: What is used.
        rule: How; None for an expansion.
        lengths: Turns of the scans between the root and the site, outermost first.
        why: For an expansion: the operation that has no rule.
    """

    place: Place
    expression: Expression
    rule: Rule | None
    lengths: tuple[int, ...] = ()
    why: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class Root:
    """Parameters whose statistics are formed together, since some expression holds them all."""

    leaves: list[Leaf]
    sites: list[Site]


@dataclasses.dataclass
class ScanPlan:
    """What the walk has to know about a scan that uses parameters.

    Attributes:
        carries_data: Whether each carried value differs between examples.
        returns_data: The same for each stacked result.
        sliced: Which of the scanned-over inputs are parameters with a root in the body.
        roots: The roots of the body.
        turns: How often the body runs, with the turns of the scans around it.
    """

    carries_data: list[bool]
    returns_data: list[bool]
    sliced: list[bool]
    roots: list[Root]
    turns: int


@dataclasses.dataclass
class WalkPlan:
    """What happens where.

    Attributes:
        roots: Of the whole loss; those of scans are in `scans`.
        scans: By place.
        sites: Sites with a rule, by place.
        expansions: Expanded expressions, by the place where they arise.
        parents: For each slice of a parameter in a scan's body, what it is a slice of. Gradients
            flow to the latter as to any value, from the root in the body.
        unused: Leaves that no example uses.
    """

    roots: list[Root]
    scans: dict[Place, ScanPlan]
    sites: dict[Place, Site]
    expansions: dict[Place, Site]
    parents: dict[Leaf, Leaf]
    unused: set[Leaf]


def make_plan(closed: jex.ClosedJaxpr, num_params: int) -> WalkPlan:
    """Plans the traced loss of one example, whose first `num_params` inputs are parameters."""
    shared: set[Place] = set()
    while True:
        planner = _Planner(closed, num_params, shared)
        if planner.shared == shared:
            return planner.plan
        # A parameter that is scanned over and used elsewhere too has no root in the scan.
        shared = planner.shared


class _Planner:
    def __init__(self, closed: Any, num_params: int, shared: set[Place]) -> None:
        self.plan = WalkPlan([], {}, {}, {}, {}, set())
        self.banned, self.shared = shared, set(shared)
        self.uses: dict[Leaf, list[Place]] = {}
        self.sites: dict[Leaf, list[Site]] = {}
        self.lengths: dict[Place, int] = {}
        variables = closed.jaxpr.invars
        leaves = [leaf(v.aval, (), i) for i, v in enumerate(variables[:num_params])]
        inputs = [*leaves, *[DATA] * (len(variables) - num_params)]
        outputs = self.interpret(closed, inputs, (), ())
        for output in outputs:
            if output.leaves:
                self.expand(output, "returned", (len(closed.jaxpr.eqns),))
        self.plan.roots = self.close(leaves)

    def interpret(
        self, closed: Any, inputs: Sequence[Expression], place: Place, scope: Place
    ) -> list[Expression]:
        """Follows parameters through a jaxpr; returns what its outputs are."""
        jaxpr = closed.jaxpr
        env: dict[Any, Expression] = dict(
            zip(jaxpr.constvars, map(constant, closed.consts), strict=True)
        )
        env.update(zip(jaxpr.invars, inputs, strict=True))

        def read(v: Any) -> Expression:
            return constant(v.val) if isinstance(v, jex.Literal) else env[v]

        for i, eqn in enumerate(jaxpr.eqns):
            values = [read(v) for v in eqn.invars]
            outputs = self.equation(eqn, values, (*place, i), scope)
            env.update(zip(eqn.outvars, outputs, strict=True))
        return [read(v) for v in jaxpr.outvars]

    def equation(
        self, eqn: Any, values: Sequence[Expression], here: Place, scope: Place
    ) -> Sequence[Expression]:
        """What the outputs of one equation are."""
        parameters = [(i, x) for i, x in enumerate(values) if x.leaves]
        if parameters and (inner := called(eqn)) is not None:
            return self.interpret(inner, values, here, scope)
        if DATA not in values:
            return apply(eqn, values, here)
        if parameters and eqn.primitive.name == "scan":
            return self.scan(eqn, values, here, scope)
        if parameters and (inner := rematerialised(eqn)) is not None:
            return self.interpret(inner, values, here, scope)
        if len(values) == 2 and len(parameters) == 1:
            ((position, expression),) = parameters
            rule = rules.match(eqn, position)
            if rule is not None and leads_back(expression):
                self.add(Site(here, expression, rule, self.turns(expression, scope)), here)
                return [DATA]
        for _, expression in parameters:
            self.expand(expression, eqn.primitive.name, here)
        return [DATA] * len(eqn.outvars)

    def turns(self, expression: Expression, scope: Place) -> tuple[int, ...]:
        """Lengths of the scans from the root of `expression` down to `scope`, outermost first."""
        root = next(iter(expression.leaves)).scope
        inside = [s for s in self.lengths if len(s) > len(root) and s == scope[: len(s)]]
        return tuple(self.lengths[s] for s in sorted(inside, key=len))

    def add(self, site: Site, used_at: Place) -> None:
        (self.plan.expansions if site.rule is None else self.plan.sites)[site.place] = site
        for parameter in site.expression.leaves:
            self.sites.setdefault(parameter, []).append(site)
            self.uses.setdefault(parameter, []).append(used_at)

    def expand(self, expression: Expression, why: str, used_at: Place) -> None:
        """Expands `expression` for each example, at its parameters or where it is smallest."""
        targets: Iterable[Expression] = expression.leaves
        if leads_back(expression):
            smallest = _smallest(expression)
            if _SHRINKS * smallest.size < sum(x.size for x in expression.leaves):
                targets = [smallest]
        for target in targets:
            if target.place not in self.plan.expansions:
                self.add(Site(target.place, target, None, (), why), used_at)
            else:
                for parameter in target.leaves:
                    self.uses[parameter].append(used_at)

    def scan(
        self, eqn: Any, values: Sequence[Expression], here: Place, scope: Place
    ) -> Sequence[Expression]:
        """Follows parameters into the body of a scan."""
        num_consts, num_carry, closed, options = read_scan(eqn)
        body = closed.jaxpr
        self.lengths[here] = options["length"]
        end_of_carry = num_consts + num_carry
        sliced = [
            i >= end_of_carry and bool(x.leaves) and self.enters(x, scope)
            for i, x in enumerate(values)
        ]
        changes = [x is DATA or bool(x.leaves) for x in values]
        changes = _carried(body, changes, num_consts, num_carry)
        slices, inputs = [], list(values[:num_consts])
        for i, (x, variable) in enumerate(zip(values, body.invars, strict=True)):
            if i < num_consts:
                continue
            if sliced[i]:
                parameter = isometric_leaf(x)
                assert parameter is not None
                self.uses.setdefault(parameter, []).append(here)
                slices.append(leaf(variable.aval, here, i))
                self.plan.parents[slices[-1]] = parameter
                inputs.append(slices[-1])
                continue
            if x.leaves:
                self.expand(x, "scan", here)
            inputs.append(DATA if changes[i] else unsettled(variable.aval))
        outputs = self.interpret(closed, inputs, here, here)
        for output in outputs:
            if output.leaves:
                self.expand(output, "scan", here)
        returns = [
            changes[num_consts + i] if i < num_carry else x is DATA or bool(x.leaves)
            for i, x in enumerate(outputs)
        ]
        around = [s for s in self.lengths if s == here[: len(s)]]
        self.plan.scans[here] = ScanPlan(
            returns[:num_carry],
            returns[num_carry:],
            sliced[end_of_carry:],
            self.close(slices),
            math.prod(self.lengths[s] for s in around),
        )
        return [
            DATA if data else unsettled(v.aval)
            for data, v in zip(returns, eqn.outvars, strict=True)
        ]

    def enters(self, expression: Expression, scope: Place) -> bool:
        """Whether the root of a scanned-over parameter can be in the body."""
        parameter = isometric_leaf(expression)
        return (
            parameter is not None
            and parameter.scope == scope
            and parameter.place not in self.banned
        )

    def close(self, leaves: Sequence[Leaf]) -> list[Root]:
        """The roots of all parameters of one scope."""
        roots: list[Root] = []
        for parameter in leaves:
            uses = self.uses.get(parameter, [])
            if parameter in self.plan.parents.values():
                if len(uses) > 1:
                    self.shared.add(parameter.place)
            elif not uses:
                self.plan.unused.add(parameter)
            else:
                roots = _joined(roots, Root([parameter], self.sites.get(parameter, [])))
        return roots


def called(eqn: Any) -> Any:
    """The jaxpr of a call that changes nothing, or None."""
    if eqn.primitive.name not in _CALLS:
        return None
    return body_of_call(eqn)


def rematerialised(eqn: Any) -> Any:
    """The jaxpr of a block of `jax.checkpoint`, or None."""
    if eqn.primitive.name not in _REMAT:
        return None
    return jex.ClosedJaxpr(Parameters(eqn)["jaxpr"], [])


def leads_back(expression: Expression) -> bool:
    """Whether the gradient's way from `expression` to its parameters is the same in all turns."""
    scopes = {parameter.scope for parameter in expression.leaves}
    return expression.settled and expression.needs == expression.leaves and len(scopes) == 1


def _smallest(expression: Expression) -> Expression:
    """The smallest expression through which all gradients of `expression` flow."""
    best = expression
    while isinstance(expression, Apply):
        inputs = [x for x in expression.inputs if x.leaves]
        if len(set(inputs)) > 1:
            break
        expression = inputs[0]
        best = min(expression, best, key=lambda x: x.size)
    return best


def _carried(body: Any, changes: Sequence[bool], num_consts: int, num_carry: int) -> list[bool]:
    """`changes` (which inputs differ between examples), after any number of turns."""
    changes = list(changes)
    while True:
        differ = [v for v, change in zip(body.invars, changes, strict=True) if change]
        differs = reached(body.eqns, differ)
        after = list(changes)
        for i, v in enumerate(body.outvars[:num_carry]):
            after[num_consts + i] |= not isinstance(v, jex.Literal) and v in differs
        if after == changes:
            return changes
        changes = after


def _joined(roots: list[Root], new: Root) -> list[Root]:
    """`roots` with `new`, those that share a site made one."""
    overlapping = [root for root in roots if set(root.sites) & set(new.sites)]
    for root in overlapping:
        sites = root.sites + [site for site in new.sites if site not in root.sites]
        new = Root(root.leaves + new.leaves, sites)
    return [root for root in roots if root not in overlapping] + [new]
