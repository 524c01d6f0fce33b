"""A Flax nnx MLP on handwritten digits whose batch grows from measured gradient noise.

    python examples/digits.py --out runs/digits

Each batch is a whole number of micro-batches of 16. The train step (gradient, statistics, norm
test, momentum, AdaScale, update) is one `jax.jit` that compiles once: the batch arrives padded to
its largest size, and the loop over groups ends with the last real one.
"""

import argparse

import jax
import optax
from digits_common import main
from flax import nnx

import adaoptax


class MLP(nnx.Module):
    """One hidden layer."""

    def __init__(self, hidden: int, rngs: nnx.Rngs) -> None:
        self.hidden = nnx.Linear(64, hidden, rngs=rngs)
        self.scores = nnx.Linear(hidden, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Class scores of images [rows, 64]."""
        return self.scores(nnx.relu(self.hidden(x)))


def loss_fn(model: MLP, batch: dict[str, jax.Array]) -> jax.Array:
    """Mean cross-entropy: an ordinary loss, written without a thought of statistics."""
    scores = model(batch["x"])
    return optax.softmax_cross_entropy_with_integer_labels(scores, batch["y"]).mean()


class NnxTrainer:
    """Model and optimizer, and the jitted functions that work on them."""

    def __init__(
        self, options: argparse.Namespace, tx: optax.GradientTransformation, seed: int, rows: int
    ) -> None:
        self.model = MLP(options.hidden, rngs=nnx.Rngs(seed))
        self.optimizer = nnx.Optimizer(self.model, tx, wrt=nnx.Param)
        measure = adaoptax.value_grad_and_stats(
            loss_fn, adaoptax.measure.groups(rows // options.micro_batch_size)
        )

        @nnx.jit
        def train_step(
            model: MLP, optimizer: nnx.Optimizer, batch: adaoptax.Batch
        ) -> dict[str, jax.Array]:
            loss, grads, stats = measure(model, batch.data, mask=batch.mask)
            optimizer.update(model, grads, stats=stats)
            return adaoptax.observables(loss, stats, nnx.as_pure(optimizer.opt_state))

        self._train_step = train_step
        self._predict = nnx.jit(lambda model, inputs: model(inputs))

    def step(self, batch: adaoptax.Batch) -> dict[str, jax.Array]:
        """Takes one train step."""
        return self._train_step(self.model, self.optimizer, batch)

    def predict(self, inputs: jax.Array) -> jax.Array:
        """Class scores of `inputs`."""
        return self._predict(self.model, inputs)


if __name__ == "__main__":
    main(__doc__.splitlines()[0], NnxTrainer)
