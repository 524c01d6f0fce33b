"""Measuring a batch that lies on many devices, one micro-batch after another."""

from collections.abc import Callable
from typing import Any

import jax

import adaoptax


def measure_micro_batches(
    loss_fn: Callable[..., jax.Array], num_micro_batches: int, micro_batch_size: int
) -> Callable[..., Any]:
    """Loss, gradient and statistics of a batch whose leaves are [micro-batches, rows, ...].

    `measure.groups` takes one contiguous group after another. Rows that lie on many devices must
    not be cut that way: a group would lie on a few devices only, and be gathered. Here the axis of
    groups is one that is not sharded, and the rows of every micro-batch lie on all devices
    (`adaoptax.global_batch(..., num_groups=...)` builds that), so that nothing but gradients moves:
    one sum over devices for each micro-batch, as in any accumulation whose parts must be known.

    Args:
        loss_fn: ``loss_fn(params, rows, *args)``, the mean loss over the rows.
        num_micro_batches: Most micro-batches of a batch; what is padding only costs nothing.
        micro_batch_size: Rows of a micro-batch, on all devices.

    Returns:
        ``f(params, batch, *args)`` → ``(loss, grads, stats)``. Micro-batches that hold padding are
        left out: give the loader no end (``num_epochs=None``), so that there are none in part.
    """

    def loss_of_one(params: Any, micro_batches: Any, *args: Any) -> jax.Array:
        return loss_fn(params, jax.tree.map(lambda x: x[0], micro_batches), *args)

    method = adaoptax.measure.groups(num_micro_batches)
    measure = adaoptax.value_grad_and_stats(loss_of_one, method)

    def measured(params: Any, batch: adaoptax.Batch, *args: Any) -> Any:
        loss, grads, stats = measure(params, batch.data, *args, mask=batch.mask.all(axis=1))
        # What was an example to `measure` is the mean of a micro-batch: m times less variance.
        in_examples = stats._replace(
            num_examples=micro_batch_size * stats.num_examples,
            variance=micro_batch_size * stats.variance,
        )
        return loss, grads, in_examples

    return measured
