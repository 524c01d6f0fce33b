"""The README's program with annotations: what a user's ``mypy --strict`` sees of the package."""

from typing import Any, assert_type

import jax
import jax.numpy as jnp
import numpy as np
import optax  # type: ignore[import-untyped, unused-ignore]  # has no py.typed

import adaoptax
from adaoptax.typing import Scalar

Params = jax.Array
State = tuple[Params, Any]


def loss_fn(params: Params, batch: dict[str, jax.Array]) -> jax.Array:
    """The mean loss of a batch."""
    return jnp.mean((batch["x"] @ params - batch["y"]) ** 2)


tx = optax.chain(
    adaoptax.norm_test(eta=0.5, decay=0.9),
    adaoptax.adascale(learning_rate=0.05, base_batch_size=32, momentum=0.9),
)


def update(
    state: State, loss: jax.Array, grads: Params, stats: adaoptax.GradientStats
) -> tuple[State, dict[str, jax.Array]]:
    """One step of the optimizer."""
    params, opt_state = state
    updates, opt_state = tx.update(grads, opt_state, params, stats=stats)
    state = optax.apply_updates(params, updates), opt_state
    assert_type(stats.variance, jax.Array)
    return state, adaoptax.observables(loss, stats, opt_state)


def train(data: dict[str, np.ndarray]) -> int:
    """Trains, and says how large the batch was in the end."""
    step = adaoptax.accumulate(loss_fn, update, micro_batch_size=16, max_batch_size=256)
    loader = adaoptax.BatchLoader(
        data, 32, micro_batch_size=16, max_batch_size=256, pad_to=step.capacities, num_epochs=10
    )
    policy = adaoptax.GrowthPolicy(32, 256, multiple_of=16)
    state: State = jnp.zeros(4), tx.init(jnp.zeros(4))
    with adaoptax.AdaptiveLoop(loader, policy) as loop:
        for batch in loop:
            assert_type(batch, adaoptax.Batch)
            state, output = step(state, batch)
            loop.observe(output)
    return assert_type(loader.batch_size, int)


def by_hand(params: Params, batch: dict[str, jax.Array], share: float) -> Scalar:
    """Parts of the package one by one."""
    measure = adaoptax.value_grad_and_stats(loss_fn, adaoptax.measure.groups(4))
    _, _, stats = measure(params, batch)
    assert_type(stats, adaoptax.GradientStats)
    assert_type(adaoptax.noise_scale(stats), jax.Array)
    schedule = adaoptax.BatchSizeSchedule([(0, 32), (1000, 64)])
    assert_type(schedule(500), int)
    adaoptax.norm_test(eta="half")  # type: ignore[arg-type]  # what Any would let pass
    return adaoptax.scaling.half_life_of_decay(share, np.float32(32))
