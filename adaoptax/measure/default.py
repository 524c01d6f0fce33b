"""What ``method=None`` stands for: the cheapest good statistics of this loss on this batch.

| the batch                               | method      | why                      |
| --------------------------------------- | ----------- | ------------------------ |
| masked                                  | `groups(n)` | padding is skipped       |
| on a mesh of several devices            | `groups(n)` | a group a device is free |
| of a loss of kind ``"ghost"``           | `groups(n)` | it has no examples       |
| of a loss for which `exact` is cheap    | `exact()`   | B − 1 degrees of freedom |
| otherwise                               | `groups(n)` | memory of one group      |

with the largest n ≤ 8 that divides the batch. `exact` is cheap if its work is at most a tenth of
the gradient's, and its memory at most that of the parameters or 64 MiB. A loss of kind
``"separable"`` that is seen not to be is refused, whichever method would be taken: the mean of
what its groups return is another function.
"""

import math
from typing import Any

import jax

from adaoptax._tree import ArrayTree
from adaoptax.measure.exact.explain import explain_loss
from adaoptax.measure.exact.method import exact
from adaoptax.measure.exact.mixing import check_separable
from adaoptax.measure.groups import groups
from adaoptax.measure.loss import Loss, Method
from adaoptax.measure.rows import count_rows
from adaoptax.measure.shards import shards_of
from adaoptax.measure.varying import varying_axes

_WORK = 1.1
_BYTES = 64 * 2**20


def default_method(
    loss: Loss, params: ArrayTree, batch: ArrayTree, args: tuple, mask: Any
) -> Method:
    """Chooses by shapes alone, so that the choice is made once for each compilation."""
    num_rows = count_rows(batch)
    divisors = [n for n in range(2, 9) if num_rows % n == 0]
    manual = any(varying_axes(leaf) for leaf in jax.tree.leaves(batch))
    if num_rows > 1 and not manual and loss.kind == "separable":
        check_separable(loss, params, batch, args)
    one_device = not manual and shards_of(batch, params, math.gcd(num_rows, 2**20)) == 1
    has_examples = num_rows > 1 and loss.kind != "ghost"
    if mask is None and one_device and has_examples and _exact_is_cheap(loss, params, batch, args):
        return exact()
    if not divisors:
        raise ValueError(
            f"Expected a batch that divides in 2 to 8 groups for method=None, got {num_rows}"
            " examples: pass method=adaoptax.measure.per_example(), or pad the batch and mask it."
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
