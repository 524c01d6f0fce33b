"""What the equations of a traced program hold, in every JAX that is known to work.

JAX promises nothing about the parameters of an equation: 0.11 renamed those of `scan`. All that
differs between its releases stands here, and a name that is missing is an error that says so.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
from jax.extend import core as jex
from jax.extend import source_info_util

# Of jax: the oldest and the newest release on which all tests were run (docs/versions.csv).
KNOWN_TO_WORK = ("0.10.2", "0.12.0.1")


class UnknownEquationError(RuntimeError):
    """An equation does not have the parameters that it has in the releases of JAX known to work."""

    def __init__(self, eqn: jex.JaxprEqn, name: str) -> None:
        where = line_of(eqn)
        oldest, newest = KNOWN_TO_WORK
        super().__init__(
            f"Expected the equation {eqn.primitive.name} at {where} to have a parameter {name!r},"
            f" got {sorted(eqn.params)}: this usually means that jax {jax.__version__} writes it"
            f" otherwise than jax {oldest} to {newest}, which are known to work. Install one of"
            ' these, or a newer adaoptax, or vouch for the loss, with loss_kind="assumed" and'
            " adaoptax.measure.groups(n)."
        )


class Parameters(dict[str, Any]):
    """The parameters of an equation.

    Raises:
        UnknownEquationError: When one is read that the equation does not have.
    """

    def __init__(self, eqn: jex.JaxprEqn) -> None:
        super().__init__(eqn.params)
        self._eqn = eqn

    def __missing__(self, name: str) -> Any:
        raise UnknownEquationError(self._eqn, name)


class Scan(NamedTuple):
    """A scan, whose operands are constants, then the first carry, then what it scans over.

    Attributes:
        num_consts: Constants among its operands.
        num_carry: Carried values, which are its first results, too.
        body: The closed jaxpr of one turn.
        options: ``length``, ``reverse`` and ``unroll`` of `jax.lax.scan`.
    """

    num_consts: int
    num_carry: int
    body: Any
    options: dict[str, Any]


def read_scan(eqn: jex.JaxprEqn) -> Scan:
    """The parts of a scan."""
    params = Parameters(eqn)
    if "ft_in" in params:  # jax >= 0.11: a tree of (constants, carry, scanned over)
        num_consts, num_carry = map(len, params["ft_in"].unpack()[:2])
    else:
        num_consts, num_carry = params["num_consts"], params["num_carry"]
    options = {name: params[name] for name in ("length", "reverse", "unroll")}
    return Scan(num_consts, num_carry, params["jaxpr"], options)


def body_of_call(eqn: jex.JaxprEqn) -> Any:
    """The jaxpr that a call runs, under either of its names."""
    return eqn.params["jaxpr"] if "jaxpr" in eqn.params else Parameters(eqn)["call_jaxpr"]


def line_of(eqn: jex.JaxprEqn) -> str:
    """The line of the user's program that an equation comes from."""
    return source_info_util.summarize(eqn.source_info)


def all_equations(jaxpr: jex.Jaxpr, called_at: str = "") -> Iterator[tuple[jex.JaxprEqn, str]]:
    """The equations of a program at any depth of calls, each with its line.

    What a function of JAX itself does has the line of its call.
    """
    for eqn in jaxpr.eqns:
        line = line_of(eqn) or called_at
        yield eqn, line
        for inner in jex.jaxprs_in_params(eqn.params):
            yield from all_equations(inner, line)


def bodies_of(eqn: jex.JaxprEqn) -> list[Any]:
    """The jaxprs inside of an equation, whatever it is."""
    return list(jex.jaxprs_in_params(eqn.params))


def axes_met(eqn: jex.JaxprEqn) -> frozenset[str]:
    """Named axes over which an equation lets the values of devices meet."""
    if eqn.primitive.name in ("axis_index", "pvary"):  # they name an axis, and nothing travels
        return frozenset()
    named = [eqn.params.get(name, ()) for name in ("axes", "axis_name")]
    each = [name for names in named for name in (names if isinstance(names, tuple) else (names,))]
    return frozenset(name for name in each if isinstance(name, str))


def removed_axes(eqn: jex.JaxprEqn) -> int:
    """Axes of length one that an equation takes off."""
    return len(Parameters(eqn)["dimensions"]) if eqn.primitive.name == "squeeze" else 0
