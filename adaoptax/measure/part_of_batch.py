"""What the program of a loss tells that its results do not; nothing is computed."""

import collections
from typing import Any

import jax.numpy as jnp

from adaoptax._tree import ArrayTree
from adaoptax.measure.exact.one_row import check_alike
from adaoptax.measure.exact.sizes import Differs, trace_of_length
from adaoptax.measure.loss import Loss
from adaoptax.measure.programs.equations import all_equations, axes_met, removed_axes
from adaoptax.measure.programs.evaluate import for_first_output, trace
from adaoptax.measure.programs.places import name_of
from adaoptax.measure.rows import count_rows
from adaoptax.measure.varying import AxisName, axes_of, tracks_varying, varying_axes

COLLECTIVE = """\
Expected a loss of the rows of one device with adaoptax.measure.devices({axis_name!r}), got one in \
which devices meet: {what}. No device has a gradient of its own then, and what differs between \
devices is not the noise of their rows. This is BatchNorm with axis_name, or a pmean of the loss. \
Leave the collective out, adaoptax takes the mean over devices; for BatchNorm drop its axis_name \
and pass loss_kind="ghost", each device is a batch of its own then; if it is a constant of the \
batch, such as its number of tokens, pass loss_kind="assumed"."""

REDUCED = """\
Expected a loss of the rows of one device with adaoptax.measure.devices({axis_name!r}), got one \
that is equal on all of them: this usually means that loss_fn ends in jax.lax.pmean or psum. Leave \
that out, adaoptax takes the mean over devices."""


def program_of(loss: Loss, params: ArrayTree, batch: ArrayTree, args: tuple) -> tuple[Any, Any]:
    """The program of a loss and the shape of its value."""
    closed, (value, _) = trace(loss.of_trace(args), params, batch)
    return closed.jaxpr, value


def check_devices_apart(
    loss: Loss, params: ArrayTree, batch: ArrayTree, args: tuple, axis_name: AxisName
) -> None:
    """Raises ValueError for a loss whose value on one device depends on other devices.

    Args:
        loss: The loss of a device; of kind ``"assumed"``, devices may meet inside of it.
        params: Pytree of parameters, varying over the axis.
        batch: The rows of a device.
        args: Extra arguments of the loss.
        axis_name: The axis of the devices, bound.
    """
    axes = frozenset(axes_of(axis_name))
    program, value = program_of(loss, params, batch, args)
    met = [
        f"{name_of(eqn)} at {line}" for eqn, line in all_equations(program) if axes & axes_met(eqn)
    ]
    if met and loss.kind != "assumed":
        raise ValueError(COLLECTIVE.format(axis_name=axis_name, what=met[0]))
    if tracks_varying(axis_name) and not axes <= varying_axes(value):
        raise ValueError(REDUCED.format(axis_name=axis_name))


def coarsest_epsilon(loss: Loss, params: ArrayTree, batch: ArrayTree, args: tuple) -> float:
    """The precision of the coarsest floats that a loss computes in, such as 2⁻⁷ for bfloat16."""
    program, _ = program_of(loss, params, batch, args)
    values: list[Any] = [x.aval for eqn, _ in all_equations(program) for x in eqn.outvars]
    floats = {x.dtype for x in values if jnp.issubdtype(x.dtype, jnp.inexact)}
    return max((float(jnp.finfo(dtype).eps) for dtype in floats), default=0.0)


ONE_ROW = """\
Expected loss_fn to do with one row what it does with several, as this method takes each row as a \
batch of one, got {what}. {cure}"""
SQUEEZED = """\
squeeze at {line}, which also removes the axis of a single row: what follows would take another \
axis for the rows"""
NAME_IT = "Name the axis that goes, as in squeeze(axis=-1)."
BRANCH = """\
This usually means a branch of Python on the length of the batch. Measure with \
adaoptax.measure.exact(), which calls loss_fn on the whole batch, or leave the branch out."""


def check_one_row(loss: Loss, params: ArrayTree, batch: ArrayTree, args: tuple) -> None:
    """Raises ValueError unless one row, as a batch of one, has the loss that rows have in a batch.

    Of kind ``"assumed"`` all passes.
    """
    if loss.kind == "assumed":
        return
    lengths = (1, 2, max(count_rows(batch), 3))
    programs = [for_first_output(check_part(loss, params, batch, args, n)) for n in lengths]
    try:
        check_alike(programs, lengths)
    except Differs as error:
        what, cure = f"one of which {error}", BRANCH
        if line := _squeeze_of_one(*programs[:2]):
            what, cure = SQUEEZED.format(line=line), NAME_IT
        raise ValueError(ONE_ROW.format(what=what, cure=cure)) from error


def _squeeze_of_one(one: Any, two: Any) -> str:
    """The line of a squeeze that removes more axes from one row than from two; empty if none."""
    removed = [collections.Counter[str](), collections.Counter[str]()]
    for found, program in zip(removed, (one, two), strict=True):
        for eqn, line in all_equations(program.jaxpr):
            found[line] += removed_axes(eqn)
    return next(iter(removed[0] - removed[1]), "")


def check_part(loss: Loss, params: ArrayTree, batch: ArrayTree, args: tuple, rows: int) -> Any:
    """The program of a loss with `rows` rows; ValueError where it takes only the whole batch."""
    return trace_of_length(loss.of_trace(args), params, batch, num_rows=rows)[0]
