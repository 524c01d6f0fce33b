"""A bridge to trainers that pass nothing extra to an optimizer."""

from typing import Any

import optax

from adaoptax._tree import ArrayTree


def bind_extra_args(
    tx: optax.GradientTransformation, **extra_args: Any
) -> optax.GradientTransformationExtraArgs:
    """Binds extra arguments of one step to an optimizer.

    For trainers that call ``tx.update(grads, state, params)`` and have no way to pass ``stats=``:
    bind it inside the train step, hand the bound optimizer over, and put the plain one back.

    Args:
        tx: Any optimizer; its state stays the same.
        **extra_args: What `update` is to receive beside what the trainer passes.

    Returns:
        The same optimizer with the arguments bound. The trainer's own extra arguments win.

    Examples:
        >>> import adaoptax, jax.numpy as jnp, optax
        >>> tx = optax.chain(adaoptax.norm_test(eta=0.5), optax.sgd(0.1))
        >>> grads, stats = adaoptax.stats_from_groups(jnp.eye(4), group_size=8)
        >>> bound = adaoptax.bind_extra_args(tx, stats=stats)
        >>> updates, state = bound.update(grads, tx.init(grads), grads)  # as a trainer calls it
    """
    tx = optax.with_extra_args_support(tx)

    def update_fn(
        updates: ArrayTree, state: Any, params: ArrayTree | None = None, **more: Any
    ) -> tuple[ArrayTree, Any]:
        return tx.update(updates, state, params, **{**extra_args, **more})

    return optax.GradientTransformationExtraArgs(tx.init, update_fn)
