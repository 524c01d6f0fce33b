"""What growing without recompiling costs, beside a jitted step that is compiled for every shape.

    python -m benchmarks.accumulate                        # three models, k = 1, 4, 16, 64
    python -m benchmarks.accumulate --models mlp --sizes 1 16 --rounds 5

A batch is k micro-batches. ``plain`` is what a user writes first: one jitted step over all rows,
without statistics, compiled once for every k; its time includes that rows travel to the device, as
all others' does. ``scan`` is the same with accumulation in a `jax.lax.scan`. The three ways of
`accumulate` measure the noise, too. ``MultiSteps`` is `optax.MultiSteps` with k micro-steps. Times
are medians of ratios to ``plain`` within interleaved rounds; temporary memory is XLA's count for
the largest k (of the larger program where there are several).
"""

import argparse
import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adaoptax.loop import AccumulatedStep, Batch, accumulate
from benchmarks.models import Problem
from benchmarks.models.convolutional import cnn
from benchmarks.models.mlp import mlp
from benchmarks.models.transformers import transformer
from benchmarks.tables import markdown
from benchmarks.timing import Compilations, interleave, machine, temp_bytes, time_ratio, timed


class Model(NamedTuple):
    """A model of the table: `build` makes the problem for a number of rows."""

    title: str
    build: Callable[[int], Problem]
    micro: int


MODELS = {
    "mlp": Model("MLP 784-512-512-10", mlp, 32),
    "cnn": Model("CNN, 242 k parameters", cnn, 16),
    "lm": Model(
        "LM, 4 layers of 128, T=64",
        lambda rows: transformer(rows, length=64, width=128),
        8,
    ),
}
HOWS: tuple[Literal["padded", "ladder", "host"], ...] = ("padded", "ladder", "host")
TX = optax.adam(1e-3)


class Contender:
    """A way to step: ``step(state, batch)`` → state, and its compiled programs."""

    def __init__(self, step: Callable[[Any, Batch], Any], init: Callable[[Any], Any]) -> None:
        self.step, self.init = step, init

    def run(self, state: list[Any], batch: Batch) -> Callable[[], float]:
        """One step on `batch`, which keeps its state in a list of one."""

        def once() -> None:
            state[0] = self.step(state[0], batch)
            jax.block_until_ready(state[0])

        return timed(once)


def plain(loss_fn: Any, k: int) -> Any:
    """Loss and gradient of all rows at once."""
    del k
    return jax.value_and_grad(loss_fn)


def scanned(loss_fn: Any, k: int) -> Any:
    """The same by accumulation over k micro-batches."""

    def measure(params: Any, rows: Any) -> Any:
        parts = jax.tree.map(lambda x: x.reshape(k, -1, *x.shape[1:]), rows)

        def add(total: Any, part: Any) -> tuple[Any, None]:
            new = jax.value_and_grad(loss_fn)(params, part)
            return jax.tree.map(lambda t, x: t + x / k, total, new), None

        zero = (jnp.zeros([]), jax.tree.map(jnp.zeros_like, params))
        return jax.lax.scan(add, zero, parts)[0]

    return measure


def for_every_shape(loss_fn: Any, micro: int, make: Any) -> Contender:
    """A jitted step without padding, which compiles for every shape."""

    def train_step(state: Any, rows: Any) -> Any:
        params, opt_state = state
        k = len(jax.tree.leaves(rows)[0]) // micro
        _, grads = make(loss_fn, k)(params, rows)
        updates, opt_state = TX.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    jitted = jax.jit(train_step, donate_argnums=0)
    return Contender(
        lambda state, batch: jitted(state, jax.device_put(batch.data)),
        lambda params: (params, TX.init(params)),
    )


