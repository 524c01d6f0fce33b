"""What a rule is: an equation of data with a parameter whose gradients come in factors."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from adaoptax.measure.exact.axes import Axis, row_shape, rows_of
from adaoptax.measure.exact.cost import Choice
from adaoptax.measure.exact.factors import Factor, Want
from adaoptax.measure.programs.evaluate import evaluate_equation


@dataclasses.dataclass(frozen=True, eq=False)
class Rule:
    """An equation with one parameter operand and one data operand.

    The parameter operand is seen as [N, I, O] (`canonical`, and back: `restore`).

    Attributes:
        eqn: The equation.
        does: Its description.
        position: Which operand is the parameter.
        data_axis: Where the examples are in the other operand.
        result_axis: Where they are in the result.
        num_rows: B.
    """

    eqn: Any
    does: Any
    position: int
    data_axis: Axis
    result_axis: Axis
    num_rows: int

    name = "rule"

    @property
    def parameter(self) -> Any:
        """Shape and dtype of the parameter operand."""
        return self.eqn.invars[self.position].aval

    @property
    def data(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of the data operand of one example."""
        return _of_row(self.eqn.invars[1 - self.position].aval, self.data_axis)

    @property
    def output(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of the result of one example."""
        return _of_row(self.eqn.outvars[0].aval, self.result_axis)

    def canonical(self, w: Any) -> Any:
        """The parameter operand as [N, I, O]."""
        raise NotImplementedError

    def restore(self, w: jax.Array) -> jax.Array:
        """The inverse of `canonical`."""
        raise NotImplementedError

    def factor(self, x: jax.Array, d: jax.Array) -> Factor:
        """The gradients' factors, from the data operand and the output cotangent of the batch."""
        return self.of_rows(
            rows_of(x, self.data_axis, self.num_rows), rows_of(d, self.result_axis, self.num_rows)
        )

    def of_rows(self, x: jax.Array, d: jax.Array) -> Factor:
        """The same from rows [B, ...] of both."""
        raise NotImplementedError

    def choice(self, num_examples: int, want: Want, turns: int) -> Choice:
        """How the statistics will be formed, and what that costs, in a scan of so many turns."""
        raise NotImplementedError

    def slot(self) -> tuple[jax.Array, jax.Array]:
        """Zeros for the data operand and the output cotangent, which reach the root by them."""
        data, output = self.eqn.invars[1 - self.position].aval, self.eqn.outvars[0].aval
        # Row numbers travel as floats, exact below 2^24.
        dtype = data.dtype if jnp.issubdtype(data.dtype, jnp.inexact) else jnp.float32
        return jnp.zeros(data.shape, dtype), jnp.zeros(output.shape, output.dtype)

    def forward(self, x: jax.Array, w: jax.Array) -> jax.Array:
        """The equation."""
        return evaluate_equation(self.eqn, (w, x) if self.position == 0 else (x, w))[0]


def _of_row(aval: Any, axis: Axis) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(row_shape(aval.shape, axis), aval.dtype)
