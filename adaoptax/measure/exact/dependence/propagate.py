"""Carries the dependence on examples through a jaxpr, in two traces side by side."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.extend.core import Literal

from adaoptax.measure.equations import Parameters, body_of_call, read_scan
from adaoptax.measure.exact.dependence import arithmetic, moves
from adaoptax.measure.exact.dependence.arithmetic import branches, select_n
from adaoptax.measure.exact.dependence.value import (
    ANY,
    FIXED,
    ONE,
    UNKNOWN,
    Equation,
    Scale,
    Value,
    merge,
    nonlinear_scale,
    one_batch_axis,
    product_scale,
    renumber,
    sum_scale,
    verdict,
)

RULES = {**arithmetic.RULES, **moves.RULES}
_CALLS = (
    "jit pjit closed_call core_call remat remat2 checkpoint composite custom_jvp_call"
    " custom_vjp_call custom_vjp_call_jaxpr custom_vmap_call"
)
_INDEXED = {"gather": 1, "dynamic_slice": 1, "dynamic_update_slice": 2}  # first index operand
_JAX = f"{Path(jax.__file__).parent}{os.sep}"


class Different(Exception):
    """The two traces are not the same program."""


def propagate(small: Any, large: Any, ins: Sequence[Value], caller: Any = None) -> list[Value]:
    """What is known of the results of a jaxpr, from what is known of its operands.

    Args:
        small: A jaxpr, open or closed, traced with B rows.
        large: The same traced with 2B rows.
        ins: What is known of its operands.
        caller: The equation that calls it, if its own equations should not be blamed.

    Returns:
        What is known of its results, in order.

    Raises:
        Different: If the two are not the same program.
    """
    consts = zip(getattr(small, "consts", ()), getattr(large, "consts", ()), strict=True)
    small, large = getattr(small, "jaxpr", small), getattr(large, "jaxpr", large)
    _check(len(small.eqns) == len(large.eqns))
    known: dict[Any, Value] = {}
    partner: dict[Any, Any] = {}

    def write(variables: Any, partners: Any, values: Sequence[Value]) -> None:
        _check(len(variables) == len(partners) == len(values))
        for a, b, value in zip(variables, partners, values, strict=True):
            known[a], partner[a] = value, b

    def read(a: Any, b: Any) -> Value:
        if isinstance(a, Literal):
            _check(isinstance(b, Literal))
            return FIXED._replace(scale=_ratio(a.val, b.val))
        _check(partner.get(a) is b)
        return known[a]

    write(small.constvars, large.constvars, [FIXED._replace(scale=_ratio(*c)) for c in consts])
    write(small.invars, large.invars, ins)
    for a, b in zip(small.eqns, large.eqns, strict=True):
        _check(a.primitive is b.primitive and len(a.invars) == len(b.invars))
        operands = [read(*pair) for pair in zip(a.invars, b.invars, strict=True)]
        write(a.outvars, b.outvars, _evaluate(a, b, operands, caller))
    return [read(*pair) for pair in zip(small.outvars, large.outvars, strict=True)]


def _check(same: bool) -> None:
    if not same:
        raise Different


def _evaluate(small: Any, large: Any, ins: list[Value], caller: Any) -> list[Value]:
    name = small.primitive.name
    if name in _CALLS.split():
        inner, other = body_of_call(small), body_of_call(large)
        if len(getattr(inner, "jaxpr", inner).invars) == len(ins):
            blamed = caller or (small if _is_of_jax(inner) else None)
            return propagate(inner, other, ins, blamed)
    if name == "scan":
        return _scan(small, large, ins, caller)
    if name == "cond":
        return _cond(small, large, ins, caller)
    if name == "while":
        return _while(small, large, ins, caller)
    eqn = Equation(small, large, caller)
    if name == "select_n" and any(value.data for value in ins):
        return [select_n(eqn, *ins)]
    return _apply(eqn, ins)


def _apply(eqn: Equation, ins: list[Value]) -> list[Value]:
    count = len(eqn.outs)
    if not any(value.data for value in ins):
        return [FIXED._replace(scale=_fixed_scale(eqn, ins))] * count
    where = ins[1:2] if eqn.name.startswith("scatter") else ins[_INDEXED.get(eqn.name, len(ins)) :]
    if verdict(where):
        return [UNKNOWN] * count
    found = verdict(ins)
    if found:
        return [UNKNOWN if eqn.integer and eqn.name not in RULES else found] * count
    if eqn.name == "optimization_barrier":
        return ins
    if eqn.name not in RULES:
        return _row_by_row(eqn, ins)
    out = RULES[eqn.name](eqn, *ins)
    out = out if isinstance(out, list) else [out] * count
    return [x if x.rows <= eqn.axes_out(i) else UNKNOWN for i, x in enumerate(out)]


def _row_by_row(eqn: Equation, ins: list[Value]) -> list[Value]:
    """An unknown primitive: taken to act on each example alone if one batch axis is left."""
    together = merge(ins, None, None)
    if together.sums or together.soft or together.pairs:
        return [UNKNOWN] * len(eqn.outs)
    return [one_batch_axis(eqn, i) for i in range(len(eqn.outs))]


# --- Scales of fixed values -------------------------------------------------------------------


def _ratio(small: Any, large: Any) -> Scale:
    """The factor between two constants: how a division by the number of rows shows."""
    if small is large:
        return ONE
    if np.ndim(small) or np.ndim(large) or isinstance(small, jax.Array):
        return None  # reading an array could be a transfer from a device
    if small == large or (small != small and large != large):
        return ONE if small else frozenset()
    return frozenset([float(large) / float(small)]) if small and np.isrealobj(small) else None


def _fixed_scale(eqn: Equation, ins: list[Value]) -> Scale:
    if eqn.name == "mul":
        return product_scale(ins)
    if eqn.name == "div":
        return product_scale(ins, divide=True)
    if RULES.get(eqn.name) is arithmetic.linear:
        return sum_scale(ins)
    if eqn.name in ("broadcast_in_dim", "reshape", "squeeze", "transpose"):
        return ins[0].scale
    if eqn.name == "iota" and eqn.axes_out():
        return None
    if any(len(eqn.axes_in(i)) > len(eqn.axes_out()) for i in range(len(ins))):
        return None  # a sum over the batch, as of ones
    return nonlinear_scale(ins)


# --- Calls and control flow -------------------------------------------------------------------


def _is_of_jax(jaxpr: Any) -> bool:
    """Whether a called function is JAX's own, as jnp.var: then its caller is to be named."""
    info = getattr(getattr(jaxpr, "jaxpr", jaxpr), "debug_info", None)
    return _JAX in str(getattr(info, "func_src_info", ""))


