"""Flax linen: a `TrainState` that passes extra arguments on to the optimizer.

For nnx nothing is needed: ``nnx.Optimizer.update(model, grads, stats=stats)`` passes them on.
"""

import dataclasses
from typing import Any

from flax.training import train_state

from adaoptax._tree import ArrayTree
from adaoptax.extra_args import bind_extra_args

__all__ = ["TrainState"]


class TrainState(train_state.TrainState):
    """Flax's `TrainState`, whose `apply_gradients` passes unknown keywords to ``tx.update``.

    Examples:
        >>> import adaoptax, jax.numpy as jnp, optax
        >>> from adaoptax.integrations.flax import TrainState
        >>> tx = optax.chain(adaoptax.norm_test(eta=0.5), optax.sgd(0.1))
        >>> state = TrainState.create(apply_fn=None, params={"w": jnp.ones(2)}, tx=tx)
        >>> grads, stats = adaoptax.stats_from_groups({"w": jnp.eye(2)}, group_size=8)
        >>> state = state.apply_gradients(grads=grads, stats=stats)
        >>> int(state.step)
        1
    """

    def apply_gradients(self, *, grads: ArrayTree, **kwargs: Any) -> "TrainState":
        """Updates step, parameters and optimizer state.

        Args:
            grads: Gradients, like `params`.
            **kwargs: Names of fields of the state replace them, as in Flax; all other keywords
                (``stats=``, ``value=``) go to ``tx.update``, which ignores those it does not know.

        Returns:
            The new state.

        Raises:
            TypeError: If the optimizer requires an argument that was not given.
        """
        fields = {field.name for field in dataclasses.fields(self)}
        replaced = {name: value for name, value in kwargs.items() if name in fields}
        extra = {name: value for name, value in kwargs.items() if name not in fields}
        bound = self.replace(tx=bind_extra_args(self.tx, **extra))
        updated = train_state.TrainState.apply_gradients(bound, grads=grads, **replaced)
        return updated.replace(tx=self.tx)
