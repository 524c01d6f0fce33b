"""The transformation of a loss: like `jax.value_and_grad`, with statistics beside the gradient."""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from adaoptax._metric import as_metric
from adaoptax._tree import ArrayTree
from adaoptax.measure.default import default_method
from adaoptax.measure.loss import Measured, Method, check_method, describe_loss
from adaoptax.measure.rows import checked_mask, count_rows
from adaoptax.stats import GradientStats


def value_grad_and_stats(
    loss_fn: Callable[..., Any],
    method: Method | None = None,
    *,
    loss_kind: str = "separable",
    batch_argnums: int | Sequence[int] = 1,
    weights_of: Callable[..., Any] | None = None,
    has_aux: bool = False,
    key_argnums: int | Sequence[int] = (),
) -> Callable[..., tuple[Any, ArrayTree, GradientStats]]:
    """Turns a loss into a function that returns loss, gradient and gradient statistics.

    Loss and gradient are those of ``jax.value_and_grad(loss_fn)``, or the call is an error.

    Args:
        loss_fn: ``loss_fn(params, batch, *args)`` returns the mean loss over the leading axis of
            every leaf of `batch`: the function that the training loop already has.
        method: How to measure, from `adaoptax.measure`: ``exact()``, ``groups(n)``, and others.
            None takes `exact` where that is predicted to cost less than a tenth of the gradient,
            and otherwise (a masked batch, several devices, ``loss_kind="ghost"``) ``groups(n)``
            with the largest n ≤ 8 that divides the batch; with padding choose n yourself, so that
            the smallest real batch fills two groups. Inside `jax.pmap` and `jax.shard_map` it is
            refused: take ``devices(axis_name)``.
        loss_kind: What kind of mean the loss is.

            - ``"separable"``: of one loss for each example. This is proved from the program of the
              loss, or the call is an error. ``exact`` also takes sums of them over any number that
              depends on data alone, such as the tokens of the batch.
            - ``"assumed"``: the same, on your word; nothing is proved. With ``exact`` loss and
              gradient are the plain ones even so.
            - ``"ghost"``: every group is a batch of its own, on purpose, as for BatchNorm in
              training mode or a contrastive loss. Such a loss has groups and no examples: where
              padding is part of a group all is NaN (an error if the mask is not traced).
        batch_argnums: Position in `loss_fn` of the batch (params is 0), or several: ``(1, 2)`` for
            ``loss_fn(params, x, y)``. Every leaf there has one entry for each row.
        weights_of: Reserved for means that are weighted by more than a mask.
        has_aux: Whether `loss_fn` returns ``(loss, aux)``.
        key_argnums: Positions in `loss_fn` of arguments that are random keys, or pytrees of them.
            Where a method calls the loss on parts of the batch, every part then receives keys of
            its own: one dropout mask for all would hide part of the noise.

    Returns:
        ``f(params, batch, *args, mask=None, due=None, preconditioner=None)`` →
        ``(loss, grads, stats)``, or ``((loss, aux), grads, stats)``. Pure; meant to be called
        inside `jax.jit`.

        - `mask`: bool array with one entry for each row, False for padding. Padding counts
          nowhere, whatever it holds.
        - `due`: whether this step is to be measured, for `measure.every`; all other methods measure
          at every step.
        - `preconditioner`: pytree like `params`, the diagonal of a preconditioner P that the
          optimizer multiplies gradients by, such as `measure.adam_preconditioner` of its state.
          Noise and signal are then those that its update sees (the statistics of
          :math:`P^{1/2} g_i`); `grads` and `coordinate_variance` stay as they are. Negative or
          infinite entries of a traced one make the statistics NaN. Tests that take norms of the
          gradient by themselves (`proximal_test`, `averaged_gradient`), and `lipschitz_descent`,
          do not know of it.
        - `grads`: like `params`, in their dtypes. With random keys, dropout differs from the
          draw of one plain call, but for ``exact``.
        - `aux`: as one call on the whole batch returns it: leaves with one entry a row are
          concatenated, float leaves averaged, integer leaves (counts) summed.
        - `stats`: a `GradientStats`, in float32 (float64 where the gradients are).

        It raises ValueError for a loss of which it is not proved that the method may measure it,
        leaves of unequal length, data with one entry for each row that
        is not in the batch, a batch that does not divide, a mask of another shape or dtype, or a
        preconditioner that is not like `params` or negative. If no row is real the gradient is zero
        and the loss and variance NaN.

    Raises:
        TypeError: If `method` is not a method of `adaoptax.measure`.
        ValueError: If `loss_kind` is unknown, or positions are not different inputs of the loss.
        NotImplementedError: If there is `weights_of`.

    Examples:
        >>> import adaoptax, jax, jax.numpy as jnp
        >>> def loss_fn(w, batch):
        ...     return jnp.mean((batch["x"] @ w - batch["y"]) ** 2)
        >>> measure = adaoptax.value_grad_and_stats(loss_fn, adaoptax.measure.groups(4))
        >>> batch = {"x": jnp.arange(32.0).reshape(16, 2) / 32, "y": jnp.ones(16)}
        >>> loss, grads, stats = jax.jit(measure)(jnp.zeros(2), batch)
        >>> grads.shape, float(stats.num_examples), float(stats.num_groups)
        ((2,), 16.0, 4.0)
    """
    if method is not None:
        check_method("method", method)
    loss = describe_loss(
        loss_fn,
        loss_kind=loss_kind,
        batch_argnums=batch_argnums,
        weights_of=weights_of,
        has_aux=has_aux,
        key_argnums=key_argnums,
    )

    def measured(
        params: ArrayTree,
        *inputs: Any,
        mask: Any = None,
        due: Any = None,
        preconditioner: ArrayTree | None = None,
    ) -> tuple[Any, ArrayTree, GradientStats]:
        batch, args = loss.split(params, inputs)
        mask = checked_mask(mask, count_rows(batch))
        described = loss._replace(due=due, metric=as_metric(preconditioner, params))
        chosen = method or default_method(described, params, batch, args, mask)
        out: Measured = chosen(described)(params, batch, args, mask)
        (value, aux), grads, stats = out
        return ((value, aux) if has_aux else value), grads, stats

    return jax.named_call(measured, name="value_grad_and_stats")
