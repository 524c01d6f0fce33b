"""What both digits examples share: data, command line, the training loop, records and the picture.

The examples themselves hold what is worth reading: the model, the chain and the jitted train step.
"""

import argparse
import pathlib
import time
from collections.abc import Callable
from typing import Any, Protocol

import jax
import numpy as np
import optax
from digits_data import digits
from reporting import BLUE, GREY, column, draw_noise, draw_size, panels, write_run

import adaoptax
from adaoptax.integrations.progress import ProgressBar


class Trainer(Protocol):
    """What a model has to offer to the loop."""

    def step(self, batch: adaoptax.Batch) -> dict[str, jax.Array]:
        """Takes one jitted train step, returns `observables`; `batch` lies on the device."""
        ...

    def predict(self, inputs: jax.Array) -> jax.Array:
        """Class scores of `inputs`."""
        ...


POINTS_OF_ACCURACY = 60  # of the curve in the picture

MakeTrainer = Callable[[argparse.Namespace, optax.GradientTransformation, int, int], Trainer]


def parse_arguments(description: str, argv: list[str] | None) -> argparse.Namespace:
    """The command line, with every option explained."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        default=pathlib.Path("runs/digits"),
        help="folder for records.jsonl, summary.json and run.png",
    )
    parser.add_argument(
        "--seeds", type=int, default=3, help="independent runs that the table averages"
    )
    add_training_options(parser, epochs=6, micro_batch_size=16, hidden=512)
    options = parser.parse_args(argv)
    check_training_options(parser, options, "seeds")
    if options.batch_size < 2 * options.micro_batch_size:
        parser.error("--batch-size must be two micro-batches or more: one group has no noise")
    return options


def add_training_options(
    parser: argparse.ArgumentParser, *, epochs: int, micro_batch_size: int, hidden: int
) -> None:
    """The options of model, batch and optimizer, with these defaults."""
    add = parser.add_argument
    add("--epochs", type=int, default=epochs, help="passes over the 7,200 training images")
    add(
        "--batch-size",
        type=int,
        default=32,
        help="first batch, the batch of a fixed run, and the base batch of AdaScale",
    )
    add("--max-batch-size", type=int, default=512, help="the batch never grows beyond this")
    add(
        "--micro-batch-size",
        type=int,
        default=micro_batch_size,
        help="rows taken at a time: batches are multiples of it, and noise is what differs between"
        " their gradients",
    )
    add(
        "--eta",
        type=float,
        default=0.8,
        help="tolerance of the norm test: relative error of the gradient; smaller grows sooner",
    )
    add(
        "--learning-rate",
        type=float,
        default=0.2,
        help="peak learning rate for the first batch size; cosine decay over examples follows",
    )
    add("--momentum", type=float, default=0.9, help="decay of the momentum")
    add("--weight-decay", type=float, default=0.003, help="decoupled weight decay")
    add("--hidden", type=int, default=hidden, help="hidden units of the MLP")


def check_training_options(
    parser: argparse.ArgumentParser, options: argparse.Namespace, *counts: str
) -> None:
    """Ends the program with one sentence where sizes do not fit; `counts` are further counts."""
    for name in ("epochs", "batch_size", "micro_batch_size", "hidden", *counts):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    for name in ("batch_size", "max_batch_size"):
        if getattr(options, name) % options.micro_batch_size:
            parser.error(f"--{name.replace('_', '-')} must be a multiple of --micro-batch-size")
    if options.max_batch_size < options.batch_size:
        parser.error("--max-batch-size must be at least --batch-size")


def make_optimizer(options: argparse.Namespace, num_examples: int) -> optax.GradientTransformation:
    """The chain: decide, then momentum, then gain and learning rate."""
    schedule = optax.cosine_decay_schedule(options.learning_rate, num_examples)
    return optax.chain(
        adaoptax.norm_test(options.eta, decay=0.9),
        adaoptax.skip_nonfinite(optax.trace(options.momentum)),
        optax.add_decayed_weights(options.weight_decay),
        adaoptax.scale_by_adascale(base_batch_size=options.batch_size, decay=0.99),
        adaoptax.scale_by_schedule_over_examples(schedule),
    )


def train(
    options: argparse.Namespace, make_trainer: MakeTrainer, seed: int, adaptive: bool
) -> tuple[list[adaoptax.loop.Record], dict[str, Any]]:
    """One run; returns its records and its summary."""
    x_train, x_test, y_train, y_test = digits(seed)
    num_examples = options.epochs * len(x_train)
    trainer = make_trainer(
        options, make_optimizer(options, num_examples), seed, options.max_batch_size
    )
    loader = adaoptax.BatchLoader(
        {"x": x_train, "y": y_train},
        options.batch_size,
        micro_batch_size=options.micro_batch_size,
        max_batch_size=options.max_batch_size,
        pad_to="max",
        seed=seed,
        num_epochs=options.epochs,
    )
    policy = adaoptax.GrowthPolicy(
        options.batch_size,
        options.max_batch_size,
        multiple_of=options.micro_batch_size,
        patience=2,
    )
    x_test, y_test = jax.device_put((x_test, y_test))
    share_right = jax.jit(lambda scores, labels: (scores.argmax(-1) == labels).mean())
    accuracy = lambda: share_right(trainer.predict(x_test), y_test)

    records: list[adaoptax.loop.Record] = []
    bar = ProgressBar(
        num_examples, desc=f"seed {seed}, {'adaptive' if adaptive else 'fixed'} batch"
    )
    # The fixed run decides just the same, and only does not act.
    loop = adaoptax.AdaptiveLoop(loader, policy, callbacks=[records.append, bar], act=adaptive)
    started, next_accuracy = time.perf_counter(), 0
    with loop:
        for batch in loop:
            output = trainer.step(jax.device_put(batch))
            if loop.examples_seen >= next_accuracy:
                output["test_accuracy"] = accuracy()
                next_accuracy += num_examples // POINTS_OF_ACCURACY
            loop.observe(output)
    records[-1]["test_accuracy"] = float(accuracy())
    summary = {
        "updates": len(records),
        "examples": loop.examples_seen,
        "largest_batch_size": max(record["batch_size"] for record in records),
        "test_accuracy": records[-1]["test_accuracy"],
        "seconds": time.perf_counter() - started,
    }
    return records, summary


def main(description: str, make_trainer: MakeTrainer, argv: list[str] | None = None) -> None:
    """Runs adaptive and fixed batches for each seed, and writes what they did."""
    options = parse_arguments(description, argv)
    runs: dict[str, list[Any]] = {"adaptive": [], "fixed": []}
    for seed in range(options.seeds):
        for kind, of_kind in runs.items():
            of_kind.append(train(options, make_trainer, seed, adaptive=kind == "adaptive"))
    summary: dict[str, Any] = {
        kind: mean_summary([s for _, s in of_kind]) for kind, of_kind in runs.items()
    }
    summary["options"] = {name: str(value) for name, value in vars(options).items()}

    records = runs["adaptive"][0][0]
    write_run(options.out, records, summary)
    draw(records, runs["fixed"][0][0], options, options.out / "run.png")
    print(table(summary, options))
    print(f"\nWrote records.jsonl (seed 0), summary.json and run.png to {options.out}/")


def mean_summary(summaries: list[dict[str, Any]]) -> dict[str, float]:
    """Means over seeds."""
    return {key: float(np.mean([s[key] for s in summaries])) for key in summaries[0]}


def table(summary: dict[str, Any], options: argparse.Namespace) -> str:
    """The final table."""
    adaptive, fixed = summary["adaptive"], summary["fixed"]
    rows = [f"Mean of {options.seeds} seed(s)   updates   examples   largest batch   test accuracy"]
    for name, run in (("adaptive batch", adaptive), ("fixed batch", fixed)):
        rows.append(
            f"{name:<18}{run['updates']:>10.0f}{run['examples']:>11.0f}"
            f"{run['largest_batch_size']:>16.0f}{100 * run['test_accuracy']:>14.2f} %"
        )
    rows.append(
        f"\n{fixed['updates'] / adaptive['updates']:.1f} times fewer updates,"
        f" {100 * (adaptive['test_accuracy'] - fixed['test_accuracy']):+.2f} points of accuracy."
    )
    return "\n".join(rows)


def draw(
    adaptive: list[dict[str, Any]],
    fixed: list[dict[str, Any]],
    options: argparse.Namespace,
    path: pathlib.Path,
) -> None:
    """Batch size, noise scale, gain and accuracy over examples."""
    figure, (size, noise, gain, accuracy) = panels()
    draw_size(size, adaptive, options)
    size.plot(*column(fixed, "batch_size"), color=GREY)
    draw_noise(noise, fixed, options, GREY)
    draw_noise(noise, adaptive, options, BLUE)
    gain.plot(*column(adaptive, "gain"), color=BLUE)
    gain.plot(*column(fixed, "gain"), color=GREY)
    gain.set(title="AdaScale gain", xlabel="examples seen (thousands)", ylim=(0.8, None))
    for records, color, kind in ((fixed, GREY, "fixed"), (adaptive, BLUE, "adaptive")):
        label = f"{kind}: {len(records):,} updates"
        accuracy.plot(*column(records, "test_accuracy"), color=color, label=label)
    accuracy.set(title="Test accuracy", xlabel="examples seen (thousands)", ylim=(0.9, 1.0))
    accuracy.legend(loc="lower right", frameon=False)
    figure.suptitle(f"Digits: the batch grows from measured gradient noise (η = {options.eta:g})")
    figure.savefig(path, dpi=120)
