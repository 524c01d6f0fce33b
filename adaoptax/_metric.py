"""The metric of a diagonal preconditioner: how it is checked before anything is measured in it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adaoptax import _tree
from adaoptax._tree import ArrayTree

EXPECTED = "Expected preconditioner to be a pytree like the parameters,"
MEANING = "it holds the factor by which the optimizer multiplies each entry of the gradient"


def as_metric(preconditioner: ArrayTree | None, params: ArrayTree) -> ArrayTree | None:
    """The preconditioner in the dtypes of statistics; NaN where it is not finite or negative.

    Raises:
        ValueError: If structure or shapes are not those of `params`, or an entry that has a value
            already is negative or not finite.
    """
    if preconditioner is None:
        return None
    found: Any = jax.tree.structure(preconditioner)
    expected: Any = jax.tree.structure(params)
    if found != expected:
        raise ValueError(
            f"{EXPECTED} {expected}, got {found}:"
            f" {MEANING}; build it with jax.tree.map over the parameters or the optimizer's state."
        )

    def leaf(path: Any, p: Any, param: Any) -> jax.Array:
        name = jax.tree_util.keystr(path)
        if np.shape(p) != np.shape(param):
            raise ValueError(
                f"{EXPECTED} got shape {np.shape(p)} in place of {np.shape(param)} at"
                f" preconditioner{name}: {MEANING}; jnp.full_like makes one of a single number."
            )
        if jnp.iscomplexobj(p):
            raise ValueError(
                f"Expected preconditioner to be real, got {jnp.result_type(p)} at"
                f" preconditioner{name}: {MEANING}."
            )
        value = np.asarray(jax.device_get(p), np.float64) if _has_value(p) else np.zeros(1)
        wrong = value[~((value >= 0) & (value < np.inf))]
        if wrong.size:
            raise ValueError(
                f"Expected preconditioner to be finite and not negative, got {wrong[0]} in"
                f" preconditioner{name}: {MEANING}, and lengths are measured by it."
            )
        p = jnp.asarray(p).astype(_tree.scalar_dtype(param))
        return jnp.where((p >= 0) & (p < jnp.inf), p, jnp.nan)

    return jax.tree_util.tree_map_with_path(leaf, preconditioner, params)


def _has_value(p: Any) -> bool:
    if isinstance(p, jax.Array):
        return not isinstance(p, jax.core.Tracer) and p.is_fully_addressable
    return True
