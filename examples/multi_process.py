"""A digits MLP that several processes train together, whose batch grows for all of them alike.

    python examples/multi_process.py --processes 2      # on this machine, over loopback
    srun python examples/multi_process.py               # joins the cluster that JAX finds

Every process reads its rows of each micro-batch and takes the same decisions, because they come
from numbers that the jitted step returns on every device. Process 0 alone prints and writes.
"""

import argparse
import os
import pathlib
import sys
import time
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from digits import MLP, loss_fn
from digits_common import (
    add_training_options,
    check_training_options,
    make_optimizer,
)
from digits_data import digits
from flax import nnx
from jax import NamedSharding, P
from local_processes import join, local_processes, wait
from reporting import write_run

import adaoptax
from adaoptax.integrations.progress import ProgressBar


def parse_arguments(argv: list[str]) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """The command line, with every option explained."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add(
        "--processes",
        type=int,
        help="start this many processes on this machine, over loopback; without it, join the"
        " cluster that jax.distributed.initialize() finds (TPU pod, SLURM, Open MPI, Kubernetes, or"
        " JAX_COORDINATOR_ADDRESS with JAX_NUM_PROCESSES and JAX_PROCESS_ID)",
    )
    add("--devices", type=int, default=2, help="CPU devices of each process of --processes")
    add(
        "--out",
        type=pathlib.Path,
        default=pathlib.Path("runs/multi_process"),
        help="folder for records.jsonl and summary.json",
    )
    add("--seed", type=int, default=0, help="chooses the split, the first weights and the order")
    add_training_options(parser, epochs=4, micro_batch_size=32, hidden=256)
    options = parser.parse_args(argv)
    check_training_options(parser, options, "processes", "devices")
    return parser, options


class Trainer:
    """The state of the training on all devices, and the jitted functions that work on it."""

    def __init__(self, options: argparse.Namespace, mesh: jax.sharding.Mesh, examples: int) -> None:
        self.rows = NamedSharding(mesh, P("data"))
        everywhere = NamedSharding(mesh, P())
        graph = nnx.graphdef(MLP(options.hidden, nnx.Rngs(0)))
        tx = make_optimizer(options, examples)
        # Each device measures its rows of one micro-batch after another; one sum over devices
        # then tells gradient and noise of all.
        self._micro_batches = options.max_batch_size // options.micro_batch_size
        method = adaoptax.measure.devices("data", adaoptax.measure.groups(self._micro_batches))
        measure_rows = adaoptax.value_grad_and_stats(
            lambda params, batch: loss_fn(nnx.merge(graph, params), batch), method
        )

        def on_each_device(params: Any, batch: adaoptax.Batch) -> Any:
            own = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)
            return measure_rows(params, own.data, mask=own.mask)

        measure = jax.shard_map(
            on_each_device, mesh=mesh, in_specs=(P(), P(None, "data")), out_specs=P()
        )

        def init() -> tuple[Any, Any]:
            params = nnx.state(MLP(options.hidden, nnx.Rngs(options.seed)))
            return params, tx.init(params)

        def train_step(state: Any, batch: adaoptax.Batch) -> tuple[Any, dict[str, jax.Array]]:
            params, opt_state = state
            loss, grads, stats = measure(params, batch)
            updates, opt_state = tx.update(grads, opt_state, params, stats=stats)
            state = optax.apply_updates(params, updates), opt_state
            return state, adaoptax.observables(loss, stats, opt_state)

        def accuracy(state: Any, inputs: jax.Array, labels: jax.Array) -> jax.Array:
            scores = nnx.merge(graph, state[0])(inputs)
            return jnp.mean(scores.argmax(-1) == labels)

        # The state and all that the host reads lie whole on every device: all decide alike.
        self.state = jax.jit(init, out_shardings=everywhere)()
        self._train_step = jax.jit(train_step, donate_argnums=0, out_shardings=everywhere)
        self._accuracy = jax.jit(accuracy, out_shardings=everywhere)

    def step(self, batch: adaoptax.Batch, num_rows: int) -> dict[str, jax.Array]:
        """Takes one train step with the rows that this process and all others read."""
        placed = adaoptax.global_batch(batch, self.rows, num_rows, num_groups=self._micro_batches)
        self.state, output = self._train_step(self.state, placed)
        return output

    def accuracy(self, inputs: np.ndarray, labels: np.ndarray) -> float:
        """Share of `inputs` (the same on every process) that is classified right."""
        return float(self._accuracy(self.state, inputs, labels))


def train(options: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The run of one process; returns its records and its summary."""
    x_train, x_test, y_train, y_test = digits(options.seed)
    examples = options.epochs * len(x_train)
    auto = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=auto)
    trainer = Trainer(options, mesh, examples)
    loader = adaoptax.BatchLoader(
        {"x": x_train, "y": y_train},
        options.batch_size,
        micro_batch_size=options.micro_batch_size,
        max_batch_size=options.max_batch_size,
        pad_to="max",
        seed=options.seed,
        num_epochs=options.epochs,
        process=adaoptax.data_process(trainer.rows),
    )
    policy = adaoptax.GrowthPolicy(
        options.batch_size,
        options.max_batch_size,
        multiple_of=options.micro_batch_size,
        patience=2,
    )
    records: list[adaoptax.loop.Record] = []  # of process 0
    callbacks: list[Any] = [records.append, ProgressBar(examples)]
    started = time.perf_counter()
    with adaoptax.AdaptiveLoop(loader, policy, callbacks=callbacks) as loop:
        for batch in loop:
            loop.observe(trainer.step(batch, loader.num_rows))
    adaoptax.loop.check_same_everywhere(batch_size=loader.batch_size, examples=loader.examples_seen)
    return records, {
        "processes": jax.process_count(),
        "devices": jax.device_count(),
        "updates": loop.step,
        "examples": loop.examples_seen,
        "largest_batch_size": max((record["batch_size"] for record in records), default=None),
        "test_accuracy": trainer.accuracy(x_test, y_test),
        "seconds": time.perf_counter() - started,
        "options": {name: str(value) for name, value in vars(options).items()},
    }


