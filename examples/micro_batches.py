"""Measuring a batch that lies on many devices, one micro-batch after another."""

from collections.abc import Callable
from typing import Any

import jax

import adaoptax


def measure_micro_batches(
    loss_fn: Callable[..., jax.Array], num_micro_batches: int, micro_batch_size: int
) -> Callable[..., Any]:
    """Loss, gradient and statistics of a batch whose leaves are [micro-batches, rows, ...].

    On a batch whose rows are cut over devices `measure.groups` runs one group on each device, and
    the whole gradient of each exists there. Here a group is a micro-batch that lies on all devices
    (`adaoptax.global_batch(..., num_groups=...)` builds that), and the axis of groups is not cut:
    micro-batches follow each other, the loop ends with the last real one whatever the padding, and
    gradients appear summed and cut like their parameters. The price is one sum over devices for
    each micro-batch instead of one for all (`measure.devices` needs one).

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

    method = adaoptax.measure.groups(num_micro_batches, shards=1)
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
