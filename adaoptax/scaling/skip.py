"""Keeping NaN and infinity out of an optimizer's state, by a scalar that is at hand anyway."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from adaoptax import _tree
from adaoptax._tree import ArrayTree
from adaoptax.stats import GradientStats, check_stats


def is_usable(stats: GradientStats) -> jax.Array:
    """Whether a step has a finite gradient of at least one example."""
    return jnp.isfinite(stats.sq_norm) & (stats.num_examples > 0)


def next_count(count: jax.Array, event: jax.Array) -> jax.Array:
    """The count, one more where `event` holds."""
    return jnp.where(event, optax.safe_increment(count), count)


class SkipNonfiniteState(NamedTuple):
    """State of `skip_nonfinite`.

    Attributes:
        inner_state: State of the wrapped optimizer.
        nonfinite_skipped: Steps that were skipped.
    """

    inner_state: ArrayTree
    nonfinite_skipped: jax.Array


def skip_nonfinite(
    inner: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Skips the step of `inner` when the gradient holds NaN or infinity.

    Such a step gives zero updates and leaves the state of `inner` as it was. Unlike
    `optax.apply_if_finite` it looks at ``stats.sq_norm`` instead of at every update, and lets
    batch tests around it see and count the step.

    Args:
        inner: The transformation to protect: whatever holds momentum or accumulators.

    Returns:
        An `optax.GradientTransformationExtraArgs`; `update` requires ``stats=`` and passes it on.

    Examples:
        >>> import adaoptax, jax.numpy as jnp, optax
        >>> tx = adaoptax.skip_nonfinite(optax.adam(1e-3))
        >>> grads, stats = adaoptax.stats_from_groups(jnp.array([[1.0], [jnp.nan]]), group_size=1)
        >>> updates, state = tx.update(grads, tx.init(grads), stats=stats)
        >>> float(updates[0]), int(state.nonfinite_skipped)
        (0.0, 1)
    """
    inner = optax.with_extra_args_support(inner)

    def init_fn(params: ArrayTree) -> SkipNonfiniteState:
        return SkipNonfiniteState(inner.init(params), jnp.zeros([], jnp.int32))

    def update_fn(
        updates: ArrayTree,
        state: SkipNonfiniteState,
        params: ArrayTree | None = None,
        *,
        stats: GradientStats,
        **extra_args: Any,
    ) -> tuple[ArrayTree, SkipNonfiniteState]:
        check_stats(stats, "skip_nonfinite")
        finite = jnp.isfinite(stats.sq_norm)
        new_updates, new_state = inner.update(
            updates, state.inner_state, params, stats=stats, **extra_args
        )
        skipped = next_count(state.nonfinite_skipped, ~finite)
        return (
            _tree.select(finite, new_updates, jax.tree.map(jnp.zeros_like, new_updates)),
            SkipNonfiniteState(_tree.select(finite, new_state, state.inner_state), skipped),
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
