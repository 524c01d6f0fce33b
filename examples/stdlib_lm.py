"""A byte-level transformer on the standard library's source, on a mesh (data, model).

    python examples/stdlib_lm.py --tiny --host-devices 8 --data 4 --model 2 --fsdp
    python examples/stdlib_lm.py --model 2 --fsdp              # on the GPUs or TPUs that there are
    srun python examples/stdlib_lm.py --join --model 4 --fsdp  # in all processes of a cluster

The batch grows by the norm test, Adam's step by the square root of the AdaScale gain. Rows lie on
the data axis, heads and hidden units on the model axis; with --fsdp parameters and Adam's moments
are cut over the data axis too. The statistics are a handful of scalars all the same.
"""

import argparse
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import NamedSharding, P
from local_processes import join, use_host_devices
from reporting import BLUE, GREY, column, draw_noise, draw_size, panels, write_run
from stdlib_data import Corpus, read_standard_library, unigram_bits, windows
from stdlib_model import Transformer, shardings

import adaoptax
from adaoptax.integrations.progress import ProgressBar

# What --tiny changes: seconds per run instead of hours.
TINY: dict[str, Any] = {
    "layers": 2, "width": 64, "heads": 4, "length": 64, "batch_size": 32, "max_batch_size": 256,
    "micro_batch_size": 16, "examples": 5000, "learning_rate": 5e-3, "max_bytes": 2_000_000,
    "eta": 0.4,
}  # fmt: skip


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line, with every option explained; also sets up the devices."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--tiny", action="store_true", help="a small model for CPUs; flags still override it")
    add("--host-devices", type=int, help="make this many devices of the CPU, to try a mesh")
    add("--join", action="store_true", help="join the processes of a cluster (see the docs)")
    add("--data", type=int, help="size of the data axis; default: all devices / --model")
    add("--model", type=int, default=1, help="size of the model axis (tensor parallel)")
    add("--fsdp", action="store_true", help="cut parameters and moments over the data axis too")
    add("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of the arithmetic")
    add("--layers", type=int, default=12, help="transformer blocks")
    add("--width", type=int, default=768, help="width of the residual stream")
    add("--heads", type=int, default=12, help="attention heads")
    add("--length", type=int, default=1024, help="bytes of one example")
    add("--batch-size", type=int, default=64, help="first batch, and the base batch of AdaScale")
    add("--max-batch-size", type=int, default=1024, help="the batch never grows beyond this")
    add("--micro-batch-size", type=int, default=32, help="rows of one group, over all devices")
    add("--examples", type=int, default=100_000, help="examples to train on (about 10,000 differ)")
    add("--eta", type=float, default=0.3, help="tolerance of the norm test; smaller grows sooner")
    add("--learning-rate", type=float, default=6e-4, help="peak, for the first batch size")
    add("--weight-decay", type=float, default=0.1, help="decoupled, on matrices")
    add("--seed", type=int, default=0, help="chooses the first weights and the order")
    add("--max-bytes", type=int, help="read no more of the standard library than this")
    add("--out", type=pathlib.Path, default=pathlib.Path("runs/stdlib_lm"),
        help="folder for records.jsonl, summary.json and run.png")  # fmt: skip
    if parser.parse_known_args(argv)[0].tiny:
        parser.set_defaults(**TINY)
    options = parser.parse_args(argv)
    if options.host_devices is not None:
        use_host_devices(options.host_devices)
    if options.join:
        join()
    if options.data is None:
        options.data = max(jax.device_count() // options.model, 1)
    for problem, message in {
        options.data * options.model != jax.device_count(): (
            f"--data {options.data} times --model {options.model} must be all"
            f" {jax.device_count()} devices (try --host-devices on a CPU)"
        ),
        options.width % options.heads != 0: "--width must be a multiple of --heads",
        options.heads % options.model != 0: "--heads must be a multiple of --model",
        options.width % options.data != 0 and options.fsdp: "--width must be a multiple of --data",
        options.micro_batch_size % options.data != 0: "--micro-batch-size: a multiple of --data",
        options.batch_size < 2 * options.micro_batch_size: (
            "--batch-size must be two micro-batches or more: one group has no noise"
        ),
        options.batch_size % options.micro_batch_size
        + options.max_batch_size % options.micro_batch_size
        != 0: "batch sizes must be multiples of --micro-batch-size",
    }.items():
        if problem:
            parser.error(message)
    return options


def make_optimizer(options: argparse.Namespace) -> optax.GradientTransformation:
    """The chain: decide, then Adam and weight decay, then √gain and learning rate."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, options.learning_rate, options.examples // 20, options.examples
    )
    matrices = lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params)
    adam = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.scale_by_adam(b2=0.95),
        optax.add_decayed_weights(options.weight_decay, mask=matrices),
    )
    return optax.chain(
        adaoptax.norm_test(options.eta, decay=0.9),
        adaoptax.skip_nonfinite(adam),
        adaoptax.scale_by_adascale(options.batch_size, exponent=0.5, decay=0.99),
        adaoptax.scale_by_schedule_over_examples(schedule),
    )


class Trainer:
    """Parameters and optimizer on the mesh, and the jitted functions that work on them."""

    def __init__(self, options: argparse.Namespace, mesh: jax.sharding.Mesh) -> None:
        tx = make_optimizer(options)
        self.rows = NamedSharding(mesh, P("data"))
        everywhere = NamedSharding(mesh, P())

        def model() -> Transformer:
            return Transformer(
                options.layers, options.width, options.heads, options.length,
                jnp.dtype(options.dtype), nnx.Rngs(options.seed),
            )  # fmt: skip

        graph, shapes = nnx.split(nnx.eval_shape(model))
        self.num_parameters = sum(leaf.size for leaf in jax.tree.leaves(shapes))
        where = shardings(shapes, mesh, options.fsdp)

        def loss_fn(params: Any, text: jax.Array) -> jax.Array:
            """Bits per byte."""
            # The gradient of a constrained parameter is constrained alike: it is cut as it appears.
            params = jax.lax.with_sharding_constraint(params, where)
            text = text.astype(jnp.int32)
            scores = nnx.merge(graph, params)(text[:, :-1])
            nats = optax.softmax_cross_entropy_with_integer_labels(scores, text[:, 1:])
            return nats.mean() / jnp.log(2.0)

        def init() -> tuple[Any, Any]:
            params = nnx.state(model())
            return params, tx.init(params)

        def update(state: Any, loss: Any, grads: Any, stats: Any) -> tuple[Any, Any]:
            params, opt_state = state
            updates, opt_state = tx.update(grads, opt_state, params, stats=stats)
            state = optax.apply_updates(params, updates), opt_state
            return state, adaoptax.observables(loss, stats, opt_state)

        # Adam's moments lie where their parameters lie; all other state is scalar and everywhere.
        opt_where = optax.tree_utils.tree_map_params(
            tx, lambda _, place: place, jax.eval_shape(init)[1], where,
            transform_non_params=lambda _: everywhere,
        )  # fmt: skip
        places = (where, opt_where)
        self.state = jax.jit(init, out_shardings=places)()
        self.train_step = adaoptax.accumulate(
            loss_fn, update, micro_batch_size=options.micro_batch_size,
            max_batch_size=options.max_batch_size, sharding=self.rows,
        )  # fmt: skip
        self._loss = jax.jit(lambda state, text: loss_fn(state[0], text), out_shardings=everywhere)

    def step(self, batch: adaoptax.Batch) -> dict[str, jax.Array]:
        """Takes one train step."""
        self.state, output = self.train_step(self.state, batch)
        return output

    def bits_per_byte(self, text: jax.Array) -> jax.Array:
        """The loss of rows that lie on the mesh."""
        return self._loss(self.state, text)


def validation_rows(
    options: argparse.Namespace, corpus: Corpus, sharding: NamedSharding
) -> jax.Array:
    """The same few micro-batches of validation text every time, on the mesh."""
    loader = adaoptax.BatchLoader(
        windows(corpus.validation, options.length),
        4 * options.micro_batch_size,
        process=adaoptax.data_process(sharding),
    )
    batch = next(loader)
    return adaoptax.global_batch(batch, sharding, loader.num_rows).data


def train(
    options: argparse.Namespace, corpus: Corpus, mesh: jax.sharding.Mesh
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The run; returns its records and its summary."""
    trainer = Trainer(options, mesh)
    text = windows(corpus.train, options.length)
    validation = validation_rows(options, corpus, trainer.rows)
    loader = adaoptax.BatchLoader(
        text,
        options.batch_size,
        micro_batch_size=options.micro_batch_size,
        max_batch_size=options.max_batch_size,
        pad_to=trainer.train_step.capacities,
        seed=options.seed,
        process=adaoptax.data_process(trainer.rows),
    )
    policy = adaoptax.GrowthPolicy(
        options.batch_size,
        options.max_batch_size,
        multiple_of=options.micro_batch_size,
        patience=2,
    )
    records: list[adaoptax.loop.Record] = []  # of process 0
    callbacks: list[Any] = [records.append, ProgressBar(options.examples)]
    next_validation = 0
    started = time.perf_counter()
    with adaoptax.AdaptiveLoop(loader, policy, callbacks=callbacks) as loop:
        while loop.examples_seen < options.examples:
            output = trainer.step(next(loop))
            if loop.examples_seen >= next_validation:
                output["validation"] = trainer.bits_per_byte(validation)
                next_validation += options.examples // 30
            loop.observe(output)
    final = float(trainer.bits_per_byte(validation))
    if records:
        records[-1]["validation"] = final
    return records, {
        "data": corpus.describe(),
        "parameters": trainer.num_parameters,
        "mesh": dict(mesh.shape),
        "processes": jax.process_count(),
        "updates": loop.step,
        "examples": loop.examples_seen,
        "largest_batch_size": max((record["batch_size"] for record in records), default=None),
        "unigram_bits_per_byte": unigram_bits(corpus.train),
        "validation_bits_per_byte": final,
        "seconds": time.perf_counter() - started,
        "options": {name: str(value) for name, value in vars(options).items()},
    }


def draw(
    records: list[dict[str, Any]], summary: dict[str, Any], options: argparse.Namespace
) -> None:
    """Batch size, noise scale, gain and loss over examples."""
    figure, (size, noise, gain, loss) = panels()
    draw_size(size, records, options)
    draw_noise(noise, records, options, BLUE)
    gain.plot(*column(records, "gain"), color=BLUE)
    gain.set(title="AdaScale gain", xlabel="examples seen (thousands)", ylim=(0.8, None))
    loss.plot(*column(records, "loss"), color=GREY, alpha=0.6, label="training batch")
    loss.plot(*column(records, "validation"), color=BLUE, label="validation")
    loss.axhline(summary["unigram_bits_per_byte"], color="black", lw=0.8, ls="--", label="unigram")
    loss.set(title="Bits per byte", xlabel="examples seen (thousands)", ylim=(0, 8.5))
    loss.legend(frameon=False)
    mesh = " × ".join(f"{size} {name}" for name, size in summary["mesh"].items())
    figure.suptitle(f"Standard library, byte by byte: mesh {mesh} (η = {options.eta:g})")
    figure.savefig(options.out / "run.png", dpi=120)


def main(argv: list[str] | None = None) -> None:
    """Trains, and lets process 0 write what happened."""
    options = parse_arguments(argv)
    corpus = read_standard_library(options.max_bytes)
    if jax.process_index() == 0:
        print(corpus.describe())
    auto = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.make_mesh((options.data, options.model), ("data", "model"), axis_types=auto)
    with jax.set_mesh(mesh):
        records, summary = train(options, corpus, mesh)
    if jax.process_index() > 0:
        return
    write_run(options.out, records, summary)
    draw(records, summary, options)
    print(
        f"{summary['parameters']:,} parameters on the mesh {summary['mesh']}:"
        f" {summary['updates']} updates, {summary['examples']} examples, batch"
        f" {options.batch_size} → {summary['largest_batch_size']}\n"
        f"bits per byte: unigram {summary['unigram_bits_per_byte']:.2f}, validation"
        f" {summary['validation_bits_per_byte']:.2f} after {summary['seconds']:.1f} s\n"
        f"Wrote records.jsonl, summary.json and run.png to {options.out}/"
    )


if __name__ == "__main__":
    main()
