"""Exact per-example moments of a loss: trace, plan, walk, differentiate."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from adaoptax import _tree
from adaoptax._tree import ArrayTree
from adaoptax.measure.aux import combine_aux
from adaoptax.measure.exact.arguments import (
    check_effects,
    check_local_params,
    check_local_rows,
    check_one_number,
    check_params,
)
from adaoptax.measure.exact.factors import Want
from adaoptax.measure.exact.mixing import check_separable
from adaoptax.measure.exact.planning import make_plan
from adaoptax.measure.exact.roots import Carriers
from adaoptax.measure.exact.sums import Setting
from adaoptax.measure.exact.walk import walk
from adaoptax.measure.loss import Loss
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
) -> tuple[tuple[jax.Array, Any], ArrayTree, RowMoments]:
    """``((loss, aux), grads, moments)``: the plain gradient, and what every example adds to it."""
    num_rows = count_rows(batch)
    check_params(params)
    check_local_params(params, batch)
    check_local_rows(batch)
    if num_rows > 1:
        check_separable(loss, params, batch, args)
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

    traced = trace_example(loss, params, batch, loss.split_keys(args, num_rows))
    check_one_number(traced.closed)
    check_effects(traced.closed)
    leaves, structure = jax.tree.flatten(params)
    leaves = [jnp.asarray(leaf) for leaf in leaves]
    plan = make_plan(traced.closed, len(leaves))
    setting = Setting(want, num_rows, group_size, num_measured)

    def mean_loss(leaves: list, carriers: Carriers) -> tuple[jax.Array, list]:
        values, *aux = walk(traced.closed, plan, setting, carriers, leaves, traced.data)
        return jnp.sum(share.astype(values.dtype) * values), aux

    per_group = lambda wanted: jnp.zeros(num_measured, dtype) if wanted else None
    real_zeros = lambda x: jnp.zeros(x.shape, jnp.finfo(_tree.widen(x).dtype).dtype)
    carriers = Carriers(
        per_group(want.norm),
        per_group(want.inner),
        [real_zeros(x) for x in leaves] if want.coordinate else None,
        # Cotangents come scaled by the share of their group in the mean.
        group_weight[:num_measured] * inverse_share**2,
    )
    carriers = jax.tree.map(lambda zeros: vary_like(zeros, leaves[0]), carriers)
    differentiate = jax.value_and_grad(mean_loss, argnums=(0, 1), has_aux=True)
    (value, aux), (grads, found) = _final(differentiate(leaves, carriers))
    aux = jax.tree.unflatten(jax.tree.structure(traced.outputs), [value, *aux])[1]
    if loss.has_aux:
        whole = jax.eval_shape(lambda p, b: loss(p, b, args), params, batch)[1]
        aux = combine_aux(aux, weight, 1, num_rows, whole)
    moments = RowMoments(
        found.sq_norms * inverse_share**2 if want.norm else None,
        found.inner_products * inverse_share if want.inner else None,
        jax.tree.unflatten(structure, found.squares) if want.coordinate else None,
        group_weight,
    )
    value = jnp.where(sums > 0, value, jnp.nan)
    return (value, aux), jax.tree.unflatten(structure, grads), moments


@jax.custom_vjp
def _final(tree: Any) -> Any:
    """`tree`, which must not be differentiated: roots hide the parameters from whoever tries."""
    return tree


def _refuse(saved: None, cotangents: Any) -> tuple:
    raise TypeError(
        "Expected what the exact method returns to be a result, got a derivative taken through it:"
        " it has no second derivatives. Measure with adaoptax.measure.per_example(), or"
        " differentiate loss_fn itself."
    )


_final.defvjp(lambda tree: (tree, None), _refuse)


class Traced(NamedTuple):
    """The loss of one example.

    Attributes:
        closed: Jaxpr of the leaves of the parameters, of one row of the batch and of its keys.
        outputs: Structure of ``(loss, aux)``.
        data: The rows and keys of all examples, one array for each input after the parameters.
    """

    closed: Any
    outputs: Any
    data: list[jax.Array]


def trace_example(loss: Loss, params: ArrayTree, batch: ArrayTree, args: tuple) -> Traced:
    """Traces `loss` on a batch of one row; `args` hold one key for each row."""
    is_key = loss.is_key(args)
    keys = [arg for arg, key in zip(args, is_key, strict=True) if key]
    shared = [arg for arg, key in zip(args, is_key, strict=True) if not key]

    def of_one(params: ArrayTree, row: ArrayTree, keys: list) -> tuple[jax.Array, Any]:
        rest = {True: iter(keys), False: iter(shared)}
        one = jax.tree.map(lambda x: x[None], row)
        value, aux = loss(params, one, tuple(next(rest[key]) for key in is_key))
        return value, aux

    as_array = lambda x: x if hasattr(x, "dtype") else jnp.asarray(x)
    rows = jax.tree.map(as_array, (batch, keys))
    traced: list[tuple] = []

    def on_row(params: ArrayTree, row: ArrayTree, keys: list) -> int:
        traced.append(jax.make_jaxpr(of_one, return_shape=True)(params, row, keys))
        return 0

    # Under vmap a row has the type that it will have in the walk: on its mesh, with its devices.
    jax.eval_shape(jax.vmap(on_row, (None, 0, 0), None), params, *rows)
    ((closed, outputs),) = traced
    return Traced(closed, outputs, jax.tree.leaves(rows))
