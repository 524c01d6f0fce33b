"""Sums over all leaves of a pytree, in float32 or wider.

Every leaf is widened *before* it is squared: a bfloat16 norm has three digits and a
float16 one overflows. Complex leaves count by their squared modulus.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from adaoptax.typing import ArrayTree as ArrayTree


def widen(x: ArrayLike) -> jax.Array:
    """Casts one leaf to at least float32 (float64 and complex leaves keep their kind)."""
    return jnp.asarray(x).astype(jnp.promote_types(jnp.result_type(x), jnp.float32))


def scalar_dtype(tree: ArrayTree) -> Any:
    """The real dtype in which statistics of `tree` are held: float32, or float64 if a leaf is."""
    dtype = jnp.dtype(jnp.float32)
    for leaf in jax.tree.leaves(tree):
        each = leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)
        if jnp.issubdtype(each, jnp.inexact):
            dtype = jnp.promote_types(dtype, jnp.finfo(each).dtype)
    return dtype


def squared_modulus(x: jax.Array) -> jax.Array:
    """Elementwise |x|², real and at least float32."""
    x = widen(x)
    return jnp.real(x) ** 2 + jnp.imag(x) ** 2 if jnp.iscomplexobj(x) else x * x


def total(fn: Callable[..., jax.Array], *trees: ArrayTree) -> jax.Array:
    """Sum over all leaves of fn(leaf, ...), where `fn` returns an array."""
    parts = [jnp.sum(part) for part in jax.tree.leaves(jax.tree.map(fn, *trees))]
    return sum(parts[1:], start=parts[0]) if parts else jnp.zeros([], jnp.float32)


def sq_norm(tree: ArrayTree, metric: ArrayTree | None = None) -> jax.Array:
    """Squared norm over all leaves: Euclidean, or Σ P |x|² in a `metric` P like `tree`."""
    return weighed_total(jax.tree.map(squared_modulus, tree), metric)


def weighed_total(tree: ArrayTree, metric: ArrayTree | None) -> jax.Array:
    """Sum over all leaves, each entry times that of `metric` if there is one."""
    if metric is None:
        return total(lambda x: x, tree)
    return total(lambda x, p: x * p.astype(x.dtype), tree, metric)


def scale_where(condition: jax.Array, factor: Any, tree: ArrayTree) -> ArrayTree:
    """Leaves times `factor`, in their own dtypes; zero where the scalar `condition` fails."""
    return jax.tree.map(lambda x: jnp.where(condition, factor * x, 0).astype(x.dtype), tree)


def select(condition: jax.Array, on_true: ArrayTree, on_false: ArrayTree) -> ArrayTree:
    """Leaf by leaf `on_true` where the scalar `condition` holds, else `on_false`."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), on_true, on_false)


def nodes(tree: ArrayTree, kind: type) -> list[Any]:
    """All nodes of one kind in a tree, such as the states of one transformation."""
    is_kind = lambda node: isinstance(node, kind)
    return [node for node in jax.tree.leaves(tree, is_leaf=is_kind) if is_kind(node)]
