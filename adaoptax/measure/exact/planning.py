"""The plan: whose every gradient is, and whether the examples have gradients of their own.

`make_plan` follows the batch axis and the parameters through the traced loss of the whole batch, as
the user wrote it, and evaluates nothing. It proves two things in one pass:

- separability: the loss is a sum over the examples of what each contributes, over a number that
  depends on data alone. `Plan.mixed` says what stands against it.
- whose: at each equation that consumes a parameter, which entries of the cotangent are of which
  example. `Plan.untold` says where that cannot be told.

    plan        what comes out
    following   what its parts share
    uses        parameters: which equation consumes which, and how
    totals      what follows a sum over the examples
    powers      how the loss depends on the length of the batch
    bodies      branches, while, functions with derivatives of their own
    loops       scan

The walk later takes the same path and does what the plan says at each place.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from adaoptax.measure.exact.axes import Axis, Lost
from adaoptax.measure.exact.expressions import (
    Expression,
    Place,
    apply,
    constant,
    is_known,
    known_value,
    leaf,
    result_at,
    shared,
    varies_along,
)
from adaoptax.measure.exact.following import numbered
from adaoptax.measure.exact.known import (
    Known,
    One,
    Rows,
    Total,
    is_learned,
    is_neutral,
    mixed_in,
    of_batch,
    whole,
)
from adaoptax.measure.exact.loops import Loops
from adaoptax.measure.exact.plan import Plan
from adaoptax.measure.exact.sizes import Sizes
from adaoptax.measure.exact.totals import Totals
from adaoptax.measure.programs import descriptions as read
from adaoptax.measure.programs.describe import describe
from adaoptax.measure.programs.evaluate import interpret
from adaoptax.measure.programs.places import name_of


def make_plan(
    program: Any, num_params: int, num_rows: int, num_keys: int = 0, sizes: Sizes | None = None
) -> Plan:
    """Plans a traced loss whose inputs are leaves of parameters, of a batch, and of random keys.

    Args:
        program: Closed jaxpr of the loss.
        num_params: Leaves of parameters.
        num_rows: B.
        num_keys: Leaves of keys, the last inputs, of which each part of a batch has its own.
        sizes: What grows with the batch; with it the plan knows the power of B in the loss, and
            what ties it to the places of the rows.
    """
    not_sliced: set[Place] = set()
    while True:
        planner = Planner(program, num_params, num_rows, num_keys, sizes, not_sliced)
        if planner.not_sliced == not_sliced:
            return planner.plan
        # A parameter that is scanned over and used elsewhere too has no root in the scan.
        not_sliced = planner.not_sliced


class Planner(Loops, Totals):
    """Follows a loss, see above."""

    def __init__(
        self,
        program: Any,
        num_params: int,
        num_rows: int,
        num_keys: int,
        sizes: Sizes | None,
        not_sliced: set[Place],
    ) -> None:
        super().__init__(num_rows, sizes, not_sliced)
        variables = program.jaxpr.invars
        leaves = [leaf(v.aval, (), i) for i, v in enumerate(variables[:num_params])]
        keys = [
            shared(v.aval, ("key", i)) for i, v in enumerate(variables[len(variables) - num_keys :])
        ]
        self.keys = frozenset(keys)
        rows: list[Known] = [Rows(Axis(0))] * (len(variables) - num_params - num_keys)
        loss, *_ = self.interpret(program, [*leaves, *rows, *keys], (), ())
        self.finish(loss)
        self.plan.roots = self.close(leaves)

    def finish(self, loss: Known) -> None:
        """The verdict on the loss."""
        plan = self.plan
        plan.loss = loss
        if isinstance(loss, Expression) and is_neutral(loss) and self.own_power(loss) != 0:
            self.tie("the loss is a constant that depends on the number of examples")
        if isinstance(loss, Total) and (loss.root or loss.guard):
            plan.mixed = "the square root of a sum over the examples is not linear in that sum"
        if mixed_in([loss]):
            plan.mixed = mixed_in([loss])
        elif isinstance(loss, Expression) and not is_learned(loss) and of_batch(loss):
            self.tie("the loss is of data alone")
        elif isinstance(loss, Expression) and loss.leaves:
            if self.own_power(loss) != 0:
                self.tie("the loss is of parameters alone, and depends on the number of examples")
            if of_batch(loss):
                why = next((x.why for x in loss.shared if x.why), "")
                self.lose_track(f"parameters meet examples that cannot be told apart: {why}")
            self.use_equally(loss, "returned", (-1,))

    def interpret(
        self, program: Any, inputs: Sequence[Known], place: Place, scope: Place
    ) -> list[Known]:
        """Follows values through a jaxpr; returns what is known of its outputs."""
        return interpret(
            program,
            inputs,
            lambda i, eqn, values: self.equation(eqn, values, (*place, i), scope),
            constant,
        )

    def equation(
        self, eqn: Any, values: Sequence[Known], here: Place, scope: Place
    ) -> Sequence[Known]:
        """What is known of the outputs of one equation."""
        does = describe(eqn)
        if self.sizes is not None:
            for numbers in (self.sizes.powers, self.sizes.counts):
                for i, power in numbers.get(here, {}).items():  # literals
                    self.powers[values[i]] = power  # type: ignore[index]
        outputs = self.of_equation(eqn, does, values, here, scope)
        if self.sizes is None or (isinstance(does, read.Call) and not does.custom):
            return outputs
        if isinstance(does, read.Call | read.Loop | read.Branch | read.While):
            inputs = [x for x in values if isinstance(x, Expression)]
            if self.sizes.within(here) or any(self.own_power(x) != 0 for x in inputs):
                self.powers.update((x, None) for x in outputs if isinstance(x, Expression))
                outputs = [
                    dataclasses.replace(x, power=None) if isinstance(x, One) else x for x in outputs
                ]
            return outputs
        place = self.place_of_rows(eqn, values, here)
        if place and any(map(is_learned, outputs)):
            self.place(place)
        grown = self.power(eqn, does, values, here)
        return [self.with_power(x, grown, place) for x in outputs]

    def of_equation(
        self, eqn: Any, does: Any, values: Sequence[Known], here: Place, scope: Place
    ) -> Sequence[Known]:
        if isinstance(does, read.Call) and not does.custom:
            self.calls.append(eqn)
            outputs = self.interpret(does.program, values, here, scope)
            self.calls.pop()
            return outputs
        if all(isinstance(x, Expression) for x in values):
            if not any(map(of_batch, values)):
                self.plan.constants[here] = eqn
            if isinstance(does, read.Call) and any(x.leaves for x in values):  # type: ignore[union-attr]
                self.check_linear(eqn, does, here, scope)
            return self.of_expressions(eqn, values, here)
        match does:
            case _ if any(isinstance(x, One) for x in values):
                return self.of_one(eqn, does, values, here)
            case read.Loop():
                return self.loop(eqn, does, values, here, scope)
            case read.Branch():
                return self.branch(eqn, does, values, here, scope)
            case read.While() | read.Call():
                return self.opaque(eqn, does, values, here, scope)
        if any(isinstance(x, Total) for x in values):
            return self.after_sum(eqn, does, values, here, scope)
        return self.of_rows(eqn, does, values, here, scope)

    def of_expressions(self, eqn: Any, values: Sequence[Any], here: Place) -> Sequence[Known]:
        """Without examples on an axis."""
        if any(x.needs for x in values) or all(x.shared <= self.keys for x in values):
            found = apply(eqn, values, here)
            if self.meets_places(values, here):
                self.key_places.update(found)
            return found
        if (diagonal := self.diagonal(eqn, values)) is not None:
            return [diagonal]
        why = next((part.why for x in values for part in x.shared if part.why), "")
        return [whole(v.aval, result_at(here, i), values, why) for i, v in enumerate(eqn.outvars)]

    def meets_places(self, values: Sequence[Any], here: Place) -> bool:
        """Whether numbers drawn from declared keys meet a constant by the places of rows."""
        if any(x in self.key_places for x in values):
            return True
        drawn = [bool(x.shared & self.keys) for x in values]
        longer = self.sizes.growing.get(here, {}) if self.sizes is not None else {}
        return any(drawn) and any(
            not drawn[i] and varies_along(values[i], axis)
            for i, axes in longer.items()
            for axis in axes
        )

    def diagonal(self, eqn: Any, values: Sequence[Any]) -> Rows | None:
        """Rows, if of products of every example with every other only i = j are left."""
        does = describe(eqn)
        found = [x for x in values if x in self.pairs]
        pair, more = (found[0] if found else None), found[1:]
        masks = [x for x in values if x is not pair and x.aval.shape]
        pairs = None if pair is None else self.pairs[pair]
        if more or pair is None or pairs is None or not isinstance(does, read.Entrywise):
            return None
        one, other, mixed = pairs
        axes = (one.axis, other.axis)
        known = [known_value(x) for x in masks if is_known(x)]
        if len(known) < len(masks):
            return None
        if does.how == "mul":
            zero = known[0] == 0
        elif does.how == "select" and len(values) == 3 and values[0] is not pair:
            which, case = known[0].astype(bool), values[1] if values[1] is not pair else values[2]
            if not (is_known(case) and not known_value(case).any()):
                return None
            zero = which if pair is values[1] else ~which
        else:
            return None
        i, j = (
            np.arange(zero.shape[a]).reshape([-1 if a == b else 1 for b in range(zero.ndim)])
            for a in axes
        )
        alone = bool(np.all(zero | (i == j)))
        weights = known[0] if does.how == "mul" else zero
        of_rows = np.diagonal(weights, axis1=axes[0], axis2=axes[1])
        if alone and not np.array_equal(of_rows, np.broadcast_to(of_rows[..., :1], of_rows.shape)):
            self.place(self.named(eqn))
        return Rows(one, is_learned(pair), mixed, zero_along=other.axis) if alone else None

    def of_rows(
        self, eqn: Any, does: Any, values: Sequence[Known], here: Place, scope: Place
    ) -> Sequence[Known]:
        """With examples on an axis of some operands, and perhaps parameters."""
        params = [i for i, x in enumerate(values) if isinstance(x, Expression) and x.leaves]
        learned, mixed = any(map(is_learned, values)), mixed_in(values)
        does = numbered(does, eqn, values)
        try:
            axes = self.axes(eqn, does, values, params)
            results = self.follow(eqn, does, axes)
        except Lost as lost:
            return self.lost(eqn, does, values, here, params, str(lost))
        tied = self.tied(eqn, values)
        if learned:
            self.tie(tied)
            tied = ""
        for i in params:
            self.use(eqn, i, values, axes, results, here, scope)
        pieces = tuple(values) if isinstance(does, read.Concatenate) else ()
        return [Rows(axis, learned, mixed, tied=tied, pieces=pieces) for axis in results]

    def axes(
        self, eqn: Any, does: Any, values: Sequence[Known], params: Sequence[int]
    ) -> list[Axis | None]:
        """The batch axis of each operand; that of parameters where entries are of one example."""
        axes = [x.axis if isinstance(x, Rows) else None for x in values]
        if not params or all(axis is None for axis in axes):
            return axes
        (axis, *_) = [axis for axis in axes if axis is not None]
        for i in params:
            match does:
                case read.Entrywise() | read.Concatenate() | read.Stack() | read.Along():
                    axes[i] = axis
                case read.Window(arrays=arrays) if i < arrays:
                    axes[i] = axis
                case read.Product():
                    axes[i] = _partner(does, i, axis)
        return axes

    def lost(
        self,
        eqn: Any,
        does: Any,
        values: Sequence[Known],
        here: Place,
        params: Sequence[int],
        clause: str,
    ) -> Sequence[Known]:
        """The examples are on no axis of the result: they were summed over, or mixed."""
        why = f"{self.named(eqn)} {clause}"
        if any(map(is_learned, values)):
            self.tie(self.tied(eqn, values))
        axes = [x.axis if isinstance(x, Rows) else None for x in values]
        summed = _summed(does, axes)
        if summed is not None:
            self.plan.sums[here] = summed
        elif not _ignores_copies(does):
            self.plan.unmasked = self.plan.unmasked or why
        for i in params:
            self.lose_track(f"a parameter is used where {why}")
            self.use_equally(values[i], name_of(eqn), here, i)
        if summed is not None and any(map(is_learned, values)):
            (v,) = eqn.outvars
            term = shared(v.aval, result_at(here, 0), data=True, learned=True)
            return [Total(mixed=mixed_in(values), origin=term)]
        found = [whole(v.aval, result_at(here, i), values, why) for i, v in enumerate(eqn.outvars)]
        if isinstance(does, read.Product) and not params:
            for x in found:
                self.pairs[x] = _pairs(does, eqn, values)
        return found

    def of_one(self, eqn: Any, does: Any, values: Sequence[Known], here: Place) -> Sequence[Known]:
        """In the turn of one example."""
        learned, mixed = any(map(is_learned, values)), mixed_in(values)
        totals = [x for x in values if isinstance(x, Total)]
        if any(isinstance(x, Rows) or of_batch(x) for x in values):
            self.tie(f"{self.named(eqn)} lets an example meet a value of the whole batch")
        if totals:
            adds = isinstance(does, read.Entrywise) and does.how == "add" and len(totals) == 1
            if adds and not totals[0].root and not totals[0].guard:
                return [Total(mixed=mixed)]
            mixed = mixed or f"{self.named(eqn)} lets an example meet a sum over others"
        if any(isinstance(x, Rows) and x.learned for x in values):
            mixed = mixed or f"{self.named(eqn)} lets an example meet all others"
        tied, placed = (
            self.tied(eqn, values),
            next((x.placed for x in values if isinstance(x, One | Rows) and x.placed), ""),
        )
        if learned:
            self.tie(tied)
            self.place(placed)
        return [One(learned, mixed, 0, tied, placed) for _ in eqn.outvars]


def _partner(does: read.Product, i: int, axis: Axis) -> Axis | None:
    """Where operand `i` of a product has the entries that belong to those of the other's axis."""
    for pairs in (does.contract, does.batch):
        mine, other = pairs[i], pairs[1 - i]
        if axis.axis in other:
            return axis._replace(axis=mine[other.index(axis.axis)])
    return None


