"""Bodies of branches, of `while` loops and of functions with derivatives of their own."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from adaoptax.measure.exact.expressions import (
    Expression,
    Place,
    input_at,
    result_at,
    shared,
)
from adaoptax.measure.exact.following import of_parameters_or_data
from adaoptax.measure.exact.known import (
    Known,
    Rows,
    Total,
    alike,
    is_learned,
    is_neutral,
    join,
    mixed_in,
    of_batch,
    whole,
)
from adaoptax.measure.exact.plan import Use
from adaoptax.measure.exact.powers import Powers, is_zero
from adaoptax.measure.exact.sizes import condition_at
from adaoptax.measure.exact.uses import Uses
from adaoptax.measure.programs import descriptions as read
from adaoptax.measure.programs.evaluate import derivative_of
from adaoptax.measure.programs.places import name_of
from adaoptax.measure.varying import manual_axes


class Bodies(Uses, Powers):
    """Follows values through bodies, but for those of `scan`."""

    def look_at_loop(
        self, eqn: Any, does: read.Loop, values: Sequence[Known], here: Place, scope: Place
    ) -> tuple[list[Known], list[Known], set[int]]:
        """Of a scan, see `loops.py`."""
        raise NotImplementedError

    def opaque(
        self, eqn: Any, does: Any, values: Sequence[Known], here: Place, scope: Place
    ) -> Sequence[Known]:
        """A body that the walk does not enter: parameters are told apart by the results."""
        if isinstance(does, read.While):
            outputs = self.look_at_while(eqn, does, values, here, scope)
        elif isinstance(does, read.Loop):
            outputs = self.look_at_loop(eqn, does, values, here, scope)[1]
            outputs = [stacked(eqn, i, x, here) for i, x in enumerate(outputs)]
        elif isinstance(does, read.Branch):
            branches = []
            for j, program in enumerate(does.programs):
                branches.append(self.looked_at(program, values[1:], (*here, j), scope))
                self.see()
            outputs = self.joined_branches(eqn, values[0], branches, here)
        else:
            operands = values if does.operands is None else [values[i] for i in does.operands]
            outputs = self.looked_at(does.program, operands, here, scope)
            # JAX traces no derivative by itself inside of shard_map, where devices hold parts.
            apart = manual_axes() or self.deriving
            if manual_axes() and does.backward and self.sizes is not None:
                self.note_derivative(f"{self.named(eqn)}, unseen inside of jax.shard_map")
            if not apart and any(isinstance(x, Rows) for x in values):
                outputs = self.differentiated(eqn, values, outputs, here, scope)
                if self.sizes is not None or any(
                    isinstance(x, Expression) and x.leaves for x in values
                ):
                    self.check_linear(eqn, does, here, scope)
        sums, *_ = self.glimpse
        self.see()
        if sums:
            why = f"{self.named(eqn)} sums over examples in a body of its own"
            self.plan.unmasked = self.plan.unmasked or why
        if self.sizes is not None and here in self.sizes.turns:
            self.tie(f"{self.named(eqn)} turns as often as there are examples")
        learned = any(map(is_learned, values))
        outputs = [
            shared(
                v.aval,
                result_at(here, i),
                learned=is_learned(x),
                data=of_batch(x),
                mixed=mixed_in([x]),
            )
            if isinstance(x, Expression)
            else x
            for i, (v, x) in enumerate(zip(eqn.outvars, outputs, strict=True))
        ]
        params = [i for i, x in enumerate(values) if isinstance(x, Expression) and x.leaves]
        results = tuple(x.axis if isinstance(x, Rows) else None for x in outputs)
        flows = [x for x in outputs if not isinstance(x, Rows) and is_learned(x)]
        for i in params:
            if flows or all(axis is None for axis in results):
                self.lose_track(f"a parameter is used in {self.named(eqn)}")
            self.add_use(Use("told", values[i], None, results), name_of(eqn), here, i)  # type: ignore[arg-type]
        if learned:
            self.tie(self.tied(eqn, values))
        return outputs

    def differentiated(
        self, eqn: Any, values: Sequence[Known], outputs: list[Known], here: Place, scope: Place
    ) -> list[Known]:
        """`outputs` of a function with its own derivatives; `mixed` if examples meet in these."""
        program, operands, results = derivative_of(eqn)
        moved = lambda x: dataclasses.replace(x, learned=True, mixed="")
        hide = lambda x, v, i: (
            moved(x) if isinstance(x, Rows) else shared(v.aval, input_at((*here, "vjp"), i))
        )
        inputs = [hide(x, v, i) for i, (x, v) in enumerate(zip(values, eqn.invars, strict=True))]
        cotangents = [hide(outputs[i], eqn.outvars[i], len(inputs) + i) for i in results]
        found = self.derived(program, [*inputs, *cotangents], (*here, "vjp"), scope)
        for i, x in zip(operands, found, strict=True):
            given = values[i]
            apart = isinstance(x, Rows) and isinstance(given, Rows) and x.axis == given.axis
            if isinstance(given, Rows) and not is_neutral(x) and (mixed_in([x]) or not apart):
                why = f"the derivative of {self.named(eqn)} lets examples meet"
                return [
                    dataclasses.replace(y, mixed=y.mixed or why) if isinstance(y, Rows) else y
                    for y in outputs
                ]
        return outputs

    def check_linear(self, eqn: Any, does: read.Call, here: Place, scope: Place) -> None:
        """Notes a derivative of the user's own that is not linear in what flows back.

        What is linear in a sum over the examples is linear: it is followed as one.
        """
        if not does.backward or manual_axes():
            return
        program, _, results = derivative_of(eqn)
        place = (*here, "linear")
        fixed = [shared(v.aval, input_at(place, i)) for i, v in enumerate(eqn.invars)]
        found = self.derived(program, [*fixed, *(Total() for _ in results)], place, scope)
        linear = lambda x: isinstance(x, Total) and not (x.root or x.guard or x.mixed)
        if not all(linear(x) or is_zero(x) for x in found):
            self.note_derivative(self.named(eqn))

    def note_derivative(self, of: str) -> None:
        self.plan.nonlinear = self.plan.nonlinear or f"the derivative of {of}"

    def derived(
        self, program: Any, inputs: Sequence[Known], place: Place, scope: Place
    ) -> list[Known]:
        """`looked_at` for a derivative, which leaves no trace."""
        before = self.glimpse, self.sizes, self.deriving
        self.sizes, self.deriving = None, True
        found = self.looked_at(program, inputs, place, scope)
        self.glimpse, self.sizes, self.deriving = before
        return found

    def joined_branches(
        self, eqn: Any, which: Known, branches: Sequence[Sequence[Known]], here: Place
    ) -> list[Known]:
        """What is known of the results of a branch."""
        learned = any(is_learned(x) for outputs in branches for x in outputs)
        if learned and (of_batch(which) or self.own_power(which) != 0):
            self.tie(f"{self.named(eqn)} branches on a value of the whole batch")
        outputs = [
            _joined_all(found, result_at(here, i), v.aval)
            for i, (v, *found) in enumerate(zip(eqn.outvars, *branches, strict=True))
        ]
        for i, x in enumerate(outputs):
            for found in branches:
                self.meet_places(eqn, found[i], x)
        return outputs

    def look_at_while(
        self, eqn: Any, does: read.While, values: Sequence[Known], here: Place, scope: Place
    ) -> list[Known]:
        first = does.num_of_condition + does.num_of_body
        of_condition, of_body = (
            values[: does.num_of_condition],
            values[does.num_of_condition : first],
        )
        carry = list(values[first:])
        condition = condition_at(here)
        while True:
            outputs = self.looked_at(does.program, [*of_body, *carry], here, scope)
            self.see()
            (stop,) = self.looked_at(does.condition, [*of_condition, *carry], condition, scope)
            places = [result_at(here, i) for i in range(len(carry))]
            joined = [
                self.stopped(eqn, stop, join(a, b, place, v.aval), place, v.aval)
                for a, b, place, v in zip(carry, outputs, places, eqn.outvars, strict=True)
            ]
            if alike(joined, carry):
                break
            carry = joined
        for a, x in zip(values[first:], carry, strict=True):
            self.meet_places(eqn, a, x)
        if of_batch(stop) or self.own_power(stop) != 0:
            self.tie(f"{self.named(eqn)} turns as often as the whole batch says")
        if isinstance(stop, Rows):
            self.tie(stop.tied)
            self.place(stop.placed)
        elif getattr(does.condition.jaxpr.outvars[0].aval, "shape", ()) and self.sizes is not None:
            self.place(self.named(eqn))
        return carry

    def stopped(self, eqn: Any, stop: Known, x: Known, place: Place, aval: Any) -> Known:
        """What is known of a carry `x` of a `while` that turns on where `stop` says."""
        if isinstance(stop, Rows):  # under vmap: JAX stops the rows one by one
            learned, mixed = is_learned(x) or stop.learned, mixed_in([x, stop])
            if is_neutral(x):
                power = 0 if self.own_power(x) == 0 else None
                return Rows(stop.axis, learned, mixed, power)
            if isinstance(x, Rows) and x.axis == stop.axis:
                return dataclasses.replace(x, learned=learned, mixed=mixed)
            return whole(aval, place, [x, stop], f"{self.named(eqn)} stops other rows than it has")
        if of_parameters_or_data(stop):
            return x
        why = mixed_in([stop]) or f"{self.named(eqn)} turns as long as any example needs"
        if isinstance(x, Expression):
            return whole(aval, place, [x, stop], why)
        x = x if isinstance(x, Total) else dataclasses.replace(x, learned=True)
        return dataclasses.replace(x, mixed=x.mixed or why)

    def branch(
        self, eqn: Any, does: read.Branch, values: Sequence[Known], here: Place, scope: Place
    ) -> Sequence[Known]:
        """One of several bodies, entered by the walk."""
        which, *operands = values
        if is_learned(which) and not of_parameters_or_data(which):
            why = f"{self.named(eqn)} branches on a value of the whole batch"
            return [
                whole(v.aval, result_at(here, i), values, why) for i, v in enumerate(eqn.outvars)
            ]
        branches = [self.looked_at(program, operands, here, scope) for program in does.programs]
        if any(isinstance(x, Expression) and x.leaves for outputs in branches for x in outputs):
            return self.opaque(eqn, does, values, here, scope)
        branches = [
            self.interpret(program, operands, (*here, j), scope)
            for j, program in enumerate(does.programs)
        ]
        return self.joined_branches(eqn, which, branches, here)


def _joined_all(found: Sequence[Known], place: Place, aval: Any) -> Known:
    first, *others = found
    for other in others:
        first = join(first, other, place, aval)
    return shared(aval, place) if is_neutral(first) else first


def settled(eqn: Any, i: int, x: Known, here: Place) -> Known:
    """A carry after the last turn."""
    if not isinstance(x, Expression):
        return x
    return whole(eqn.outvars[i].aval, result_at(here, i), [x], next((s.why for s in x.shared), ""))


def stacked(eqn: Any, i: int, x: Known, here: Place) -> Known:
    """What the turns of a scan return, on a new first axis."""
    if isinstance(x, Rows):
        return dataclasses.replace(x, axis=x.axis._replace(axis=x.axis.axis + 1), pieces=())
    return settled(eqn, i, x, here)
