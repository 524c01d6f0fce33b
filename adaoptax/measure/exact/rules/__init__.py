"""What is known about equations between a parameter and data, one file a rule."""

from typing import Any

from adaoptax.measure.exact.axes import Axis
from adaoptax.measure.exact.rules import convolution, dense, embedding
from adaoptax.measure.exact.rules.rule import Rule

_MATCHERS = (dense.match, convolution.match, embedding.match)


def match(eqn: Any, position: int, data: Axis, result: Axis, num_rows: int) -> Rule | None:
    """The rule for `eqn`, whose operand number `position` is a parameter and the other is data.

    Args:
        eqn: An equation with two operands.
        position: Of the parameter.
        data: Where the examples are in the other operand.
        result: Where they are in the result.
        num_rows: B.
    """
    found = (m(eqn, position, data, result, num_rows) for m in _MATCHERS)
    return next((rule for rule in found if rule is not None), None)
