"""Gradients of n equal groups: accumulation on one device, side by side on many.

The groups of one device run one after another, in a loop that XLA sees as one. On the CPU this is
as fast as an unrolled loop, but for a few percent, or faster. It is 1.2 to 7 times faster than
`jax.vmap` over groups (for dense layers, whose stacked gradients are n times the model; alike where
a step takes less than a millisecond). And it alone has the memory of one group: XLA schedules the
groups of an unrolled loop together, with barriers between them or without. Convolutions, which were
20 to 60 times slower in a loop, are as fast as outside since `channels_last`. Other backends, on
which nothing was measured, run the same loop.

Two exceptions are the caller's to state: groups that lie on different devices run side by side
(`shards`), and a batch that does not fit on the device or has no largest size takes `micro_steps`.

``python -m benchmarks.groups`` measures this.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from adaoptax import _validate
from adaoptax._tree import ArrayTree
from adaoptax.measure.devices import Devices
from adaoptax.measure.exact.proof import check_mean
from adaoptax.measure.grouped import measure_groups
from adaoptax.measure.loss import Loss, Measured
from adaoptax.measure.moments import check_statistics
from adaoptax.measure.programs.convolutions import count_convolutions
from adaoptax.measure.rows import count_rows
from adaoptax.measure.shards import AXIS, add_up, measure_shards, shards_of


@dataclasses.dataclass(frozen=True)
class _Groups:
    n: int
    statistics: tuple[str, ...]
    shards: int | None = None
    centred: bool = False
    stop_early: bool = True

    def __call__(self, loss: Loss) -> Callable[..., Measured]:
        def measure(params: Any, batch: Any, args: tuple, mask: Any) -> Measured:
            num_rows = count_rows(batch)
            if num_rows % self.n:
                raise ValueError(
                    f"Expected a batch that divides in n={self.n} equal groups, got {num_rows}"
                    " examples: choose another n, or pad the batch and mask the padding."
                )
            check_mean(
                loss, params, batch, args, f"adaoptax.measure.groups({self.n})", num_rows // self.n
            )
            shards = self.shards or shards_of(batch, params, self.n)
            if shards > 1:
                each = dataclasses.replace(self, n=self.n // shards, shards=1, stop_early=False)
                side_by_side = Devices(AXIS, each, self.statistics, self.centred, add_up)
                return measure_shards(side_by_side(loss), loss, params, batch, args, mask, shards)
            return measure_groups(
                loss,
                params,
                batch,
                args,
                mask,
                num_groups=self.n,
                chunk_size=1,
                statistics=self.statistics,
                stop_early=self.stop_early,
            )

        return measure


def groups(
    n: int,
    statistics: tuple[str, ...] = ("norm",),
    *,
    shards: int | None = None,
    centred: bool = False,
) -> _Groups:
    r"""Measures the mean gradients of `n` contiguous groups, one after another.

    This is gradient accumulation that measures on its way, for one more reading of the gradient
    in each group; memory holds one group's activations and one running mean gradient. The estimate
    of the variance is unbiased for every `n`, with n − 1 degrees of freedom: relative standard
    deviation about :math:`\sqrt{2 / ((n - 1) d)}`, where :math:`d` is the effective dimension of
    the noise.

    The groups run in one loop (`jax.lax.scan`; with a mask one with a traced bound). On the CPU it
    takes what an unrolled loop takes, with the memory of one group, for convolutions too: these are
    transposed to the order in which XLA is fast inside of loops. For micro-batches that come one by
    one from the host see `micro_steps`.

    Each group goes through the loss as a real batch of B/n examples, so losses without
    per-example gradients are served: with BatchNorm in training mode each group is normalised
    by its own statistics, as in any accumulation.

    With a mask, rows of padding have no weight; the bound of the loop is the last group with a
    real row, so one compiled step serves every batch size up to its capacity. A group of padding
    only is not computed; one that holds some is weighed row by row, which needs a loss that is a
    mean of per-example losses.

    **On a mesh**, under plain `jax.jit` with a batch that is sharded over a data axis, the groups
    of different shards run side by side (those of one shard one after another), no row leaves its
    device, and the statistics add one float32 number to the all-reduce of the gradient. `n` should
    be a multiple of the shards. Everything that is said of one device holds within a shard;
    between shards all groups of a masked batch are computed, also those of padding, and the
    variance cancels as in `stats_from_axis`, unless `centred`.

    Args:
        n: Number of groups, at least 2; must divide the batch.
        statistics: ``("norm",)`` or ``("norm", "coordinate")``. Inner products of n group
            gradients have a relative standard deviation of :math:`\sqrt{2 / (n-1)}` in any
            dimension; measure those with `per_example`.
        shards: Groups that run side by side, a divisor of `n` and a multiple of the shards of the
            batch. None asks the batch: on an Explicit mesh its type tells; on an Auto mesh it is
            the largest divisor of `n` that divides the devices of the mesh, which holds up to
            that many gradients at once over all devices; give the size of the data axis if the
            mesh has other axes. Without a mesh it is 1. No choice changes the numbers.
        centred: Whether to spend a second, scalar all-reduce on a mesh, against cancellation.

    Returns:
        A method for `value_grad_and_stats`. It raises ValueError if the batch does not divide, or
        if `n` is no multiple of the shards of an Explicit mesh.

    Raises:
        ValueError: If `n` < 2, `shards` does not divide it, or a name in `statistics` is unknown.

    Examples:
        >>> import adaoptax, jax.numpy as jnp
        >>> measure = adaoptax.value_grad_and_stats(
        ...     lambda w, x: (x @ w).mean(), adaoptax.measure.groups(2))
        >>> rows = jnp.array([[1., 0.], [2., 2.], [3., 0.], [2., -2.]])
        >>> loss, grads, stats = measure(jnp.ones(2), rows)
        >>> float(stats.num_groups), float(stats.variance)
        (2.0, 5.0)
    """
    _validate.count(
        "n", n, 2, "one group cannot tell its noise; cut the batch in two groups or more."
    )
    if shards is not None and (shards < 1 or n % shards):
        raise ValueError(
            f"Expected shards to divide n={n}, got {shards=}: every shard holds n/shards groups."
        )
    check_statistics(statistics, ("norm", "coordinate"), "groups")
    return _Groups(int(n), tuple(statistics), shards, centred)


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
