"""The gradient and the statistics of the parameters of one root, from the factors of its sites."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from adaoptax import _tree
from adaoptax.measure.exact.clusters import Arrangement, Cluster
from adaoptax.measure.exact.expressions import evaluate, multiple, rearrange
from adaoptax.measure.exact.factors import Factor, Want, real_dot, wide
from adaoptax.measure.exact.plan import Root, Site
from adaoptax.measure.varying import vary_like

# Gradients that have to be formed are formed at once up to this size.
_AT_ONCE_BYTES = 64 * 2**20

Values = Mapping[Any, Any]  # of expressions


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is measured, on what.

    Attributes:
        want: Which statistics.
        num_examples: B.
        group_size: Examples in a group.
        num_measured: Groups that are measured, from the front of the batch.
        along: What inner products are with: the "gradient"; the gradient times a "metric"; or a
            given "direction".
    """

    want: Want
    num_examples: int
    group_size: int
    num_measured: int
    along: str = "gradient"

    def direction(self, totals: list[jax.Array], given: Any) -> list[jax.Array]:
        """What inner products are with, one array for each parameter."""
        if self.along == "gradient":
            return totals
        if self.along == "direction":
            return given
        return [g * m.astype(_tree.scalar_dtype(g)) for g, m in zip(totals, given, strict=True)]

    @property
    def measures_all(self) -> bool:
        """Whether no example is left out."""
        return self.num_measured * self.group_size == self.num_examples

    def measured(self, factor: Factor) -> Factor:
        """The groups of `factor` that are measured."""
        if not self.measures_all:
            factor = factor.first(self.num_measured * self.group_size)
        return factor if self.group_size == 1 else factor.merged(self.group_size)


class RootSums(NamedTuple):
    """The sums of a root, for n measured groups; lists have one entry a parameter.

    Attributes:
        totals: Gradients.
        sq_norms: [n], or None.
        inner_products: [n], or None.
        squares: Σ c_j |g_j|², or None.
    """

    totals: list[jax.Array]
    sq_norms: Any
    inner_products: Any
    squares: Any


class _Part(NamedTuple):
    """A cluster with its factor, over all examples and over the measured groups."""

    cluster: Cluster
    whole: Factor
    measured: Factor
    values: Values

    def seen(self, array: jax.Array) -> jax.Array:
        """An array like the parameter, as [N, I, O] of what the cluster sees of it."""
        site = self.cluster.sites[0]
        array = rearrange(site.expression, array, self.values)
        return site.rule.canonical(array) if site.rule else array.reshape(1, 1, -1)

    def restored(self, seen: jax.Array) -> jax.Array:
        """The inverse of `seen`, with zeros where the cluster sees nothing."""
        site, leaf = self.cluster.sites[0], self.cluster.leaf
        if site.expression is leaf:
            return site.rule.restore(seen) if site.rule else seen.reshape(leaf.aval.shape)
        zeros = vary_like(jnp.zeros(leaf.aval.shape, seen.dtype), seen)
        return jax.vjp(self.seen, zeros)[1](seen)[0]


def sums_of_factors(
    arrangement: Arrangement,
    root: Root,
    setting: Setting,
    factors: Sequence[Factor],
    values: Values,
    weight: jax.Array,
    given: Any,
) -> RootSums:
    r"""Sums where no gradient has to be formed.

    Group j has the gradient :math:`h_j + \sum_k s_{jk} R_k`: the clusters bring :math:`h_j`, which
    is never formed, and penalty k the fixed :math:`R_k`.
    """
    want = setting.want
    of_site = dict(zip(root.sites, factors, strict=True))

    def of_parameter(site: Site) -> Factor:
        """The factor of the parameter's gradient, where the site sees a multiple of it."""
        number = multiple(site.expression, values)
        return of_site[site] if number is None else of_site[site].scaled(number)

    parts = []
    for cluster in arrangement.clusters:
        whole = cluster.factor(list(map(of_parameter, cluster.sites)))
        parts.append(_Part(cluster, whole, setting.measured(whole), values))
    moments = [part.measured.sums(want, weight) for part in parts]
    penalties = [setting.measured(of_site[site]) for site in arrangement.penalties]
    all_penalties = [of_site[site].total().reshape(()) for site in arrangement.penalties]
    fixed = _penalty_gradients(arrangement, root, values)

    def restored(arrays: Sequence[Any]) -> list[jax.Array]:
        """Sums for each parameter of one array for each cluster."""
        sums = [jnp.zeros(leaf.aval.shape, wide(leaf.aval)) for leaf in root.leaves]
        for part, array in zip(parts, arrays, strict=True):
            i = root.leaves.index(part.cluster.leaf)
            sums[i] = sums[i] + part.restored(array)
        return sums

    def along(directions: Sequence[jax.Array]) -> jax.Array:
        """[n], Re⟨h_j, direction⟩, with one array for each parameter."""
        of_leaf = dict(zip(root.leaves, directions, strict=True))
        each = [part.measured.inner(part.seen(of_leaf[part.cluster.leaf])) for part in parts]
        return sum(each, start=jnp.zeros([]))

    add = lambda arrays, others: [a + b for a, b in zip(arrays, others, strict=True)]
    times = lambda number, arrays: [number * a for a in arrays]
    dot = lambda arrays, others: sum(map(real_dot, arrays, others))

    totals = restored(
        [sums.total for sums in moments]
        if setting.measures_all
        else [part.whole.total() for part in parts]
    )
    sq_norms: Any = sum(sums.sq_norms for sums in moments) if want.norm else None
    squares = restored([sums.squares for sums in moments]) if want.coordinate else None
    scales = [penalty.inner(jnp.ones((1, 1, 1))) for penalty in penalties]
    for k, (scale, gradient) in enumerate(zip(scales, fixed, strict=True)):
        totals = add(totals, times(all_penalties[k], gradient))
        if want.norm:
            sq_norms = sq_norms + 2 * scale * along(gradient)
            for other, another in zip(scales, fixed, strict=True):
                sq_norms = sq_norms + scale * other * dot(gradient, another)
        if want.coordinate:
            weighted = restored([part.measured.scaled(weight * scale).total() for part in parts])
            for other, another in zip(scales, fixed, strict=True):
                weighted = add(weighted, times(0.5 * jnp.sum(weight * scale * other), another))
            cross = [2 * jnp.real(r * jnp.conj(h)) for r, h in zip(gradient, weighted, strict=True)]
            squares = add(squares, cross)
    inner = None
    if want.inner:
        alone = len(parts) == 1 and not penalties and setting.measures_all
        if alone and setting.along == "gradient":
            inner = parts[0].measured.inner_with_total(moments[0].total)
        else:
            direction = setting.direction(totals, given)
            inner = along(direction)
            for scale, gradient in zip(scales, fixed, strict=True):
                inner = inner + scale * dot(gradient, direction)
    return RootSums(totals, sq_norms, inner, squares)


