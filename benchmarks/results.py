"""Rows of ratios: as CSV, and as tables in Markdown."""

import csv
import math
import pathlib
from collections.abc import Iterable
from typing import Any, NamedTuple

from benchmarks.tables import markdown


class Row(NamedTuple):
    """One method on one model.

    Attributes:
        model: Title of the model.
        method: Name of the method.
        base: Name of the method that the ratios compare with.
        time: Ratio of times; NaN here and below where it was not measured.
        memory: Ratio of temporary memory.
        flops: Ratio of floating-point operations.
        compile: Ratio of times to compile.
        milliseconds: Median time of one step.
        temp_mb: Temporary memory in MB.
        rounds: Rounds of the median.
        load: Processes that wanted a core, by the system's count over the last minute.
        machine: What it ran on.
        note: Why a number is missing, in a few words.
    """

    model: str
    method: str
    base: str
    time: float = math.nan
    memory: float = math.nan
    flops: float = math.nan
    compile: float = math.nan
    milliseconds: float = math.nan
    temp_mb: float = math.nan
    rounds: int = 0
    load: float = math.nan
    machine: str = ""
    note: str = ""


def write_csv(rows: Iterable[Row], path: pathlib.Path) -> None:
    """Writes all rows under a header; an unknown number is an empty cell."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(Row._fields)
        for row in rows:
            cell = lambda x: "" if x != x else f"{x:.5g}" if isinstance(x, float) else x
            writer.writerow([cell(value) for value in row])


def read_csv(path: pathlib.Path) -> list[Row]:
    """Reads what `write_csv` wrote."""
    parse: dict[Any, Any] = {float: lambda text: float(text or "nan"), int: int, str: str}
    kinds: dict[str, Any] = Row.__annotations__
    with path.open(newline="") as file:
        return [
            Row(**{name: parse[kinds[name]](text) for name, text in record.items()})
            for record in csv.DictReader(file)
        ]


def model_table(rows: list[Row]) -> str:
    """All numbers of one model."""
    header = ["method", "time", "memory", "FLOPs", "compile", "ms", "MB", "rounds"]
    lines = [
        [
            row.method,
            *(show(x) for x in (row.time, row.memory, row.flops, row.compile)),
            show(row.milliseconds),
            show(row.temp_mb),
            row.note or str(row.rounds),
        ]
        for row in rows
    ]
    return markdown(header, lines)


def models_of(rows: list[Row]) -> list[str]:
    """Titles of the models, in the order in which they were measured."""
    return list(dict.fromkeys(row.model for row in rows))


def overview(rows: list[Row], first: str, second: str) -> str:
    """Methods × models; a cell holds two of the ratios, as in "1.02 / 1.00"."""
    models = models_of(rows)
    methods = list(dict.fromkeys(row.method for row in rows))
    cells = {(row.model, row.method): row for row in rows if row.method != row.base}

    def cell(model: str, method: str) -> str:
        row = cells.get((model, method))
        if row is None:
            return ""
        ratios = [show(getattr(row, name)) for name in (first, second)]
        return " / ".join(ratios) if any(ratio != "–" for ratio in ratios) else "–"

    lines = [[method, *(cell(model, method) for model in models)] for method in methods]
    return markdown(["method", *models], [line for line in lines if any(line[1:])])


def page(rows: list[Row], picture: str | None) -> str:
    """What the documentation shows of a run: machine, picture, tables, and what is missing."""
    machines = "; ".join(dict.fromkeys(row.machine for row in rows if row.machine))
    loads = [row.load for row in rows]
    rounds = [row.rounds for row in rows if row.rounds]
    parts = [
        f"Measured on {machines}, at a load of {min(loads):.1f} to {max(loads):.1f}; medians of"
        f" {min(rounds, default=0)} to {max(rounds, default=0)} rounds."
    ]
    if picture:
        parts.append(f"![Time and memory of every method over the plain step]({picture})")
    titles = models_of(rows)
    for six in (titles[i : i + 6] for i in range(0, len(titles), 6)):  # a page is not wider
        some = [row for row in rows if row.model in six]
        parts.append("Time / temporary memory, over those of the plain step:")
        parts.append(overview(some, "time", "memory"))
        parts.append("Floating-point operations / time to compile, over those of the plain step:")
        parts.append(overview([row for row in some if row.flops == row.flops], "flops", "compile"))
    parts += missing(rows)
    return "\n\n".join(parts) + "\n"


def missing(rows: list[Row]) -> list[str]:
    """One paragraph for each reason why numbers are missing."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.note:
            reasons.setdefault((row.method, row.note), []).append(row.model)
    return [
        f"*{method}* did not run on {'; '.join(models)}: {note}."
        for (method, note), models in reasons.items()
    ]


def show(x: float) -> str:
    """Two decimals below ten, fewer above."""
    if math.isnan(x):
        return "–"
    return f"{x:.2f}" if x < 9.995 else f"{x:.1f}" if x < 99.95 else f"{x:.0f}"
