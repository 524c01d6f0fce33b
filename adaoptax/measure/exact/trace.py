"""The loss of one example, as a jaxpr."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from adaoptax._tree import ArrayTree
from adaoptax.measure.loss import Loss


class Traced(NamedTuple):
    """The loss of one example.

    Attributes:
        closed: Jaxpr of the leaves of the parameters, of one row of the batch and of its keys.
        outputs: Structure of ``(loss, aux)``.
        data: The rows and keys of all examples, one array for each input after the parameters.
    """

    closed: Any
    outputs: Any
    data: list[jax.Array]


def trace_example(loss: Loss, params: ArrayTree, batch: ArrayTree, args: tuple) -> Traced:
    """Traces `loss` on a batch of one row; `args` hold one key for each row."""
    is_key = [2 + i in loss.key_argnums for i in range(len(args))]
    keys = [arg for arg, key in zip(args, is_key, strict=True) if key]
    shared = [arg for arg, key in zip(args, is_key, strict=True) if not key]

    def of_one(params: ArrayTree, row: ArrayTree, keys: list) -> tuple[jax.Array, Any]:
        rest = {True: iter(keys), False: iter(shared)}
        one = jax.tree.map(lambda x: x[None], row)
        value, aux = loss(params, one, tuple(next(rest[key]) for key in is_key))
        return value, aux

    as_array = lambda x: x if hasattr(x, "dtype") else jnp.asarray(x)
    rows = jax.tree.map(as_array, (batch, keys))
    example = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), rows)
    closed, outputs = jax.make_jaxpr(of_one, return_shape=True)(params, *example)
    return Traced(closed, outputs, jax.tree.leaves(rows))
