"""A small training with growth, for tests of checkpoints; also a program that may be killed.

As a program: ``checkpoint_problem.py FOLDER STEPS EVERY PAUSE`` trains until STEPS, resumes what is
in FOLDER, and prints a digest of the final state and the examples that it saw since its start.
"""

import hashlib
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import adaoptax
from adaoptax.integrations.orbax import Checkpointer

EXAMPLES, MICRO, LARGEST = 103, 4, 32
RANDOM = np.random.default_rng(0)
INPUTS = RANDOM.normal(size=(EXAMPLES, 5)).astype(np.float32)
DATA = {"x": INPUTS, "y": np.tanh(INPUTS.sum(axis=1)), "index": np.arange(EXAMPLES)}
TX = optax.chain(
    adaoptax.norm_test(0.3, decay=0.9),
    adaoptax.adascale(0.05, MICRO, momentum=0.9),
)


class Loop:
    """A loader and the policy that grows its batches, with one state."""

    def __init__(self) -> None:
        self.loader = adaoptax.BatchLoader(
            DATA, MICRO, max_batch_size=LARGEST, pad_to="max", seed=3
        )
        self.policy = adaoptax.GrowthPolicy(MICRO, LARGEST, multiple_of=MICRO)

    def __iter__(self) -> Any:
        return iter(self.loader)

    @property
    def step(self) -> int:
        return self.loader.step

    @property
    def examples_seen(self) -> int:
        return self.loader.examples_seen

    def observe(self, required: Any) -> None:
        self.loader.resize(self.policy.update(required, self.loader.num_examples))

    def get_state(self) -> dict[str, Any]:
        return {"loader": self.loader.get_state(), "policy": self.policy.get_state()}

    def set_state(self, state: Any) -> None:
        self.loader.set_state(state["loader"])
        self.policy.set_state(state["policy"])


def loss_fn(params: Any, batch: Any) -> jax.Array:
    return jnp.mean((jnp.tanh(batch["x"] @ params["w"] + params["b"]) - batch["y"]) ** 2)


def fresh_state() -> Any:
    """A state as users write it: uncommitted, a Python number, a random key."""
    params = {"w": jnp.zeros(5), "b": jnp.asarray(0.0)}  # the latter is weakly typed
    return params, TX.init(params), jax.random.key(1), 0


@jax.jit
def train_step(state: Any, batch: adaoptax.Batch) -> Any:
    params, opt_state, key, count = state
    key, use = jax.random.split(key)
    measure = adaoptax.value_grad_and_stats(loss_fn, adaoptax.measure.per_example())
    data = {"x": batch.data["x"], "y": batch.data["y"]}
    _, grads, stats = measure(params, data, mask=batch.mask)
    grads["b"] += 1e-3 * jax.random.normal(use)
    updates, opt_state = TX.update(grads, opt_state, params, stats=stats)
    required = adaoptax.required_batch_size(opt_state)
    return (optax.apply_updates(params, updates), opt_state, key, count + 1), required


def digest(state: Any) -> str:
    """A checksum of every bit of a state."""
    sums = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(state):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        array = np.asarray(leaf)
        sums.update(f"{jax.tree_util.keystr(path)}{array.dtype}{array.shape}".encode())
        sums.update(array.tobytes())
    return sums.hexdigest()


def train(
    folder: Any,
    steps: int,
    every: int,
    *,
    after: Callable[[int], None] = lambda step: None,
    **options: Any,
) -> tuple[Any, dict[int, list[int]], Checkpointer]:
    """Trains until `steps`; returns the state, the examples of each step, and the saver."""
    loop, seen = Loop(), {}
    with Checkpointer(folder, every=every, **options) as saver:
        state = saver.restore(fresh_state(), loop)
        for batch in loop if loop.step < steps else ():
            state, required = train_step(state, batch)
            loop.observe(required)
            seen[loop.step] = batch.data["index"][batch.mask].tolist()
            after(loop.step)
            if saver.after_step(state, loop) or loop.step >= steps:
                break
    return state, seen, saver


def main(folder: str, steps: str, every: str, pause: str) -> None:
    def after(step: int) -> None:
        print("step", step, flush=True)
        time.sleep(float(pause))

    state, seen, saver = train(folder, int(steps), int(every), after=after)
    result = {"digest": digest(state), "seen": seen, "restored": saver.restored_step}
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
