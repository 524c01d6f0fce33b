"""A complete trainer in one file: batches that grow, checkpoints, records, pictures. Copy it.

    python examples/train.py --out runs/first                   # digits, an MLP
    python examples/train.py --out runs/first                   # again: goes on where it was
    python examples/train.py --problem stdlib-lm --dry-run      # says what would run
    python examples/train.py --diagnose --out runs/look         # measures, never acts
    python examples/train.py --config examples/train.toml       # the same options from a file

Kill it at any moment, however hard: the same command goes on from the last checkpoint and ends with
the same parameters, bit for bit.
"""

import argparse
import hashlib
import json
import pathlib
import sys
import tomllib
from typing import Any

import jax
import numpy as np
import optax
from jax import NamedSharding, P
from local_processes import join, use_host_devices
from problems import PROBLEMS, Problem

import adaoptax
from adaoptax.integrations.orbax import Checkpointer
from adaoptax.integrations.plots import plot_run
from adaoptax.integrations.progress import ProgressBar
from adaoptax.loop import JsonLines, read_json_lines

METHODS = {"groups": None, "exact": adaoptax.measure.exact()}

# A run may go on under other values of these; all others decide what it computes.
FREE = {"config", "out", "checkpoint_every", "dry_run", "join", "host_devices"}