def _penalty_gradients(
    arrangement: Arrangement, root: Root, values: Values
) -> list[list[jax.Array]]:
    """R_k of each penalty, one array for each parameter."""

    def number(parameters: Sequence[jax.Array], site: Any) -> jax.Array:
        of_leaf = dict(zip(root.leaves, parameters, strict=True))
        return evaluate([site.expression], {**values, **of_leaf})[0].reshape(())

    parameters = [values[leaf] for leaf in root.leaves]
    gradients = [jax.grad(number)(parameters, site) for site in arrangement.penalties]
    return [list(map(_tree.widen, gradient)) for gradient in gradients]


def sums_of_gradients(
    root: Root,
    setting: Setting,
    factors: Sequence[Factor],
    values: Values,
    weight: jax.Array,
    given: Any,
) -> RootSums:
    """Sums of gradients that are formed, one group after the other.

    For parameters that are normalised, multiplied with each other, or used in overlapping ways.
    """
    want = setting.want
    parameters = [values[leaf] for leaf in root.leaves]

    def used(parameters: Sequence[jax.Array]) -> list[jax.Array]:
        of_leaf = dict(zip(root.leaves, parameters, strict=True))
        return evaluate([site.expression for site in root.sites], {**values, **of_leaf})

    _, pull_back = jax.vjp(used, parameters)

    def gradient(factors: Sequence[Factor]) -> list[jax.Array]:
        """The parameters' gradient of one group."""
        cotangents = []
        for site, factor in zip(root.sites, factors, strict=True):
            seen, aval = factor.gradient(), site.expression.aval
            seen = site.rule.restore(seen) if site.rule else seen.reshape(aval.shape)
            cotangents.append(seen.astype(aval.dtype))
        return list(map(_tree.widen, pull_back(cotangents)[0]))

    def sums_of_one(factors: Sequence[Factor], share: jax.Array) -> tuple:
        one = gradient(factors)
        squares = [_tree.squared_modulus(g) for g in one]
        return (
            one,
            sum(map(jnp.sum, squares)) if want.norm else None,
            [share * square for square in squares] if want.coordinate else None,
        )

    factors = [factor.in_order() for factor in factors]
    measured = [setting.measured(factor) for factor in factors]
    totals, sq_norms, squares = _add_up(sums_of_one, root, (measured, weight))
    if not setting.measures_all:
        totals = _add_up(lambda one: (gradient(one), None, None), root, (factors,))[0]
    inner = None
    if want.inner:
        direction = setting.direction(totals, given)
        along = lambda one: sum(map(real_dot, gradient(one), direction))
        inner = jax.lax.map(along, measured, batch_size=forms_at_once(root, len(weight)))
    return RootSums(totals, sq_norms, inner, squares)


def _add_up(fn: Any, root: Root, xs: Any) -> tuple:
    """Sums over groups of the first and last result of `fn`; the second one is stacked."""
    number = len(jax.tree.leaves(xs)[0])
    if forms_at_once(root, number) == number:
        first, second, last = jax.vmap(fn)(*xs)
        over = lambda tree: jax.tree.map(lambda x: jnp.sum(x, axis=0), tree)
        return over(first), second, over(last)

    def step(sums: Any, xs: Any) -> tuple:
        first, second, last = fn(*xs)
        return jax.tree.map(jnp.add, sums, (first, last)), second

    shapes = jax.eval_shape(lambda xs: fn(*jax.tree.map(lambda x: x[0], xs)), xs)
    zeros = jax.tree.map(
        lambda x: vary_like(jnp.zeros(x.shape, x.dtype), x), (shapes[0], shapes[2])
    )
    (first, last), second = jax.lax.scan(step, zeros, xs)
    return first, second, last


def forms_at_once(root: Root, number: int) -> int:
    """How many of `number` gradients are formed at the same time."""
    size = 4 * number * sum(leaf.size for leaf in root.leaves)
    return number if size <= _AT_ONCE_BYTES else 1
