"""What every way of measuring costs, beside the plain step of the same model in the same run.

    python -m benchmarks.measure                       # the six main models, under 15 minutes
    python -m benchmarks.measure --models all --minutes 90
    python -m benchmarks.measure --models cnn --methods exact every

Times are medians of ratios within interleaved rounds, so that whatever else the machine does hits
both alike. Memory is the compiled program's temporary memory; FLOPs are XLA's count, with loops
counted as often as they run. The methods of PyTorch (where its packages are installed) are
compared with PyTorch's own plain step, and their memory is what their tensors take at most. A
method that is much slower than the others gets fewer rounds; one that needs more memory than there
is does not run, and the table says so.
"""

import argparse
import functools
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Callable

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # leaves a GPU to PyTorch, too

import jax

from benchmarks import methods, peers
from benchmarks.models import HEADLINE, MODELS, Model
from benchmarks.results import Row, model_table, page, read_csv, write_csv
from benchmarks.timing import Measurement, Program, interleave, machine

Say = Callable[[str], None]


def base_of(method: str) -> str:
    """The plain step that a method is compared with."""
    return peers.PLAIN if method in peers.PACKAGES else methods.PLAIN


def choose_methods(parts: list[str]) -> list[str]:
    """Methods whose name contains one of the parts (all without any), and their plain steps."""
    known = [*methods.METHODS, *peers.PACKAGES]
    chosen: set[str] = set() if parts else set(known)
    for part in parts:
        found = {name for name in known if part.lower() in name.lower()}
        if not found:
            raise SystemExit(f"Expected --methods to be parts of names, got {part!r}: {known}.")
        chosen |= found
    for name in sorted(chosen):
        if package := peers.missing(name):
            print(f"Without {name}: {package} is not installed.")
            chosen.remove(name)
    if not chosen:
        raise SystemExit('Expected --methods that are installed: pip install -e ".[peers]".')
    bases = {base_of(name) for name in chosen}
    return [name for name in known if name in chosen | bases]


def prepare(
    model: Model, names: list[str], memory: float, say: Say
) -> tuple[dict[str, Program], dict[str, str]]:
    """Compiled programs of a model, and why those that will not run do not."""
    problem = model.build()
    say("warms up the compiler")
    methods.METHODS[methods.PLAIN](*problem)  # traces what all share, which is then cached
    programs: dict[str, Program] = {}
    notes: dict[str, str] = {}
    for i, name in enumerate(names):
        say(f"prepares {i + 1}/{len(names)}: {name}")
        try:
            if name in peers.PACKAGES:
                programs[name] = peers.make(name)(model, problem[2])
            else:
                programs[name] = methods.METHODS[name](*problem)
        except Exception as error:  # what a method cannot do belongs in the table
            notes[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:60]}"
            continue
        if programs[name].temp_bytes > memory:
            notes[name] = f"needs {programs[name].temp_bytes / 2**30:.1f} GB"
    return programs, notes


def measure_model(
    model: Model, names: list[str], rounds: int, seconds: float, memory: float, say: Say
) -> list[Row]:
    """Rows of all methods on one model, measured in about so many seconds."""
    started = time.perf_counter()
    programs, notes = prepare(model, names, memory, say)
    runs = {name: program.run for name, program in programs.items() if name not in notes}
    left = max(seconds - (time.perf_counter() - started), seconds / 3)  # compiling may take long
    progress = lambda name, round_: say(f"round {round_}/{rounds}: {name}")
    times: dict[str, list[float]] = {}
    for base in (methods.PLAIN, peers.PLAIN):  # apart, as their threads disturb each other
        group = {name: run for name, run in runs.items() if base_of(name) == base}
        if group:
            times |= interleave(group, rounds, left * len(group) / len(runs), progress)
    results = {name: Measurement(times.get(name, []), programs[name]) for name in programs}
    return [_row(model, name, results, notes.get(name, "")) for name in names]


