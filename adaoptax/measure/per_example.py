"""Per-example gradients by vmap: the reference, exact for every loss and never the cheapest."""

import dataclasses
from collections.abc import Callable
from typing import Any

from adaoptax import _validate
from adaoptax.measure.exact.proof import check_mean
from adaoptax.measure.grouped import measure_groups
from adaoptax.measure.loss import Loss, Measured
from adaoptax.measure.moments import OF_STACKED_GRADIENTS, check_statistics
from adaoptax.measure.rows import check_two, count_rows


@dataclasses.dataclass(frozen=True)
class _PerExample:
    chunk_size: int | None
    statistics: tuple[str, ...]

    def __call__(self, loss: Loss) -> Callable[..., Measured]:
        loss.check_has_examples("adaoptax.measure.per_example")

        def measure(params: Any, batch: Any, args: tuple, mask: Any) -> Measured:
            num_rows = count_rows(batch)
            check_two(num_rows)
            check_mean(loss, params, batch, args, "adaoptax.measure.per_example", 1)
            return measure_groups(
                loss,
                params,
                batch,
                args,
                mask,
                num_groups=num_rows,
                chunk_size=min(self.chunk_size or num_rows, num_rows),
                statistics=self.statistics,
            )

        return measure


def per_example(
    chunk_size: int | None = None, statistics: tuple[str, ...] = ("norm", "inner")
) -> _PerExample:
    r"""Measures every example's own gradient with `jax.vmap`.

    The reference that all other ways are checked against. The loss is called on batches of **one**
    row, so a loss whose examples meet (BatchNorm in training mode, contrastive losses) has no
    per-example gradient: measure such a loss with `groups`, whose parts are real small batches.

    Args:
        chunk_size: Examples differentiated at once; None for the whole batch. Memory holds
            `chunk_size` gradients. With chunks the inner products take a second pass, since the
            mean gradient is known only after the first.
        statistics: What to compute: any of ``"norm"`` (always), ``"inner"``, ``"coordinate"`` and
            ``"leave-one-out"`` (inner products with the mean of the *other* examples).

    Returns:
        A method for `value_grad_and_stats`. It raises ValueError for a batch of one example.

    Raises:
        ValueError: If `chunk_size` < 1 or a name in `statistics` is unknown.

    Examples:
        >>> import adaoptax, jax.numpy as jnp
        >>> measure = adaoptax.value_grad_and_stats(
        ...     lambda w, x: (x @ w).mean(), adaoptax.measure.per_example())
        >>> rows = jnp.array([[1., 0.], [3., 0.], [2., 2.], [2., -2.]])
        >>> loss, grads, stats = measure(jnp.ones(2), rows)
        >>> float(stats.num_groups), round(float(stats.inner_product_variance), 4)
        (4.0, 2.6667)
    """
    if chunk_size is not None:
        _validate.count("chunk_size", chunk_size, 1, "it counts examples differentiated at once.")
    check_statistics(statistics, OF_STACKED_GRADIENTS, "per_example")
    return _PerExample(None if chunk_size is None else int(chunk_size), tuple(statistics))
