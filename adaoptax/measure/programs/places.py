"""What equations are called in messages, and where in the user's program they come from."""

from collections.abc import Sequence
from typing import Any

from jax.extend import core as jex
from jax.extend import source_info_util

from adaoptax.measure.programs.equations import bodies_of


def describe_place(eqn: jex.JaxprEqn, calls: Sequence[jex.JaxprEqn] = ()) -> str:
    """An equation and the user's line that it comes from, for a message.

    The body of a cached function may know no line. Then that of the innermost of the `calls` around
    it counts.
    """
    operands = ", ".join(v.aval.str_short() for v in eqn.invars)
    scope = str(eqn.source_info.name_stack)
    inside = f" in {scope}" if scope else ""
    lines = [source_info_util.summarize(x.source_info) for x in (eqn, *reversed(calls))]
    where = next(filter(None, lines), "")
    if calls and not lines[0]:
        inside += f" inside {calls[-1].params.get('name', calls[-1].primitive.name)}"
    return f"{eqn.primitive.name}({operands}){inside} at {where}"


def name_of(eqn: jex.JaxprEqn) -> str:
    """What JAX calls the operation of an equation."""
    return str(eqn.primitive.name)


def effects_of(program: Any) -> list[tuple[str, str]]:
    """The side effects of a closed jaxpr, each with the innermost equation that has it."""
    return [(type(effect).__name__, _where(effect, program.jaxpr)) for effect in program.effects]


def _where(effect: Any, jaxpr: Any) -> str:
    for eqn in jaxpr.eqns:
        if effect in eqn.effects:
            for inner in bodies_of(eqn):
                if effect in inner.effects:
                    return _where(effect, inner)
            return f"{eqn.primitive.name} at {source_info_util.summarize(eqn.source_info)}"
    return "an unknown equation"
