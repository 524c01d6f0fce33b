"""Roots: where the factors of a parameter's gradients become its gradient and its statistics.

A root hands out one *slot* of zeros for each site of its parameters. What the sites send back, as
the cotangents of the slots, are factors of per-example gradients. The backward pass of the root
turns them into the gradient, which is the cotangent of the parameter, and into statistics, which
are the cotangents of three *carriers* of zeros. Carriers are shared by all roots, so that JAX adds
up what all parameters (and all turns of a scan over layers) contribute.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from adaoptax.measure.exact.clusters import arrange
from adaoptax.measure.exact.expressions import Place, constants_of
from adaoptax.measure.exact.factors import Factor, Full
from adaoptax.measure.exact.plan import Root, Site
from adaoptax.measure.exact.sums import Setting, sums_of_factors, sums_of_gradients
from adaoptax.measure.varying import vary_like


class Carriers(NamedTuple):
    """Zeros, whose cotangents are the statistics.

    Attributes:
        sq_norms: [n], or None.
        inner_products: [n], or None.
        squares: For each parameter of the root an array like it, or None.
        square_weight: [n], not a carrier: the weights of the groups in `squares`.
        given: For each parameter of the root the metric or the direction of inner products (no
            carriers either), or None.
    """

    sq_norms: jax.Array | None
    inner_products: jax.Array | None
    squares: Any
    square_weight: jax.Array
    given: Any = None


def open_root(
    root: Root, setting: Setting, parameters: Sequence[jax.Array], carriers: Carriers
) -> dict[Place, Any]:
    """The slots of a root's sites, by place."""
    constants = constants_of([site.expression for site in root.sites])
    values = [constant.value for constant in constants]
    slots = _slots(_Spec(root, setting), list(parameters), values, carriers)
    return {site.place: slot for site, slot in zip(root.sites, slots, strict=True)}


class _Spec(NamedTuple):
    root: Root
    setting: Setting


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _slots(spec: _Spec, parameters: list, constants: list, carriers: Carriers) -> list[Any]:
    empty = [_empty(site, spec.setting.num_examples) for site in spec.root.sites]
    return jax.tree.map(lambda zeros: vary_like(zeros, parameters[0]), empty)


def _empty(site: Site, num_examples: int) -> Any:
    if site.rule is None:
        return jnp.zeros((num_examples, *site.expression.aval.shape), site.expression.aval.dtype)
    stacked = lambda x: jnp.zeros((*site.lengths, *x.shape), x.dtype)
    return jax.tree.map(stacked, site.rule.slot())


def _forward(spec: _Spec, parameters: list, constants: list, carriers: Carriers) -> tuple:
    return _slots(spec, parameters, constants, carriers), (parameters, constants, carriers)


def _backward(spec: _Spec, saved: tuple, cotangents: list[Any]) -> tuple:
    root, setting = spec
    parameters, constants, carriers = saved
    factors = [_factor(site, slot) for site, slot in zip(root.sites, cotangents, strict=True)]
    known = constants_of([site.expression for site in root.sites])
    values = dict(zip([*root.leaves, *known], [*parameters, *constants], strict=True))
    arrangement = arrange(root)
    inputs = (root, setting, factors, values, carriers.square_weight, carriers.given)
    sums = sums_of_factors(arrangement, *inputs) if arrangement else sums_of_gradients(*inputs)
    like = lambda x, zeros: None if zeros is None else x.astype(zeros.dtype)
    gradients = [
        total.astype(parameter.dtype)
        for total, parameter in zip(sums.totals, parameters, strict=True)
    ]
    statistics = Carriers(
        like(sums.sq_norms, carriers.sq_norms),
        like(sums.inner_products, carriers.inner_products),
        carriers.squares and jax.tree.map(like, sums.squares, carriers.squares),
        jnp.zeros_like(carriers.square_weight),
        jax.tree.map(jnp.zeros_like, carriers.given),
    )
    return gradients, [None] * len(constants), statistics


_slots.defvjp(_forward, _backward)


def _factor(site: Site, slot: Any) -> Factor:
    """The factor that came back for a site, with the turns of scans as further entries."""
    rule = site.rule
    if rule is None:
        return Full(slot.reshape(slot.shape[0], -1))
    if not site.lengths:
        return rule.factor(*slot)
    turns = jax.tree.map(lambda x: x.reshape(-1, *x.shape[len(site.lengths) :]), slot)
    return jax.vmap(lambda x, d: rule.factor(x, d).in_order())(*turns).turned()