def multi_steps(loss_fn: Any, micro: int, k: int) -> Contender:
    """`optax.MultiSteps`, which a statistic cannot drive: k is fixed for a run."""
    tx = optax.MultiSteps(TX, every_k_schedule=k)

    def micro_step(state: Any, rows: Any) -> Any:
        params, opt_state = state
        updates, opt_state = tx.update(jax.grad(loss_fn)(params, rows), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    jitted = jax.jit(micro_step, donate_argnums=0)

    def step(state: Any, batch: Batch) -> Any:
        for i in range(k):
            part = jax.tree.map(lambda x, i=i: x[i * micro : (i + 1) * micro], batch.data)
            state = jitted(state, jax.device_put(part))
        return state

    return Contender(step, lambda params: (params, tx.init(params)))


def accumulated(step: AccumulatedStep) -> Contender:
    """One of our ways."""
    return Contender(
        lambda state, batch: step(state, batch)[0], lambda params: (params, TX.init(params))
    )


def update(state: Any, loss: Any, grads: Any, stats: Any) -> tuple[Any, Any]:
    """What every contender does with its gradient."""
    params, opt_state = state
    updates, opt_state = TX.update(grads, opt_state, params)
    return (optax.apply_updates(params, updates), opt_state), (loss, stats.variance)


def first_rows(rows: Any, n: int) -> Batch:
    """A batch of the first n rows."""
    return Batch(jax.tree.map(lambda x: x[:n], rows), np.ones(n, bool))


def padded(batch: Batch, step: AccumulatedStep) -> Batch:
    """The batch as the loader gives it to this step."""
    rows = len(batch.mask)
    capacity = next((each for each in step.capacities or () if each >= rows), rows)
    pad = lambda x: np.concatenate([x, np.repeat(x[:1], capacity - rows, axis=0)])
    return Batch(jax.tree.map(pad, batch.data), np.arange(capacity) < rows)


class Row(NamedTuple):
    """A line of the table."""

    name: str
    ratios: list[float]
    programs: int
    first_seconds: float
    temp_mb: float


def measure_model(
    model: Model, sizes: list[int], rounds: int, seconds: float, compilations: Compilations
) -> list[Row]:
    """Rows of all contenders on one model."""
    loss_fn, params, rows = model.build(model.micro * max(sizes))
    rows = jax.tree.map(np.asarray, jax.device_get(rows))
    batches = {k: first_rows(rows, k * model.micro) for k in sizes}
    steps: dict[str, AccumulatedStep] = {
        how: accumulate(
            loss_fn,
            update,
            micro_batch_size=model.micro,
            max_batch_size=model.micro * max(sizes),
            how=how,
        )
        for how in HOWS
    }
    contenders = {
        "plain": for_every_shape(loss_fn, model.micro, plain),
        "scan": for_every_shape(loss_fn, model.micro, scanned),
    } | {how: accumulated(step) for how, step in steps.items()}
    copied = lambda: jax.tree.map(jnp.copy, params)
    jax.block_until_ready((copied(), TX.init(params)))  # compiles what all need
    ratios: dict[str, list[float]] = {name: [] for name in (*contenders, "MultiSteps")}
    programs = dict.fromkeys(ratios, 0)
    first = dict.fromkeys(ratios, 0.0)
    for k in sizes:
        runs: dict[str, Callable[[], float]] = {}
        here = contenders | {"MultiSteps": multi_steps(loss_fn, model.micro, k)}
        for name, contender in here.items():
            batch = padded(batches[k], steps[name]) if name in steps else batches[k]
            state = [jax.device_put(contender.init(copied()), jax.devices()[0])]
            before, started = compilations.count, time.perf_counter()
            runs[name] = contender.run(state, batch)
            runs[name]()
            programs[name] += compilations.count - before
            if compilations.count > before:
                first[name] += time.perf_counter() - started
        times = interleave(runs, rounds, seconds / len(sizes))
        for name, seconds_of in times.items():
            ratios[name].append(time_ratio(seconds_of, times["plain"]))
    memory = temp_memory(loss_fn, copied(), rows, steps, model.micro, max(sizes))
    return [
        Row(name, ratios[name], programs[name], first[name], memory.get(name, float("nan")))
        for name in ratios
    ]


def temp_memory(
    loss_fn: Any, params: Any, rows: Any, steps: dict[str, AccumulatedStep], micro: int, k: int
) -> dict[str, float]:
    """Temporary MB of the programs for the largest batch."""
    temp = lambda compiled: temp_bytes(compiled) / 1e6
    memory = {
        name: temp(jax.jit(make(loss_fn, k)).lower(params, rows).compile())
        for name, make in {"plain": plain, "scan": scanned}.items()
    }
    state, example = (params, TX.init(params)), jax.tree.map(lambda x: x[0], rows)
    for how, step in steps.items():
        if how == "ladder":  # its largest program is that of padded
            memory[how] = memory["padded"]
            continue
        step.compile(state, example, progress=False, check_loss=False)
        memory[how] = max(temp(compiled) for compiled in step._compiled.values())
    return memory


def table(rows: list[Row], sizes: list[int]) -> str:
    """Markdown."""
    header = ["step", *(f"k = {k}" for k in sizes), "programs", "first steps, s", "temporary MB"]
    lines = [
        [row.name, *(f"{ratio:.2f}" for ratio in row.ratios), row.programs,
         f"{row.first_seconds:.1f}", "" if np.isnan(row.temp_mb) else f"{row.temp_mb:.3g}"]
        for row in rows
    ]  # fmt: skip
    return markdown(header, lines)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=tuple(MODELS), default=list(MODELS))
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 4, 16, 64], help="k")
    parser.add_argument("--rounds", type=int, default=11, help="interleaved rounds, at most")
    parser.add_argument("--minutes", type=float, default=6.0, help="of timing, for all models")
    options = parser.parse_args()
    compilations = Compilations()
    print(f"{machine()}, at most {options.rounds} rounds; times relative to plain")
    for name in options.models:
        model = MODELS[name]
        print(f"\n## {model.title}, micro-batches of {model.micro}\n", flush=True)
        seconds = 60 * options.minutes / len(options.models)
        rows = measure_model(model, options.sizes, options.rounds, seconds, compilations)
        print(table(rows, options.sizes), flush=True)


if __name__ == "__main__":
    main()
