"""All experiments, one after another, each in a process of its own."""

import argparse
import importlib
import os
import subprocess
import sys

from benchmarks.experiments.experiment import add_options

NAMES: tuple[str, ...] = (
    "adascale",
    "adascale_lm",
    "elastic",
    "adam",
    "batch_tests",
    "convex",
    "distributed",
    "noise_scale",
    "cost",
)


def main(argv: list[str] | None = None) -> None:
    """Runs experiments by name, and writes one page of all results."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.experiments",
        description="Runs experiments. What was run is kept: the same command goes on.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="all, if none is given")
    parser.add_argument("--list", action="store_true", help="say what there is, and end")
    add_options(parser)
    options = parser.parse_args(argv)
    unknown = [name for name in options.names if name not in NAMES]
    if unknown:
        parser.error(f"unknown experiment {unknown[0]!r}: choose from {', '.join(NAMES)}")
    if options.list:
        for name in NAMES:
            experiment = importlib.import_module(f"benchmarks.experiments.{name}").EXPERIMENT
            print(f"{name:<20} {experiment.claim}")
        return
    passed = ["--out", str(options.out), "--seeds", str(options.seeds), "--size", options.size]
    for name in options.names or NAMES:
        # A process of its own: one of them forces eight devices, and memory is given back.
        command = [sys.executable, "-m", f"benchmarks.experiments.{name}", *passed]
        subprocess.run([*command, *["--fresh"] * options.fresh], check=True, env=os.environ)
    print(f"The pages and figures are in {options.out}", file=sys.stderr)


if __name__ == "__main__":
    main()
