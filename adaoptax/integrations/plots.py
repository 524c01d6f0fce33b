"""Pictures of runs, by matplotlib: what the batch size did, and why.

From the command line: ``python -m adaoptax.integrations.plots records.jsonl --out run.png``.
"""

import argparse
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter

from adaoptax import _validate
from adaoptax.integrations.plot_panels import GREY, PANELS, Run, column, fixed_batch_updates, say
from adaoptax.loop.json_lines import read_json_lines

__all__ = ["plot_run"]

COLORS = ("#2166ac", "#b2182b", "#1b7837", "#e08214", "#762a83", "#555555")

X_LABELS = {"examples": "examples seen", "steps": "updates", "seconds": "seconds of training"}

Records = Sequence[Mapping[str, Any]]


def plot_run(
    records: Records | Mapping[str, Records],
    path: str | os.PathLike[str] | None = None,
    x: str = "examples",
    *,
    panels: Sequence[str] | None = None,
    title: str | None = None,
    dpi: int = 120,
) -> Figure:
    """Draws what a run did, or several runs over each other.

    ============  ====================================================================
    panel         shows
    ============  ====================================================================
    ``"size"``    the batch size, and as dots what every step required; at the upper
                  edge where that is infinite (all noise) or above the axis
    ``"noise"``   the noise scale with its 95 % interval, see `noise_windows`; grey
                  where it is not known yet; the batch size beside it
    ``"gain"``    AdaScale's gain
    ``"cost"``    updates made; updates that the first batch size would have needed for
                  the same examples; and what the updates were worth, the scale-invariant
                  steps τ (the sum of the gains)
    ``"loss"``    the loss of every batch, and its mean over a sixtieth of the run
    ``"speed"``   examples per second, in the same way
    ============  ====================================================================

    Args:
        records: Records of a run as the loop sends them or `read_json_lines` reads them, or a
            dict of several: name to records.
        path: Where to save the picture (the ending tells the kind: png, pdf, svg); None to not.
        x: The horizontal axis: ``"examples"``, ``"steps"`` (updates) or ``"seconds"`` (from
            "examples_per_s"; steps that did not measure it take no time).
        panels: Names of panels in order. None draws all of which the records hold something and
            names the others below the picture; a panel asked for by name says it in its place.
        title: Heading; None for a summary of the run.
        dpi: Pixels per inch of the file.

    Returns:
        The matplotlib figure, on white whatever the style of the session is.

    Raises:
        ValueError: If there are no records, they lack "step", "examples" or "batch_size", or an
            argument is none of those above.

    Examples:
        >>> from adaoptax.integrations.plots import plot_run
        >>> sizes = [32] * 8 + [64] * 4
        >>> records = [
        ...     {"step": i, "examples": sum(sizes[:i]), "batch_size": sizes[i - 1], "loss": 1 / i}
        ...     for i in range(1, 13)
        ... ]
        >>> figure = plot_run(records)
        >>> [axis.get_title(loc="left") for axis in figure.axes]
        ['Batch size', 'Updates to date', 'Loss']
    """
    _validate.one_of("x", x, tuple(X_LABELS))
    for name in panels or ():
        _validate.one_of("panels", name, tuple(PANELS))
    named = records if isinstance(records, Mapping) else {"": records}
    runs = [_run(name, r, x, COLORS[i % len(COLORS)]) for i, (name, r) in enumerate(named.items())]
    if not runs:
        raise ValueError("Expected at least one run, got records={}: pass name to records.")
    recorded = [name for name, panel in PANELS.items() if any(map(panel.recorded, runs))]
    # Its own style: a session in dark mode would give light text on white.
    with matplotlib.style.context("default"):
        figure = _figure(runs, panels or recorded, X_LABELS[x])
        if heading := title or _summary(runs):
            figure.suptitle(heading, fontsize=11)
        left_out = [] if panels else [PANELS[name].title for name in PANELS if name not in recorded]
        if left_out:
            text = f"Not recorded: {', '.join(left_out)}"
            figure.supxlabel(text, fontsize=8, color=GREY, x=0.01, ha="left")
        if path is not None:
            pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, dpi=dpi)
    return figure


def _run(name: str, records: Records, x: str, color: str) -> Run:
    called = f"records[{name!r}]" if name else "records"
    if not records:
        raise ValueError(f"Expected records of at least one update, got {called} without any.")
    for needed in ("step", "examples", "batch_size"):
        if np.isnan(column(records, needed)).any():
            raise ValueError(
                f"Expected {needed!r} in all of {called}, got a record without it: pass what "
                "AdaptiveLoop sends to its callbacks, or lines that JsonLines wrote."
            )
    if x == "seconds":
        if np.isnan(column(records, "examples_per_s")).all():
            raise ValueError(
                f"Expected 'examples_per_s' in {called} for x='seconds', got none: draw over "
                "x='examples' or x='steps'."
            )
        return Run(name, records, _seconds_passed(records), color)
    at = column(records, "step" if x == "steps" else "examples")
    return Run(name, records, at, color)


