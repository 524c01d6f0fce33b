"""Work of a traced loss, counted: products and convolutions, which are nearly all of it."""

import math
from typing import Any

from jax.extend import core as jex

from adaoptax.measure.equations import Parameters


def count_flops(jaxpr: Any) -> float:
    """Multiplications and additions of one evaluation; the costlier branch of a `cond`."""
    return sum(_of_equation(eqn) for eqn in jaxpr.eqns)


def _of_equation(eqn: Any) -> float:
    name, params = eqn.primitive.name, Parameters(eqn)
    if name == "dot_general":
        (contract, _), _ = params["dimension_numbers"]
        shape = eqn.invars[0].aval.shape
        return 2.0 * math.prod(eqn.outvars[0].aval.shape) * math.prod(shape[i] for i in contract)
    if name == "conv_general_dilated":
        kernel = eqn.invars[1].aval.shape
        out = kernel[params["dimension_numbers"].rhs_spec[0]]
        return 2.0 * math.prod(eqn.outvars[0].aval.shape) * math.prod(kernel) / out
    inside = map(count_flops, jex.jaxprs_in_params(params))
    return max(inside) if name == "cond" else params.get("length", 1) * sum(inside)
