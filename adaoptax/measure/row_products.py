r"""Inner products of every example's gradient with one direction, without those gradients.

The derivative of the losses of B examples along :math:`v` is all :math:`\langle g_i, v \rangle` at
once. Forward mode carries it through the model beside the losses, with parameters and direction
shared by all examples: about two forward passes, no backward one, no gradient of any example
(Baydin et al., `Gradients without Backpropagation <https://arxiv.org/abs/2202.08587>`_, 2022).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from adaoptax import _tree
from adaoptax._tree import ArrayTree
from adaoptax.measure.loss import Loss
from adaoptax.measure.rows import checked_mask, replace_padding
from adaoptax.stats import unbiased


def products_of_rows(
    loss: Loss, params: ArrayTree, batch: ArrayTree, direction: ArrayTree, args: tuple, mask: Any
) -> jax.Array:
    """Re⟨g_i, direction⟩ for each row: [B]."""
    if mask is not None:
        batch = replace_padding(batch, mask)
    # The derivative along u is Re Σ g·u for what jax.grad calls g: conjugate for ⟨g, v⟩.
    tangent = jax.tree.map(jnp.conj, like(params, direction))
    losses = lambda p: loss.of_rows(p, batch, args)[0]
    products = jax.jvp(losses, (params,), (tangent,))[1]
    products = products.astype(_tree.scalar_dtype(params))
    return products if mask is None else jnp.where(mask, products, 0)


def variance_of_rows(
    products: jax.Array,
    mask: jax.Array | None,
    add_up: Callable[[ArrayTree], ArrayTree] = lambda sums: sums,
) -> jax.Array:
    """Unbiased variance of the `products` of real rows; `add_up` sums over devices, if any."""
    weight = jnp.ones_like(products) if mask is None else mask.astype(products.dtype)
    count, total = add_up((jnp.sum(weight), jnp.sum(weight * products)))
    mean = total / jnp.where(count > 0, count, 1)
    return unbiased(add_up(jnp.sum(weight * (products - mean) ** 2)), count)


def like(params: ArrayTree, direction: ArrayTree) -> ArrayTree:
    """`direction` in the dtypes of `params`; ValueError where shapes or structures differ."""
    kind: Any = lambda tree: (
        jax.tree.structure(tree),
        [np.shape(x) for x in jax.tree.leaves(tree)],
    )
    if kind(direction) != kind(params):
        shapes = lambda tree: jax.tree.map(np.shape, tree)
        raise ValueError(
            f"Expected direction to be shaped like params, {shapes(params)}, got direction of"
            f" {shapes(direction)}: pass a gradient or an update of these parameters."
        )
    return jax.tree.map(lambda p, v: jnp.asarray(v).astype(jnp.result_type(p)), params, direction)


def leave_one_out(
    inner_products: ArrayLike, sq_norms: ArrayLike, *, mask: ArrayLike | None = None
) -> jax.Array:
    r"""Inner product of every example's gradient with the mean of the **others**.

    .. math:: \langle g_i, g_{-i} \rangle
        = \frac{B \langle g_i, g \rangle - \lVert g_i \rVert^2}{B - 1}, \qquad
        g_{-i} = \frac{1}{B - 1} \sum_{k \ne i} g_k

    :math:`\langle g_i, g \rangle` holds the example's own square and is positive on pure noise;
    here nothing of itself is left: the mean over examples is :math:`\lVert \nabla F \rVert^2`
    without bias, equal to `signal`, and an example with a negative value is one that the step of
    the others makes worse.

    Args:
        inner_products: [B], :math:`\langle g_i, g \rangle` with the mean gradient.
        sq_norms: [B], :math:`\lVert g_i \rVert^2`.
        mask: [B], False for padding.

    Returns:
        [B], float32 or wider; 0 for padding, NaN if there is only one real example.

    Raises:
        ValueError: If shapes differ, or there is only one example.

    Examples:
        >>> import jax.numpy as jnp
        >>> from adaoptax import measure
        >>> rows = jnp.array([[1., 0.], [3., 0.], [2., 2.], [2., -2.]])  # per-example gradients
        >>> products = measure.leave_one_out(rows @ rows.mean(0), (rows**2).sum(1))
        >>> [round(float(p), 3) for p in products]
        [2.333, 5.0, 2.667, 2.667]
    """
    if np.ndim(inner_products) != 1 or np.shape(inner_products) != np.shape(sq_norms):
        raise ValueError(
            "Expected inner_products and sq_norms of one shape [B], got shapes"
            f" {np.shape(inner_products)} and {np.shape(sq_norms)}: give one of each an example."
        )
    products, squares = _tree.widen(inner_products), _tree.widen(sq_norms)
    num_rows = products.shape[0]
    if num_rows < 2:
        raise ValueError(
            f"Expected inner_products of at least 2 examples, got {num_rows}: without it there"
            " is no other to compare with."
        )
    given = checked_mask(mask, num_rows)
    real = jnp.ones(num_rows, bool) if given is None else given
    count = jnp.sum(real, dtype=products.dtype)
    others = jnp.where(count > 1, count - 1, jnp.nan)
    return jnp.where(real, (count * products - squares) / others, 0)
