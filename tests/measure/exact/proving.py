"""What is proved of a loss: by `exact`, and by methods that cut the batch."""

from typing import Any

import jax
import jax.numpy as jnp

from adaoptax.measure.exact.planning import make_plan
from adaoptax.measure.exact.proof import check_mean, check_plan
from adaoptax.measure.exact.row_moments import trace_loss
from adaoptax.measure.loss import describe_loss
from adaoptax.measure.rows import count_rows

ROWS = 6
PARAMS = jnp.linspace(-1, 1, 40).reshape(8, 5)
BATCH = {
    "x": jnp.ones((ROWS, 8)),
    "y": jnp.zeros(ROWS, jnp.int32),
    "t": jnp.ones((ROWS, 7, 8)),
    "mask": jnp.ones((ROWS, 7)),
}
KEY = jax.random.key(0)


def check_separable(
    loss_fn: Any, params: Any = PARAMS, batch: Any = BATCH, args: tuple = (), **how: Any
) -> None:
    """Raises unless the loss is proved to be a sum over the rows, as `exact` asks."""
    loss = describe_loss(loss_fn, **how)
    program = trace_loss(loss, params, batch, args).closed
    check_plan(loss, make_plan(program, len(jax.tree.leaves(params)), count_rows(batch)))


def check(
    loss_fn: Any, params: Any = PARAMS, batch: Any = BATCH, args: tuple = (), **how: Any
) -> None:
    """Raises unless the loss is proved to be the mean over the rows."""
    check_mean(describe_loss(loss_fn, **how), params, batch, args, "groups(2)", ROWS // 2)


def of_logits(fn: Any) -> Any:
    """A loss of ``fn(logits [rows, 5], batch)``."""
    return lambda params, batch: fn(batch["x"] @ params, batch)


def of_tokens(fn: Any) -> Any:
    """A loss of ``fn(logits [rows, 7, 5], batch)``."""
    return lambda params, batch: fn(batch["t"] @ params, batch)