def _pairs(does: read.Product, eqn: Any, values: Sequence[Known]) -> tuple[Axis, Axis, str] | None:
    """The axes of both operands' examples in a product that has them all meet."""
    if not all(isinstance(x, Rows) and x.axis.parts == 1 for x in values):
        return None
    axes: list[Axis] = [x.axis for x in values]  # type: ignore[union-attr]
    ndims = tuple(len(v.aval.shape) for v in eqn.invars)
    places = [does.place(side, axis.axis, ndims) for side, axis in enumerate(axes)]  # type: ignore[arg-type]
    if None in places or any(a.axis in does.batch[side] for side, a in enumerate(axes)):
        return None
    return Axis(places[0]), Axis(places[1]), mixed_in(values)  # type: ignore[arg-type]


def _summed(does: Any, axes: Sequence[Axis | None]) -> tuple[int, Axis] | None:
    """Which operand an equation sums over the examples, and its axis; None if it does not."""
    match does:
        case read.Reduce(sums=True):
            return (0, axes[0]) if axes[0] is not None else None
        case read.Product():
            for i, axis in enumerate(axes):
                if axis is not None and axis.axis in does.contract[i]:
                    other = axes[1 - i]
                    partner = _partner(does, 1 - i, axis)
                    return (i, axis) if other is None or other == partner else None
    return None


def _ignores_copies(does: Any) -> bool:
    """Whether a reduction is the same if some examples are there twice."""
    return isinstance(does, read.Reduce) and does.chooses
