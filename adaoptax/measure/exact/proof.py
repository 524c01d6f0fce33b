"""What has to be proved of a loss before it is measured, and what is said where it is not."""

from typing import Any

import jax
import jax.numpy as jnp

from adaoptax._tree import ArrayTree
from adaoptax.measure.exact.known import Total
from adaoptax.measure.exact.plan import Plan
from adaoptax.measure.exact.planning import make_plan
from adaoptax.measure.exact.powers import DRAWN, KEEPS_ENTRIES
from adaoptax.measure.exact.sizes import Differs, Sizes, sizes_of, trace_of_length
from adaoptax.measure.exact.walk import Padding
from adaoptax.measure.loss import Loss
from adaoptax.measure.programs.describe import describe
from adaoptax.measure.programs.evaluate import for_first_output
from adaoptax.measure.programs.places import describe_place
from adaoptax.measure.rows import count_rows

MIXES = """\
Expected loss_fn to be a sum of one loss per example over a number that depends on data alone, got \
a loss in which examples meet through the parameters: {what}. This is what BatchNorm in training \
mode, a contrastive loss or a ranking of losses does, and no example has a gradient of its own \
then. If every group may be a batch of its own, measure with \
adaoptax.value_grad_and_stats(loss_fn, adaoptax.measure.groups(8), loss_kind="ghost"); if you know \
that statistics of single examples mean something nevertheless, pass loss_kind="assumed"."""

UNTOLD = """\
Expected it to be told which example every gradient is of, got {what}. Keep the examples on one \
axis from the batch to the loss, or measure with adaoptax.measure.groups(n); if an equal part for \
every example will do there, pass loss_kind="assumed"."""


NOT_LINEAR = """\
Expected derivatives that are linear in what flows back, got {what}: a batch does not get the sum \
of what its examples get then, as where gradients are clipped or normalised on their way. Do that \
to the gradient that comes out; if the derivative is linear and of single rows, and only cannot be \
seen here, pass loss_kind="assumed"."""


def check_plan(loss: Loss, plan: Plan) -> None:
    """Raises ValueError unless the loss is separable, and it is known whose every gradient is."""
    if loss.kind == "assumed":
        return
    if plan.nonlinear:
        raise ValueError(NOT_LINEAR.format(what=plan.nonlinear))
    if plan.mixed:
        raise ValueError(MIXES.format(what=plan.mixed))
    if plan.untold:
        raise ValueError(UNTOLD.format(what=plan.untold))


UNMASKED = """\
Expected a loss in which rows of padding can be left out, got mask= with a loss of which that \
cannot be proved: {what}. Take a batch without padding, or leave the padding out of the loss."""


def padding_of(
    loss: Loss, params: ArrayTree, batch: ArrayTree, args: tuple, traced: Any, plan: Plan, mask: Any
) -> Padding:
    """What leaves the padding out of the traced loss.

    Raises:
        ValueError: If that cannot be proved.
    """
    if plan.unmasked:
        raise ValueError(UNMASKED.format(what=plan.unmasked))
    num_rows = count_rows(batch)
    try:
        twice = trace_of_length(loss.of_trace(args), params, batch, num_rows=2 * num_rows)[0]
        sizes = sizes_of(traced, twice, (num_rows, 2 * num_rows))
    except Differs as error:
        raise ValueError(UNMASKED.format(what=error)) from error
    if counted := _counted(plan, sizes):
        raise ValueError(UNMASKED.format(what=counted))
    real = jnp.sum(mask)
    share = jnp.where(real > 0, real, 1) / num_rows
    return Padding(mask, share, sizes.powers)


def _counted(plan: Plan, sizes: Sizes) -> str:
    """Where the padding is counted in what is computed of constants and parameters alone.

    Only after a sum over the examples, or of data, are numbers that count rows replaced.
    """
    if plan.heads and sizes.powers:
        return "a parameter weighs a sum over the examples that is divided by their number"
    for place, eqn in plan.constants.items():
        scalar = not any(getattr(v.aval, "shape", ()) for v in (*eqn.invars, *eqn.outvars))
        joins = place in sizes.growing and not isinstance(describe(eqn), KEEPS_ENTRIES)
        counts = place in sizes.powers or place in sizes.turns or (scalar and place in sizes.counts)
        if joins or counts:
            return f"{describe_place(eqn)} depends on the number of rows"
    return ""


