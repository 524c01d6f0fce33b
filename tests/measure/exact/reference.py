"""What a measurement should return, from per-example gradients by `jax.vmap(jax.grad)` in float64.

Nothing here calls adaoptax. Rows of padding are deleted before anything is computed.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# LLVM's optimisations take most of a compilation, and change no result that is tested here.


class Rows(NamedTuple):
    """Losses and gradients of the rows with weight, each differentiated alone.

    Attributes:
        position: [n], where they stand in the batch.
        weight: [n], as given by the mask; ones without one.
        losses: [n].
        grads: pytree like the parameters, leaves [n, ...], float64 or complex128.
    """

    position: np.ndarray
    weight: np.ndarray
    losses: np.ndarray
    grads: Any

    @property
    def loss(self) -> float:
        """The weighted mean loss."""
        return float(np.average(self.losses, weights=self.weight))

    @property
    def mean_grad(self) -> Any:
        """g, the weighted mean gradient."""
        return jax.tree.map(lambda g: np.average(g, axis=0, weights=self.weight), self.grads)

    @property
    def sq_norms(self) -> np.ndarray:
        """‖g_i‖²: [n]."""
        return row_sums(jax.tree.map(lambda g: np.abs(g) ** 2, self.grads))

    @property
    def inner_products(self) -> np.ndarray:
        """Re⟨g_i, g⟩: [n]."""
        product = lambda g, mean: np.real(g * np.conj(mean))
        return row_sums(jax.tree.map(product, self.grads, self.mean_grad))

    @property
    def square_sums(self) -> Any:
        """Σ_i w_i |g_i|² for every coordinate, with the weights over their maximum."""
        weight = self.weight / self.weight.max()
        return jax.tree.map(lambda g: np.tensordot(weight, np.abs(g) ** 2, axes=1), self.grads)


class Stats(NamedTuple):
    """The fields of `GradientStats`, by their definitions.

    `subtracted` is how often |g|² is subtracted where S² is formed as a difference of squares,
    B/(B − 1) for single examples: what rounding of float32 can cost.
    """

    num_examples: float
    num_groups: int
    sq_norm: float
    variance: float
    inner_product_variance: float
    coordinate_variance: Any
    subtracted: float


def row_gradients(
    loss_fn: Any,
    params: Any,
    batch: Any,
    args: tuple = (),
    *,
    losses: Any = None,
    has_aux: bool = False,
    mask: Any = None,
) -> Rows:
    """Differentiates every real row as a batch of one, or all `losses` [B], in float64."""
    num_rows = len(jax.tree.leaves(batch)[0])
    weight = np.ones(num_rows) if mask is None else np.asarray(mask, np.float64)
    real = np.flatnonzero(weight)

    def of_row(params: Any, row: Any, args: tuple) -> Any:
        out = loss_fn(params, jax.tree.map(lambda x: x[None], row), *args)
        return out[0] if has_aux else out

    with jax.enable_x64(True):
        params, batch, args = jax.tree.map(_wide, (params, batch, args))
        rows = jax.tree.map(lambda x: x[real], batch)
        if losses is None:
            gradient = jax.vmap(jax.value_and_grad(of_row), in_axes=(None, 0, None))
        else:
            of_all = lambda params, rows, args: losses(params, rows, *args)
            gradient = lambda *inputs: (of_all(*inputs), jax.jacrev(of_all)(*inputs))
        found = jax.jit(gradient)(params, rows, args)
        values, grads = jax.tree.map(np.asarray, found)
    assert all(leaf.dtype in (np.float64, np.complex128) for leaf in jax.tree.leaves(grads))
    return Rows(real, weight[real], values, grads)


def statistics(rows: Rows, group_size: int = 1) -> Stats:
    """The statistics of contiguous groups of the batch.

    With weights W_j = Σw and V_j = Σw² of a group, S² = Σ W_j ‖h_j − g‖² / (Σ V_j/W_j − V/W).
    """
    group_of_row = rows.position // group_size
    members = [group_of_row == j for j in np.unique(group_of_row)]
    weight = np.array([rows.weight[m].sum() for m in members])
    sq_weight = np.array([(rows.weight[m] ** 2).sum() for m in members])
    freedom = (sq_weight / weight).sum() - sq_weight.sum() / weight.sum()

    def deviations(g: np.ndarray, mean: np.ndarray) -> np.ndarray:
        h = [np.average(g[m], axis=0, weights=rows.weight[m]) for m in members]
        return np.stack(h) - mean

    g = rows.mean_grad
    apart = jax.tree.map(deviations, rows.grads, g)
    along = row_sums(jax.tree.map(lambda d, g: np.real(d * np.conj(g)), apart, g))
    unbiased = lambda squares: np.tensordot(weight, squares, axes=1) / freedom
    return Stats(
        num_examples=weight.sum() ** 2 / sq_weight.sum(),
        num_groups=len(members),
        sq_norm=sum(np.sum(np.abs(x) ** 2) for x in jax.tree.leaves(g)),
        variance=unbiased(row_sums(jax.tree.map(lambda d: np.abs(d) ** 2, apart))),
        inner_product_variance=unbiased(along**2),
        coordinate_variance=jax.tree.map(lambda d: unbiased(np.abs(d) ** 2), apart),
        subtracted=weight.sum() / freedom,
    )


def row_sums(tree: Any) -> np.ndarray:
    """[n]: sums over everything but the leading axis that all leaves share."""
    return np.sum([x.reshape(len(x), -1).sum(axis=1) for x in jax.tree.leaves(tree)], axis=0)


def relative_distance(tree: Any, expected: Any) -> float:
    """‖tree − expected‖ / ‖expected‖ over all leaves."""
    squares = lambda tree: sum(np.sum(np.abs(x) ** 2) for x in jax.tree.leaves(tree))
    difference = jax.tree.map(lambda a, b: np.asarray(a) - b, tree, expected)
    return float(np.sqrt(squares(difference) / squares(expected)))


def assert_close(found: Any, expected: Any, rtol: float, name: str) -> None:
    """Every element of an array to `rtol` of the largest."""
    atol = rtol * np.max(np.abs(expected), initial=0)
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol, err_msg=name)


def assert_coordinates(found: Any, expected: Any, rtol: float, subtracted: Any = None) -> None:
    """Squares of every coordinate, to `rtol` of the largest of their leaf.

    A leaf whose gradient cancels to zero (the bias of keys in attention) holds rounding alone, so
    what is eight units of rounding beside the largest gradient counts as zero. If the squares are
    what is left of a difference, four units of rounding of what was `subtracted` are allowed too.
    """
    paths = jax.tree_util.tree_leaves_with_path(expected)
    leaves = jax.tree.leaves(found)
    structure: Any = jax.tree.structure
    assert structure(found) == structure(expected)
    largest = max(np.max(x, initial=0) for _, x in paths)
    lost = jax.tree.leaves(subtracted) if subtracted is not None else [0.0] * len(leaves)
    for (path, squares), leaf, gone in zip(paths, leaves, lost, strict=True):
        eps = float(jnp.finfo(leaf.dtype).eps)
        rounding = largest * (8 * eps) ** 2 + 4 * eps * np.max(gone, initial=0)
        np.testing.assert_allclose(
            leaf,
            squares,
            rtol=0,
            atol=rtol * np.max(squares, initial=0) + rounding,
            err_msg=f"coordinates of {jax.tree_util.keystr(path)}",
        )


def assert_moments(found: Any, rows: Rows, rtol: float, grad_rtol: float) -> None:
    """``(loss, grads, moments)``; of the moments, those that are not None.

    Rows without weight have moments of zero.
    """
    loss, grads, moments = found

    def per_row(found: Any, expected: np.ndarray, name: str) -> None:
        everywhere = np.zeros(len(found))
        everywhere[rows.position] = expected
        assert_close(found, everywhere, rtol, name)

    np.testing.assert_allclose(loss, rows.loss, rtol=grad_rtol)
    error = relative_distance(grads, rows.mean_grad)
    assert error <= grad_rtol, f"mean gradient: relative error {error:.1e} > {grad_rtol:.0e}"
    if moments.sq_norms is not None:
        per_row(moments.sq_norms, rows.sq_norms, "sq_norms")
    if moments.inner_products is not None:
        per_row(moments.inner_products, rows.inner_products, "inner_products")
    if moments.square_sums is not None:
        assert_coordinates(moments.square_sums, rows.square_sums, rtol)


def _wide(leaf: Any) -> jax.Array:
    """Floats as float64, complex numbers as complex128, all else as it is."""
    leaf = jnp.asarray(leaf)
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        return leaf.astype(jnp.complex128)
    return leaf.astype(jnp.float64) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf
