"""What the exact method will do with each parameter, and what that will cost."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from adaoptax._tree import ArrayTree
from adaoptax.measure.exact.clusters import Cluster, arrange
from adaoptax.measure.exact.expressions import Leaf
from adaoptax.measure.exact.factors import Want
from adaoptax.measure.exact.plan import Plan, Root
from adaoptax.measure.exact.planning import make_plan
from adaoptax.measure.exact.row_moments import trace_loss
from adaoptax.measure.exact.sums import forms_at_once
from adaoptax.measure.groups import loop_of_groups
from adaoptax.measure.loss import Loss, describe_loss
from adaoptax.measure.moments import STATISTICS, check_statistics
from adaoptax.measure.programs.flops import count_flops
from adaoptax.measure.rows import count_rows


class Treatment(NamedTuple):
    """What is done with one parameter.

    Attributes:
        parameter: Its path in the parameters.
        shape: Its shape.
        how: The rule and its formula, or the fallback.
        why: What decided that.
        flops: Predicted work of the statistics beside the gradient.
        bytes: Predicted memory of them.
    """

    parameter: str
    shape: tuple[int, ...]
    how: str
    why: str
    flops: float
    bytes: float


class Explanation(NamedTuple):
    """A prediction; printed, it is a table.

    Attributes:
        treatments: One for each parameter.
        plain_flops: Work of the plain gradient, in products and convolutions.
        num_examples: B.
        groups: How `groups` would run instead, or "" where that was not asked.
    """

    treatments: tuple[Treatment, ...]
    plain_flops: float
    num_examples: int
    groups: str = ""

    @property
    def time_ratio(self) -> float:
        """Predicted work over that of the plain gradient."""
        return 1 + sum(t.flops for t in self.treatments) / max(self.plain_flops, 1)

    @property
    def bytes(self) -> float:
        """Predicted memory beside that of the plain step: one parameter is served at a time."""
        expanded = sum(t.bytes for t in self.treatments if t.how == EXPANDED)
        return expanded + max((t.bytes for t in self.treatments if t.how != EXPANDED), default=0)

    def __str__(self) -> str:
        share = lambda t: f"{100 * t.flops / max(self.plain_flops, 1):.1f} %"
        rows = [("parameter", "shape", "how", "work", "memory", "why")]
        rows += [
            (t.parameter, str(list(t.shape)), t.how, share(t), _memory(t.bytes), t.why)
            for t in self.treatments
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        lines.insert(1, "  ".join("-" * width for width in widths))
        return "\n".join(
            [
                *lines,
                "",
                f"{self.num_examples} examples; predicted work {self.time_ratio:.2f} times that of"
                f" the plain gradient, at most {_memory(self.bytes)} of memory beside it.",
                *([f"Instead, {self.groups}."] if self.groups else []),
            ]
        )


EXPANDED = "repeated"


def explain(
    loss_fn: Callable[..., Any],
    params: ArrayTree,
    *inputs: Any,
    statistics: tuple[str, ...] = ("norm",),
    batch_argnums: int | Sequence[int] = 1,
    has_aux: bool = False,
    key_argnums: int | Sequence[int] = (),
) -> Explanation:
    """Tells what `exact` does with each parameter, how `groups` would run, and what it costs.

    Nothing is computed: the loss is traced once. Work is counted in products and convolutions, as a
    share of the plain gradient's; the table in the documentation says what was measured.

    Args:
        loss_fn: As for `value_grad_and_stats`.
        params: Parameters, or their shapes.
        *inputs: A batch, or its shapes, and extra arguments of the loss, in its order.
        statistics: As for `exact`.
        batch_argnums: As for `value_grad_and_stats`.
        has_aux: As for `value_grad_and_stats`.
        key_argnums: As for `value_grad_and_stats`.

    Returns:
        An `Explanation`: print it.

    Raises:
        ValueError: If a name in `statistics` is unknown.

    Examples:
        >>> import adaoptax, jax.numpy as jnp
        >>> def loss_fn(params, x):
        ...     return jnp.mean(jnp.tanh(x @ params["w"] + params["b"]))
        >>> params = {"w": jnp.ones((8, 4)), "b": jnp.zeros(4)}
        >>> explanation = adaoptax.measure.explain(loss_fn, params, jnp.ones((16, 8)))
        >>> print(explanation)  # doctest: +ELLIPSIS
        parameter  shape   how             work   memory   why
        ---------  ------  --------------  -----  -------  -----------
        ['b']      [4]     repeated        4.2 %  0.2 KiB  used by add
        ['w']      [8, 4]  dense, factors  0.0 %  0.0 KiB
        <BLANKLINE>
        16 examples; predicted work 1.04 times that of the plain gradient, ...
        Instead, groups(8) would run as a scan: 8 groups one after another, ...
    """
    check_statistics(statistics, STATISTICS, "explain")
    loss = describe_loss(
        loss_fn, batch_argnums=batch_argnums, has_aux=has_aux, key_argnums=key_argnums
    )
    batch, args = loss.split(params, inputs)
    explanation = explain_loss(loss, params, batch, args, statistics)
    divisors = [n for n in range(2, 9) if explanation.num_examples % n == 0]
    if not divisors:
        return explanation
    n = divisors[-1]
    loop = loop_of_groups(loss, params, batch, args, n)
    return explanation._replace(groups=f"groups({n}) would run as a {loop.kind}: {loop.reason}")


def explain_loss(
    loss: Loss, params: ArrayTree, batch: ArrayTree, args: tuple, statistics: Sequence[str]
) -> Explanation:
    """`explain`, of a loss that is already described."""
    num_examples = count_rows(batch)
    want = Want.of(statistics)
    traced = trace_loss(loss, params, batch, args)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    names = [jax.tree_util.keystr(path) or "params" for path, _ in leaves]
    plan = make_plan(traced.closed, len(names), num_examples)
    found = {}
    for root, turns in _all_roots(plan):
        for leaf, how, why, flops, memory in _treatments(root, num_examples, want):
            found[_origin(leaf, plan).position] = how, why, turns * flops, memory
    unused = ("unused", "no example depends on it", 0.0, 0.0)
    treatments = tuple(
        Treatment(name, jnp.shape(leaf), *found.get(i, unused))
        for i, (name, (_, leaf)) in enumerate(zip(names, leaves, strict=True))
    )
    # A forward pass, and two products backward for each one forward.
    plain = 3 * count_flops(traced.closed.jaxpr)
    return Explanation(treatments, plain, num_examples)


def _all_roots(plan: Plan) -> Iterator[tuple[Root, int]]:
    """Every root, with the number of turns of the scans that it is in."""
    yield from ((root, 1) for root in plan.roots)
    for scan in plan.scans.values():
        yield from ((root, scan.turns) for root in scan.roots)


def _origin(leaf: Leaf, plan: Plan) -> Leaf:
    while leaf in plan.parents:
        leaf = plan.parents[leaf]
    return leaf


def _treatments(
    root: Root, num_examples: int, want: Want
) -> Iterator[tuple[Leaf, str, str, float, float]]:
    """(parameter, how, why, flops, bytes) for each parameter of a root."""
    arrangement = arrange(root)
    if arrangement is None:
        at_once = forms_at_once(root, num_examples)
        reason = ", ".join(sorted({_use(site) for site in root.sites}))
        for leaf in root.leaves:
            passes = 2.0 * num_examples * leaf.size
            products = sum(
                _product_flops(site, num_examples) for site in root.sites if want.inner
            ) / len(root.leaves)
            yield (
                leaf,
                "formed" if at_once == num_examples else "formed one by one",
                f"uses that no rule adds up: {reason}",
                passes * (2 + want.inner) + products,
                4.0 * at_once * leaf.size,
            )
        return
    for leaf in root.leaves:
        clusters = [cluster for cluster in arrangement.clusters if cluster.leaf is leaf]
        hows, whys, costs = [], [], []
        for cluster in clusters:
            how, why, flops, memory = _of_cluster(cluster, num_examples, want)
            hows.append(how)
            whys.append(why)
            costs.append((flops, memory))
        if arrangement.penalties:
            whys.append("a penalty adds one fixed gradient")
            costs.append((sum(flops for flops, _ in costs), 4.0 * leaf.size))
        unique = lambda texts: "; ".join(dict.fromkeys(text for text in texts if text))
        yield (
            leaf,
            unique(hows) or "penalty",
            unique(whys),
            sum(flops for flops, _ in costs),
            max((memory for _, memory in costs), default=0.0),
        )


def _of_cluster(cluster: Cluster, num_examples: int, want: Want) -> tuple[str, str, float, float]:
    rules = [site.rule for site in cluster.sites]
    if rules[0] is None:
        (site,) = cluster.sites
        size = site.expression.size
        # What XLA does not fuse of it: the cotangents of one parameter, read once a statistic.
        return EXPANDED, f"used by {site.why}", 2.0 * num_examples * size, 4.0 * num_examples * size
    times = [math.prod(site.lengths) for site in cluster.sites]
    choices = [
        rule.choice(num_examples, want, turns)
        for rule, turns in zip(rules, times, strict=True)
        if rule is not None
    ]
    kinds = "+".join(dict.fromkeys(rule.name for rule in rules if rule is not None))
    uses = sum(times)
    return (
        f"{kinds}, {choices[0].formula}",
        f"{uses} uses, as one sequence" if uses > 1 else "",
        sum(choice.flops for choice in choices),
        sum(choice.bytes for choice in choices),
    )


def _use(site: Any) -> str:
    return site.why if site.rule is None else site.rule.name


def _product_flops(site: Any, num_examples: int) -> float:
    if site.rule is None:
        return 0.0
    return site.rule.choice(num_examples, Want(False, True, False), math.prod(site.lengths)).flops


def _memory(size: float) -> str:
    return f"{size / 2**20:.1f} MiB" if size >= 2**20 / 10 else f"{size / 2**10:.1f} KiB"
