r"""Inner products of every example's gradient with one direction, without those gradients.

The derivative of the losses of B examples along :math:`v` is all :math:`\langle g_i, v \rangle` at
once. Forward mode carries it through the model beside the losses, with parameters and direction
shared by all examples: about two forward passes, no backward one, no gradient of any example.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from adaoptax import _tree
from adaoptax._tree import ArrayTree
from adaoptax.measure.loss import Loss, make_loss
from adaoptax.measure.rows import check_mask, count_rows, replace_padding


def directional(
    loss_fn: Callable[..., Any],
    params: ArrayTree,
    batch: ArrayTree,
    direction: ArrayTree,
    *args: Any,
    has_aux: bool = False,
    key_argnums: int | Sequence[int] = (),
    mask: ArrayLike | None = None,
) -> jax.Array:
    r"""The inner product of every per-example gradient with `direction`, by one jvp.

    .. math:: \operatorname{Re} \langle \nabla \ell_i, v \rangle, \qquad i = 1 \dots B

    The direction may be anything shaped like the parameters: the mean gradient, the update that an
    optimizer has formed (does the *complete* step descend for every example?), its momentum, the
    gradient of held-out data. Beside a gradient of the same batch it costs about half of it.

    The loss is called on batches of **one** row, as by `per_example`. The products have the
    precision in which the model computes, and are summed up to at least float32 on return.

    Args:
        loss_fn: ``loss_fn(params, batch, *args)``, the mean loss over the rows of `batch`.
        params: Pytree of parameters.
        batch: Pytree of arrays with a leading axis of B rows.
        direction: Pytree like `params`, in the convention of `jax.grad`: for complex parameters
            that is the conjugate of what is added to them.
        *args: What else `loss_fn` takes.
        has_aux: Whether `loss_fn` returns ``(loss, aux)``; `aux` is dropped.
        key_argnums: Positions in `loss_fn` of random keys, as in `value_grad_and_stats`. Every
            example gets the draw that `per_example` gives it under the same key.
        mask: [B], zero for padding, whose product is 0 whatever it holds.

    Returns:
        [B], float32 (float64 where parameters are).

    Raises:
        ValueError: If `direction` is not shaped like `params`, leaves of `batch` differ in length,
            or `mask` has another shape.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from adaoptax import measure
        >>> loss_fn = lambda w, x: (x @ w).mean()
        >>> rows = jnp.array([[1., 0.], [3., 0.], [2., 2.], [2., -2.]])  # per-example gradients
        >>> gradient = jax.grad(loss_fn)(jnp.ones(2), rows)
        >>> measure.directional(loss_fn, jnp.ones(2), rows, gradient).tolist()
        [2.0, 6.0, 4.0, 4.0]

    References:
        Baydin et al., `Gradients without Backpropagation <https://arxiv.org/abs/2202.08587>`_,
        2022 (forward mode for directional derivatives).
    """
    loss = make_loss(loss_fn, has_aux, key_argnums)
    loss.check_keys(args)
    return products_of_rows(loss, params, batch, direction, args, mask)


def products_of_rows(
    loss: Loss, params: ArrayTree, batch: ArrayTree, direction: ArrayTree, args: tuple, mask: Any
) -> jax.Array:
    """Re⟨g_i, direction⟩ for each row: [B]."""
    num_rows = count_rows(batch)
    if mask is not None:
        mask = check_mask(mask, num_rows)
        batch = replace_padding(batch, mask)
    # The derivative along u is Re Σ g·u for what jax.grad calls g: conjugate for ⟨g, v⟩.
    tangent = jax.tree.map(jnp.conj, _like(params, direction))
    losses = lambda p: loss.of_rows(p, batch, args)[0]
    products = jax.jvp(losses, (params,), (tangent,))[1]
    products = products.astype(_tree.scalar_dtype(params))
    return products if mask is None else jnp.where(mask > 0, products, 0)


def _like(params: ArrayTree, direction: ArrayTree) -> ArrayTree:
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
        mask: [B], the weights of the examples in the mean gradient, zero for padding.

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
    weight = jnp.ones(num_rows) if mask is None else check_mask(mask, num_rows)
    weight = weight.astype(products.dtype)
    total, real = jnp.sum(weight), weight > 0
    others = jnp.sum(real) > 1
    rest = jnp.where(real & others, total - weight, jnp.nan)
    without = (total * products - weight * squares) / rest
    return jnp.where(real, without, 0)
