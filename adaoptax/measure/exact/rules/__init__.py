"""What is known about equations between a parameter and data, one file a rule."""

from typing import Any

from adaoptax.measure.exact.rules import convolution, dense, embedding
from adaoptax.measure.exact.rules.rule import Rule

_MATCHERS = (dense.match, convolution.match, embedding.match)


def match(eqn: Any, position: int) -> Rule | None:
    """The rule for `eqn` whose operand number `position` is a parameter and the other is data."""
    return next((rule for m in _MATCHERS if (rule := m(eqn, position)) is not None), None)
