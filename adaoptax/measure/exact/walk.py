"""The walk: evaluates the loss of the batch as it is written, and taps what consumes parameters.

Equations are evaluated as they stand. Where the plan has a tap, the equation goes through it, and
bodies that hold taps are entered. With a mask, rows of padding are left out where the plan has
found a sum over the examples.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from adaoptax.measure.exact.axes import of_rows, rows_of
from adaoptax.measure.exact.expressions import (
    Expression,
    Place,
    constants_of,
    evaluate,
    input_at,
    is_isometry,
    result_at,
)
from adaoptax.measure.exact.plan import Plan, Root, ScanPlan, Tap
from adaoptax.measure.exact.roots import Carriers, open_root
from adaoptax.measure.exact.sums import Setting
from adaoptax.measure.exact.taps import (
    Told,
    cut_of,
    told_by_parts,
    told_by_results,
    way,
    way_to,
    with_cotangent,
    with_equal_parts,
    with_factors,
    with_rows,
)
from adaoptax.measure.programs import descriptions as read
from adaoptax.measure.programs.describe import describe
from adaoptax.measure.programs.evaluate import evaluate_equation, interpret, run


@dataclasses.dataclass(frozen=True)
class Stack:
    """A parameter on its way to a root in the body of a scan.

    Attributes:
        value: The parameter.
        along: Its carrier of squares and what inner products are with; None for what there is not.
    """

    value: jax.Array
    along: tuple


@dataclasses.dataclass(frozen=True)
class Padding:
    """What leaves rows out of the loss.

    Attributes:
        real: [B], bool.
        share: How many of all rows are real.
        powers: For each place the literals that count rows, by operand, with their power of B.
    """

    real: jax.Array
    share: jax.Array
    powers: Mapping[Place, Mapping[int, int]]


def walk(
    program: Any,
    plan: Plan,
    setting: Setting,
    carriers: Carriers,
    share: jax.Array,
    padding: Padding | None,
    parameters: Sequence[jax.Array],
    data: Sequence[jax.Array],
) -> list[jax.Array]:
    """The outputs of the traced loss.

    Args:
        program: The loss of the batch, of the parameters and then of data.
        plan: Its plan.
        setting: What to measure.
        carriers: With squares for every parameter.
        share: [B], the part of each row in the mean.
        padding: If some rows are to be left out.
        parameters: Leaves.
        data: Leaves of the batch.
    """
    walker = _Walker(plan, setting, carriers, share, padding, {}, {}, {})
    none = [None] * len(parameters)
    along = zip(carriers.squares or none, carriers.given or none, strict=True)
    inputs = walker.enter(plan.roots, (), dict(enumerate(zip(parameters, along, strict=True))))
    outputs = walker.run(program, [*inputs, *data], ())
    if (tap := plan.taps.get((-1,))) is not None:  # a loss of parameters alone
        outputs[0] = walker.tapped(tap, outputs[:1])[0]
    return [_plain(x) for x in outputs]


def _plain(x: Any) -> Any:
    return x.value if isinstance(x, Stack) else x


@dataclasses.dataclass
class _Walker:
    plan: Plan
    setting: Setting
    carriers: Carriers
    share: jax.Array
    padding: Padding | None
    slots: dict[Place, Any]
    values: dict[Place, Any]
    parts: dict[Place, Any]

    def __post_init__(self) -> None:
        held = {*self.plan.taps}
        if self.padding is not None:
            held |= {*self.plan.sums, *self.padding.powers}
        self.inside = {place[:n] for place in held for n in range(1, len(place))}

    def enter(
        self, roots: Sequence[Root], scope: Place, parameters: Mapping[int, tuple[Any, Any]]
    ) -> list[Any]:
        """Makes the slots of a scope's `roots`; returns what the scope sees of its parameters."""
        for root in roots:
            own, along = zip(*(parameters[leaf.position] for leaf in root.leaves), strict=True)
            squares, given = map(list, zip(*along, strict=True))
            carriers = self.carriers._replace(
                squares=None if self.carriers.squares is None else squares,
                given=None if self.carriers.given is None else given,
            )
            self.slots |= open_root(root, self.setting, own, carriers)
        for i, (value, _) in parameters.items():
            self.values[input_at(scope, i)] = value
        through = {leaf.place for leaf in self.plan.parents.values()}
        return [
            Stack(value, along) if input_at(scope, i) in through else value
            for i, (value, along) in parameters.items()
        ]

    def run(self, program: Any, inputs: Sequence[Any], place: Place) -> list[Any]:
        """Evaluates a jaxpr."""
        return interpret(
            program, inputs, lambda i, eqn, values: self.equation(eqn, values, (*place, i))
        )

    def equation(self, eqn: Any, values: list[Any], here: Place) -> Sequence[Any]:
        """Evaluates an equation."""
        outputs = self.results(eqn, values, here)
        for i, x in enumerate(outputs):
            self.values[result_at(here, i)] = _plain(x)
        return outputs

    def results(self, eqn: Any, values: list[Any], here: Place) -> Sequence[Any]:
        if here in self.inside:
            return self.body(eqn, values, here)
        if any(isinstance(x, Stack) for x in values):
            if is_isometry(eqn):
                return self.moved(eqn, values)
            values = [_plain(x) for x in values]
        also: Mapping[int, int] = {}
        if self.padding is not None:
            values, also = self.without_padding(values, here)
        if here in self.plan.heads:
            self.parts[here] = self.parts_of_sum(eqn, values, here)
        if (tap := self.plan.taps.get(here)) is not None:
            return self.tapped(tap, values, eqn)
        return evaluate_equation(eqn, values, also)

    def moved(self, eqn: Any, values: list[Any]) -> Sequence[Any]:
        """A parameter that is only rearranged, with what goes along."""
        plain = [_plain(x) for x in values]
        outputs = evaluate_equation(eqn, plain)
        if describe(eqn) == read.Entrywise("cast"):
            return [Stack(outputs[0], values[0].along)]
        move = lambda x: (
            [None] * len(outputs) if x is None else evaluate_equation(eqn, [x, *plain[1:]])
        )
        along = zip(*map(move, values[0].along), strict=True)
        return [Stack(x, others) for x, others in zip(outputs, along, strict=True)]

    def without_padding(self, values: list[Any], here: Place) -> tuple[list[Any], Mapping]:
        """The operands with padding set to zero before a sum over the examples."""
        assert self.padding is not None
        values = list(values)
        if here in self.plan.sums:
            i, axis = self.plan.sums[here]
            real = of_rows(self.padding.real, axis, jnp.ndim(values[i]))
            values[i] = jnp.where(real, values[i], jnp.zeros_like(values[i]))
        powers = self.padding.powers.get(here, {})
        for i, power in powers.items():
            dtype = jnp.result_type(values[i])
            values[i] = (values[i] * self.padding.share**power).astype(dtype)
        return values, powers

    # --- Taps -----------------------------------------------------------------------------------

    def tapped(self, tap: Tap, values: list[Any], eqn: Any = None) -> Sequence[Any]:
        """An equation with parameters among its operands."""
        values = [_plain(x) for x in values]
        for i in (*tap.sites, *tap.uses):  # the gradient comes from the root
            values[i] = jax.lax.stop_gradient(values[i])
        for i, use in tap.uses.items():
            if use.how == "head":
                slot = self.slot_of(use.target)
                return told_by_parts(eqn, i, values, self.parts_at(use.origin), slot)
            if use.how == "equal":
                values[i] = with_equal_parts(values[i], self.share, self.slot_of(use.target))
            elif use.how == "aligned":
                values[i] = self.aligned(eqn, i, use, values[i])
        if any(use.how == "turns" for use in tap.uses.values()):
            return self.scan_over_rows(eqn, tap, values)
        told = {i: use for i, use in tap.uses.items() if use.how == "told"}
        if told:
            slots = [self.slot_of(use.target) for use in told.values()]
            (results,) = {use.results for use in told.values()}
            spec = Told(eqn, tuple(told), results, self.setting.num_examples)
            return told_by_results(spec, values, slots)
        if tap.sites:
            ((i, site),) = tap.sites.items()
            assert site.rule is not None
            return [with_factors(site.rule, values[1 - i], values[i], self.slots[site.place])]
        return values if eqn is None else evaluate_equation(eqn, values)

    def parts_of_sum(self, eqn: Any, values: list[Any], here: Place) -> jax.Array:
        """[B, ...]: what each row adds to a sum over the examples."""
        i, axis = self.plan.sums[here]
        num_rows, does = self.setting.num_examples, describe(eqn)
        if isinstance(does, read.Reduce):
            rows = rows_of(values[i], axis, num_rows)
            return jnp.sum(rows, axis=tuple(1 + a for a in does.axes))

        def of_row(b: jax.Array) -> jax.Array:
            here = of_rows(jnp.arange(num_rows) == b, axis, jnp.ndim(values[i]))
            alone = jnp.where(here, values[i], jnp.zeros_like(values[i]))
            return evaluate_equation(eqn, [*values[:i], alone, *values[i + 1 :]])[0]

        return jax.vmap(of_row)(jnp.arange(num_rows))

    def parts_at(self, origin: Any) -> jax.Array:
        """[B, ...]: the rows' parts of what came from sums; a constant in it is shared out."""
        terms = [x for x in origin.shared if x.data and x.place[:-2] in self.parts]
        others = [x for x in (*origin.shared, *origin.needs) if x not in terms]
        known = self.known([*others, *constants_of([origin])])

        def value(parts: Sequence[Any]) -> jax.Array:
            return evaluate([origin], {**known, **dict(zip(terms, parts, strict=True))})[0]

        parts = [self.parts[x.place[:-2]] for x in terms]
        nothing = value([jnp.zeros_like(x[0]) for x in parts])
        share = self.share.astype(nothing.dtype).reshape(-1, *(1,) * nothing.ndim)
        return jax.vmap(value)(parts) - nothing + share * nothing

    def aligned(self, eqn: Any, i: int, use: Any, value: Any) -> jax.Array:
        """An operand whose entries along an axis are of one example each."""
        axis = use.axis
        size = axis.parts * self.setting.num_examples
        if jnp.ndim(value) <= axis.axis or jnp.shape(value)[axis.axis] != size:
            # A single number, or an axis of size one, meets every example.
            shape = list(eqn.outvars[0].aval.shape)
            value = jnp.broadcast_to(value, shape)
        return with_rows(cut_of(use, self.setting.num_examples), value, self.slot_of(use.target))

    def slot_of(self, expression: Expression) -> jax.Array:
        """A slot for the gradients of all rows of an expression."""
        targets = [site.expression for site in self.plan.targets[expression.place]]
        slots = [self.slots[target.place] for target in targets]
        if targets == [expression]:
            return slots[0]
        path = way(expression, targets, self.setting.num_examples)
        leaves = self.known(path.others)
        return way_to(path, evaluate(targets, leaves), [leaves[x] for x in path.others], slots)

    def known(self, expressions: Sequence[Expression]) -> dict[Expression, Any]:
        """Values of parameters, of constants and of what all examples share."""
        constants = {x: x.value for x in constants_of(expressions)}
        return {x: constants[x] if x in constants else self.values[x.place] for x in expressions}

    # --- Bodies ---------------------------------------------------------------------------------

    def body(self, eqn: Any, values: list[Any], here: Place) -> Sequence[Any]:
        """Evaluates an equation that runs programs with taps in them."""
        match does := describe(eqn):
            case read.Call(remat=None):
                return self.run(does.program, values, here)
            case read.Call(remat=options):
                stacks = list(values)
                call = lambda: [_plain(x) for x in self.run(does.program, stacks, here)]
                return jax.checkpoint(call, **options)()
            case read.Branch():
                return self.branch(does, values, here)
        assert isinstance(does, read.Loop)
        return self.scan(eqn, does, values, here)

    def branch(self, does: read.Branch, values: list[Any], here: Place) -> Sequence[Any]:
        which, *operands = map(_plain, values)
        body = lambda j, program: (
            lambda: [_plain(x) for x in self.run(program, operands, (*here, j))]
        )
        bodies = [body(j, program) for j, program in enumerate(does.programs)]
        return jax.lax.switch(which, bodies)

    def scan(self, eqn: Any, does: read.Loop, values: list[Any], here: Place) -> Sequence[Any]:
        """Evaluates a scan that uses parameters."""
        first = does.num_consts + does.num_carry
        plan = self.plan.scans.get(here) or ScanPlan([None] * (len(values) - first), [], 1)
        if (tap := self.plan.taps.get(here)) is not None:
            values = list(values)
            for i, use in tap.uses.items():
                values[i] = self.aligned(eqn, i, use, jax.lax.stop_gradient(_plain(values[i])))
        consts, carry = values[: does.num_consts], values[does.num_consts : first]
        # Slots of sites in the body have one entry a turn: their cotangents come back stacked.
        inside = {
            place: slot
            for place, slot in self.slots.items()
            if place in self.plan.taps and place[: len(here)] == here
        }
        along = [x.along if isinstance(x, Stack) else (None, None) for x in values[first:]]
        xs = [_plain(x) for x in values[first:]]
        fed = [
            None if leaf is None or not leaf.fed else self.slot_of_turns(leaf.place)
            for leaf in plan.sliced
        ]

        def body(carry: list[Any], turn: tuple) -> tuple[list[Any], list[Any]]:
            xs, along, slots, fed = turn
            walker = dataclasses.replace(
                self, slots={**self.slots, **slots}, values=dict(self.values)
            )
            parameters = {
                leaf.position: (x, others)
                for leaf, x, others in zip(plan.sliced, xs, along, strict=True)
                if leaf is not None and not leaf.fed
            }
            seen = dict(zip(parameters, walker.enter(plan.roots, here, parameters), strict=True))
            inputs = [*consts, *carry]
            for i, (leaf, x) in enumerate(zip(plan.sliced, xs, strict=True)):
                if leaf is not None and leaf.fed:
                    walker.slots[leaf.place] = fed[i]
                inputs.append(seen.get(first + i, x))
            for i, x in enumerate(inputs):
                walker.values[input_at(here, i)] = _plain(x)
            outputs = [_plain(x) for x in walker.run(does.program, inputs, here)]
            return outputs[: does.num_carry], outputs[does.num_carry :]

        carry, ys = jax.lax.scan(
            body, [_plain(x) for x in carry], (xs, along, inside, fed), **does.options
        )
        return [*carry, *ys]

    def scan_over_rows(self, eqn: Any, tap: Tap, values: list[Any]) -> Sequence[Any]:
        """Evaluates a scan over the examples, whose parameters get the cotangents of each turn."""
        does: Any = describe(eqn)
        first = does.num_consts + does.num_carry
        slots = {i: self.slot_of(use.target) for i, use in tap.uses.items() if use.how == "turns"}

        def body(carry: list[Any], turn: tuple) -> tuple[list[Any], list[Any]]:
            xs, slots = turn
            consts = values[: does.num_consts]
            consts = [
                with_cotangent(x, slots[i]) if i in slots else x for i, x in enumerate(consts)
            ]
            outputs = run(does.program, [*consts, *carry, *xs])
            return outputs[: does.num_carry], outputs[does.num_carry :]

        carry, ys = jax.lax.scan(
            body, values[does.num_consts : first], (values[first:], slots), **does.options
        )
        return [*carry, *ys]

    def slot_of_turns(self, place: Place) -> jax.Array:
        """For each turn a slot for the rows of the slice that it sees."""
        return jnp.moveaxis(self.slot_of(self.plan.fed[place]), 1, 0)