def _seconds_passed(records: Records) -> np.ndarray:
    """Seconds of training after every update, from its speed; unmeasured updates take none."""
    speed, sizes = column(records, "examples_per_s"), column(records, "batch_size")
    with np.errstate(divide="ignore", invalid="ignore"):
        seconds = np.where(speed > 0, sizes / speed, 0.0)
    return np.cumsum(seconds)


def _summary(runs: list[Run]) -> str | None:
    """What one run did; the legend says it of several."""
    if len(runs) > 1:
        return None
    records = runs[0].records
    made, sizes = records[-1]["step"], column(records, "batch_size")
    text = f"{made:,} updates on {records[-1]['examples']:,} examples"
    if sizes.min() == sizes.max():
        return f"{text}, batch size {sizes[0]:.0f}"
    times = fixed_batch_updates(records)[-1] / made
    comparison = f"{times:.1f} times fewer" if times >= 1 else f"{1 / times:.1f} times more"
    return f"{text}: {comparison} than at batch size {sizes[0]:.0f}"


def _figure(runs: list[Run], panels: Sequence[str], x_label: str) -> Figure:
    columns = 1 if len(panels) == 1 else 2
    rows = math.ceil(len(panels) / columns)
    layout = ConstrainedLayoutEngine(h_pad=0.08, w_pad=0.08)
    figure = Figure(figsize=(5.2 * columns, 0.6 + 2.7 * rows), layout=layout)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axis in grid.flat[len(panels) :]:
        axis.remove()
    for axis, name in zip(grid.flat, panels, strict=False):
        panel = PANELS[name]
        axis.set_title(panel.title, loc="left", fontsize=11, pad=9)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=9)
        axis.grid(alpha=0.25)
        drawn = [run for run in runs if panel.recorded(run)]
        if not drawn:
            say(axis, "not recorded")
            continue
        panel.draw(axis, drawn)
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        last = max(run.x[-1] for run in runs) or 1.0
        axis.set_xlim(-0.02 * last, 1.02 * last)
    for axis in figure.axes[-columns:]:
        axis.set_xlabel(x_label, fontsize=9)
    if len(runs) > 1:
        ends = [f"{run.name}: {run.column('step')[-1]:,.0f} updates" for run in runs]
        handles = [Line2D([], [], color=run.color) for run in runs]
        figure.legend(handles, ends, loc="outside upper center", ncols=4, frameon=False, fontsize=9)
    return figure


def main(argv: list[str] | None = None) -> None:
    """Draws record files from the command line; see ``--help``.

    Args:
        argv: Arguments, by default those of the process.
    """
    options = _parser().parse_args(argv)
    try:
        paths = options.records
        runs = dict(zip(_names(paths), map(read_json_lines, paths), strict=True))
        records = runs if len(runs) > 1 else next(iter(runs.values()))
        chosen = options.panels.split(",") if options.panels else None
        plot_run(
            records, options.out, options.x, panels=chosen, title=options.title, dpi=options.dpi
        )
    except (OSError, ValueError) as error:
        raise SystemExit(f"{_parser().prog}: {error}") from error
    print(f"Wrote {options.out}")


def _names(paths: list[pathlib.Path]) -> list[str]:
    """What tells the files apart: their folders where these differ, else all of the path."""
    folders = [path.resolve().parent.name for path in paths]
    return folders if len(set(folders)) == len(paths) else [str(path) for path in paths]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m adaoptax.integrations.plots",
        description="Draws what runs did from the records that adaoptax.loop.JsonLines wrote: "
        "batch size and requirement, noise scale with its interval, gain, updates to date, loss "
        "and speed. Works while a run is still being trained.",
    )
    add = parser.add_argument
    add("records", nargs="+", type=pathlib.Path, help="files of records, one a run; several are"
        " drawn over each other")  # fmt: skip
    add("--out", type=pathlib.Path, default=pathlib.Path("run.png"), help="where to save the"
        " picture; the ending chooses png, pdf or svg (default: %(default)s)")  # fmt: skip
    add("--x", choices=tuple(X_LABELS), default="examples", help="the horizontal axis (default:"
        " %(default)s)")  # fmt: skip
    add("--panels", metavar="A,B", help=f"some of {','.join(PANELS)} (default: all recorded)")
    add("--title", help="heading (default: a summary of the run)")
    add("--dpi", type=int, default=120, help="pixels per inch of the file (default: %(default)s)")
    return parser


if __name__ == "__main__":
    main()
