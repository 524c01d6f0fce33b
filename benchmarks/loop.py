"""What the host adds to a step: reading data, deciding, recording, showing.

    python -m benchmarks.loop

Ratios to a bare loop over the same steps in the same run (median over interleaved rounds). The bare
loop has one batch on the device, and looks at the loss of the step before. Each column adds to the
one before: ``loader`` reads shuffled batches of 28×28 float32 and puts them on the device, ``loop``
is `AdaptiveLoop` with a policy, ``records`` adds `JsonLines` and `ProgressBar`. The device is
either ``apart`` (a clock: like an accelerator, it takes 20 ms a step and no core of the host) or
the ``cpu`` itself (a jitted train step of about 20 ms, which shares its cores with the host).
"""

import argparse
import contextlib
import functools
import itertools
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import adaoptax
from adaoptax.integrations.progress import ProgressBar
from benchmarks.timing import interleave, machine, time_ratio, timed

STEPS, ROWS, SECONDS = 50, 256, 0.02
DATA: dict[str, np.ndarray] = {
    "x": np.random.default_rng(0).normal(size=(8192, 28, 28)).astype(np.float32),
    "y": np.arange(8192) % 10,
}
CONTENDERS = ("bare", "loader", "loop", "records")


class Clock:
    """A device that works `SECONDS` a step, one step after another, and costs the host nothing."""

    def __init__(self) -> None:
        self._free_at = 0.0

    def step(self, batch: Any) -> dict[str, Any]:
        """Returns at once; whoever looks at a number waits until the step is done."""
        del batch
        self._free_at = max(self._free_at, time.perf_counter()) + SECONDS
        number = _Pending(self._free_at)
        return {"loss": number, "required": number}


class _Pending:
    """A scalar that is there at a time to come."""

    shape = ()

    def __init__(self, ready_at: float) -> None:
        self._ready_at = ready_at

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        time.sleep(max(self._ready_at - time.perf_counter(), 0))
        return np.asarray(100.0, dtype)


class Cpu:
    """A train step of XLA on the cores that the host uses too."""

    def __init__(self) -> None:
        keys = jax.random.split(jax.random.key(0), 3)
        shapes = [(784, 2048), (2048, 2048), (2048, 10)]
        params = [0.02 * jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True)]
        tx = optax.sgd(1e-3)

        def loss_fn(params: Any, batch: Any) -> jax.Array:
            x = batch["x"].reshape(ROWS, -1)
            for w in params[:-1]:
                x = jax.nn.relu(x @ w)
            labels = optax.softmax_cross_entropy_with_integer_labels(x @ params[-1], batch["y"])
            return labels.mean()

        @jax.jit
        def step(state: Any, batch: Any) -> Any:
            loss, grads = jax.value_and_grad(loss_fn)(state[0], batch)
            updates, opt_state = tx.update(grads, state[1])
            params = optax.apply_updates(state[0], updates)
            return (params, opt_state), {"loss": loss, "required": jnp.float32(100.0)}

        self._state, self._step = (params, tx.init(params)), step

    def step(self, batch: Any) -> dict[str, Any]:
        """One step; asynchronous as far as XLA is."""
        self._state, output = self._step(self._state, batch)
        return output


def read_late(device: Any, batches: Iterator[Any]) -> None:
    """The least that a loop can do: it looks at the loss of the step before."""
    before: Any = None
    for batch in itertools.islice(batches, STEPS):
        output = device.step(batch)
        if before is not None:
            float(jax.device_get(before["loss"]))
        before = output
    float(jax.device_get(before["loss"]))


def bare(device: Any) -> None:
    """One batch on the device."""
    batch = jax.device_put({name: leaf[:ROWS] for name, leaf in DATA.items()})
    read_late(device, itertools.repeat(batch))


def with_loader(device: Any) -> None:
    """The bare loop on real batches."""
    loader = make_loader()
    read_late(device, (jax.device_put(next(loader).data) for _ in range(STEPS)))


def with_loop(device: Any, callbacks: Any = ()) -> None:
    """Reading late, deciding, recording."""
    policy = adaoptax.GrowthPolicy(ROWS, 1024, multiple_of=64)
    with adaoptax.AdaptiveLoop(make_loader(), policy, callbacks=callbacks) as loop:
        for _ in range(STEPS):
            loop.observe(device.step(jax.device_put(next(loop).data)))


def with_records(device: Any) -> None:
    """With a file and a bar, as on a terminal."""
    with tempfile.TemporaryDirectory() as folder, terminal() as file:
        records = adaoptax.JsonLines(pathlib.Path(folder) / "records.jsonl")
        with_loop(device, [records, ProgressBar(STEPS * ROWS, file=file)])


@contextlib.contextmanager
def terminal() -> Iterator[Any]:
    """A file that nobody reads."""
    with open("/dev/null", "w") as file:
        yield file


def make_loader() -> adaoptax.BatchLoader:
    """Shuffled micro-batches of 64."""
    return adaoptax.BatchLoader(DATA, ROWS, micro_batch_size=64, max_batch_size=1024)


def contenders(device: Any) -> dict[str, Callable[[], float]]:
    """Each contender as a function that returns the seconds of all steps."""
    runs = (bare, with_loader, with_loop, with_records)
    return {
        name: timed(functools.partial(run, device))
        for name, run in zip(CONTENDERS, runs, strict=True)
    }


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=11, help="interleaved rounds")
    options = parser.parse_args()
    print(f"{machine()}, {options.rounds} rounds of {STEPS} steps of {ROWS} rows\n")
    print("device   ms a step" + "".join(f"{name:>10}" for name in CONTENDERS[1:]), flush=True)
    for name, device in (("apart", Clock()), ("cpu", Cpu())):
        times = interleave(contenders(device), options.rounds)
        ratios = [time_ratio(times[column], times["bare"]) for column in CONTENDERS[1:]]
        cells = "".join(f"{ratio:>10.3f}" for ratio in ratios)
        milliseconds = 1e3 * statistics.median(times["bare"]) / STEPS
        print(f"{name:<9}{milliseconds:>9.1f}{cells}", flush=True)


if __name__ == "__main__":
    main()
