"""What a loss is, found out numerically in float64, without the library.

A loss is **additive** if the gradient is a sum of contributions of single rows: then, with G_S the
gradient where the rows of S are replaced by others, G_{} - G_{i} - G_{j} + G_{ij} = 0 for i ≠ j.
A loss is **even** if these are all of one form, L = κ Σ s(row): then the gradient is the mean of
those of the batches that hold one row B times, which are the contributions. It is a **mean** if
batches of one row have these gradients, too.
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.flatten_util
import numpy as np


class Truth(NamedTuple):
    """What was found.

    Attributes:
        additive: Whether the rows' contributions do not depend on the other rows.
        even: Whether they are all of one form.
        mean: Whether they are gradients of batches of one row.
        loss: The loss.
        grad: Its gradient as a vector.
        contributions: [B, P] if `even`, else None; their mean is `grad`.
    """

    additive: bool
    even: bool
    mean: bool
    loss: float
    grad: np.ndarray
    contributions: np.ndarray | None


def wide(tree: Any) -> Any:
    """Floats in float64."""
    cast = lambda x: np.asarray(x, np.float64) if np.asarray(x).dtype.kind == "f" else np.asarray(x)
    return jax.tree.map(cast, tree)


def examine(
    loss_fn: Callable[..., Any],
    params: Any,
    batch: Any,
    redraw: Any,
    *,
    prepare: Callable[[Any], tuple[Any, Any]] = lambda batch: (batch, ()),
    single: bool = True,
    rtol: float = 1e-8,
) -> Truth:
    """Examines the loss ``loss_fn(params, *prepare(batch))``.

    Args:
        loss_fn: ``loss_fn(params, rows, given)``.
        params: Pytree of arrays.
        batch: Pytree of arrays with a leading axis of rows.
        redraw: Another batch, whose rows replace some.
        prepare: ``prepare(batch)`` → ``(rows, given)``, where data alone joins the rows. Rows are
            replaced after it.
        single: Whether to look at batches of one row.
        rtol: How far gradients may differ that should be equal.
    """
    with jax.enable_x64(True), np.errstate(all="ignore"):
        params, batch, redraw = map(wide, (params, batch, redraw))
        rows, given = wide(jax.jit(prepare)(batch))
        others, _ = wide(jax.jit(prepare)(redraw))
        count = len(jax.tree.leaves(batch)[0])
        repeated = jax.tree.map(lambda x: np.stack([np.stack([row] * count) for row in x]), batch)
        sets, changed = _replacements(rows, others)
        join = lambda *x: np.concatenate(x)
        stacked = jax.tree.map(
            join,
            (changed, jax.tree.map(lambda x: np.stack([x] * len(sets)), given)),
            wide(jax.jit(jax.vmap(prepare))(repeated)),
        )
        losses, grads = flat_gradients(lambda p, b: loss_fn(p, *b), params, stacked)
        loss, grad, contributions = losses[0], grads[0], grads[len(sets) :]
        scale = np.max(np.abs(grad), initial=1e-30)
        close = lambda a, b: bool(np.max(np.abs(a - b), initial=0.0) <= rtol * scale)
        additive = _is_additive(sets, losses, grads)
        even = (
            additive
            and close(contributions.mean(0), grad)
            and bool(np.isclose(losses[len(sets) :].mean(), loss, rtol=rtol, atol=1e-9))
        )
        mean = even and single
        if mean:
            of_batch = lambda p, batch: loss_fn(p, *prepare(batch))
            try:
                alone = jax.tree.map(lambda x: x[:, None], batch)
                mean = close(flat_gradients(of_batch, params, alone)[1], contributions)
            except (TypeError, ValueError, IndexError, ZeroDivisionError):
                mean = False
    return Truth(additive, even, mean, float(loss), grad, contributions if even else None)


def flat_gradients(
    loss_fn: Callable[..., Any], params: Any, batches: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Losses [K] and gradients [K, P] of stacked batches."""

    def one(batch: Any) -> Any:
        loss, grads = jax.value_and_grad(loss_fn)(params, batch)
        return loss, jax.flatten_util.ravel_pytree(grads)[0]

    losses, grads = jax.jit(jax.vmap(one))(batches)
    return np.asarray(losses), np.asarray(grads)


def _replacements(rows: Any, others: Any) -> tuple[list[tuple[int, tuple[int, ...]]], Any]:
    """Which rows are replaced by which draw, the batch as it is first, and these batches."""
    count = len(jax.tree.leaves(rows)[0])
    rolled = lambda x, row: x if np.array_equal(x, row) else np.roll(x, 1, 0)
    draws = [others, jax.tree.map(rolled, others, rows)]
    which = [some for n in range(3) for some in itertools.combinations(range(count), n)]
    sets = list(itertools.product(range(len(draws)), which))

    def replaced(draw: int, some: tuple[int, ...]) -> Any:
        index = np.isin(np.arange(count), some)
        choose = lambda new, old: np.where(index.reshape(-1, *[1] * (old.ndim - 1)), new, old)
        return jax.tree.map(choose, draws[draw], rows)

    return sets, jax.tree.map(lambda *x: np.stack(x), *[replaced(*key) for key in sets])


def _is_additive(sets: list[Any], losses: np.ndarray, grads: np.ndarray) -> bool:
    """Whether second differences vanish: those of the gradient, and those of the loss."""
    values = np.concatenate([grads, losses[:, None]], 1)[: len(sets)]
    allowed = np.full(values.shape[1], 1e-9 * np.max(np.abs(values[:, :-1]), initial=1e-30))
    allowed[-1] = 1e-9 * np.max(np.abs(values[:, -1]))
    found = dict(zip(sets, values, strict=True))
    for draw, (i, j) in ((draw, some) for draw, some in sets if len(some) == 2):
        both = found[draw, ()] - found[draw, (i,)] - found[draw, (j,)] + found[draw, (i, j)]
        if not np.all(np.abs(both) <= allowed):
            return False
    return True
