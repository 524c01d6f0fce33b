"""What the examples report: records of every update, a summary, and a picture of the run."""

import argparse
import json
import math
import pathlib
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

import adaoptax

BLUE, GREY = "#2166ac", "#999999"


def write_run(out: pathlib.Path, records: list[dict[str, Any]], summary: dict[str, Any]) -> None:
    """Writes records.jsonl (one line an update) and summary.json."""
    out.mkdir(parents=True, exist_ok=True)
    write = adaoptax.JsonLines(out / "records.jsonl")
    for record in records:
        write(record)
    write.close()
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")


def column(records: list[dict[str, Any]], name: str) -> tuple[list[float], list[float]]:
    """Examples seen (thousands) and the values of one number, where it is known."""
    kept = [record for record in records if record.get(name) is not None]
    return [record["examples"] / 1000 for record in kept], [record[name] for record in kept]


def panels() -> tuple[Figure, list[Axes]]:
    """A figure of two by two panels over the examples seen."""
    figure = Figure(figsize=(10, 6.2), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    return figure, list(axes.flat)


def draw_size(axis: Axes, records: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """The batch size, in powers of two."""
    axis.plot(*column(records, "batch_size"), color=BLUE, drawstyle="steps-post")
    axis.set_yscale("log", base=2)
    axis.set(title="Batch size", ylim=(options.batch_size / 1.5, options.max_batch_size * 1.5))
    axis.yaxis.set_major_formatter("{x:.0f}")


def draw_noise(
    axis: Axes, records: list[dict[str, Any]], options: argparse.Namespace, color: str
) -> None:
    """The noise scale as the norm test averages it: it requires (noise scale)/η²."""
    finite = [r for r in records if r["required"] is not None and math.isfinite(r["required"])]
    examples, required = column(finite, "required")
    axis.plot(examples, [options.eta**2 * number for number in required], color=color)
    axis.set(title="Gradient noise scale (examples)", yscale="log")
