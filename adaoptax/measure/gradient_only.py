"""The mean gradient alone, as a training loop without this library takes it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from adaoptax import _tree
from adaoptax._tree import ArrayTree
from adaoptax.measure.exact.proof import check_mean
from adaoptax.measure.grouped import weighted_loss
from adaoptax.measure.loss import Loss, Measured
from adaoptax.measure.part_of_batch import check_one_row
from adaoptax.measure.rows import count_rows, replace_padding
from adaoptax.stats import GradientStats

GHOST = """\
Expected mask=None between the measured steps of adaoptax.measure.every with loss_kind="ghost", \
got a mask: the plain gradient of a padded batch weighs single rows, and such a loss has none. \
Pass between=adaoptax.measure.groups(n) to every, whose groups are batches of their own."""


class GradientOnly:
    """The method that measures no noise: zero groups, and a variance of NaN."""

    def __call__(self, loss: Loss) -> Callable[..., Measured]:
        """Returns the function that differentiates `loss`."""

        def measure(params: Any, batch: Any, args: tuple, mask: Any) -> Measured:
            if mask is None:
                whole = lambda p: loss(p, batch, args)
                out, grads = jax.value_and_grad(whole, has_aux=True)(params)
                num_examples: Any = count_rows(batch)
            else:
                if loss.kind == "ghost":
                    raise ValueError(GHOST)
                out, grads, weight = gradient_of_rows(loss, params, batch, args, mask)
                num_examples = jnp.sum(weight)
            return out, grads, without_noise(grads, num_examples, 0, loss.metric)

        return measure


def gradient_of_rows(
    loss: Loss, params: ArrayTree, batch: ArrayTree, args: tuple, mask: Any
) -> tuple[tuple[jax.Array, Any], ArrayTree, jax.Array]:
    """``((loss, aux), grads, weight [B])`` of a mean over real rows, each a batch of one."""
    check_mean(loss, params, batch, args, "single rows", 1)
    check_one_row(loss, params, batch, args)
    num_rows = count_rows(batch)
    weight = jnp.ones(num_rows, _tree.scalar_dtype(params))
    if mask is not None:
        weight = mask.astype(weight.dtype)
        batch = replace_padding(batch, mask)
    weighted = lambda p: weighted_loss(loss, p, batch, weight, args)
    (value, aux), grads = jax.value_and_grad(weighted, has_aux=True)(params)
    if mask is not None:  # of padding only, not even the loss of zero weight may hold garbage
        any_real = jnp.any(mask)
        value = jnp.where(any_real, value, jnp.nan)
        grads = jax.tree.map(lambda g: jnp.where(any_real, g, 0), grads)
    return (value, aux), grads, weight


def without_noise(
    grads: ArrayTree, num_examples: Any, num_groups: Any, metric: ArrayTree | None
) -> GradientStats:
    """Statistics of a gradient whose noise is not known."""
    dtype = _tree.scalar_dtype(grads)
    scalar = lambda number: jnp.asarray(number, dtype)
    sq_norm = _tree.sq_norm(grads, metric).astype(dtype)
    return GradientStats(scalar(num_examples), scalar(num_groups), sq_norm, scalar(jnp.nan))
