"""What ``method=None`` stands for: the cheapest good statistics of this loss on this batch.

| the batch                               | method      | why                      |
| --------------------------------------- | ----------- | ------------------------ |
| masked                                  | `groups(n)` | padding is skipped       |
| on a mesh of several devices            | `groups(n)` | a group a device is free |
| of a loss of kind ``"ghost"``           | `groups(n)` | it has no examples       |
| of a loss for which `exact` is cheap    | `exact()`   | B − 1 degrees of freedom |
| of a loss that is no mean of its parts  | `exact()`   | groups would change it   |
| otherwise                               | `groups(n)` | memory of one group      |

with the largest n ≤ 8 that divides the batch. `exact` is cheap if its work is at most a tenth of
the gradient's, and its memory at most that of the parameters or 64 MiB. Either method refuses a
loss of which it is not proved that it may be measured so. So is a
batch of which every device holds its own part: what it would measure is that of one device, and
only the user knows over which axis to pool.
"""

import math
from typing import Any

import jax

from adaoptax._tree import ArrayTree
from adaoptax.measure.exact.explain import explain_loss
from adaoptax.measure.exact.method import exact
from adaoptax.measure.exact.proof import is_mean
from adaoptax.measure.groups import groups
from adaoptax.measure.loss import Loss, Method
from adaoptax.measure.rows import count_rows
from adaoptax.measure.shards import shards_of
from adaoptax.measure.varying import axes_apart

_WORK = 1.1
_BYTES = 64 * 2**20

APART = """\
Expected a method inside jax.pmap or jax.shard_map over the axes {axes}, got method=None: every \
device would measure its own rows, and devices would drift apart. Pass \
method=adaoptax.measure.devices({axis!r}, adaoptax.measure.exact()), which pools gradient and \
statistics, or call value_grad_and_stats outside, under plain jax.jit."""


def default_method(
    loss: Loss, params: ArrayTree, batch: ArrayTree, args: tuple, mask: Any
) -> Method:
    """Chooses by shapes alone, so that the choice is made once for each compilation."""
    num_rows = count_rows(batch)
    divisors = [n for n in range(2, 9) if num_rows % n == 0]
    if apart := axes_apart((params, batch)):
        axes = tuple(sorted(apart))
        raise ValueError(APART.format(axes=axes, axis=axes[0] if len(axes) == 1 else axes))
    one_device = shards_of(batch, params, math.gcd(num_rows, 2**20)) == 1
    has_examples = num_rows > 1 and loss.kind != "ghost"
    described = (loss, params, batch, args)
    part = num_rows // divisors[-1] if divisors else num_rows
    may_be_exact = mask is None and one_device and has_examples
    if may_be_exact and (_exact_is_cheap(*described) or not is_mean(*described, part)):
        return exact()
    if not divisors:
        cure = "pass method=adaoptax.measure.per_example(), or pad the batch and mask it"
        if loss.kind == "ghost":
            cure = "pass method=adaoptax.measure.groups(n) and a batch that n divides"
        raise ValueError(
            f"Expected a batch that divides in 2 to 8 groups for method=None, got {num_rows}"
            f" examples: {cure}."
        )
    return groups(divisors[-1])


def _exact_is_cheap(loss: Loss, params: ArrayTree, batch: ArrayTree, args: tuple) -> bool:
    # In a metric exact takes the variance coordinate by coordinate.
    wanted = "norm" if loss.metric is None else "coordinate"
    try:
        predicted = explain_loss(loss, params, batch, args, (wanted,))
    except (TypeError, ValueError):
        # What exact cannot follow has groups of the same mean; a broken loss breaks there too.
        return False
    size = 4 * sum(math.prod(jax.numpy.shape(leaf)) for leaf in jax.tree.leaves(params))
    return predicted.time_ratio <= _WORK and predicted.bytes <= max(size, _BYTES)
