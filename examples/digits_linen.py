"""A Flax linen MLP on handwritten digits whose batch grows from measured gradient noise.

    python examples/digits_linen.py --out runs/digits_linen

The same run as `digits.py`, with a `TrainState` that passes the statistics on to the optimizer.
"""

import argparse
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from digits_common import main
from flax import linen as nn

import adaoptax
from adaoptax.integrations.flax import TrainState


class MLP(nn.Module):
    """One hidden layer."""

    hidden: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Class scores of images [rows, 64]."""
        return nn.Dense(10)(nn.relu(nn.Dense(self.hidden)(x)))


class LinenTrainer:
    """The train state, and the jitted functions that work on it."""

    def __init__(
        self, options: argparse.Namespace, tx: optax.GradientTransformation, seed: int, rows: int
    ) -> None:
        model = MLP(options.hidden)

        def loss_fn(params: Any, batch: dict[str, jax.Array]) -> jax.Array:
            scores = model.apply(params, batch["x"])
            return optax.softmax_cross_entropy_with_integer_labels(scores, batch["y"]).mean()

        measure = adaoptax.value_grad_and_stats(
            loss_fn, adaoptax.measure.groups(rows // options.micro_batch_size)
        )

        @functools.partial(jax.jit, donate_argnums=0)
        def train_step(
            state: TrainState, batch: adaoptax.Batch
        ) -> tuple[TrainState, dict[str, jax.Array]]:
            loss, grads, stats = measure(state.params, batch.data, mask=batch.mask)
            state = state.apply_gradients(grads=grads, stats=stats)
            return state, adaoptax.observables(loss, stats, state.opt_state)

        params = model.init(jax.random.key(seed), jnp.zeros((1, 64)))
        self.state = TrainState.create(apply_fn=model.apply, params=params, tx=tx)
        # Flax starts with a Python 0, whose other type would cost a second compilation.
        self.state = self.state.replace(step=jnp.zeros([], jnp.int32))
        self._train_step = train_step
        self._predict = jax.jit(model.apply)

    def step(self, batch: adaoptax.Batch) -> dict[str, jax.Array]:
        """Takes one train step."""
        self.state, output = self._train_step(self.state, batch)
        return output

    def predict(self, inputs: jax.Array) -> jax.Array:
        """Class scores of `inputs`."""
        return self._predict(self.state.params, inputs)


if __name__ == "__main__":
    main(__doc__.splitlines()[0], LinenTrainer)
