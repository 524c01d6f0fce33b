"""Float64 references: losses with known per-example gradients, and the formulas of the papers.

Nothing here calls adaoptax. Padding is *deleted* before anything is computed, so that it cannot
count by construction.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Reference(NamedTuple):
    """What a measurement should return; `grads` and `coordinate_variance` are flat vectors."""

    loss: float
    grads: np.ndarray
    num_examples: float
    num_groups: int
    sq_norm: float
    variance: float
    inner_product_variance: float
    coordinate_variance: np.ndarray


def reference(rows: tuple[Any, Any], num_groups: int, weight: Any = None) -> Reference:
    """The statistics of contiguous groups from ``(losses [B], gradients [B, d])`` of rows.

    Weights 0 and 1 follow the formula of unequal groups, S² = Σ b_j ‖h_j − g‖² / (J − 1). Other
    weights need one row a group, S² = Σ w_i ‖g_i − g‖² / (V1 − V2/V1).
    """
    row_losses, row_grads = (np.asarray(x, np.float64) for x in rows)
    num_rows = len(row_losses)
    weight = np.ones(num_rows) if weight is None else np.asarray(weight, np.float64)
    group_of_row = np.repeat(np.arange(num_groups), num_rows // num_groups)
    real = weight > 0
    row_losses, row_grads = row_losses[real], row_grads[real]
    weight, group_of_row = weight[real], group_of_row[real]
    groups = np.unique(group_of_row)
    whole = np.all(weight == 1)
    assert whole or num_groups == num_rows
    mean = lambda x: np.average(x, axis=0, weights=weight)
    g = mean(row_grads)
    h = np.stack(
        [np.average(row_grads[group_of_row == j], axis=0, weights=weight[group_of_row == j])
         for j in groups]
    )  # fmt: skip
    size = np.array([weight[group_of_row == j].sum() for j in groups])
    freedom = (
        len(groups) - 1 if whole else weight.sum() - (weight**2).sum() / weight.sum()
    ) or np.nan
    return Reference(
        loss=float(mean(row_losses)),
        grads=g,
        num_examples=weight.sum() ** 2 / (weight**2).sum(),
        num_groups=len(groups),
        sq_norm=float(g @ g),
        variance=size @ ((h - g) ** 2).sum(axis=1) / freedom,
        inner_product_variance=size @ (h @ g - g @ g) ** 2 / freedom,
        coordinate_variance=size @ (h - g) ** 2 / freedom,
    )


def same_structure(a: Any, b: Any) -> bool:
    """Whether two pytrees have the same containers."""
    structure: Any = jax.tree.structure
    return structure(a) == structure(b)


def flat(tree: Any) -> np.ndarray:
    """All leaves in one float64 vector."""
    return np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree)])


def flat_rows(tree: Any) -> np.ndarray:
    """All leaves [B, ...] in one float64 matrix [B, d]."""
    leaves = [np.asarray(x, np.float64) for x in jax.tree.leaves(tree)]
    return np.concatenate([x.reshape(len(x), -1) for x in leaves], axis=1)


def assert_measured(measured: Any, expected: Reference, rtol: float = 1e-5) -> None:
    """Every number of ``(loss, grads, stats)``; statistics that were not measured are skipped."""
    loss, grads, stats = measured
    noise = np.nan_to_num(expected.variance)  # NaN for one group
    scale = np.sqrt(expected.sq_norm + noise / expected.num_examples)
    np.testing.assert_allclose(loss, expected.loss, rtol=rtol)
    np.testing.assert_allclose(flat(grads), expected.grads, rtol=rtol, atol=1e-6 * scale)
    for name in ("num_examples", "num_groups", "sq_norm", "variance"):
        np.testing.assert_allclose(
            getattr(stats, name), getattr(expected, name), rtol=rtol, err_msg=name
        )
    if stats.inner_product_variance is not None:
        np.testing.assert_allclose(
            stats.inner_product_variance, expected.inner_product_variance, rtol=10 * rtol
        )
    if stats.coordinate_variance is not None:
        np.testing.assert_allclose(
            flat(stats.coordinate_variance),
            expected.coordinate_variance,
            rtol=10 * rtol,
            atol=1e-6 * noise,
        )


# Linear regression: closed-form gradients.


def regression_loss(params: Any, batch: Any) -> jax.Array:
    """Half the mean squared error of ``x @ w + b``."""
    return 0.5 * jnp.mean((batch["x"] @ params["w"] + params["b"] - batch["y"]) ** 2)


def regression(num_rows: int, dim: int = 3, seed: int = 0) -> tuple[Any, Any]:
    """``(params, batch)`` of `regression_loss`, float32 numpy arrays."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: np.asarray(rng.normal(size=shape), np.float32)
    params = {"b": draw(), "w": draw(dim)}
    return params, {"x": draw(num_rows, dim), "y": draw(num_rows) + np.float32(2)}


def regression_rows(params: Any, batch: Any) -> tuple[np.ndarray, np.ndarray]:
    """Losses [B] and gradients [B, 1 + dim] (b before w, as jax orders leaves), by hand."""
    x, y = np.asarray(batch["x"], np.float64), np.asarray(batch["y"], np.float64)
    residual = x @ np.asarray(params["w"], np.float64) + float(params["b"]) - y
    return residual**2 / 2, np.concatenate([residual[:, None], residual[:, None] * x], axis=1)


# A two-layer network: gradients of single rows by jax in float64.


def mlp_loss(params: Any, batch: Any) -> jax.Array:
    """Mean cross-entropy of a tanh network on integer labels."""
    hidden = jnp.tanh(batch["x"] @ params["in"]["w"] + params["in"]["b"])
    scores = jax.nn.log_softmax(hidden @ params["out"])
    return -jnp.mean(jnp.take_along_axis(scores, batch["y"][:, None], axis=1))


def mlp(num_rows: int, seed: int = 0) -> tuple[Any, Any]:
    """``(params, batch)`` of `mlp_loss`."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: np.asarray(rng.normal(size=shape), np.float32)
    params = {"in": {"w": draw(5, 7), "b": draw(7)}, "out": draw(7, 3)}
    return params, {"x": draw(num_rows, 5), "y": rng.integers(0, 3, num_rows).astype(np.int32)}


def rows_by_jax(loss_fn: Any, params: Any, batch: Any, *args: Any) -> tuple[Any, Any]:
    """Losses [B] and gradients [B, d] of single rows, one `jax.grad` after another in float64."""
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), params)
        num_rows = len(jax.tree.leaves(batch)[0])
        step = jax.value_and_grad(loss_fn)
        rows = [
            step(wide, jax.tree.map(lambda x, i=i: jnp.asarray(x[i : i + 1]), batch), *args)
            for i in range(num_rows)
        ]
        return np.array([loss for loss, _ in rows]), np.stack([flat(grads) for _, grads in rows])