def make_parser() -> argparse.ArgumentParser:
    """The command line, with every option explained."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument_group("what to train").add_argument
    add("--problem", choices=PROBLEMS, default="digits-mlp", help="data and model; also sets"
        " defaults (those shown are of the problem given)")  # fmt: skip
    add("--examples", type=int, default=43_200, help="examples to train on, counted again in"
        " every epoch")  # fmt: skip
    add("--width", type=int, default=64, help="width of the model")
    add("--seed", type=int, default=0, help="chooses the first weights and the order of examples")

    add = parser.add_argument_group("batch size").add_argument
    add("--batch-size", type=int, default=32, help="first batch, and base batch of AdaScale")
    add("--max-batch-size", type=int, default=512, help="the batch never grows beyond this")
    add("--micro-batch-size", type=int, default=16, help="rows of one gradient, over all devices")
    add("--eta", type=float, default=0.8, help="tolerance of the norm test; smaller grows sooner")
    add("--batch-schedule", help='sizes by examples seen instead, such as "0:32 10K:64 20K:256"')
    add("--diagnose", action="store_true", help="measure and record what would have been decided,"
        " but keep the first batch size")  # fmt: skip
    add("--how", choices=("padded", "ladder", "host"), default="padded", help="how micro-batches"
        " are accumulated: in one program, one for each power of two, or by the host")  # fmt: skip
    add("--method", choices=METHODS, default="groups", help="noise from the differences between"
        " micro-batches, or exactly from every example")  # fmt: skip

    add = parser.add_argument_group("optimizer").add_argument
    add("--optimizer", choices=("sgd", "adam"), default="sgd", help="momentum 0.9, or Adam (which"
        " gets the square root of AdaScale's gain)")  # fmt: skip
    add("--learning-rate", type=float, default=0.2, help="peak, for the first batch size; cosine"
        " decay over examples follows")  # fmt: skip
    add("--weight-decay", type=float, default=0.003, help="decoupled weight decay")

    add = parser.add_argument_group("running").add_argument
    add("--out", type=pathlib.Path, default=pathlib.Path("runs/train"), help="folder for records,"
        " checkpoints, summary and picture; where it holds a run, that run goes on")  # fmt: skip
    add("--checkpoint-every", type=int, default=50, help="updates between checkpoints")
    add("--dry-run", action="store_true", help="print what would run, and stop")
    add("--config", type=pathlib.Path, help="TOML file with these options as keys"
        " (batch_size = 64); the command line overrides it")  # fmt: skip
    add("--join", action="store_true", help="join the processes of a cluster")
    add("--host-devices", type=int, help="make this many devices of the CPU, to try several")
    return parser


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Options from the problem's defaults, the file, and the command line; the last one wins."""
    parser = make_parser()
    early = argparse.ArgumentParser(add_help=False)
    early.add_argument("--problem")
    early.add_argument("--config", type=pathlib.Path)
    first = early.parse_known_args(argv)[0]
    settings = read_config(parser, first.config) if first.config else {}
    problem = first.problem or settings.get("problem", "digits-mlp")
    if problem in PROBLEMS:
        parser.set_defaults(problem=problem, **PROBLEMS[problem].defaults)
    parser.set_defaults(**settings)
    for action in (action for group in parser._action_groups for action in group._group_actions):
        if action.default not in (None, argparse.SUPPRESS, False):
            action.help = f"{action.help} (default: %(default)s)"
    options = parser.parse_args(argv)
    for name in ("examples", "batch_size", "micro_batch_size"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    for name in ("batch_size", "max_batch_size"):
        if getattr(options, name) % options.micro_batch_size:
            parser.error(f"--{name.replace('_', '-')} must be a multiple of --micro-batch-size")
    if options.max_batch_size < options.batch_size:
        parser.error("--max-batch-size must be at least --batch-size")
    if options.batch_schedule:
        try:
            schedule = adaoptax.BatchSizeSchedule.parse(options.batch_schedule)
        except ValueError as error:
            parser.error(f"--batch-schedule: {error}")
        if schedule.max_batch_size > options.max_batch_size:
            parser.error("--max-batch-size must be at least every size of --batch-schedule")
        smallest = {"--batch-schedule": schedule.min_batch_size}
    else:
        smallest = {"--batch-size": options.batch_size}
    for name, size in smallest.items():
        if options.method == "groups" and size < 2 * options.micro_batch_size:
            parser.error(
                f"{name} must be two micro-batches or more, for one group has no noise; or pass"
                " --method exact"
            )
    return options


def read_config(parser: argparse.ArgumentParser, path: pathlib.Path) -> dict[str, Any]:
    """The options of a TOML file, checked like those of the command line."""
    try:
        settings = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        parser.error(f"--config {path}: {error}")
    actions = {action.dest: action for action in parser._actions if action.dest != "config"}
    for name, value in settings.items():
        action = actions.get(name)
        if action is None:
            parser.error(f"--config {path}: there is no option {name!r}; see --help")
        wanted: Any = action.type or (bool if action.nargs == 0 else str)
        written = str if wanted is pathlib.Path else wanted
        if type(value) is not written and not (written is float and type(value) is int):
            parser.error(
                f"--config {path}: {name} must be of type {written.__name__}, got {value!r}"
            )
        if written is not wanted:
            settings[name] = wanted(value)
        if action.choices is not None and value not in action.choices:
            parser.error(f"--config {path}: {name} must be one of {[*action.choices]}")
    return settings


def make_optimizer(options: argparse.Namespace) -> optax.GradientTransformation:
    """The chain: decide, then the optimizer and weight decay, then gain and learning rate."""
    schedule = optax.cosine_decay_schedule(options.learning_rate, options.examples)
    adam = options.optimizer == "adam"
    return optax.chain(
        adaoptax.norm_test(options.eta, decay=0.9),
        adaoptax.skip_nonfinite(optax.scale_by_adam(b2=0.95) if adam else optax.trace(0.9)),
        optax.add_decayed_weights(options.weight_decay),
        adaoptax.scale_by_adascale(options.batch_size, exponent=0.5 if adam else 1.0, decay=0.99),
        adaoptax.scale_by_schedule_over_examples(schedule),
    )


def make_policy(options: argparse.Namespace) -> Any:
    """The size follows the norm test, or a schedule."""
    if options.batch_schedule:
        return adaoptax.BatchSizeSchedule.parse(options.batch_schedule)
    return adaoptax.GrowthPolicy(
        options.batch_size, options.max_batch_size, multiple_of=options.micro_batch_size, patience=2
    )


def train(options: argparse.Namespace, problem: Problem, mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """Trains from the last checkpoint, or from the start; returns the summary."""
    tx = make_optimizer(options)
    rows, everywhere = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())

    def init() -> tuple[Any, Any]:
        params = problem.init(jax.random.key(options.seed))
        return params, tx.init(params)

    def update(state: Any, loss: Any, grads: Any, stats: adaoptax.GradientStats) -> Any:
        params, opt_state = state
        updates, opt_state = tx.update(grads, opt_state, params, stats=stats)
        params = optax.apply_updates(params, updates)
        return (params, opt_state), adaoptax.observables(loss, stats, opt_state)

    step = adaoptax.accumulate(
        problem.loss_fn,
        update,
        micro_batch_size=options.micro_batch_size,
        max_batch_size=options.max_batch_size,
        how=options.how,
        method=METHODS[options.method],
        sharding=rows,
    )
    loader = adaoptax.BatchLoader(
        problem.data,
        options.batch_size,
        micro_batch_size=options.micro_batch_size,
        max_batch_size=options.max_batch_size,
        pad_to=step.capacities,
        seed=options.seed,
        process=adaoptax.data_process(rows),
    )
    records = options.out / "records.jsonl"
    loop = adaoptax.AdaptiveLoop(
        loader,
        make_policy(options),
        callbacks=[JsonLines(records), ProgressBar(options.examples)],
        act=not options.diagnose,
    )
    metrics = jax.jit(problem.metrics, out_shardings=everywhere)
    every = max(options.examples // 30, 1)
    write_options(options)  # only now: options that were refused are no run
    with Checkpointer(options.out / "checkpoints", every=options.checkpoint_every) as saver, loop:
        state = saver.restore(jax.jit(init, out_shardings=everywhere)(), loop)
        stopped = False
        while loop.examples_seen < options.examples and not stopped:
            before = loop.examples_seen
            state, output = step(state, next(loop))
            if loop.examples_seen // every > before // every:
                output |= metrics(state[0])
            loop.observe(output)
            stopped = saver.after_step(state, loop)
    params = jax.device_get(state[0])
    return {
        "problem": problem.description,
        "finished": not stopped,
        "updates": loop.step,
        "examples": loop.examples_seen,
        "devices": jax.device_count(),
        **{name: float(value) for name, value in metrics(state[0]).items()},
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "sha256": fingerprint(params),
    }


def fingerprint(params: Any) -> str:
    """A hash of all parameters: equal for runs that are equal to the last bit."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()[:16]


def dry_run(options: argparse.Namespace, problem: Problem) -> None:
    """Says what would run, without compiling anything."""
    print(problem.description)
    shapes = jax.eval_shape(problem.init, jax.random.key(0))
    print(f"{sum(leaf.size for leaf in jax.tree.leaves(shapes)):,} parameters")
    learning_rate = optax.cosine_decay_schedule(options.learning_rate, options.examples)
    ladder = adaoptax.loop.capacities(options.micro_batch_size, options.max_batch_size)
    rows = ladder if options.how == "ladder" else ladder[-1:]
    plans = {"The schedule": options.batch_schedule}
    if not options.batch_schedule:
        plans = {
            "If the batch never grows": f"0:{options.batch_size}",
            "If it is as large as it may be": f"0:{options.max_batch_size}",
        }
    for title, sizes in plans.items():
        print(f"\n{title}:")
        print(
            adaoptax.plan(
                adaoptax.BatchSizeSchedule.parse(sizes),
                options.examples,
                micro_batch_size=options.micro_batch_size,
                capacities=rows,
                learning_rate=learning_rate,
            )
        )
    print("\nThe run fills its last batch, beyond --examples if need be.")
    if options.how == "host":
        print("Driven by the host, two programs and a start serve all sizes.")


def require_same_run(options: argparse.Namespace) -> None:
    """Ends the program where the folder cannot be, or holds a run with other options."""
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        sys.exit(f"train.py: error: --out {options.out}: {error.strerror}; pass another folder.")
    path = options.out / "options.json"
    here = {name: value for name, value in vars(options).items() if name not in FREE}
    if path.exists():
        began = json.loads(path.read_text())
        for name, value in here.items():
            if began.get(name) != value:
                sys.exit(
                    f"train.py: error: {options.out} holds a run with {name}={began.get(name)!r},"
                    f" got {name}={value!r}: pass another --out, or the option as it was."
                )


def write_options(options: argparse.Namespace) -> None:
    """Notes what the run computes, for `require_same_run`; whole or not at all."""
    path = options.out / "options.json"
    if path.exists() or jax.process_index() > 0:
        return
    here = {name: value for name, value in vars(options).items() if name not in FREE}
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(here, indent=2) + "\n")
    unfinished.replace(path)


def main(argv: list[str] | None = None) -> None:
    """Trains, and lets process 0 write what happened."""
    options = parse_arguments(argv)
    if options.host_devices:
        use_host_devices(options.host_devices)
    if options.join:
        join()
    problem = PROBLEMS[options.problem].make(options)
    if options.dry_run:
        dry_run(options, problem)
        return
    require_same_run(options)
    auto = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=auto)
    with jax.set_mesh(mesh):
        summary = train(options, problem, mesh)
    if jax.process_index() > 0:
        return
    (options.out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    plot_run(read_json_lines(options.out / "records.jsonl"), options.out / "run.png")
    for name, value in summary.items():
        print(f"{name:>14}  {value}")
    if not summary["finished"]:
        print("Stopped by a signal; the same command goes on from here.")


if __name__ == "__main__":
    main()
