"""How `groups` runs its groups, and why: one rule, measured by ``python -m benchmarks.groups``.

The groups of one device run one after another, in a loop that XLA sees as one. On the CPU this is
as fast as an unrolled loop, but for a few percent, or faster. It is 1.2 to 7 times faster than
`jax.vmap` over groups (for dense layers, whose stacked gradients are n times the model; alike where
a step takes less than a millisecond). And it alone has the memory of one group: XLA schedules the
groups of an unrolled loop together, with barriers between them or without. Convolutions, which were
20 to 60 times slower in a loop, are as fast as outside since `channels_last`. Other backends, on
which nothing was measured, run the same loop.

Two exceptions are the caller's to state: groups that lie on different devices run side by side
(`shards`), and a batch that does not fit on the device or has no largest size takes `micro_steps`.
"""

from typing import NamedTuple

import jax

from adaoptax._tree import ArrayTree
from adaoptax.measure.convolutions import count_convolutions
from adaoptax.measure.loss import Loss
from adaoptax.measure.shards import shards_of


class Loop(NamedTuple):
    """How groups run.

    Attributes:
        kind: ``"scan"``, one after another; ``"vmap"``, side by side; or ``"vmap of scan"``.
        reason: One line on why, and on what it does to convolutions.
    """

    kind: str
    reason: str


def loop_of_groups(
    loss: Loss, params: ArrayTree, batch: ArrayTree, args: tuple, n: int, shards: int | None = None
) -> Loop:
    """How ``groups(n, shards=shards)`` runs for these arguments; nothing is computed."""
    shards = shards or shards_of(batch, params, n)
    each = n // shards
    if shards == 1:
        kind, reason = "scan", f"{n} groups one after another, with the memory of one"
    elif each == 1:
        kind, reason = "vmap", f"{n} groups side by side, one a shard"
    else:
        kind = "vmap of scan"
        reason = f"{shards} shards side by side, in each {each} groups one after another"
    gradient = jax.grad(lambda p, b: loss(p, b, args)[0])
    convolutions = count_convolutions(gradient, params, batch)
    if convolutions:
        reason += f"; {convolutions} convolutions with channels last on the CPU"
    return Loop(kind, reason)
