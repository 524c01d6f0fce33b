"""Bodies of `scan`: over layers, over time, or over the examples."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from adaoptax.measure.exact.axes import Axis
from adaoptax.measure.exact.bodies import Bodies, settled, stacked
from adaoptax.measure.exact.expressions import (
    Expression,
    Leaf,
    Place,
    apply,
    constant,
    input_at,
    isometric_leaf,
    leaf,
    shared,
    varies_along,
)
from adaoptax.measure.exact.following import of_parameters
from adaoptax.measure.exact.known import (
    Known,
    One,
    Rows,
    Total,
    alike,
    is_neutral,
    join,
    of_batch,
    whole,
)
from adaoptax.measure.exact.plan import ScanPlan, Use, aligned
from adaoptax.measure.programs import descriptions as read


class Loops(Bodies):
    """Follows values through scans."""

    def loop(
        self, eqn: Any, does: read.Loop, values: Sequence[Known], here: Place, scope: Place
    ) -> Sequence[Known]:
        """A scan, entered by the walk."""
        first = does.num_consts + does.num_carry
        if any(isinstance(x, Rows) and x.axis == Axis(0) for x in values[first:]):
            return self.loop_over_rows(eqn, does, values, here, scope)
        if self.sizes is not None and here in self.sizes.turns:
            self.tie(f"{self.named(eqn)} turns as often as there are examples")
        self.lengths[here] = does.options["length"]
        inputs, _, alone = self.look_at_loop(eqn, does, values, here, scope)
        carried = [
            i
            for i, x in enumerate(values[:first])
            if i >= does.num_consts
            and isinstance(x, Expression)
            and x.leaves
            and i - does.num_consts not in alone
        ]
        if any(not isinstance(inputs[i], Rows) for i in carried):
            del self.lengths[here]
            return self.opaque(eqn, does, values, here, scope)
        for i in carried:
            self.add_use(aligned(values[i], inputs[i].axis, self.num_rows), "scan", here, i)  # type: ignore[union-attr, arg-type]
        slices = {i: x for i, x in enumerate(inputs) if i >= first and isinstance(x, Leaf)}
        if not self.dry:
            for i, inside in slices.items():
                self.enter_turn(values[i], inside, here)
        found = self.interpret(does.program, inputs, here, here)
        if not self.dry:
            around = [s for s in self.lengths if s == here[: len(s)]]
            self.plan.scans[here] = ScanPlan(
                [slices.get(i) for i in range(first, len(inputs))],
                self.close([x for x in slices.values() if not x.fed]),
                math.prod(self.lengths[s] for s in around),
            )
        return self.after_loop(
            eqn,
            does,
            values,
            [*inputs[does.num_consts : first], *found[does.num_carry :]],
            alone,
            here,
        )

    def enter_turn(self, outside: Any, inside: Leaf, here: Place) -> None:
        """Plans how the statistics of a parameter that is scanned over leave the scan."""
        if inside.fed:
            self.plan.fed[inside.place] = outside
            self.expand(outside, "scan", here)
        else:
            parameter = isometric_leaf(outside)
            assert parameter is not None
            self.uses.setdefault(parameter, []).append(here)
            self.plan.parents[inside] = parameter

    def after_loop(
        self,
        eqn: Any,
        does: read.Loop,
        values: Sequence[Known],
        found: Sequence[Known],
        alone: set[int],
        here: Place,
    ) -> list[Known]:
        """What is known of the results of a scan; those in `alone` are of parameters alone."""
        outputs = [
            settled(eqn, i, x, here) if i < does.num_carry else stacked(eqn, i, x, here)
            for i, x in enumerate(found)
        ]
        if alone:
            blank = lambda v: constant(np.zeros(v.aval.shape, v.aval.dtype))
            inputs = [
                x if isinstance(x, Expression) else blank(v)
                for v, x in zip(eqn.invars, values, strict=True)
            ]
            computed = apply(eqn, inputs, here)
            outputs = [computed[i] if i in alone else x for i, x in enumerate(outputs)]
        return outputs

    def look_at_loop(
        self, eqn: Any, does: read.Loop, values: Sequence[Known], here: Place, scope: Place
    ) -> tuple[list[Known], list[Known], set[int]]:
        """What is known of the inputs of the body, and of its outputs; which are of parameters."""
        first = does.num_consts + does.num_carry
        variables = does.program.jaxpr.invars
        place = lambda i: input_at(here, does.num_consts + i)
        aval = lambda i: variables[does.num_consts + i].aval
        consts, start = list(values[: does.num_consts]), values[does.num_consts : first]
        turns = [
            self.turn(eqn, i, x, variables[i], here, scope)
            for i, x in enumerate(values)
            if i >= first
        ]
        alone: set[int] = set()
        first_turn = True
        carry = list(start)  # the first turn has its constants, as the zeros of a state
        why = f"a carry of {self.named(eqn)} is made of parameters and meets the examples"
        while True:
            outputs = self.looked_at(does.program, [*consts, *carry, *turns], here, here)
            alone |= {i for i, x in enumerate(outputs) if of_parameters(x)}
            joined: list[Known] = []
            for i, (a, b) in enumerate(zip(carry, outputs, strict=False)):
                if i in alone:
                    joined.append(shared(aval(i), place(i), learned=True, mixed=why))
                elif isinstance(a, Expression) and a.leaves and isinstance(b, Rows):
                    joined.append(b)
                else:
                    joined.append(join(a, b, place(i), aval(i)))
                if is_neutral(joined[-1]) and (self.own_power(a) != 0 or self.own_power(b) != 0):
                    self.powers[joined[-1]] = None  # type: ignore[index]
            counted = [
                self.own_power(a) == self.own_power(b) for a, b in zip(carry, joined, strict=True)
            ]
            if not first_turn and all(counted) and alike(joined, carry):
                for a, x in zip(start, carry, strict=True):
                    self.meet_places(eqn, a, x)
                return [*consts, *carry, *turns], outputs, alone
            carry, first_turn = joined, False

    def loop_over_rows(
        self, eqn: Any, does: read.Loop, values: Sequence[Known], here: Place, scope: Place
    ) -> Sequence[Known]:
        """A scan over the examples: in its body every value is of the one that has its turn."""
        first = does.num_consts + does.num_carry
        variables = does.program.jaxpr.invars
        over = f"{self.named(eqn)} runs over the examples"

        def inside(i: int, x: Known) -> Known:
            if i >= first and isinstance(x, Rows) and x.axis == Axis(0):
                return One(x.learned, x.mixed, x.power, x.tied, x.placed)
            if is_neutral(x) or isinstance(x, Total):
                if not is_neutral(x):
                    return x
                inside = shared(variables[i].aval, input_at(here, i))
                if self.own_power(x) != 0:
                    self.powers[inside] = None
                return inside
            if isinstance(x, Expression) and not of_batch(x):
                return One(True)
            return whole(variables[i].aval, input_at(here, i), [x], over)

        carry = [inside(i, x) for i, x in enumerate(values) if does.num_consts <= i < first]
        consts = [inside(i, x) for i, x in enumerate(values[: does.num_consts])]
        turns = [inside(i, x) for i, x in enumerate(values) if i >= first]
        place = lambda i: input_at(here, does.num_consts + i)
        while True:
            outputs = self.looked_at(does.program, [*consts, *carry, *turns], here, here)
            joined = [
                join(a, b, place(i), variables[does.num_consts + i].aval)
                for i, (a, b) in enumerate(zip(carry, outputs, strict=False))
            ]
            joined = [
                whole(variables[does.num_consts + i].aval, place(i), [x], f"{over} with a carry")
                if isinstance(x, One)
                else x
                for i, x in enumerate(joined)
            ]
            if alike(joined, carry):
                break
            carry = joined
        for i, x in enumerate(values):
            if not isinstance(x, Expression) or not x.leaves:
                continue
            if i >= first:
                self.add_use(aligned(x, Axis(0), self.num_rows), "scan", here, i)
            elif i < does.num_consts:
                self.add_use(Use("turns", x), "scan over the examples", here, i)
            else:
                self.lose_track(f"a parameter is carried where {over}")
        self.plan.unmasked = self.plan.unmasked or over
        self.see()
        self.tie(self.tied(eqn, values))
        if does.num_carry:
            self.tie(f"{over} with a carry")
        for x in values[first:]:
            if isinstance(x, Rows):
                self.place(x.placed)
            elif is_neutral(x) and varies_along(x, 0):  # type: ignore[arg-type]
                self.place(self.named(eqn))

        def after(i: int, x: Known) -> Known:
            if isinstance(x, One):
                return Rows(Axis(0), x.learned, x.mixed, x.power, x.tied, x.placed)
            return settled(eqn, i, x, here)

        found = [*carry, *outputs[does.num_carry :]]
        return [after(i, x) for i, x in enumerate(found)]

    def turn(self, eqn: Any, i: int, x: Known, variable: Any, here: Place, scope: Place) -> Known:
        """What one turn of a scan sees of what is scanned over."""
        place = input_at(here, i)
        if isinstance(x, Rows):
            if x.axis.axis:
                return dataclasses.replace(x, axis=x.axis._replace(axis=x.axis.axis - 1), pieces=())
            return whole(variable.aval, place, [x], f"{self.named(eqn)} runs over the examples")
        if not isinstance(x, Expression):
            return x
        if x.leaves:
            parameter = isometric_leaf(x)
            enters = (
                parameter is not None
                and parameter.scope == scope
                and not parameter.fed
                and parameter.place not in self.banned
            )
            return leaf(variable.aval, here, i, fed=not enters)
        return (
            whole(variable.aval, place, [x], "")
            if x.shared or x.needs
            else shared(variable.aval, place)
        )
