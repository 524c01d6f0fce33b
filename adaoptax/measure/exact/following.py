"""What all parts of the planner share: the plan, and notes on what was seen."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from adaoptax.measure.exact.axes import Axis, follow
from adaoptax.measure.exact.expressions import (
    Expression,
    Leaf,
    Place,
    is_known,
    known_value,
    varies_along,
)
from adaoptax.measure.exact.known import (
    Known,
    One,
    Rows,
    Total,
    is_learned,
    is_neutral,
    of_batch,
    power_of,
)
from adaoptax.measure.exact.plan import Plan, Site
from adaoptax.measure.exact.sizes import Sizes
from adaoptax.measure.programs import descriptions as read
from adaoptax.measure.programs.places import describe_place


class Follower:
    """Follows values through a traced loss. `planning.py` puts its parts together."""

    def __init__(self, num_rows: int, sizes: Sizes | None, not_sliced: set[Place]) -> None:
        self.plan = Plan()
        self.sizes = sizes
        self.num_rows = num_rows
        self.banned, self.not_sliced = not_sliced, set(not_sliced)
        self.uses: dict[Leaf, list[Place]] = {}
        self.sites: dict[Leaf, list[Site]] = {}
        self.lengths: dict[Place, int] = {}
        self.pairs: dict[Expression, tuple[Axis, Axis, str] | None] = {}
        self.keys: frozenset[Any] = frozenset()  # of which every part of the batch has its own
        self.key_places: set[Expression] = set()  # drawn from these, but by the places of rows
        self.powers: dict[Expression, float | None] = {}
        self.glimpse = False, "", "", ""  # of the last body: any sums, and three fields of the plan
        self.deriving = False  # inside of a derivative, whose functions' own are those of the loss
        self.calls: list[Any] = []  # that are being entered
        self.dry = 0  # more than zero inside of a body that is looked at before it is planned

    def own_power(self, x: Known) -> float | None:
        """The power of B that a value has, see `powers.py`."""
        return self.powers.get(x, 0) if isinstance(x, Expression) else power_of(x)

    def fits_beside(self, x: Known, power: float | None) -> bool:
        """Whether a value may be added to a sum over the examples, see `powers.py`."""
        raise NotImplementedError

    def named(self, eqn: Any) -> str:
        """An equation in a message."""
        return describe_place(eqn, self.calls)

    def interpret(
        self, program: Any, inputs: Sequence[Known], place: Place, scope: Place
    ) -> list[Known]:
        """Follows values through a jaxpr; returns what is known of its outputs."""
        raise NotImplementedError

    def follow(self, eqn: Any, does: Any, axes: Sequence[Axis | None]) -> list[Axis]:
        """The batch axis of each result, see `axes.follow`."""
        shape = lambda v: tuple(getattr(v.aval, "shape", ()))
        ins, outs = list(map(shape, eqn.invars)), list(map(shape, eqn.outvars))
        return follow(does, ins, outs, axes, self.num_rows)

    def looked_at(
        self, program: Any, inputs: Sequence[Known], place: Place, scope: Place
    ) -> list[Known]:
        """`interpret`, which plans nothing."""
        plan, sums = self.plan, len(self.plan.sums)
        before = dict(plan.sums), plan.unmasked, plan.whole_batch, plan.places
        self.dry += 1
        outputs = self.interpret(program, inputs, place, scope)
        self.dry -= 1
        self.glimpse = len(plan.sums) > sums, plan.unmasked, plan.whole_batch, plan.places
        plan.sums, plan.unmasked, plan.whole_batch, plan.places = before
        return outputs

    def see(self) -> None:
        """What the last body that was looked at has in it counts."""
        plan, (_, unmasked, whole_batch, places) = self.plan, self.glimpse
        plan.unmasked = plan.unmasked or unmasked
        plan.whole_batch = plan.whole_batch or whole_batch
        plan.places = plan.places or places

    def tie(self, why: str) -> None:
        """The loss depends on this batch as a whole, as the clause says."""
        self.plan.whole_batch = self.plan.whole_batch or why

    def place(self, where: str) -> None:
        """The loss depends on the places of its rows, at the equation that is named."""
        self.plan.places = self.plan.places or where

    def tied(self, eqn: Any, values: Sequence[Known]) -> str:
        """What ties the results of an equation to this batch as a whole, if anything does."""
        for x in values:
            if isinstance(x, Rows | One) and x.tied:
                return x.tied
            if of_batch(x):
                return f"{self.named(eqn)} uses a value of the whole batch"
        return ""

    def meet_places(self, eqn: Any, start: Known, x: Known) -> None:
        """A constant took the place of rows, in one case or at first."""
        if self.sizes is not None and is_neutral(start) and isinstance(x, Rows | Total | One):
            if isinstance(x, Rows) and varies_along(start, x.axis.axis):  # type: ignore[arg-type]
                self.place(self.named(eqn))
            if isinstance(x, Total) and not self.fits_beside(start, self.own_power(x)):
                self.tie(f"{self.named(eqn)} starts or ends with a constant beside a sum of rows")
            elif self.own_power(start) != 0 and not isinstance(x, Total):
                self.tie(f"{self.named(eqn)} starts or ends with a count of the examples")

    def lose_track(self, why: str) -> None:
        if not self.dry:
            self.plan.untold = self.plan.untold or why


def of_parameters(x: Known) -> bool:
    """Whether a value is made of parameters, and of nothing of the examples."""
    return isinstance(x, Expression) and bool(x.leaves) and not of_batch(x)


def of_parameters_or_data(x: Known) -> bool:
    """Whether a value does not depend on both parameters and the examples."""
    return isinstance(x, Expression) and not (is_learned(x) and of_batch(x))


def numbered(does: Any, eqn: Any, values: Sequence[Known]) -> Any:
    """`does`, where one coordinate of the indices only counts the examples: `x[arange(B), y]`."""
    if not isinstance(does, read.Gather | read.Scatter):
        return does
    operand, indices, *_ = values
    if not (isinstance(operand, Rows) and isinstance(indices, Rows)):
        return does
    if operand.axis.axis not in does.indexed or operand.axis.parts > 1:
        return does
    which, last, position = does.indexed.index(operand.axis.axis), 0, indices.axis.axis
    for piece in indices.pieces:
        alone = isinstance(piece, Expression) and piece.aval.shape[-1] == 1
        if last == which and alone and is_known(piece):
            numbers = known_value(piece)
            count = np.arange(numbers.shape[position]).reshape(
                [-1 if a == position else 1 for a in range(numbers.ndim)]
            )
            if np.array_equal(numbers, np.broadcast_to(count, numbers.shape)):
                return does.numbered(which, position)
        last += piece.aval.shape[-1] if isinstance(piece, Expression) else 1
    return does
