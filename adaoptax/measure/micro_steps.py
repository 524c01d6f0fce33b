"""Accumulation that the host drives: one program that adds a micro-batch, one that finishes."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from adaoptax import _tree
from adaoptax._metric import as_metric
from adaoptax._tree import ArrayTree
from adaoptax.measure import moments as m
from adaoptax.measure.aux import grows_with_batch
from adaoptax.measure.every import Every
from adaoptax.measure.exact.proof import check_mean
from adaoptax.measure.grouped import group_gradient
from adaoptax.measure.loss import Loss, Method, check_method, describe_loss
from adaoptax.measure.part_of_batch import check_one_row
from adaoptax.measure.programs.convolutions import channels_last
from adaoptax.measure.rows import check_whole_groups, checked_mask, count_rows
from adaoptax.stats import GradientStats


class MicroStepsState(NamedTuple):
    """What the micro-batches so far leave behind; its size does not depend on how many they are.

    Attributes:
        moments: Mean gradient of the micro-batches and their scatter about it, at least float32.
        totals: How many examples and micro-batches were real.
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
            of which only shapes are read. Inputs follow in the order of the loss.
        add: ``add(state, params, batch, *args, mask=None, preconditioner=None)`` → state with one
            more micro-batch.
        finish: ``finish(state, params, preconditioner=None)`` → ``(loss, grads, stats)``, or
            ``((loss, aux), grads, stats)``.
    """

    init: Callable[..., MicroStepsState]
    add: Callable[..., MicroStepsState]
    finish: Callable[..., tuple[Any, ArrayTree, GradientStats]]


def micro_steps(
    loss_fn: Callable[..., Any],
    method: Method | None = None,
    statistics: tuple[str, ...] = ("norm",),
    *,
    loss_kind: str = "separable",
    batch_argnums: int | Sequence[int] = 1,
    weights_of: Callable[..., Any] | None = None,
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

    and ``finish`` divides the scatter :math:`M` by its degrees of freedom. That micro-batches of a
    loss add up to their batch is for `check_loss` to tell, with ``method=groups(n)``.

    With a `method` each micro-batch is measured by it, and its scatter :math:`(n_j - 1) S_j^2` is
    added too: B − 1 degrees of freedom with ``exact()``, also for one micro-batch alone.

    Args:
        loss_fn: ``loss_fn(params, batch, *args)`` → the mean loss over the rows of `batch`.
        method: How to measure a micro-batch, from `adaoptax.measure`: ``exact()``, ``groups(4)``,
            ``per_example(statistics=("norm",))``. None takes each micro-batch as one group, which
            costs no more than its gradient.
        statistics: ``("norm",)`` or ``("norm", "coordinate")``, as in `groups`; a `method` has its
            own, which may not be inner products: those of parts do not add up.
        loss_kind: As for `value_grad_and_stats`.
        batch_argnums: As for `value_grad_and_stats`.
        weights_of: As for `value_grad_and_stats`.
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
        TypeError: If `method` is not a method of `adaoptax.measure`.
        ValueError: If a name in `statistics` is unknown, `method` measures inner products or only
            some of the steps (`every`), or `key_argnums` points at `params` or `batch`.

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
    loss = describe_loss(
        loss_fn,
        loss_kind=loss_kind,
        batch_argnums=batch_argnums,
        weights_of=weights_of,
        has_aux=has_aux,
        key_argnums=key_argnums,
    )
    return micro_steps_of(loss, method, statistics)


def micro_steps_of(loss: Loss, method: Method | None, statistics: tuple[str, ...]) -> MicroSteps:
    """`micro_steps` of a loss that is described already."""
    if method is None:
        m.check_statistics(statistics, ("norm", "coordinate"), "micro_steps")
        measure = _one_group("coordinate" in statistics)
    else:
        _check_mergeable(method, statistics)
        measure = _by_method(method)

    def init(params: ArrayTree, *inputs: Any) -> MicroStepsState:
        batch, args = loss.split(params, inputs)
        _check_mean(loss, params, batch, args)
        none = jnp.zeros([1], _tree.scalar_dtype(params))
        values = jax.tree.map(
            lambda shape: jnp.zeros(shape.shape, _sum_dtype(shape.dtype)),
            _shapes_of_values(loss, params, batch, args),
        )
        coordinate = "coordinate" in statistics
        if method is not None:
            part = jax.eval_shape(lambda p, b: measure(loss, p, b, args, None), params, batch)
            coordinate = part.moments.coordinate_scatter is not None
        return MicroStepsState(m.zero_moments(params, coordinate), m.totals_of(none), values)

    def add(
        state: MicroStepsState,
        params: ArrayTree,
        *inputs: Any,
        mask: Any = None,
        preconditioner: ArrayTree | None = None,
    ) -> MicroStepsState:
        batch, args = loss.split(params, inputs)
        mask = checked_mask(mask, count_rows(batch))
        _check_mean(loss, params, batch, args)
        metric = as_metric(preconditioner, params)
        described = loss._replace(metric=metric)
        part = channels_last(lambda: measure(described, params, batch, args, mask))()
        new, before = part.totals, state.totals
        return MicroStepsState(
            moments=m.add_chunk(state.moments, part.moments, before.weight, new.weight, metric),
            totals=jax.tree.map(lambda a, b: a + b.astype(a.dtype), before, new),
            values=jax.tree.map(
                lambda total, x: total + jnp.where(new.weight > 0, _weighed(x, new.weight), 0),
                state.values,
                part.values,
            ),
        )

    def finish(
        state: MicroStepsState, params: ArrayTree, preconditioner: ArrayTree | None = None
    ) -> Any:
        examples = state.totals.weight
        mean = lambda x: x / jnp.where(examples > 0, examples, 1).astype(x.dtype)
        value, aux = jax.tree.map(
            lambda x: mean(x) if jnp.issubdtype(x.dtype, jnp.inexact) else x, state.values
        )
        value = jnp.where(examples > 0, value, jnp.nan)
        grads = jax.tree.map(lambda g, p: g.astype(jnp.result_type(p)), state.moments.mean, params)
        metric = as_metric(preconditioner, params)
        stats = m.to_stats(state.moments, state.totals, metric=metric)
        return ((value, aux) if loss.has_aux else value), grads, stats

    return MicroSteps(init, add, finish)


def _check_mean(loss: Loss, params: ArrayTree, batch: ArrayTree, args: tuple) -> None:
    """Looks at up to 64 micro-batches at once: how many will follow is not known."""
    rows = count_rows(batch)
    most = max(2 * rows, min(64 * rows, 4096))
    check_mean(loss, params, batch, args, "adaoptax.measure.micro_steps", rows, most)


def _one_group(coordinate: bool) -> Callable[..., MicroStepsState]:
    """``f(loss, params, batch, args, mask)`` → the micro-batch as one group."""

    def measure(
        loss: Loss, params: ArrayTree, batch: ArrayTree, args: tuple, mask: Any
    ) -> MicroStepsState:
        weight = jnp.ones(count_rows(batch), _tree.scalar_dtype(params))
        if mask is not None:
            if loss.kind == "ghost":
                check_whole_groups(mask, 1)
            else:
                check_one_row(loss, params, batch, args)
            weight = mask.astype(weight.dtype)
        gradient = group_gradient(loss, may_hold_padding=mask is not None)
        values, grads = gradient(params, batch, weight, args)
        rows = jnp.sum(weight)[None]
        stacked = jax.tree.map(lambda h: jnp.asarray(h)[None], grads)
        moments = m.chunk_moments(stacked, rows, coordinate, loss.metric)
        return MicroStepsState(moments, m.totals_of(rows), values)

    return measure


def _by_method(method: Method) -> Callable[..., MicroStepsState]:
    """``f(loss, params, batch, args, mask)`` → the groups that `method` measures of it."""

    def measure(
        loss: Loss, params: ArrayTree, batch: ArrayTree, args: tuple, mask: Any
    ) -> MicroStepsState:
        values, grads, stats = method(loss)(params, batch, args, mask)
        if (stats.inner_product_variance, stats.leave_one_out_variance) != (None, None):
            raise ValueError(_INNER.format(method=method))
        totals = m.Totals(stats.num_examples, stats.num_groups.astype(jnp.int32))
        return MicroStepsState(_moments_of(grads, stats), totals, values)

    return measure


def _moments_of(grads: ArrayTree, stats: GradientStats) -> m.Moments:
    """Mean and scatter that `stats` were formed from; one group has no scatter."""
    freedom = stats.num_groups - 1
    scatter = lambda x: jnp.where(freedom > 0, freedom.astype(x.dtype) * x, 0)
    return m.Moments(
        mean=jax.tree.map(_tree.widen, grads),
        scatter=scatter(stats.variance),
        coordinate_scatter=jax.tree.map(scatter, stats.coordinate_variance),
    )


_INNER = """\
Expected a method without inner products, got method={method}: those of every micro-batch are with \
its own gradient and not with that of all, so they cannot be merged; leave "inner" out, as in \
adaoptax.measure.exact() or per_example(statistics=("norm",))."""


def _check_mergeable(method: Any, statistics: tuple[str, ...]) -> None:
    """Raises for what is not a method, and for methods whose parts cannot be merged."""
    check_method("method", method)
    if isinstance(method, Every):
        raise ValueError(
            f"Expected a method that measures every micro-batch, got method={method}: the parts of"
            " one step are measured all or not at all; accumulate two ways, with and without a"
            " method, and choose one at each step."
        )
    if {"inner", "leave-one-out"} & set(getattr(method, "statistics", ())):
        raise ValueError(_INNER.format(method=method))
    if tuple(statistics) != ("norm",):
        raise ValueError(
            f"Expected statistics to be given to the method, got statistics={statistics!r} beside"
            f' method={method}: pass them there, as in adaoptax.measure.exact(("norm",'
            ' "coordinate")).'
        )


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
