"""Accumulation that the host drives: one program that adds a micro-batch, one that finishes."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from adaoptax import _tree
from adaoptax._tree import ArrayTree
from adaoptax.measure import moments as m
from adaoptax.measure.aux import grows_with_batch
from adaoptax.measure.convolutions import channels_last
from adaoptax.measure.grouped import group_gradient
from adaoptax.measure.loss import Loss, make_loss
from adaoptax.measure.rows import check_mask, count_rows, replace_padding


class MicroStepsState(NamedTuple):
    """What the micro-batches so far leave behind; its size does not depend on how many they are.

    Attributes:
        moments: Mean gradient of the micro-batches and their scatter about it, at least float32.
        totals: Sums of their weights: how many examples and micro-batches were real.
        values: ``(loss, aux)``: sums over examples of what is averaged (at least float32), and
            counts.
    """

    moments: m.Moments
    totals: m.Totals
    values: ArrayTree


class MicroSteps(NamedTuple):
    """Three pure functions, to be jitted one by one.

    Attributes:
        init: ``init(params, batch, *args)`` → state of no micro-batch. `batch` is one micro-batch,
            of which only shapes are read.
        add: ``add(state, params, batch, *args, mask=None)`` → state with one more micro-batch.
        finish: ``finish(state, params)`` → ``(loss, grads, stats)``, or
            ``((loss, aux), grads, stats)``.
    """

    init: Callable[..., MicroStepsState]
    add: Callable[..., MicroStepsState]
    finish: Callable[[MicroStepsState, ArrayTree], Any]


def micro_steps(
    loss_fn: Callable[..., Any],
    *,
    statistics: tuple[str, ...] = ("norm",),
    has_aux: bool = False,
    key_argnums: int | Sequence[int] = (),
) -> MicroSteps:
    r"""Measures like `groups`, one micro-batch a call: each is a group, and the host counts them.

    n calls of ``add`` and one of ``finish`` return what `value_grad_and_stats` with ``groups(n)``
    returns for the n micro-batches together, but for rounding, and any n runs the same two
    programs. Only one micro-batch is on the device at a time: this is the way where the whole batch
    does not fit, or has no largest size. Else `groups` is simpler and dispatches once a step.

    With :math:`W_j` real examples in micro-batch j, of mean gradient :math:`h_j`, and :math:`W`
    examples before it, ``add`` merges by Chan's formula

    .. math:: g' = g + \tfrac{W_j}{W + W_j} (h_j - g), \qquad
        M' = M + \tfrac{W W_j}{W + W_j} \lVert h_j - g \rVert^2

    and ``finish`` divides the scatter :math:`M` by its degrees of freedom.

    Args:
        loss_fn: ``loss_fn(params, batch, *args)`` → the mean loss over the rows of `batch`.
        statistics: ``("norm",)`` or ``("norm", "coordinate")``, as in `groups`.
        has_aux: Whether `loss_fn` returns ``(loss, aux)``. Float leaves of `aux` are averaged over
            examples, integer leaves summed.
        key_argnums: Positions of random keys in `loss_fn`. Hand a new key to every ``add``; where
            part of a micro-batch is padding, each row gets one of its own from it.

    Returns:
        `MicroSteps`. Under `jax.jit` give the state of ``add`` away (``donate_argnums=0``). A mask
        counts as in `value_grad_and_stats`; micro-batches may differ in size, at the price of one
        program for each size. A micro-batch of padding only changes nothing. If no row is real the
        gradient is zero and the loss and variance NaN. ``init`` raises ValueError for a leaf of
        `aux` with one entry a row: all of them together have no fixed size.

    Raises:
        ValueError: If a name in `statistics` is unknown or `key_argnums` points at `params` or
            `batch`.

    Examples:
        >>> import adaoptax, jax, jax.numpy as jnp
        >>> steps = adaoptax.measure.micro_steps(lambda w, x: (x @ w).mean())
        >>> add, finish = jax.jit(steps.add, donate_argnums=0), jax.jit(steps.finish)
        >>> w, rows = jnp.ones(2), jnp.array([[1., 0.], [2., 2.], [3., 0.], [2., -2.]])
        >>> state = steps.init(w, rows[:2])
        >>> for micro_batch in (rows[:2], rows[2:]):
        ...     state = add(state, w, micro_batch)
        >>> loss, grads, stats = finish(state, w)
        >>> float(stats.num_groups), float(stats.variance)
        (2.0, 5.0)
    """
    m.check_statistics(statistics, ("norm", "coordinate"), "micro_steps")
    loss = make_loss(loss_fn, has_aux, key_argnums)
    coordinate = "coordinate" in statistics

    def init(params: ArrayTree, batch: ArrayTree, *args: Any) -> MicroStepsState:
        loss.check_keys(args)
        none = jnp.zeros([1], _tree.scalar_dtype(params))
        values = jax.tree.map(
            lambda shape: jnp.zeros(shape.shape, _sum_dtype(shape.dtype)),
            _shapes_of_values(loss, params, batch, args),
        )
        totals = m.GroupWeights(none, none).totals()
        return MicroStepsState(m.zero_moments(params, coordinate), totals, values)

    def add(
        state: MicroStepsState, params: ArrayTree, batch: ArrayTree, *args: Any, mask: Any = None
    ) -> MicroStepsState:
        loss.check_keys(args)
        num_rows, dtype = count_rows(batch), state.totals.weight.dtype
        weight = jnp.ones(num_rows, dtype)
        if mask is not None:
            weight = check_mask(mask, num_rows).astype(dtype)
            batch = replace_padding(batch, weight)
        gradient = group_gradient(loss, may_hold_padding=mask is not None)
        one_group = channels_last(lambda: gradient(params, batch, weight, args))
        values, grads = one_group()
        weights = m.GroupWeights(jnp.sum(weight)[None], jnp.sum(weight**2)[None])
        new, before = weights.totals(), state.totals
        chunk = m.chunk_moments(jax.tree.map(lambda h: h[None], grads), weights.weight, coordinate)
        return MicroStepsState(
            moments=m.add_chunk(state.moments, chunk, before.weight, new.weight),
            totals=jax.tree.map(jnp.add, before, new),
            values=jax.tree.map(
                lambda total, x: total + jnp.where(new.weight > 0, _weighed(x, new.weight), 0),
                state.values,
                values,
            ),
        )

    def finish(state: MicroStepsState, params: ArrayTree) -> Any:
        examples = state.totals.weight
        mean = lambda x: x / jnp.where(examples > 0, examples, 1).astype(x.dtype)
        value, aux = jax.tree.map(
            lambda x: mean(x) if jnp.issubdtype(x.dtype, jnp.inexact) else x, state.values
        )
        value = jnp.where(examples > 0, value, jnp.nan)
        grads = jax.tree.map(lambda g, p: g.astype(jnp.result_type(p)), state.moments.mean, params)
        return ((value, aux) if has_aux else value), grads, m.to_stats(state.moments, state.totals)

    return MicroSteps(init, add, finish)


def _shapes_of_values(loss: Loss, params: ArrayTree, batch: ArrayTree, args: tuple) -> Any:
    """Shapes of ``(loss, aux)``; ValueError for what neither averages nor counts."""
    value, aux = jax.eval_shape(lambda p, b: loss(p, b, args), params, batch)
    grows = grows_with_batch(loss, params, batch, args, aux)

    def check(path: Any, leaf: Any, grown: bool) -> None:
        if grown or not jnp.issubdtype(leaf.dtype, jnp.number):
            raise ValueError(
                f"Expected aux{jax.tree_util.keystr(path)} to be a mean (float) or a count"
                f" (integer), got {leaf.dtype}{list(leaf.shape)}: what has one entry a row, over"
                " all micro-batches, has no fixed size; compute it outside of micro_steps."
            )

    jax.tree_util.tree_map_with_path(check, aux, grows)
    return value, aux


def _sum_dtype(dtype: Any) -> Any:
    wide = jnp.issubdtype(dtype, jnp.inexact)
    return jnp.promote_types(dtype, jnp.float32) if wide else dtype


def _weighed(x: jax.Array, weight: jax.Array) -> jax.Array:
    """A mean times its weight, or a count as it stands."""
    x = jnp.asarray(x)
    wide = x.astype(_sum_dtype(x.dtype))
    return wide * weight.astype(wide.dtype) if jnp.issubdtype(wide.dtype, jnp.inexact) else wide
