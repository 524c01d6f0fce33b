"""What a rule is, and the expansion of a parameter that takes its place where there is none."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from adaoptax.measure.exact.cost import Choice
from adaoptax.measure.exact.expressions import equation_function
from adaoptax.measure.exact.factors import Factor, Want


@dataclasses.dataclass(frozen=True, eq=False)
class Rule:
    """An equation with one parameter operand and one data operand.

    The parameter operand is seen as [N, I, O] (`canonical`, and back: `restore`).

    Attributes:
        eqn: The equation, of one example.
        position: Which operand is the parameter.
    """

    eqn: Any
    position: int

    name = "rule"

    @property
    def parameter(self) -> Any:
        """Shape and dtype of the parameter operand."""
        return self.eqn.invars[self.position].aval

    @property
    def data(self) -> Any:
        """Shape and dtype of the data operand of one example."""
        return self.eqn.invars[1 - self.position].aval

    @property
    def output(self) -> Any:
        """Shape and dtype of the result of one example."""
        return self.eqn.outvars[0].aval

    def canonical(self, w: Any) -> Any:
        """The parameter operand as [N, I, O]."""
        raise NotImplementedError

    def restore(self, w: jax.Array) -> jax.Array:
        """The inverse of `canonical`."""
        raise NotImplementedError

    def factor(self, x: jax.Array, d: jax.Array) -> Factor:
        """The gradients' factors, from the batched data operand and output cotangent."""
        raise NotImplementedError

    def choice(self, num_examples: int, want: Want, turns: int) -> Choice:
        """How the statistics will be formed, and what that costs, in a scan of so many turns."""
        raise NotImplementedError

    def slot(self, num_examples: int) -> tuple[jax.Array, jax.Array]:
        """Zeros for the batched data operand and output cotangent, which reach the root by them."""
        shape = lambda aval, dtype: jnp.zeros((num_examples, *aval.shape), dtype)
        data = self.data.dtype if jnp.issubdtype(self.data.dtype, jnp.inexact) else jnp.float32
        return shape(self.data, data), shape(self.output, self.output.dtype)

    def forward(self, x: jax.Array, w: jax.Array) -> jax.Array:
        """The equation on all examples."""
        operands, axes = ((w, x), (None, 0)) if self.position == 0 else ((x, w), (0, None))
        return jax.vmap(equation_function([self.eqn]), axes, 0)(*operands)[0]

    def __call__(self, x: jax.Array, w: jax.Array, slot: Any) -> jax.Array:
        """The equation; its backward pass hands the factors to `slot` in place of a gradient."""
        return _tapped(self, x, w, slot)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _tapped(rule: Rule, x: jax.Array, w: jax.Array, slot: Any) -> jax.Array:
    return rule.forward(x, w)


def _forward(rule: Rule, x: jax.Array, w: jax.Array, slot: Any) -> tuple[jax.Array, tuple]:
    return rule.forward(x, w), (x, w)


def _backward(rule: Rule, saved: tuple, d: jax.Array) -> tuple:
    x, w = saved
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        # Row numbers travel as floats, exact below 2^24.
        return None, jnp.zeros_like(w), (x.astype(jnp.float32), d)
    (dx,) = jax.vjp(lambda x: rule.forward(x, w), x)[1](d)
    return dx, jnp.zeros_like(w), (x, d)


_tapped.defvjp(_forward, _backward)


@jax.custom_vjp
def expand(value: jax.Array, slot: jax.Array) -> jax.Array:
    """A parameter repeated for each example of `slot` [B, ...], which receives the cotangents.

    These are the gradients, whatever the model does with the parameter. XLA fuses the repetition,
    so that biases and scales cost nothing; a large parameter costs a copy for each example.
    """
    return jnp.broadcast_to(value, slot.shape)


def _expand_forward(value: jax.Array, slot: jax.Array) -> tuple[jax.Array, jax.Array]:
    return expand(value, slot), value


def _expand_backward(value: jax.Array, cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jnp.zeros_like(value), cotangent


expand.defvjp(_expand_forward, _expand_backward)