NO_MEAN = """\
Expected loss_fn to be the mean over the rows of its batch, as {method} takes means of the losses \
of parts of it, got {what}. {cure}"""
SUM = """a loss that is {factor:.3g} times as large for the same rows twice, where a mean is the \
same: a sum over the rows, or a division by a constant"""
TAKE_A_MEAN = "Take jnp.mean, or divide by the length of the batch itself."
SEE_THE_BATCH = """Measure with adaoptax.measure.exact(), which sees the whole batch, or put it \
into the batch as data of each row."""
IN_PLACES = """a loss in which a row meets a constant by its place in the batch, in {what}"""
UNDECLARED = """\
Expected all random keys of loss_fn in key_argnums, got key_argnums={declared} and {what}: of a \
batch in parts, as {method} takes it, every part would draw the same. Make that key an argument of \
loss_fn, and pass its position in key_argnums; or measure with adaoptax.measure.exact(), which \
calls loss_fn on the whole batch."""


def check_mean(
    loss: Loss,
    params: ArrayTree,
    batch: ArrayTree,
    args: tuple,
    method: str,
    part: int,
    whole: int | None = None,
) -> None:
    """Raises ValueError unless the loss of a batch is proved to be the mean of those of its parts.

    For methods that call the loss on parts of `part` rows. It is traced with as many and with the
    `whole` (by default that of the batch), or twice as many if these are all, and never run.
    """
    if loss.kind != "separable":
        return
    plan = plan_of_mean(loss, params, batch, args, method, part, whole or count_rows(batch))
    check_plan(loss, plan)
    refuse = lambda what, cure: ValueError(NO_MEAN.format(method=method, what=what, cure=cure))
    if plan.whole_batch:
        raise refuse(f"one in which {plan.whole_batch}", SEE_THE_BATCH)
    if plan.places.endswith(DRAWN):
        raise ValueError(
            UNDECLARED.format(declared=loss.key_argnums, what=plan.places, method=method)
        )
    if plan.places:
        raise refuse(IN_PLACES.format(what=plan.places), SEE_THE_BATCH)
    if isinstance(plan.loss, Total) and plan.loss.power != -1:
        if plan.loss.power is None:
            raise refuse(
                "a loss that depends on the length of the batch in another way", TAKE_A_MEAN
            )
        raise refuse(SUM.format(factor=2.0 ** (plan.loss.power + 1)), TAKE_A_MEAN)


def is_mean(loss: Loss, params: ArrayTree, batch: ArrayTree, args: tuple, part: int) -> bool:
    """Whether `check_mean` passes."""
    try:
        check_mean(loss, params, batch, args, "", part)
    except ValueError:
        return False
    return True


def plan_of_mean(
    loss: Loss, params: ArrayTree, batch: ArrayTree, args: tuple, method: str, part: int, whole: int
) -> Plan:
    """The plan of a loss of the whole with its sizes, from two traces."""
    few = max(part, 2)  # an axis of one row may be written otherwise: see `one_row.py`
    many = whole if whole > few else 2 * few
    keys = {i: args[i] for i, declared in enumerate(loss.is_key(args)) if declared}

    def fn(params: ArrayTree, batch: ArrayTree, keys: dict[int, Any]) -> Any:
        rest = jax.tree.map(lambda x: x, args)
        return loss(params, batch, tuple(keys.get(i, arg) for i, arg in enumerate(rest)))

    traced = lambda length: for_first_output(
        trace_of_length(fn, params, batch, keys, num_rows=length)[0]
    )
    small, large = traced(few), traced(many)
    try:
        sizes = sizes_of(small, large, (few, many))
    except Differs as error:
        raise ValueError(
            NO_MEAN.format(method=method, what=f"one of which {error}", cure=SEE_THE_BATCH)
        ) from error
    # The constants of fewer rows are the beginnings of those of more: what is alike there is here.
    return make_plan(large, len(jax.tree.leaves(params)), many, len(jax.tree.leaves(keys)), sizes)
