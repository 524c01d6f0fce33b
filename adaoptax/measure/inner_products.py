"""The variance of inner products with the mean gradient, by one jvp beside any other method."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from adaoptax._tree import ArrayTree
from adaoptax.measure.devices import Devices, keys_of_device
from adaoptax.measure.directional import products_of_rows
from adaoptax.measure.gradient_only import gradient_of_rows, without_noise
from adaoptax.measure.loss import Loss, Measured, Method, check_method
from adaoptax.measure.moments import in_metric
from adaoptax.measure.rows import check_mask, count_rows
from adaoptax.measure.varying import axes_of


@dataclasses.dataclass(frozen=True)
class _InnerProducts:
    variance: Method | None

    def __call__(self, loss: Loss) -> Callable[..., Measured]:
        def measure(params: Any, batch: Any, args: tuple, mask: Any) -> Measured:
            num_rows = count_rows(batch)
            if num_rows < 2:
                raise ValueError(
                    f"Expected a batch of at least 2 examples, got {num_rows}: the noise is what"
                    " differs between examples, so one example cannot tell it."
                )
            if self.variance is None:
                out, grads, weights = gradient_of_rows(loss, params, batch, args, mask)
                totals = weights.totals()
                stats = without_noise(grads, totals.num_examples, totals.num_groups, loss.metric)
            else:
                out, grads, stats = self.variance(loss)(params, batch, args, mask)
            add_up = lambda tree: tree
            if isinstance(self.variance, Devices):
                axes = axes_of(self.variance.axis_name)
                add_up = lambda tree: jax.lax.psum(tree, axes)
                args = keys_of_device(loss, args, axes)
            direction = in_metric(grads, loss.metric)
            products = products_of_rows(loss, params, batch, direction, args, mask)
            weight = jnp.ones(num_rows) if mask is None else check_mask(mask, num_rows)
            variance = variance_of_rows(products, weight.astype(products.dtype), add_up)
            return out, grads, stats._replace(inner_product_variance=variance)

        return measure


def variance_of_rows(
    products: jax.Array, weight: jax.Array, add_up: Callable[[ArrayTree], ArrayTree]
) -> jax.Array:
    """Unbiased variance of the `products` of rows; `add_up` sums over devices, if there are any."""
    sums = (jnp.sum(weight), jnp.sum(weight > 0), jnp.sum(weight * products))
    total, count, moment = add_up(sums)
    total = jnp.where(total > 0, total, 1)
    deviation = products - moment / total
    scatter, freedom = add_up(
        (jnp.sum(weight * deviation**2), jnp.sum(weight * (1 - weight / total)))
    )
    # Weights of very unequal size leave no freedom but rounding.
    enough = (count > 1) & (freedom > 16 * jnp.finfo(weight.dtype).eps * total)
    return jnp.where(enough, scatter / jnp.where(enough, freedom, 1), jnp.nan)


def inner_products(variance: Method | None) -> _InnerProducts:
    r"""Measures :math:`\langle g_i, g \rangle` of every example by one jvp, the rest as told.

    For the inner-product tests, whose :math:`V_{ip}` has B − 1 degrees of freedom then and not
    those of a few groups: one forward-mode pass along the mean gradient (see `directional`) beside
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
