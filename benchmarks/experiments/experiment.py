"""What an experiment is, and how it runs: cases and seeds that are missing, then the report."""

import argparse
import pathlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

from matplotlib.figure import Figure
from tqdm import tqdm

from benchmarks.experiments.store import Store, Value, clear
from benchmarks.timing import machine

Case = dict[str, Value]
Size = Literal["tiny", "default", "full"]


class Outcome(NamedTuple):
    """What one run gave.

    Attributes:
        metrics: Final numbers by name; NaN where there is none.
        curve: Columns of one length, at most some fifty entries: what a figure needs.
    """

    metrics: Mapping[str, float]
    curve: Mapping[str, Sequence[float]] = {}


Verdict = Mapping[str, str | Sequence[str]]
"""What was asked → what the rows say; several answers are a list."""


class Report(NamedTuple):
    """What is shown of an experiment, computed from its rows.

    Attributes:
        parts: Verdicts, and texts and tables in Markdown, in the order of the page.
        figures: Figure and caption, by what is added to the name of the file ("" for the first).
    """

    parts: Sequence[str | Verdict]
    figures: Mapping[str, tuple[Figure, str]] = {}


class Experiment(NamedTuple):
    """One experiment.

    Attributes:
        name: That of its file.
        title: Heading.
        claim: What it is to show, in one sentence; the report says whether it does.
        cases: ``cases(size)`` → what is run. A case holds everything that `run` has to know, so
            that its results can be kept under it.
        run: ``run(case, seeds)`` → an outcome a seed.
        report: ``report(store)`` → what is shown of all rows.
        interleaved: Whether all cases run for a seed before the next seed, as times want it.
    """

    name: str
    title: str
    claim: str
    cases: Callable[[Size], list[Case]]
    run: Callable[[Case, Sequence[int]], list[Outcome]]
    report: Callable[[Store], Report]
    interleaved: bool = False


def main(experiment: Experiment, argv: list[str] | None = None) -> None:
    """The command line of an experiment's file."""
    parser = argparse.ArgumentParser(
        description=f"{experiment.title}. {experiment.claim}",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add_options(parser)
    options = parser.parse_args(argv)
    if options.seeds < 2:
        parser.error("--seeds must be at least 2: one run has no standard error")
    if options.fresh:
        clear(options.out, experiment.name)
    store = Store(options.out, experiment.name)
    run_missing(experiment, store, options.size, options.seeds)
    print(write_report(experiment, store, options.out))


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that one experiment and all of them share."""
    add = parser.add_argument
    add("--out", type=pathlib.Path, default=pathlib.Path("runs/experiments"),
        help="folder of tables, figures, and of the runs that are kept")  # fmt: skip
    add("--seeds", type=int, default=5, help="runs of every case")
    add("--size", choices=("tiny", "default", "full"), default="default",
        help="tiny tries the code, full wants an accelerator")  # fmt: skip
    add("--full", dest="size", action="store_const", const="full", default=argparse.SUPPRESS,
        help="the same as --size full")  # fmt: skip
    add("--fresh", action="store_true", help="run again what is kept")


def run_missing(experiment: Experiment, store: Store, size: Size, seeds: int) -> None:
    """Runs what the store does not have; every case is saved when it is done."""
    cases = experiment.cases(size)
    missing = [(case, store.missing(case, range(seeds))) for case in cases]
    total = sum(len(x) for _, x in missing)
    if experiment.interleaved:
        missing = [(c, [seed]) for seed in range(seeds) for c, x in missing if seed in x]
    with tqdm(total=total, unit=" runs", desc=experiment.name, file=sys.stderr) as bar:
        for case, of_case in missing:
            if not of_case:
                continue
            bar.set_postfix_str(" ".join(str(x) for x in case.values())[:60])
            started, cpu = time.perf_counter(), time.process_time()
            outcomes = experiment.run(case, of_case)
            each = len(outcomes)
            cost = {
                "seconds": (time.perf_counter() - started) / each,
                "cpu_seconds": (time.process_time() - cpu) / each,
            }
            for seed, outcome in zip(of_case, outcomes, strict=True):
                row = {**outcome.metrics, **cost, "machine": machine()}
                store.add(case, seed, row, outcome.curve)
            store.save()
            bar.update(each)
    store.keep_only(cases)


def write_report(experiment: Experiment, store: Store, out: pathlib.Path) -> str:
    """Writes the page and the figures of an experiment; returns the page."""
    report = experiment.report(store)
    rows = store.rows
    minutes = sum(float(row["cpu_seconds"]) for row in rows) / 60
    machines = "; ".join(sorted({str(row["machine"]) for row in rows}))
    seeds = len({row["seed"] for row in rows})
    parts = [f"## {experiment.title}", f"**Claim.** {experiment.claim}"]
    for suffix, (figure, caption) in report.figures.items():
        name = f"{experiment.name}{suffix}.png"
        figure.savefig(out / name, dpi=110, facecolor="white")
        parts.append(f"![{caption}]({name})\n\n*{caption}*")
    command = f"python -m benchmarks.experiments {experiment.name}"
    parts += [part if isinstance(part, str) else show_verdict(part) for part in report.parts]
    parts.append(
        f"`{command}` makes this section ({len(rows)} runs, {seeds} seeds, {minutes:.1f} minutes of"
        f" CPU time on {machines}); every run is a row of `{experiment.name}.csv`."
    )
    page = "\n\n".join(parts) + "\n"
    (out / f"{experiment.name}.md").write_text(page)
    return page


def show_verdict(verdict: Verdict) -> str:
    """A list with a line for each question."""
    lines = []
    for asked, found in verdict.items():
        answer = found if isinstance(found, str) else "; ".join(found) or "none"
        lines.append(f"- **{asked}**: {answer}.")
    return "\n".join(lines)
