"""The variance of inner products with the mean gradient, by one jvp beside any other method."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from adaoptax.measure.devices import Devices, keys_of_device
from adaoptax.measure.exact.proof import check_mean
from adaoptax.measure.gradient_only import gradient_of_rows, without_noise
from adaoptax.measure.loss import Loss, Measured, Method, check_method
from adaoptax.measure.moments import in_metric
from adaoptax.measure.row_products import products_of_rows, variance_of_rows
from adaoptax.measure.rows import check_two, count_rows
from adaoptax.measure.varying import axes_of


@dataclasses.dataclass(frozen=True)
class _InnerProducts:
    variance: Method | None

    def __call__(self, loss: Loss) -> Callable[..., Measured]:
        loss.check_has_examples("adaoptax.measure.inner_products")

        def measure(params: Any, batch: Any, args: tuple, mask: Any) -> Measured:
            check_two(count_rows(batch))
            check_mean(loss, params, batch, args, "adaoptax.measure.inner_products", 1)
            if self.variance is None:
                out, grads, weight = gradient_of_rows(loss, params, batch, args, mask)
                count = jnp.sum(weight)
                stats = without_noise(grads, count, count, loss.metric)
            else:
                out, grads, stats = self.variance(loss)(params, batch, args, mask)
            add_up = lambda tree: tree
            if isinstance(self.variance, Devices):
                axes = axes_of(self.variance.axis_name)
                add_up = lambda tree: jax.lax.psum(tree, axes)
                args = keys_of_device(loss, args, axes)
            direction = in_metric(grads, loss.metric)
            products = products_of_rows(loss, params, batch, direction, args, mask)
            variance = variance_of_rows(products, mask, add_up)
            return out, grads, stats._replace(inner_product_variance=variance)

        return measure


def inner_products(variance: Method | None) -> _InnerProducts:
    r"""Measures :math:`\langle g_i, g \rangle` of every example by one jvp, the rest as told.

    For the inner-product tests, whose :math:`V_{ip}` has B − 1 degrees of freedom then and not
    those of a few groups: one forward-mode pass along the mean gradient beside
    whatever measures `variance`. No gradient of any example is formed.

    Args:
        variance: The method that takes the gradient and measures :math:`S^2`, for example
            ``groups(8)``, or ``devices(axis_name)``, whose products are then pooled over the axis.
            None takes the gradient alone, which shares its forward pass with the jvp: the cheapest,
            and enough for ``inner_product_test(signal="plug-in")``; `stats.variance` is NaN, so
            that every test which needs it keeps its requirement and counts itself undefined.

    Returns:
        A method for `value_grad_and_stats` for losses that are means over examples. It raises
        ValueError for a batch of one example. With random keys the products are of the draws that
        `per_example` takes; so is the mean gradient if `variance` is None.

    Raises:
        TypeError: If `variance` is not a method of `adaoptax.measure`.

    Examples:
        >>> import adaoptax, jax.numpy as jnp
        >>> from adaoptax.measure import groups, inner_products
        >>> measure = adaoptax.value_grad_and_stats(
        ...     lambda w, x: (x @ w).mean(), inner_products(groups(2)))
        >>> rows = jnp.array([[1., 0.], [2., 2.], [3., 0.], [2., -2.]])
        >>> loss, grads, stats = measure(jnp.ones(2), rows)
        >>> float(stats.variance), round(float(stats.inner_product_variance), 4)
        (5.0, 2.6667)
    """
    if variance is not None:
        check_method("variance", variance)
    return _InnerProducts(variance)
