"""Exact per-example moments of a loss: trace, plan, walk, differentiate."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from adaoptax import _tree
from adaoptax._tree import ArrayTree
from adaoptax.measure.exact.arguments import (
    check_effects,
    check_local_params,
    check_local_rows,
    check_one_number,
    check_params,
)
from adaoptax.measure.exact.factors import Want
from adaoptax.measure.exact.plan import Plan
from adaoptax.measure.exact.planning import make_plan
from adaoptax.measure.exact.proof import check_plan, padding_of
from adaoptax.measure.exact.roots import Carriers
from adaoptax.measure.exact.sums import Setting
from adaoptax.measure.exact.walk import walk
from adaoptax.measure.loss import Loss
from adaoptax.measure.programs.evaluate import trace
from adaoptax.measure.rows import count_rows, replace_padding
from adaoptax.measure.varying import vary_like


class RowMoments(NamedTuple):
    """Moments of the gradients of n groups (of one example each, unless asked otherwise).

    Attributes:
        sq_norms: [n], ‖h_j‖², or None.
        inner_products: [n], Re⟨h_j, g⟩, or None.
        square_sums: Pytree like the parameters, Σ W_j |h_j|² over measured groups, or None.
        weight: [all groups of the batch, measured or not], their real rows.
    """

    sq_norms: Any
    inner_products: Any
    square_sums: Any
    weight: jax.Array


def measure_rows(
    loss: Loss,
    params: ArrayTree,
    batch: ArrayTree,
    args: tuple,
    mask: Any,
    *,
    want: Want,
    group_size: int = 1,
    num_measured: int | None = None,
    direction: ArrayTree | None = None,
) -> tuple[tuple[jax.Array, Any], ArrayTree, RowMoments]:
    """``((loss, aux), grads, moments)``: the plain gradient, and what every example adds to it.

    Inner products are those with `direction`, or with the gradient, in the metric of the loss.
    """
    num_rows = count_rows(batch)
    check_params(params)
    check_local_params(params, batch)
    check_local_rows(batch)
    num_groups = num_rows // group_size
    num_measured = num_measured or num_groups
    dtype = _tree.scalar_dtype(params)
    weight = jnp.ones(num_rows, dtype)
    if mask is not None:
        weight = mask.astype(dtype)
        batch = replace_padding(batch, mask)
    sums = jnp.sum(weight)
    share = weight / jnp.where(sums > 0, sums, 1)
    of_groups = lambda x: jnp.sum(x.reshape(num_groups, group_size), axis=1)
    group_weight = of_groups(weight)
    group_share = of_groups(share)[:num_measured]
    real = group_share > 0
    inverse_share = jnp.where(real, 1 / jnp.where(real, group_share, 1), 0)

    traced = trace_loss(loss, params, batch, args)
    check_one_number(traced.closed)
    check_effects(traced.closed)
    leaves, structure = jax.tree.flatten(params)
    leaves = [jnp.asarray(leaf) for leaf in leaves]
    plan = make_plan(traced.closed, len(leaves), num_rows)
    check_plan(loss, plan)
    padding = None
    if mask is not None:
        padding = padding_of(loss, params, batch, args, traced.closed, plan, mask)
    along, given = "gradient", None
    if direction is not None or (loss.metric is not None and want.inner):
        along = "metric" if direction is None else "direction"
        given = jax.tree.leaves(loss.metric if direction is None else direction)
    setting = Setting(want, num_rows, group_size, num_measured, along)

    def whole_loss(plan: Plan, leaves: list, carriers: Carriers) -> tuple[jax.Array, list]:
        value, *aux = walk(
            traced.closed, plan, setting, carriers, share, padding, leaves, traced.data
        )
        return value, aux

    per_group = lambda wanted: jnp.zeros(num_measured, dtype) if wanted else None
    real_zeros = lambda x: jnp.zeros(x.shape, jnp.finfo(_tree.widen(x).dtype).dtype)
    carriers = Carriers(
        per_group(want.norm),
        per_group(want.inner),
        [real_zeros(x) for x in leaves] if want.coordinate else None,
        # Cotangents come scaled by the share of their group in the mean.
        group_weight[:num_measured] * inverse_share**2,
        given,
    )
    carriers = jax.tree.map(lambda zeros: vary_like(zeros, leaves[0]), carriers)
    if any(want):
        differentiate = jax.value_and_grad(whole_loss, argnums=(1, 2), has_aux=True)
        (value, aux), (grads, found) = _final(differentiate(plan, leaves, carriers), leaves)
    else:  # the program of the loss as it stands
        untapped = dataclasses.replace(plan, taps={}, roots=[], scans={}, parents={}, heads=set())
        differentiate = jax.value_and_grad(whole_loss, argnums=1, has_aux=True)
        (value, aux), grads = differentiate(untapped, leaves, carriers)
        found = carriers
    aux = jax.tree.unflatten(jax.tree.structure(traced.outputs), [value, *aux])[1]
    moments = RowMoments(
        found.sq_norms * inverse_share**2 if want.norm else None,
        found.inner_products * inverse_share if want.inner else None,
        jax.tree.unflatten(structure, found.squares) if want.coordinate else None,
        group_weight,
    )
    if mask is not None:
        value = jnp.where(sums > 0, value, jnp.nan)
    return (value, aux), jax.tree.unflatten(structure, grads), moments


@jax.custom_vjp
def _final(tree: Any, leaves: list) -> Any:
    """`tree`, which must not be differentiated in `leaves`: roots hide them from whoever tries."""
    return tree


def _refuse(saved: None, cotangents: Any) -> tuple:
    raise TypeError(
        "Expected what the exact method returns to be a result, got a derivative taken through it:"
        " it has no second derivatives. Measure with adaoptax.measure.per_example(), or"
        " differentiate loss_fn itself."
    )


_final.defvjp(lambda tree, leaves: (tree, None), _refuse)


class Traced(NamedTuple):
    """The loss of a batch.

    Attributes:
        closed: Jaxpr of the leaves of the parameters and of the batch.
        outputs: Structure of ``(loss, aux)``.
        data: The leaves of the batch.
    """

    closed: Any
    outputs: Any
    data: list[jax.Array]


def trace_loss(loss: Loss, params: ArrayTree, batch: ArrayTree, args: tuple) -> Traced:
    """Traces `loss` as it is called."""
    as_array = lambda x: x if hasattr(x, "dtype") else jnp.asarray(x)
    batch = jax.tree.map(as_array, batch)
    closed, outputs = trace(loss.of_trace(args), params, batch)
    return Traced(closed, outputs, jax.tree.leaves(batch))