def _row(model: Model, name: str, results: dict[str, Measurement], note: str) -> Row:
    base = base_of(name)
    place = machine() if base == methods.PLAIN else peers.version()
    row = Row(model.title, name, base, load=os.getloadavg()[0], machine=place, note=note)
    if name not in results or base not in results:
        return row
    own, other = results[name], results[base]
    return row._replace(
        time=own.time_ratio(other),
        memory=own.memory_ratio(other),
        flops=own.flop_ratio(other),
        compile=own.compile_ratio(other),
        milliseconds=1e3 * statistics.median(own.seconds or [float("nan")]),
        temp_mb=own.program.temp_bytes / 2**20,
        rounds=len(own.seconds),
    )


def memory_limit() -> float:
    """Bytes that one program may take: all of a GPU's, half of the machine's otherwise."""
    stats = jax.devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return float(stats["bytes_limit"])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2


def show(*texts: str) -> None:
    """One line of standard error that is written over, where that is a terminal."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{' '.join(texts)}"[:110], end="", file=sys.stderr, flush=True)


def report(rows: list[Row], figure: pathlib.Path | None, tables: pathlib.Path | None) -> None:
    """Draws the picture, and prints or writes the tables of all models."""
    if figure:
        from benchmarks.figure import draw

        draw(rows, figure)
    text = page(rows, os.path.relpath(figure, (tables or figure).parent) if figure else None)
    if tables:
        tables.parent.mkdir(parents=True, exist_ok=True)
        tables.write_text(text)
    print(f"\n{text}")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--models", nargs="+", default=HEADLINE, metavar="MODEL", choices=[*MODELS, "all"],
        help=f"all, or any of {', '.join(MODELS)} (default: {' '.join(HEADLINE)})")  # fmt: skip
    add("--methods", nargs="+", default=[], metavar="PART",
        help="only methods whose name contains one of these, as in: exact opacus")  # fmt: skip
    add("--rounds", type=int, default=21, help="rounds of a median, at most (default: 21)")
    add("--minutes", type=float, default=14.0,
        help="for all of it; slow models get fewer rounds (default: 14)")  # fmt: skip
    add("--csv", type=pathlib.Path, default=pathlib.Path("runs/measure.csv"), metavar="PATH",
        help="where all numbers go, model by model (default: runs/measure.csv)")  # fmt: skip
    add("--figure", type=pathlib.Path, metavar="PATH", help="draw a picture (needs matplotlib)")
    add("--tables", type=pathlib.Path, metavar="PATH", help="write the tables, in Markdown")
    add("--from", dest="source", type=pathlib.Path, metavar="CSV",
        help="measure nothing: tables and picture of an earlier run")  # fmt: skip
    return parser.parse_args()


def main() -> None:
    """Measures, prints and writes."""
    options = parse()
    if options.source:
        report(read_csv(options.source), options.figure, options.tables)
        return
    if options.rounds < 1:
        raise SystemExit(f"Expected --rounds >= 1, got {options.rounds}: a median needs one.")
    names = choose_methods(options.methods)
    every_model = [key for key in MODELS if key != "tiny"]
    keys = every_model if "all" in options.models else list(dict.fromkeys(options.models))
    print(f"{machine()}, load {os.getloadavg()[0]:.2f}; at most {options.rounds} rounds")
    deadline = time.perf_counter() + 60 * options.minutes
    rows: list[Row] = []
    for i, key in enumerate(keys):
        model = MODELS[key]
        seconds = (deadline - time.perf_counter()) / (len(keys) - i)
        say = functools.partial(show, f"[{i + 1}/{len(keys)}] {model.title}:")
        rows += measure_model(model, names, options.rounds, seconds, memory_limit(), say)
        show()
        print(f"\n## {model.title}, load {rows[-1].load:.2f}\n", flush=True)
        print(model_table([row for row in rows if row.model == model.title]), flush=True)
        write_csv(rows, options.csv)
        jax.clear_caches()
    report(rows, options.figure, options.tables)
    print(f"Wrote {options.csv}")


if __name__ == "__main__":
    main()
