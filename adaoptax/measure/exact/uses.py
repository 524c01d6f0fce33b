"""Where parameters are used, and what receives the gradients of that use."""

from collections.abc import Iterable, Sequence
from typing import Any

from adaoptax.measure.exact import rules
from adaoptax.measure.exact.axes import Axis
from adaoptax.measure.exact.expressions import (
    Apply,
    Expression,
    Leaf,
    Place,
)
from adaoptax.measure.exact.following import Follower
from adaoptax.measure.exact.known import (
    Known,
    Rows,
)
from adaoptax.measure.exact.plan import Root, Site, Tap, Use, aligned
from adaoptax.measure.programs.places import name_of

# A parameter is expanded where an expression of it is smallest, if that saves this much.
_SHRINKS = 4


class Uses(Follower):
    """Plans uses of parameters."""

    def use(
        self,
        eqn: Any,
        i: int,
        values: Sequence[Known],
        axes: Sequence[Axis | None],
        results: Sequence[Axis],
        here: Place,
        scope: Place,
    ) -> None:
        """Plans operand `i`, which is made of parameters."""
        expression: Any = values[i]
        other = values[1 - i] if len(values) == 2 else None
        axis = axes[i]
        if isinstance(other, Rows) and axis is None:
            rule = rules.match(eqn, i, other.axis, results[0], self.num_rows)
            if rule is not None and leads_back(expression):
                self.add_site(Site(here, expression, rule, self.turns(expression, scope)), here)
                return
        if axis is not None:
            use = aligned(expression, axis, self.num_rows)
        else:
            use = Use("told", expression, None, tuple(results))
        self.add_use(use, name_of(eqn), here, i)

    def use_equally(self, expression: Any, why: str, here: Place, i: int = 0) -> None:
        """Plans a use of which every example has an equal part."""
        self.add_use(Use("equal", expression), why, here, i)

    def add_site(self, site: Site, here: Place) -> None:
        if self.dry:
            return
        self.plan.taps.setdefault(here, Tap()).sites[site.rule.position] = site  # type: ignore[union-attr]
        self.register(site, here)

    def add_use(self, use: Use, why: str, here: Place, i: int) -> None:
        if self.dry:
            return
        self.plan.taps.setdefault(here, Tap()).uses[i] = use
        self.expand(use.target, why, here)

    def register(self, site: Site, used_at: Place) -> None:
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
        found = self.plan.targets[expression.place] = []
        for target in targets:
            if target.place not in self.plan.expansions:
                site = Site(target.place, target, None, (), why)
                self.plan.expansions[target.place] = site
                self.register(site, used_at)
            else:
                for parameter in target.leaves:
                    self.uses[parameter].append(used_at)
            found.append(self.plan.expansions[target.place])

    def turns(self, expression: Expression, scope: Place) -> tuple[int, ...]:
        """Lengths of the scans from the root of `expression` down to `scope`, outermost first."""
        root = next(iter(expression.leaves)).scope
        inside = [s for s in self.lengths if len(s) > len(root) and s == scope[: len(s)]]
        return tuple(self.lengths[s] for s in sorted(inside, key=len))

    def close(self, leaves: Sequence[Leaf]) -> list[Root]:
        """The roots of all parameters of one scope."""
        roots: list[Root] = []
        for parameter in leaves:
            uses = self.uses.get(parameter, [])
            if parameter in self.plan.parents.values():
                if len(uses) > 1:
                    self.not_sliced.add(parameter.place)
            elif not uses:
                self.plan.unused.add(parameter)
            else:
                roots = _joined(roots, Root([parameter], self.sites.get(parameter, [])))
        return roots


def leads_back(expression: Expression) -> bool:
    """Whether the gradient's way from `expression` to its parameters is the same in all turns."""
    scopes = {parameter.scope for parameter in expression.leaves}
    fed = any(parameter.fed for parameter in expression.leaves)
    known = not expression.shared and expression.needs == expression.leaves
    return known and not fed and len(scopes) == 1


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


def _joined(roots: list[Root], new: Root) -> list[Root]:
    """`roots` with `new`, those that share a site made one."""
    overlapping = [root for root in roots if set(root.sites) & set(new.sites)]
    for root in overlapping:
        sites = root.sites + [site for site in new.sites if site not in root.sites]
        new = Root(root.leaves + new.leaves, sites)
    return [root for root in roots if root not in overlapping] + [new]
