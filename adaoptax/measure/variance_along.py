"""The variance of all examples' gradients along one direction, by one jvp."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from adaoptax._tree import ArrayTree
from adaoptax.measure.directional import directional
from adaoptax.measure.inner_products import variance_of_rows
from adaoptax.measure.rows import check_mask


def variance_along(
    loss_fn: Callable[..., Any],
    params: ArrayTree,
    batch: ArrayTree,
    direction: ArrayTree,
    *args: Any,
    has_aux: bool = False,
    key_argnums: int | Sequence[int] = (),
    mask: ArrayLike | None = None,
) -> jax.Array:
    r"""The unbiased variance over examples of the inner product with `direction`.

    .. math:: \frac{1}{B - 1} \sum_i \left( \langle g_i, v \rangle - \langle g, v \rangle \right)^2

    Along the mean gradient this is `inner_product_variance`; along a complete update it is what
    ``proximal_inner_product_test`` decides by.

    Args:
        loss_fn: As in `directional`.
        params: As in `directional`.
        batch: As in `directional`.
        direction: As in `directional`.
        *args: What else `loss_fn` takes.
        has_aux: As in `directional`.
        key_argnums: As in `directional`.
        mask: [B], weights of the rows, zero for padding.

    Returns:
        A scalar, float32 or wider; NaN for fewer than two real examples.

    Raises:
        ValueError: As `directional` does.

    Examples:
        >>> import jax.numpy as jnp
        >>> from adaoptax.measure import variance_along
        >>> rows = jnp.array([[1., 0.], [3., 0.], [2., 2.], [2., -2.]])  # per-example gradients
        >>> along = lambda v: variance_along(lambda w, x: (x @ w).mean(), jnp.ones(2), rows, v)
        >>> [round(float(along(v)), 3) for v in (jnp.array([2., 0.]), jnp.array([0., 1.]))]
        [2.667, 2.667]
    """
    products = directional(
        loss_fn, params, batch, direction, *args,
        has_aux=has_aux, key_argnums=key_argnums, mask=mask,
    )  # fmt: skip
    num_rows = products.shape[0]
    weight = jnp.ones(num_rows) if mask is None else check_mask(mask, num_rows)
    return variance_of_rows(products, weight.astype(products.dtype), lambda sums: sums)
