"""Runs equations: one of them, or a whole program with a say in each."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core as jex


def trace(fn: Callable[..., Any], *args: Any) -> tuple[Any, Any]:
    """``(closed jaxpr, shapes of the outputs)`` of `fn`, whose outputs are a pytree."""
    return jax.make_jaxpr(fn, return_shape=True)(*args)


def for_first_output(program: Any) -> Any:
    """A closed jaxpr that has but the first output of `program`, and what it needs."""
    jaxpr = program.jaxpr
    needed = {v for v in jaxpr.outvars[:1] if not is_literal(v)}
    kept = []
    for eqn in reversed(jaxpr.eqns):
        if needed.intersection(eqn.outvars):
            kept.append(eqn)
            needed.update(v for v in eqn.invars if not is_literal(v))
    eqns = kept[::-1]
    return program.replace(jaxpr=jaxpr.replace(eqns=eqns, outvars=jaxpr.outvars[:1]))


def is_literal(v: Any) -> bool:
    """Whether an operand is a number written in the program, in place of a variable."""
    return isinstance(v, jex.Literal)


def interpret(
    program: Any,
    inputs: Sequence[Any],
    equation: Callable[[int, Any, list[Any]], Iterable[Any]],
    constant: Callable[[Any], Any] = lambda value: value,
) -> list[Any]:
    """The outputs of a closed jaxpr, with each equation left to the caller.

    Args:
        program: Closed jaxpr.
        inputs: Whatever the caller uses for values, one for each input.
        equation: ``equation(i, eqn, values)`` returns the results of equation number i.
        constant: What stands for a constant of the program.
    """
    jaxpr = program.jaxpr
    env: dict[Any, Any] = dict(zip(jaxpr.constvars, map(constant, program.consts), strict=True))
    env.update(zip(jaxpr.invars, inputs, strict=True))

    def read(v: Any) -> Any:
        return constant(v.val) if isinstance(v, jex.Literal) else env[v]

    for i, eqn in enumerate(jaxpr.eqns):
        env.update(zip(eqn.outvars, equation(i, eqn, list(map(read, eqn.invars))), strict=True))
    return list(map(read, jaxpr.outvars))


def evaluate_equation(eqn: Any, values: Sequence[Any], also: Iterable[int] = ()) -> list[Any]:
    """The results of one equation, by JAX's public interface.

    Args:
        eqn: The equation.
        values: One for each operand; those of literals are passed over.
        also: Operands that are literals, whose values count nevertheless.
    """
    if also:
        new = jex.gensym()
        operands = [new(v.aval) if i in also else v for i, v in enumerate(eqn.invars)]
        eqn = eqn.replace(invars=operands)
    pairs = zip(eqn.invars, values, strict=True)
    inputs = {v: x for v, x in pairs if not isinstance(v, jex.Literal)}
    unnamed = jex.DebugInfo("adaoptax.measure", "evaluate_equation", None, None)
    jaxpr = jex.Jaxpr([], list(inputs), list(eqn.outvars), [eqn], eqn.effects, unnamed)
    return list(jex.jaxpr_as_fun(jex.ClosedJaxpr(jaxpr, []))(*inputs.values()))


def run(program: Any, values: Sequence[Any]) -> list[Any]:
    """The results of a closed jaxpr."""
    return list(jex.jaxpr_as_fun(program)(*values))


def derivative_of(eqn: Any) -> tuple[Any, list[int], list[int]]:
    """``(program, operands, results)``: the backward pass of an equation.

    The program takes all operands, then the cotangents of the float `results`; it returns those of
    the float `operands`.
    """
    flows = lambda v: jax.dtypes.issubdtype(v.aval.dtype, np.inexact)
    operands = [i for i, v in enumerate(eqn.invars) if flows(v)]
    results = [i for i, v in enumerate(eqn.outvars) if flows(v)]

    def backward(*values: Any) -> Any:
        given, cotangents = values[: len(eqn.invars)], list(values[len(eqn.invars) :])

        def forward(moving: list) -> list:
            whole = dict(enumerate(given)) | dict(zip(operands, moving, strict=True))
            outputs = evaluate_equation(eqn, [whole[i] for i in range(len(given))])
            return [outputs[i] for i in results]

        return jax.vjp(forward, [given[i] for i in operands])[1](cotangents)[0]

    avals = [v.aval for v in eqn.invars] + [eqn.outvars[i].aval for i in results]
    return jax.make_jaxpr(backward)(*avals), operands, results