def _cond(small: Any, large: Any, ins: list[Value], caller: Any) -> list[Value]:
    pairs = zip(Parameters(small)["branches"], Parameters(large)["branches"], strict=True)
    results = [propagate(a, b, ins[1:], caller) for a, b in pairs]
    return [branches(cases) for cases in zip(*results, strict=True)]


def _while(small: Any, large: Any, ins: list[Value], caller: Any) -> list[Value]:
    """What a loop mixes is forgiven: a solver whose steps or end depend on the whole batch."""
    params = Parameters(small)
    first, count = params["cond_nconsts"], params["body_nconsts"]
    consts, carry = ins[first : first + count], ins[first + count :]
    bodies = params["body_jaxpr"], Parameters(large)["body_jaxpr"]
    after = _loop(bodies, consts, carry, [], caller)[0]
    return [UNKNOWN if x.mixed else x for x in after] if not verdict(ins) else after


def _scan(small: Any, large: Any, ins: list[Value], caller: Any) -> list[Value]:
    num_consts, num_carry, body, options = read_scan(small)
    other = read_scan(large)
    consts, carry = ins[:num_consts], ins[num_consts : num_consts + num_carry]
    xs = ins[num_consts + num_carry :]
    if options["length"] != other.options["length"]:
        return _scan_over_examples(Equation(small, large, caller), consts, carry, xs)
    slices = [x._replace(rows=renumber(x.rows, [0])) for x in xs]
    carry, ys = _loop((body, other.body), consts, carry, slices, caller)
    return carry + [y._replace(rows=frozenset(axis + 1 for axis in y.rows)) for y in ys]


def _scan_over_examples(
    eqn: Equation, consts: list[Value], carry: list[Value], xs: list[Value]
) -> list[Value]:
    """`jax.lax.map` over the batch keeps its rows apart; what is carried on is not followed."""
    found = verdict([*consts, *carry, *xs])
    together = merge(xs, None, None)
    if found or carry or any(value.data for value in consts) or together.pairs:
        return [found or UNKNOWN] * len(eqn.outs)
    apart = Value(rows=frozenset([0]), order=together.order, scale=None)
    return [apart] * len(eqn.outs)


def _loop(
    bodies: tuple[Any, Any], consts: list[Value], carry: list[Value], xs: list[Value], caller: Any
) -> tuple[list[Value], list[Value]]:
    """Turns until what is known of the carry stays the same; (carry, outputs of a turn)."""
    for _ in range(4):
        out = propagate(*bodies, [*consts, *carry, *xs], caller)
        after = [_either(*pair) for pair in zip(carry, out, strict=False)]
        if after == carry:
            return carry, out[len(carry) :]
        carry = after
    return [UNKNOWN] * len(carry), [UNKNOWN] * (len(out) - len(carry))


def _either(before: Value, after: Value) -> Value:
    both = merge([before, after], None, sum_scale([before, after]))
    return both._replace(order=ANY) if before.rows and before.order != both.order else both
