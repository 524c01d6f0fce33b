"""What the examples report: records of every update, a summary, and a picture of the run."""

import argparse
import json
import math
import pathlib
from typing import Any, NamedTuple

import jax
from matplotlib.axes import Axes
from matplotlib.figure import Figure

BLUE, GREY = "#2166ac", "#999999"


class StepOutput(NamedTuple):
    """Device scalars that one train step returns.

    Attributes:
        loss: Mean loss of the batch.
        required: Batch size that the norm test requires.
        gain: AdaScale's gain.
    """

    loss: jax.Array
    required: jax.Array
    gain: jax.Array


def finish_record(record: dict[str, Any], output: StepOutput, eta: float) -> float:
    """Adds the numbers of the device to a record; returns the required batch size."""
    loss, required, gain = (float(x) for x in jax.device_get(output))
    # The norm test asks for (noise scale)/η²; null where the gradient was all noise.
    noise_scale = required * eta**2
    record.update(
        loss=loss,
        required=required if math.isfinite(required) else None,
        noise_scale=noise_scale if math.isfinite(noise_scale) else None,
        gain=gain,
    )
    return required


def write_run(out: pathlib.Path, records: list[dict[str, Any]], summary: dict[str, Any]) -> None:
    """Writes records.jsonl (one line an update) and summary.json."""
    out.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (out / "records.jsonl").write_text(lines)
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
