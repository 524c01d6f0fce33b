"""After a sum over the examples: what stays linear in it, as the loss has to."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from adaoptax.measure.exact.axes import Lost
from adaoptax.measure.exact.expressions import (
    Expression,
    Place,
    apply,
    is_known,
    known_value,
    result_at,
    shared,
)
from adaoptax.measure.exact.following import of_parameters
from adaoptax.measure.exact.known import (
    Known,
    One,
    Rows,
    Total,
    is_learned,
    mixed_in,
    of_batch,
)
from adaoptax.measure.exact.plan import Use
from adaoptax.measure.exact.powers import is_zero
from adaoptax.measure.exact.uses import Uses
from adaoptax.measure.programs import descriptions as read
from adaoptax.measure.programs.places import name_of


class Totals(Uses):
    """Follows sums over the examples."""

    def after_sum(
        self, eqn: Any, does: Any, values: Sequence[Known], here: Place, scope: Place
    ) -> Sequence[Known]:
        """With a sum over the examples among the operands."""
        why = (
            f"{self.named(eqn)} is not linear in a sum over the examples, or lets examples meet one"
        )
        found = _linear(eqn, does, values)
        if self.deriving and isinstance(does, read.Entrywise) and does.how in ("add", "select"):
            terms = values[1:] if does.how == "select" else values
            if not all(isinstance(x, Total) or is_zero(x) for x in terms):
                found = None  # of a derivative nothing but multiples is linear
        if isinstance(found, Total):
            for i, x in enumerate(values):
                if isinstance(x, Expression) and x.leaves:  # a penalty
                    if of_batch(x):
                        self.lose_track("a parameter meets a statistic of the batch before the sum")
                    self.use_equally(x, "penalty", here, i)
                elif of_batch(x):
                    self.tie(f"{self.named(eqn)} uses a value of the whole batch")
            origin = self.origin(eqn, values, here)
            return [dataclasses.replace(found, mixed=mixed_in(values), origin=origin)]
        if (head := self.head(eqn, does, values, here, scope)) is not None:
            return [head]
        mixed = mixed_in(values) or why
        for i, x in enumerate(values):
            if isinstance(x, Expression) and x.leaves:
                self.lose_track(f"a parameter is used where {why}")
                self.use_equally(x, name_of(eqn), here, i)
        rows = [x for x in values if isinstance(x, Rows)]
        if rows:
            try:
                axes = [x.axis if isinstance(x, Rows) else None for x in values]
                return [Rows(axis, True, mixed) for axis in self.follow(eqn, does, axes)]
            except Lost:
                pass
        return [
            shared(v.aval, result_at(here, i), data=True, learned=True, mixed=mixed, why=why)
            for i, v in enumerate(eqn.outvars)
        ]

    def origin(self, eqn: Any, values: Sequence[Known], here: Place) -> Expression | None:
        """How a sum over the examples came from those that the program takes, if that is known."""
        inputs = [x.origin if isinstance(x, Total) else x for x in values]
        if any(x is None or isinstance(x, Rows | Total | One) for x in inputs):
            return None
        return apply(eqn, inputs, here)[0]  # type: ignore[arg-type]

    def head(
        self, eqn: Any, does: Any, values: Sequence[Known], here: Place, scope: Place
    ) -> Total | None:
        """A sum over the examples times a value of parameters: a learned weight of a loss."""
        if not isinstance(does, read.Entrywise) or does.how not in ("mul", "div"):
            return None
        totals = [i for i, x in enumerate(values) if isinstance(x, Total)]
        if len(totals) != 1 or (does.how == "div" and totals != [0]):
            return None
        total, other = values[totals[0]], values[1 - totals[0]]
        if not of_parameters(other) or total.root or total.guard or scope or len(here) > 1:  # type: ignore[union-attr]
            return None
        origin = total.origin  # type: ignore[union-attr]
        if origin is None or any(
            part.place[:-2] not in self.plan.sums for part in origin.shared if part.data
        ):
            return None
        if not self.dry:
            self.plan.heads |= {part.place[:-2] for part in origin.shared if part.data}
        self.add_use(Use("head", other, origin=origin), "the loss", here, 1 - totals[0])  # type: ignore[arg-type]
        return Total(mixed=mixed_in(values), origin=self.origin(eqn, values, here))


def _linear(eqn: Any, does: Any, values: Sequence[Known]) -> Total | None:
    """What an equation makes of sums over the examples, if it is linear in them."""
    totals = [x for x in values if isinstance(x, Total)]
    others = [x for x in values if not isinstance(x, Total)]
    if any(isinstance(x, Rows) for x in others):
        return None
    (kind, *rest) = {(x.root, x.guard) for x in totals}
    constant = not any(is_learned(x) for x in others)
    root, guard = kind
    match does:
        case read.Entrywise(how="select"):
            which, *cases = values
            if isinstance(which, Total) and not which.guard:
                return None
            cases_of = {(x.root, x.guard) for x in cases if isinstance(x, Total)}
            if len(cases_of) != 1 or any(is_learned(x) for x in cases if not isinstance(x, Total)):
                return None
            if is_learned(which) and not isinstance(which, Total):
                return None
            return Total(*cases_of.pop())
        case _ if rest:
            return None
        case read.Entrywise(how="finite"):
            return Total(guard=True)
        case read.Entrywise(how="equal") if not root and _asks_if_finite(eqn, values):
            return Total(guard=True)
        case read.Entrywise(how="logic"):
            return Total(guard=True) if guard and constant else None
        case _ if guard:
            return Total(guard=True) if isinstance(does, read.Broadcast | read.Reshape) else None
        case read.Entrywise(how="sqrt"):
            return None if root else Total(root=True)
        case read.Entrywise(how="square"):
            return Total() if root else None
        case read.Entrywise(how="mul") if root and len(totals) == 2:
            return Total() if eqn.invars[0] is eqn.invars[1] else None
        case read.Entrywise(how="cast" | "div") if not _keeps_fractions(eqn):
            return None
        case read.Entrywise(how="same" | "cast" | "neg" | "linear"):
            return Total(root)
        case read.Entrywise(how="mul") if len(totals) == 1 and constant:
            return Total(root)
        case read.Entrywise(how="div") if isinstance(values[0], Total) and constant:
            return Total(root) if len(totals) == 1 else None
        case read.Broadcast() | read.Reshape() | read.Transpose() | read.Slice() | read.Tile():
            return Total(root)
        case _ if root:
            return None
        case read.Entrywise(how="add"):
            return Total() if not any(x.needs and not x.leaves for x in others) else None  # type: ignore[union-attr]
        case read.Reduce(sums=True) | read.Concatenate() | read.Stack() | read.Along(permutes=True):
            return Total() if constant else None
        case read.Product() if len(totals) == 1 and constant:
            return Total()
    return None


def _keeps_fractions(eqn: Any) -> bool:
    """Whether a cast or a division does not round to whole numbers."""
    to, of = (v.aval.dtype for v in (eqn.outvars[0], eqn.invars[0]))
    widens = np.issubdtype(of, np.integer) and to != np.bool_ and name_of(eqn) != "div"
    return bool(jnp.issubdtype(to, jnp.inexact)) or widens


def _asks_if_finite(eqn: Any, values: Sequence[Known]) -> bool:
    """Whether x = x or x = ±∞ is asked, as `isnan` and `isinf` do."""
    if eqn.invars[0] is eqn.invars[1]:
        return True
    others = [x for x in values if isinstance(x, Expression)]
    return (
        len(others) == 1 and is_known(others[0]) and not np.isfinite(known_value(others[0])).any()
    )
