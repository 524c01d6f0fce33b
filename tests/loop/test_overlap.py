"""The host prepares the next batch while the device computes: shown by events, not by time."""

import threading

import jax
import jax.numpy as jnp
import numpy as np

from adaoptax.loop import BatchLoader

STEPS = 4


def test_the_next_batch_is_on_the_device_before_the_step_has_finished():
    gates = [threading.Event() for _ in range(STEPS)]
    log: list[tuple[str, int]] = []

    def finish(number, loss):
        assert gates[int(number)].wait(20), "the host waited for a step that it has to overlap"
        log.append(("finished", int(number)))
        return loss

    @jax.jit
    def busy_for_a_while(state):
        # A second or more, so that the step is queued even if the host is held up meanwhile: with
        # ready arguments, callbacks would run at once.
        busy = jax.lax.fori_loop(0, 1000, lambda _, m: jnp.tanh(m @ m), jnp.eye(300))
        return state + (jnp.sum(busy) > 1e30).astype(state.dtype)

    @jax.jit
    def step(state, data):
        loss = jnp.mean(data)
        loss = jax.pure_callback(finish, jax.ShapeDtypeStruct((), loss.dtype), state, loss)
        return state + 1, loss

    state = jax.device_put(np.int32(0))
    jax.block_until_ready(busy_for_a_while(state))
    steps = {  # compiled before, for nothing may take longer than `busy_for_a_while`
        size: step.lower(state, np.zeros(size, np.float32)).compile() for size in (4, 8, 12)
    }
    loader = BatchLoader(np.arange(64.0, dtype=np.float32), 4, max_batch_size=64, shuffle=False)
    losses: list[float] = []
    with jax.transfer_guard("disallow"):
        data = jax.device_put(next(loader).data)
        previous = None
        for number in range(STEPS):
            state, loss = steps[len(data)](busy_for_a_while(state), data)
            if previous is not None:  # one step late
                losses.append(float(jax.device_get(previous)))
                loader.resize(4 * (number + 1))  # decided from it, in force at once
            data = jax.block_until_ready(jax.device_put(next(loader).data))
            log.append(("placed", number + 1))
            assert not loss.is_ready()
            gates[number].set()
            previous = loss
        losses.append(float(jax.device_get(previous)))
    expected = [("placed", 1), ("finished", 0), ("placed", 2), ("finished", 1)]
    expected += [("placed", 3), ("finished", 2), ("placed", 4), ("finished", 3)]
    assert log == expected
    assert losses == [1.5, 5.5, 11.5, 21.5]
    assert data.shape == (16,)
