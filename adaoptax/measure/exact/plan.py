"""The plan: what the walk does at each place, and what is proved of the loss.

A *place* names an equation by its position in the traced loss: (3, 1) is equation 1 inside of
equation 3.
"""

import dataclasses
from typing import Any

from adaoptax.measure.exact.axes import Axis
from adaoptax.measure.exact.expressions import (
    Apply,
    Expression,
    Leaf,
    Place,
)
from adaoptax.measure.exact.rules.rule import Rule
from adaoptax.measure.programs import descriptions as read
from adaoptax.measure.programs.describe import describe


@dataclasses.dataclass(frozen=True, eq=False)
class Site:
    """What a root learns of one use of a parameter.

    Attributes:
        place: Where it is used; for an expansion, where the expanded expression arises.
        expression: What is used.
        rule: How; None for an expansion, whose gradients arrive as they are.
        lengths: Turns of the scans between the root and the site, outermost first.
        why: For an expansion: the operation that has no rule.
    """

    place: Place
    expression: Expression
    rule: Rule | None
    lengths: tuple[int, ...] = ()
    why: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class Use:
    """An operand made of parameters that has no factors: its gradients are cut in rows.

    Attributes:
        how: "aligned" if entries of the operand on `axis` are of one example; "told" if the results
            are, on `results`; "equal" if every example has an equal part.
        operand: What is used.
        axis: Of the operand, if aligned.
        results: Of each result, if told.
        repeats: What an aligned operand repeats along its axis, if it does.
        dims: Where the axes of that are in the operand.
        origin: Of the other operand, a sum over the examples, if the use is a "head": each example
            has the gradient of its own part.
    """

    how: str
    operand: Expression
    axis: Axis | None = None
    results: tuple[Axis | None, ...] = ()
    repeats: Expression | None = None
    dims: tuple[int, ...] = ()
    origin: Expression | None = None

    @property
    def target(self) -> Expression:
        """The expression whose gradients are the rows."""
        return self.repeats or self.operand


def aligned(operand: Expression, axis: Axis, num_rows: int) -> Use:
    """The use of an operand that has entries of one example along `axis`, or would have them."""
    shape = operand.aval.shape
    if not shape:
        return Use("aligned", operand, axis, (), operand, ())
    if shape[axis.axis] != axis.parts * num_rows:  # one, for all examples
        return Use("aligned", operand, axis, (), operand, tuple(range(len(shape))))
    if isinstance(operand, Apply):
        does, (source, *_) = describe(operand.eqn), operand.inputs
        if isinstance(does, read.Broadcast):
            inside = axis.axis in does.dims and source.aval.shape[does.dims.index(axis.axis)] > 1
            if not inside:
                return Use("aligned", operand, axis, (), source, does.dims)
    return Use("aligned", operand, axis)


@dataclasses.dataclass
class Tap:
    """What the walk does at an equation with parameters among its operands, by position.

    Attributes:
        sites: Uses with factors.
        uses: Other uses.
    """

    sites: dict[int, Site] = dataclasses.field(default_factory=dict)
    uses: dict[int, Use] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, eq=False)
class Root:
    """Parameters whose statistics are formed together, since some expression holds them all."""

    leaves: list[Leaf]
    sites: list[Site]


@dataclasses.dataclass
class ScanPlan:
    """What the walk has to know about a scan that uses parameters.

    Attributes:
        sliced: For each scanned-over input the parameter in the body, or None.
        roots: The roots of the body.
        turns: How often the body runs, with the turns of the scans around it.
    """

    sliced: list[Leaf | None]
    roots: list[Root]
    turns: int


@dataclasses.dataclass
class Plan:
    """What happens where.

    Attributes:
        taps: Equations that consume parameters, by place.
        scans: Scans that use parameters, by place.
        roots: Of the whole loss; those of scans are in `scans`.
        expansions: Expanded expressions, by the place where they arise.
        targets: For each operand's place the expansions that receive its gradients.
        sums: Sums over the examples, by place: operand and its axis.
        heads: Of these the ones whose parts a learned weight needs.
        parents: For each slice of a parameter in a scan's body, what it is a slice of.
        fed: For the place of each slice that is `fed`, what it is a slice of.
        unused: Leaves that no example uses.
        loss: What is known of the loss.
        mixed: What stands against separability; empty if it is proved.
        untold: Where it cannot be told whose a gradient is; empty if it can everywhere.
        whole_batch: What ties the loss to this batch as a whole: a normaliser, the place of a row.
        places: What ties a row to its place in the batch, if sizes are known.
        nonlinear: A derivative of the user's own that is not linear in what flows back.
        unmasked: What keeps padding from being left out.
        constants: Equations of parameters and constants alone, by place.
    """

    taps: dict[Place, Tap] = dataclasses.field(default_factory=dict)
    scans: dict[Place, ScanPlan] = dataclasses.field(default_factory=dict)
    roots: list[Root] = dataclasses.field(default_factory=list)
    expansions: dict[Place, Site] = dataclasses.field(default_factory=dict)
    targets: dict[Place, list[Site]] = dataclasses.field(default_factory=dict)
    sums: dict[Place, tuple[int, Axis]] = dataclasses.field(default_factory=dict)
    heads: set[Place] = dataclasses.field(default_factory=set)
    parents: dict[Leaf, Leaf] = dataclasses.field(default_factory=dict)
    fed: dict[Place, Expression] = dataclasses.field(default_factory=dict)
    unused: set[Leaf] = dataclasses.field(default_factory=set)
    loss: Any = None
    mixed: str = ""
    untold: str = ""
    whole_batch: str = ""
    places: str = ""
    nonlinear: str = ""
    unmasked: str = ""
    constants: dict[Place, Any] = dataclasses.field(default_factory=dict)
