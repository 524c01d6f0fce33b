"""Convolutions that stay fast inside loops and branches on the CPU.

XLA:CPU has fast kernels for convolutions whose axes lie in one order: rows, space, channels, with
kernels of space, channels in, channels out. Any other convolution it first transposes to that
order, but only outside of control flow (its pass looks at the entry computation alone). In
`jax.lax.scan`, `while_loop` and `cond` the others run 3 to 70 times slower. The gradient of every
kernel is one of them, so a scanned accumulation of a convolutional network takes 17 to 34 times as
long as the plain gradient. `channels_last` writes the transposes into the program, where XLA would
have put them outside of a loop; the loop then takes 0.8 to 0.9 of the plain gradient.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core as jex

from adaoptax.measure.programs.equations import Parameters, all_equations


def channels_last(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn` with its convolutions in the order that is fast on the CPU, at any depth of calls.

    On other platforms the lowered program is as before. `fn` must hold the gradient already: the
    gradient of a rewritten convolution is in another order again.

    Args:
        fn: A function of pytrees of arrays; whatever else it needs it closes over.

    Returns:
        A function with the same results.
    """

    def rewritten(*args: Any) -> Any:
        closed, shapes = jax.make_jaxpr(fn, return_shape=True)(*args)
        program = jex.ClosedJaxpr(_rewrite(closed.jaxpr), closed.consts)
        leaves = jex.jaxpr_as_fun(program)(*jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shapes), leaves)

    return rewritten


def count_convolutions(fn: Callable[..., Any], *args: Any) -> int:
    """Convolutions in the program of ``fn(*args)``, at any depth of calls; nothing is computed."""
    return _count(jax.make_jaxpr(fn)(*args).jaxpr)


def _count(jaxpr: jex.Jaxpr) -> int:
    convolution = jax.lax.conv_general_dilated_p
    return sum(equation.primitive is convolution for equation, _ in all_equations(jaxpr))


def _rewrite(jaxpr: jex.Jaxpr) -> jex.Jaxpr:
    if not _count(jaxpr):
        return jaxpr  # the very object: what JAX has cached for it stays
    equations = []
    for equation in jaxpr.eqns:
        if equation.primitive is jax.lax.conv_general_dilated_p:
            equations += _convolve(equation)
        else:
            params = {name: _inside(param) for name, param in equation.params.items()}
            equations.append(equation.replace(params=params))
    return jaxpr.replace(eqns=equations)


def _inside(param: Any) -> Any:
    """The parameter of an equation, with all that it calls rewritten."""
    if isinstance(param, jex.ClosedJaxpr):
        return param.replace(jaxpr=_rewrite(param.jaxpr))
    if isinstance(param, jex.Jaxpr):
        return _rewrite(param)
    if isinstance(param, tuple | list) and any(
        isinstance(each, jex.ClosedJaxpr | jex.Jaxpr) for each in param
    ):
        return type(param)(_inside(each) for each in param)
    return param


def _convolve(equation: jex.JaxprEqn) -> list[jex.JaxprEqn]:
    """The equations that stand for one convolution, on its variables."""
    numbers = Parameters(equation)["dimension_numbers"]
    if numbers == _fast_order(len(numbers.lhs_spec)):
        return [equation]
    as_it_is = lambda *operands: equation.primitive.bind(*operands, **equation.params)
    transposed = lambda *operands: _transposed(*operands, **equation.params)
    convolve = lambda *operands: jax.lax.platform_dependent(
        *operands, cpu=transposed, default=as_it_is
    )
    inner = jax.make_jaxpr(convolve)(*(operand.aval for operand in equation.invars)).jaxpr
    outer = dict(zip(inner.invars, equation.invars, strict=True))
    outer |= dict(zip(inner.outvars, equation.outvars, strict=True))
    named = lambda variables: [outer.get(variable, variable) for variable in variables]
    return [
        each.replace(
            invars=named(each.invars),
            outvars=named(each.outvars),
            source_info=equation.source_info,
        )
        for each in inner.eqns
    ]


def _fast_order(rank: int) -> jax.lax.ConvDimensionNumbers:
    data = (0, rank - 1, *range(1, rank - 1))  # where rows, channels and space lie
    kernel = (rank - 1, rank - 2, *range(rank - 2))  # channels out, channels in, space
    return jax.lax.ConvDimensionNumbers(data, kernel, data)


def _transposed(
    lhs: jax.Array, rhs: jax.Array, *, dimension_numbers: Any, **params: Any
) -> jax.Array:
    """The convolution on operands in the fast order, its result in the order of before."""
    fast = _fast_order(lhs.ndim)
    out = jax.lax.conv_general_dilated_p.bind(
        _move(lhs, dimension_numbers.lhs_spec, fast.lhs_spec),
        _move(rhs, dimension_numbers.rhs_spec, fast.rhs_spec),
        dimension_numbers=fast,
        **params,
    )
    return _move(out, fast.out_spec, dimension_numbers.out_spec)


def _move(x: jax.Array, old: Sequence[int], new: Sequence[int]) -> jax.Array:
    """Transposes so that the axes `old` become the axes `new`."""
    source = dict(zip(new, old, strict=True))
    return jnp.transpose(x, [source[axis] for axis in range(x.ndim)])