def table(records: list[dict[str, Any]], summary: dict[str, Any]) -> str:
    """The final table: how many updates each batch size took."""
    updates = Counter(record["batch_size"] for record in records)
    rows = ["batch size   updates   examples"]
    rows += [f"{size:>10}{n:>10}{size * n:>11}" for size, n in sorted(updates.items())]
    rows.append(f"{'all':>10}{summary['updates']:>10}{summary['examples']:>11}")
    rows.append(
        f"\n{summary['processes']} processes, {summary['devices']} devices,"
        f" {summary['seconds']:.1f} s; test accuracy {100 * summary['test_accuracy']:.2f} %"
    )
    return "\n".join(rows)


def run_locally(options: argparse.Namespace, argv: list[str]) -> int:
    """Starts the processes, waits for them, and returns the first status that is not 0."""
    command = [sys.executable, os.path.abspath(__file__), *argv]
    try:
        with local_processes(command, options.processes) as processes:
            return wait(processes)
    except KeyboardInterrupt:
        print(f"\nInterrupted: ended all {options.processes} processes.", file=sys.stderr)
        return 128 + 2


def main(argv: list[str]) -> int:
    """Starts local processes, or trains as one of the processes."""
    parser, options = parse_arguments(argv)
    local = "JAX_NUM_PROCESSES" in os.environ and options.processes is not None
    if options.processes is not None and not local:
        return run_locally(options, argv)
    try:
        join(options.devices if local else None)
    except ValueError as error:
        parser.error(f"no cluster was found ({error}); pass --processes 2 to start one here")
    if options.micro_batch_size % jax.device_count():
        parser.error(f"--micro-batch-size must be a multiple of all {jax.device_count()} devices")
    records, summary = train(options)
    if jax.process_index() == 0:
        write_run(options.out, records, summary)
        print(table(records, summary))
        print(f"\nWrote records.jsonl and summary.json to {options.out}/")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
