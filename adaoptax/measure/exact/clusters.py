"""Uses of one parameter that can be summed without forming any gradient.

A parameter that is used once has one site. One that is used more often (a tied embedding, the cell
of an unrolled recurrence, slices of a stacked weight) has several, whose gradients add up:

- sites that touch different entries add their statistics;
- sites that see the same entries in the same order are one longer sequence;
- an embedding table that is also the output layer has a formula for the cross terms;
- a number that is computed from parameters alone, such as a penalty, adds a multiple of one fixed
  gradient to that of every example.

Whatever is left is formed example by example (`roots.py`).
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from adaoptax.measure.exact.expressions import (
    Leaf,
    constants_of,
    indices_of,
    rearrange,
    similar_leaf,
)
from adaoptax.measure.exact.factors import Factor
from adaoptax.measure.exact.plan import Root, Site
from adaoptax.measure.exact.rules.dense import Dense, Outer
from adaoptax.measure.exact.rules.embedding import Embedding, Rows, Tied


@dataclasses.dataclass(frozen=True, eq=False)
class Cluster:
    """Sites of one parameter that see the same entries.

    Attributes:
        leaf: The parameter.
        sites: Its sites; the first one's view of the parameter is that of the cluster.
        swapped: Which sites see the transpose of it.
    """

    leaf: Leaf
    sites: tuple[Site, ...]
    swapped: tuple[bool, ...]

    def factor(self, factors: Sequence[Factor]) -> Factor:
        """One factor for those of the sites."""
        turned = [
            factor.swapped() if swap and isinstance(factor, Outer) else factor
            for factor, swap in zip(factors, self.swapped, strict=True)
        ]
        if len(turned) == 1:
            return turned[0]
        rows = [factor for factor in turned if isinstance(factor, Rows)]
        outers = [factor for factor in turned if isinstance(factor, Outer)]
        if not rows:
            return outers[0].joined(outers[1:])
        if not outers:
            return rows[0].joined(rows[1:])
        return Tied(rows[0].joined(rows[1:]), outers[0].joined(outers[1:]))


@dataclasses.dataclass(frozen=True, eq=False)
class Arrangement:
    """All sites of a root, in order.

    Attributes:
        clusters: Sites with factors, of disjoint entries.
        penalties: Expansions of single numbers.
    """

    clusters: tuple[Cluster, ...]
    penalties: tuple[Site, ...]


def arrange(root: Root) -> Arrangement | None:
    """The clusters of a root, or None if its gradients must be formed."""
    penalties = tuple(
        site
        for site in root.sites
        if site.rule is None and _leaf_of(site) is None and _is_number(site)
    )
    clusters: list[Cluster] = []
    for parameter in root.leaves:
        sites = [s for s in root.sites if s not in penalties and parameter in s.expression.leaves]
        if any(_leaf_of(site) is not parameter for site in sites):
            return None
        found = _clusters(parameter, sites)
        if found is None:
            return None
        clusters += found
    return Arrangement(tuple(clusters), penalties)


def _is_number(site: Site) -> bool:
    aval = site.expression.aval
    return site.expression.size == 1 and jnp.issubdtype(aval.dtype, jnp.floating)


def _leaf_of(site: Site) -> Leaf | None:
    return similar_leaf(site.expression)


def _clusters(parameter: Leaf, sites: Sequence[Site]) -> list[Cluster] | None:
    if len(sites) <= 1:
        return [Cluster(parameter, (site,), (False,)) for site in sites]
    clusters: list[tuple[np.ndarray, Cluster]] = []
    # An embedding comes first: the table's rows are the order that the others are turned to.
    for site in sorted(sites, key=lambda site: not isinstance(site.rule, Embedding)):
        entries = _entries(site)
        if entries is None:
            return None
        for i, (others, cluster) in enumerate(clusters):
            if entries.shape == others.shape and np.array_equal(entries, others):
                swap = False
            elif np.array_equal(entries.swapaxes(1, 2), others):
                swap = True
            elif np.intersect1d(entries, others).size:
                return None
            else:
                continue
            kinds = (Dense, Embedding)
            if not all(isinstance(s.rule, kinds) for s in (site, *cluster.sites)):
                return None
            if swap and isinstance(site.rule, Embedding):
                return None
            clusters[i] = (
                others,
                Cluster(parameter, (*cluster.sites, site), (*cluster.swapped, swap)),
            )
            break
        else:
            clusters.append((entries, Cluster(parameter, (site,), (False,))))
    return [cluster for _, cluster in clusters]


def _entries(site: Site) -> np.ndarray | None:
    """Which entries of its parameter a site sees, as [N, I, O]; None if that is not known yet."""
    parameter, indices = site.expression, indices_of(site.expression)
    (leaf,) = parameter.leaves
    known = constants_of(indices)
    traced = any(isinstance(constant.value, jax.core.Tracer) for constant in known)
    if traced or any(index.needs for index in indices):
        return None
    numbers = np.arange(leaf.size, dtype=np.int32).reshape(leaf.aval.shape)
    with jax.ensure_compile_time_eval():
        values = {constant: constant.value for constant in known}
        entries = np.asarray(rearrange(parameter, numbers, values))
    return site.rule.canonical(entries) if site.rule else entries.reshape(1, 1, -1)
