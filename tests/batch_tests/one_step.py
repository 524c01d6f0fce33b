"""What one test requires after one step."""

from typing import Any

import jax
import jax.numpy as jnp

from adaoptax import required_batch_size


def required(tx: Any, grads: Any, stats: Any, params: Any = None, **extra: Any) -> float:
    params = jax.tree.map(jnp.zeros_like, grads) if params is None else params
    _, state = tx.update(grads, tx.init(params), params, stats=stats, **extra)
    return float(required_batch_size(state))
