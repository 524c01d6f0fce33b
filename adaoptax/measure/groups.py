"""Gradients of n equal groups, one after another: accumulation that measures on its way."""

import dataclasses
from collections.abc import Callable
from typing import Any

from adaoptax import _validate
from adaoptax.measure.grouped import measure_groups
from adaoptax.measure.loss import Loss, Measured
from adaoptax.measure.moments import check_statistics
from adaoptax.measure.rows import count_rows


@dataclasses.dataclass(frozen=True)
class _Groups:
    n: int
    statistics: tuple[str, ...]

    def __call__(self, loss: Loss) -> Callable[..., Measured]:
        def measure(params: Any, batch: Any, args: tuple, mask: Any) -> Measured:
            num_rows = count_rows(batch)
            if num_rows % self.n:
                raise ValueError(
                    f"Expected a batch that divides in n={self.n} equal groups, got {num_rows}"
                    " examples: choose another n, or pad the batch and mask the padding."
                )
            return measure_groups(
                loss,
                params,
                batch,
                args,
                mask,
                num_groups=self.n,
                chunk_size=1,
                statistics=self.statistics,
            )

        return measure


def groups(n: int, *, statistics: tuple[str, ...] = ("norm",)) -> _Groups:
    r"""Measures the mean gradients of `n` contiguous groups, one after another.

    This is gradient accumulation whose statistics come for free: memory holds one group's
    activations and one running mean gradient. The estimate of the variance is unbiased for
    every `n`, with n − 1 degrees of freedom: relative standard deviation about
    :math:`\sqrt{2 / ((n - 1) d)}`, where :math:`d` is the effective dimension of the noise.

    Each group goes through the loss as a real batch of B/n examples, so losses without
    per-example gradients are served: with BatchNorm in training mode each group is normalised
    by its own statistics, as in any accumulation.

    With a mask, rows of padding have no weight; the bound of the loop is the last group with a
    real row, so one compiled step serves every batch size up to its capacity. A group that holds
    padding is weighed row by row, which needs a loss that is a mean of per-example losses.

    Args:
        n: Number of groups, at least 2; must divide the batch.
        statistics: ``("norm",)`` or ``("norm", "coordinate")``. Inner products of n group
            gradients have a relative standard deviation of :math:`\sqrt{2 / (n-1)}` in any
            dimension; measure those with `per_example`.

    Returns:
        A method for `value_grad_and_stats`. It raises ValueError if the batch does not divide.

    Raises:
        ValueError: If `n` < 2 or a name in `statistics` is unknown.

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
    check_statistics(statistics, ("norm", "coordinate"), "groups")
    return _Groups(int(n), tuple(statistics))
