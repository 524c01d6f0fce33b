"""Whether a loss is what a method takes it for: loss and gradient beside `jax.value_and_grad`."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adaoptax import _tree, _validate
from adaoptax._tree import ArrayTree
from adaoptax.measure.default import default_method
from adaoptax.measure.loss import Loss, Method, check_method, describe_loss
from adaoptax.measure.part_of_batch import coarsest_epsilon
from adaoptax.measure.rows import checked_mask, count_rows

_DRAWS = 16

DIFFERENT = """\
Expected loss and gradient of jax.value_and_grad(loss_fn), got a loss of {measured:.7g} for \
{plain:.7g} and a gradient that differs by {gradient:.2g} of its norm, with method={method}: this \
usually means that loss_fn is not the mean over the rows of its batch, but a sum (take jnp.mean), \
a mean over the tokens of the whole batch (divide each row by its own count), or a loss in which \
rows meet, such as pairs in one batch (put each pair in one row) or BatchNorm \
(loss_kind="ghost"); or that data of the rows is in another argument (batch_argnums) or a random \
key is not declared (key_argnums)."""

GHOST = """\
Expected loss_kind="separable" or "assumed" with check_loss, got "ghost": every group is a batch \
of its own then, on purpose, and loss and gradient are not those of the whole batch."""

TRACED = """\
Expected numbers for check_loss, got traced values: this usually means that it was called inside \
jax.jit or jax.shard_map. Call it once before training, on params and a batch."""

NOT_FINITE = """\
Expected a finite loss and gradient of jax.value_and_grad(loss_fn), got a loss of {plain} and a \
gradient of norm {norm}: there is nothing to compare with; check the loss, or pass other rows."""


class LossCheck(NamedTuple):
    """How far a method is from `jax.value_and_grad`.

    Attributes:
        loss: The relative difference of the losses.
        gradient: The norm of the difference of the gradients, relative to that of the plain one.
    """

    loss: float
    gradient: float


class _Sums(NamedTuple):
    """Of one draw, or added up over draws; `loss` and `gradient` are method minus plain."""

    plain: Any
    plain_gradient: ArrayTree
    loss: Any
    gradient: ArrayTree
    sq_loss: Any
    sq_gradient: Any
    variance: Any


def check_loss(
    loss_fn: Callable[..., Any],
    params: ArrayTree,
    *inputs: Any,
    method: Method | None = None,
    loss_kind: str = "separable",
    batch_argnums: int | Sequence[int] = 1,
    weights_of: Callable[..., Any] | None = None,
    has_aux: bool = False,
    key_argnums: int | Sequence[int] = (),
    mask: Any = None,
    tolerance: float | None = None,
) -> LossCheck:
    r"""Checks once, by running both, that a method returns what `jax.value_and_grad` does.

    For a test, or the first lines of a program: some losses that are no means of one loss for each
    row can only be told by their numbers. ``accumulate(...).compile`` calls it.

    A difference passes within `tolerance`, relative to the plain value, or to the square root of
    the precision times what that value is a small difference of, where this is more:
    :math:`\lVert g \rVert \lVert \theta \rVert` for the loss, the noise of one row for the
    gradient.

    **With random keys** no method draws what one plain call draws. Then means over 16 draws are
    compared, and what lies within four standard errors passes, too. This finds a sum, and not
    always a mean over tokens: for a sharp check pass the loss without its randomness.

    Args:
        loss_fn: As for `value_grad_and_stats`.
        params: Pytree of parameters.
        *inputs: What else the loss takes, in its order: ``batch, *args``.
        method: The method that will be trained with; None for the default. For
            ``devices(axis, inner)``, which runs inside of `jax.shard_map` only, pass its `inner`;
            for `micro_steps` pass ``groups(n)`` and a batch of n micro-batches.
        loss_kind: ``"separable"``, or ``"assumed"`` for a loss that a method refuses though it is
            one.
        batch_argnums: As for `value_grad_and_stats`.
        weights_of: As for `value_grad_and_stats`.
        has_aux: As for `value_grad_and_stats`; `aux` is not compared.
        key_argnums: As for `value_grad_and_stats`.
        mask: As for `value_grad_and_stats`; the plain call gets the real rows alone.
        tolerance: The largest relative difference. None takes 1e-3, or four times the precision of
            the coarsest floats that the loss computes in where that is more: 0.03 for bfloat16.

    Returns:
        `LossCheck`, the differences that were found.

    Raises:
        ValueError: If loss or gradient differ by more, the plain ones are not finite, the method
            refuses the loss, or `loss_kind` is ``"ghost"``.
        TypeError: If something is traced, or `method` is not a method of `adaoptax.measure`.

    Examples:
        >>> import jax.numpy as jnp
        >>> from adaoptax import measure
        >>> tokens = jnp.array([[1., 1., 0.], [1., 0., 0.]])  # 1 where a token is real
        >>> loss_of = lambda w, tokens: jnp.sum(w * tokens * jnp.arange(3.0)) / jnp.sum(tokens)
        >>> try:
        ...     measure.check_loss(
        ...         loss_of, 2.0, tokens, method=measure.groups(2), loss_kind="assumed")
        ... except ValueError as error:
        ...     print(str(error)[:92])
        Expected loss and gradient of jax.value_and_grad(loss_fn), got a loss of 0.5 for 0.6666667 a
    """
    loss = describe_loss(
        loss_fn,
        loss_kind=loss_kind,
        batch_argnums=batch_argnums,
        weights_of=weights_of,
        has_aux=has_aux,
        key_argnums=key_argnums,
    )
    if method is not None:
        check_method("method", method)
    if tolerance is not None:
        _validate.positive("tolerance", tolerance, "it bounds relative differences.")
    return compare(loss, method, params, inputs, mask, tolerance)


def compare(
    loss: Loss,
    method: Method | None,
    params: ArrayTree,
    inputs: tuple,
    mask: Any = None,
    tolerance: float | None = None,
    what_to_do: str = "",
) -> LossCheck:
    """`check_loss` of a loss that is described already; its error ends with `what_to_do`."""
    if loss.kind == "ghost":
        raise ValueError(GHOST)
    if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves((params, inputs, mask))):
        raise TypeError(TRACED)
    batch, args = loss.split(params, inputs)
    mask = checked_mask(mask, count_rows(batch))
    chosen = method or default_method(loss, params, batch, args, mask)
    epsilon = coarsest_epsilon(loss, params, batch, args)

    # Arrays go in, so that they are no constants of the program; flags and functions stay outside.
    leaves, structure = jax.tree.flatten((batch, args))
    arrays = {i: x for i, x in enumerate(leaves) if isinstance(x, jax.Array | np.ndarray)}

    @jax.jit
    def both(params: ArrayTree, arrays: dict[int, Any], number: Any) -> _Sums:
        inside = [arrays.get(i, x) for i, x in enumerate(leaves)]
        batch, args = jax.tree.unflatten(structure, inside)
        args = loss.map_keys(lambda key: jax.random.fold_in(key, number), args)
        (value, _), grads, stats = chosen(loss._replace(due=True))(params, batch, args, mask)
        real = batch if mask is None else jax.tree.map(lambda x: x[np.flatnonzero(mask)], batch)
        plain = jax.value_and_grad(lambda p: loss(p, real, args), has_aux=True)
        (plain_value, _), plain_grads = plain(params)
        minus = lambda a, b: _tree.widen(a) - _tree.widen(b)
        off, off_grads = minus(value, plain_value), jax.tree.map(minus, grads, plain_grads)
        squares = off**2, _tree.sq_norm(off_grads)
        value, grads = jax.tree.map(_tree.widen, (plain_value, plain_grads))
        return _Sums(value, grads, off, off_grads, *squares, stats.variance)

    draws = _DRAWS if any(loss.is_key(args)) else 1
    with jax.default_matmul_precision("highest"):
        runs = (both(params, arrays, number) for number in range(draws))
        total = functools.reduce(lambda a, b: jax.tree.map(jnp.add, a, b), runs)
    found, passes, (measured, plain) = _judge(total, draws, params, epsilon, tolerance)
    if not passes:
        told = DIFFERENT.format(
            measured=measured, plain=plain, gradient=found.gradient, method=chosen
        )
        raise ValueError(told + what_to_do)
    return found


def _judge(
    total: _Sums,
    draws: int,
    params: ArrayTree,
    epsilon: float,
    tolerance: float | None,
) -> tuple[LossCheck, bool, tuple[float, float]]:
    """What differs, whether it may, and the losses of the method and of the plain call."""
    norm = lambda tree: math.sqrt(float(_tree.sq_norm(tree)))
    plain, size = float(total.plain) / draws, norm(total.plain_gradient) / draws
    off, off_gradient = abs(float(total.loss)) / draws, norm(total.gradient) / draws
    if not (math.isfinite(plain) and math.isfinite(size)):
        raise ValueError(NOT_FINITE.format(plain=plain, norm=size))

    def allowed(value: float, terms: float, sum_of_squares: Any, mean: float) -> float:
        spread = max(float(sum_of_squares) / draws - mean**2, 0) / max(draws - 1, 1)
        limit = max(1e-3, 4 * epsilon) if tolerance is None else tolerance
        return limit * max(value, math.sqrt(epsilon) * terms) + 4 * math.sqrt(spread)

    variance = float(total.variance) / draws
    noise = math.sqrt(variance) if variance > 0 else 0
    same_loss = off <= allowed(abs(plain), size * norm(params), total.sq_loss, off)
    same_gradient = off_gradient <= allowed(size, noise, total.sq_gradient, off_gradient)
    relative = lambda off, value: off / value if value else (math.inf if off else 0.0)
    found = LossCheck(relative(off, abs(plain)), relative(off_gradient, size))
    losses = plain + float(total.loss) / draws, plain
    return found, same_loss and same_gradient, losses
