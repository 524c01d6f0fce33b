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
    is_key = loss.is_key(args)
    keys = [arg for arg, key in zip(args, is_key, strict=True) if key]
    shared = [arg for arg, key in zip(args, is_key, strict=True) if not key]

    def of_one(params: ArrayTree, row: ArrayTree, keys: list) -> tuple[jax.Array, Any]:
        rest = {True: iter(keys), False: iter(shared)}
        one = jax.tree.map(lambda x: x[None], row)
        value, aux = loss(params, one, tuple(next(rest[key]) for key in is_key))
        return value, aux

    as_array = lambda x: x if hasattr(x, "dtype") else jnp.asarray(x)
    rows = jax.tree.map(as_array, (batch, keys))
    traced: list[tuple] = []

    def on_row(params: ArrayTree, row: ArrayTree, keys: list) -> int:
        traced.append(jax.make_jaxpr(of_one, return_shape=True)(params, row, keys))
        return 0

    # Under vmap a row has the type that it will have in the walk: on its mesh, with its devices.
    jax.eval_shape(jax.vmap(on_row, (None, 0, 0), None), params, *rows)
    ((closed, outputs),) = traced
    return Traced(closed, outputs, jax.tree.leaves(rows))
