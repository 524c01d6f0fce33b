"""The work of a program."""

import math
from typing import Any

from adaoptax.measure.programs import descriptions as read
from adaoptax.measure.programs.describe import describe
from adaoptax.measure.programs.equations import bodies_of


def count_flops(jaxpr: Any) -> float:
    """Multiplications and additions in the products and convolutions of a jaxpr.

    Of a `cond` the costlier branch counts.
    """
    return sum(_of_equation(eqn) for eqn in jaxpr.eqns)


def _of_equation(eqn: Any) -> float:
    size = lambda v: float(math.prod(v.aval.shape))
    match does := describe(eqn):
        case read.Product():
            shape = eqn.invars[0].aval.shape
            return 2 * size(eqn.outvars[0]) * math.prod(shape[i] for i in does.contract[0])
        case read.Convolution():
            out = eqn.invars[1].aval.shape[does.kernel[0]]
            return 2 * size(eqn.outvars[0]) * size(eqn.invars[1]) / out
        case read.Loop():
            return does.options["length"] * count_flops(does.program.jaxpr)
        case read.Branch():
            return max(count_flops(program.jaxpr) for program in does.programs)
    return sum(map(count_flops, bodies_of(eqn)))
