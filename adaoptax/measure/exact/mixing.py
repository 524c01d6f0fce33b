"""Refuses a loss that is not a mean of one loss per example, before anything is measured."""

from typing import Any

import jax
import numpy as np

from adaoptax._tree import ArrayTree
from adaoptax.measure.exact.dependence.propagate import Different, propagate
from adaoptax.measure.exact.dependence.value import FIXED, Value
from adaoptax.measure.loss import Loss
from adaoptax.measure.rows import count_rows

MIXES = """\
Expected loss_fn to be a mean of one loss per example, got a loss that mixes examples: {what}. \
This is what BatchNorm in training mode does, a contrastive loss, a whitened advantage, or a mean \
over the real tokens of the whole batch (divide each example by its own count, or by a constant). \
No example has a gradient of its own then. If every group may be a batch of its own, measure with \
adaoptax.measure.groups(n) and loss_kind="ghost"; if you know better, pass loss_kind="assumed"."""

SCALE = """\
Expected loss_fn to be the mean over the examples of the batch, got a loss in which an example \
weighs {factor:.3g} times as much once the batch is twice as long, where a mean gives 0.5: a sum, \
or a division by a constant. Take jnp.mean, or divide by the length of the batch itself."""

LENGTH = """\
Expected loss_fn to take a batch of any length, got {error} with {large} examples in place of \
{small}: this usually means that {suspect} has one entry for each example. Put it in the batch."""


def check_separable(loss: Loss, params: ArrayTree, batch: ArrayTree, args: tuple) -> None:
    """Raises ValueError unless the loss of a batch is the mean of the losses of its examples.

    The loss is traced twice, with B and with 2B rows, and never run. What cannot be told passes,
    and so does a loss of kind ``"assumed"``.

    Args:
        loss: The loss.
        params: Pytree of parameters.
        batch: Pytree, every leaf with a leading axis of B >= 2 examples.
        args: Extra arguments of the loss, its random keys not yet split.

    Raises:
        ValueError: If a value of one example meets that of another, other than in the mean; if
            the loss is no mean; or if it takes only batches of this length.
    """
    if loss.kind == "assumed":
        return
    traces = two_traces(loss, params, batch, args)
    if traces is None:
        return
    try:
        value = dependence(*traces, len(jax.tree.leaves(params)))
    except Different:
        return
    what = value.mixed or value.soft
    if what:
        raise ValueError(MIXES.format(what=what))
    if value.sums and value.scale:
        factor = max(value.scale, key=lambda factor: abs(factor - 0.5))
        if abs(factor - 0.5) > 1e-3:
            raise ValueError(SCALE.format(factor=factor))


def two_traces(
    loss: Loss, params: ArrayTree, batch: ArrayTree, args: tuple
) -> tuple[Any, Any] | None:
    """Jaxprs of the loss of a batch and of one twice as long; None if the loss objects to that."""
    num_rows = count_rows(batch)
    rows = jax.eval_shape(lambda tree: tree, batch)
    doubled = jax.tree.map(lambda x: x.update(shape=(2 * num_rows, *x.shape[1:])), rows)

    def trace(batch: ArrayTree) -> Any:
        # Rebuilt within, so that a module in `args` is changed in this trace and not for good.
        fn = lambda params, batch: loss(params, batch, jax.tree.map(lambda x: x, args))[0]
        return jax.make_jaxpr(fn)(params, batch)

    small = trace(rows)
    try:
        return small, trace(doubled)
    except (TypeError, ValueError) as error:
        raise ValueError(_wrong_length(error, num_rows, args)) from error
    except Exception:  # for example an assertion
        return None


def dependence(small: Any, large: Any, num_params: int) -> Value:
    """What is known of a loss of `num_params` leaves of parameters, then the leaves of a batch.

    Raises:
        Different: If the two traces are not the same program.
    """
    data = Value(rows=frozenset([0]))
    inputs = len(small.jaxpr.invars)
    return propagate(small, large, [FIXED] * num_params + [data] * (inputs - num_params))[0]


def _wrong_length(error: Exception, num_rows: int, args: tuple) -> str:
    leaves = jax.tree_util.tree_leaves_with_path(args)
    long = [
        f"extra argument {path[0].idx + 1}{jax.tree_util.keystr(path[1:])}"
        for path, leaf in leaves
        if np.shape(leaf)[:1] == (num_rows,)
    ]
    suspect = " or ".join(long) or "an array that loss_fn closes over"
    kind = type(error).__name__
    return LENGTH.format(error=kind, large=2 * num_rows, small=num_rows, suspect=suspect)
