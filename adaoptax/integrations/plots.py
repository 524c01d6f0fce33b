"""Pictures of runs, by matplotlib: what the batch size did, and why.

From the command line: ``python -m adaoptax.integrations.plots records.jsonl --out run.png``.
"""

import argparse
import math
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter

from adaoptax import _validate
from adaoptax.integrations.run_columns import (
    Run,
    binned_means,
    column,
    examples_seen,
    fixed_batch_updates,
    scale_invariant_steps,
    seconds_passed,
)
from adaoptax.loop.json_lines import read_json_lines
from adaoptax.loop.noise_windows import noise_windows

BLUE, GREY, LIGHT = "#2166ac", "#999999", "#e4e4e4"
COLORS = (BLUE, "#b2182b", "#1b7837", "#e08214", "#762a83", "#555555")

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
        return Run(name, records, seconds_passed(records), color)
    at = column(records, "step") if x == "steps" else examples_seen(records)
    return Run(name, records, at, color)


def _summary(runs: list[Run]) -> str | None:
    """What one run did; the legend says it of several."""
    if len(runs) > 1:
        return None
    (run,) = runs
    sizes, (made, fixed) = run.column("batch_size"), _updates(run)
    text = f"{made[-1]:,.0f} updates on {run.column('examples')[-1]:,.0f} examples"
    if sizes.min() == sizes.max():
        return f"{text}, batch size {sizes[0]:.0f}"
    few = f"{fixed[-1] / made[-1]:.1f} times fewer updates than at batch size {sizes[0]:.0f}"
    return f"{text}: {few}"


def _figure(runs: list[Run], panels: Sequence[str], x_label: str) -> Figure:
    columns = 1 if len(panels) == 1 else 2
    rows = math.ceil(len(panels) / columns)
    size, layout = (
        (5.2 * columns, 0.6 + 2.7 * rows),
        ConstrainedLayoutEngine(h_pad=0.08, w_pad=0.08),
    )
    figure = Figure(figsize=size, layout=layout)
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
            _say(axis, f"no {panel.title.lower()} recorded")
            continue
        panel.draw(axis, drawn)
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        last = max(run.x[-1] for run in runs)
        axis.set_xlim(-0.02 * last, 1.02 * last)
    for axis in figure.axes[-columns:]:
        axis.set_xlabel(x_label, fontsize=9)
    if len(runs) > 1:
        ends = [f"{run.name}: {run.column('step')[-1]:,.0f} updates" for run in runs]
        handles = [Line2D([], [], color=run.color) for run in runs]
        figure.legend(handles, ends, loc="outside upper center", ncols=4, frameon=False, fontsize=9)
    return figure


def _say(axis: Axes, text: str) -> None:
    """A sentence in place of a drawing."""
    axis.text(0.5, 0.5, text, transform=axis.transAxes, ha="center", va="center", color=GREY)
    axis.set(xticks=[], yticks=[])


def _legend(axis: Axes, runs: list[Run]) -> None:
    """One entry for every kind of line, beside the title, where no data are."""
    handles, labels = axis.get_legend_handles_labels()
    first = {label: handles[labels.index(label)] for label in dict.fromkeys(labels)}
    if len(first) < 2:
        return
    legend = axis.legend(
        list(first.values()), list(first), loc="lower right", bbox_to_anchor=(1.0, 1.02), ncols=4,
        frameon=False, fontsize=8, handlelength=1.2, columnspacing=1.0, handletextpad=0.5,
        borderaxespad=0.1,
    )  # fmt: skip
    for handle in legend.legend_handles:
        if isinstance(handle, (Line2D, Patch)):
            if len(runs) > 1:  # of all runs, so of no run's color
                handle.set_color(GREY)
            if (alpha := handle.get_alpha()) is not None:  # dots are faint where they are many
                handle.set_alpha(max(alpha, 0.3 if isinstance(handle, Patch) else 0.6))


def _finite(y: np.ndarray) -> np.ndarray:
    """A gap where there is nothing to draw."""
    return np.where(np.isfinite(y), y, np.nan)


def _count_examples(axis: Axes) -> None:
    """Powers of two upwards."""
    axis.set_yscale("log", base=2)
    axis.yaxis.set_major_formatter("{x:,.7g}")
    axis.set_ylabel("examples", fontsize=9)


def _draw_size(axis: Axes, runs: list[Run]) -> None:
    for run in runs:
        if run.has("required"):
            faint = float(np.clip(300 / len(run.x), 0.08, 0.35))  # many dots lie over each other
            axis.plot(
                run.x, _finite(run.column("required")), color=run.color, alpha=faint,
                linestyle="", marker="o", markersize=3, markeredgewidth=0, label="required",
            )  # fmt: skip
        # A batch is the size from the update before it to its own.
        sizes = run.column("batch_size")
        axis.plot(run.x, sizes, color=run.color, drawstyle="steps-pre", label="in use")
    _count_examples(axis)
    low, high = _size_range(runs)
    axis.set_ylim(low, high)
    for run in runs:
        above = run.column("required") > high
        if above.any():
            axis.plot(
                run.x[above], np.ones(above.sum()), color=run.color, alpha=0.35, linestyle="",
                marker="^", markersize=4, markeredgewidth=0, clip_on=False,
                transform=axis.get_xaxis_transform(), label="infinite or above",
            )  # fmt: skip
    _legend(axis, runs)


def _size_range(runs: list[Run]) -> tuple[float, float]:
    """Holds every batch size and nearly all finite requirements."""
    sizes = np.concatenate([run.column("batch_size") for run in runs])
    required = np.concatenate([run.column("required") for run in runs])
    known = required[np.isfinite(required) & (required > 0)]
    low, high = np.quantile(known, [0.02, 0.95]) if len(known) else (np.inf, 0)
    return min(sizes.min(), low) / 1.5, max(sizes.max(), high) * 1.5


def _draw_noise(axis: Axes, runs: list[Run]) -> None:
    for run in runs:
        sizes = run.column("batch_size")
        axis.plot(run.x, sizes, color=GREY, drawstyle="steps-pre", lw=1, label="batch size")
        if run.has("variance", "signal"):
            _draw_band(axis, run)
        else:
            noise = _finite(run.column("noise_scale"))
            axis.plot(run.x, noise, color=run.color, lw=1, label="single steps, no interval")
    _count_examples(axis)
    _legend(axis, runs)


def _draw_band(axis: Axes, run: Run) -> None:
    windows = noise_windows(run.records)
    if not windows:
        axis.text(0.5, 0.5, "too few steps to know it", transform=axis.transAxes, ha="center")
        return
    starts = np.concatenate([[0.0], run.x])
    first, last = (np.array([getattr(w, end) for w in windows], int) for end in ("first", "last"))
    middle = (starts[first] + run.x[last]) / 2
    low, high, value = np.array([[w.low, w.high, w.noise_scale] for w in windows]).reshape(-1, 3).T
    axis.fill_between(middle, low, high, color=run.color, alpha=0.2, lw=0, label="95 %")
    # The points show windows that stand alone, between two that are not known.
    axis.plot(middle, value, color=run.color, marker="o", markersize=3, label="estimate")
    for window in windows:
        if math.isnan(window.noise_scale):
            ends = starts[window.first], run.x[window.last]
            axis.axvspan(*ends, color=LIGHT, alpha=0.6, lw=0, label="not known yet")


def _draw_gain(axis: Axes, runs: list[Run]) -> None:
    for run in runs:
        axis.plot(run.x, run.column("gain"), color=run.color)
    axis.set_ylim(bottom=min(0.8, axis.get_ylim()[0]))


def _updates(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Updates made, and those of a fixed batch, both from the first record on."""
    steps = run.column("step")
    return steps, fixed_batch_updates(run.records) + steps[0] - 1


def _draw_cost(axis: Axes, runs: list[Run]) -> None:
    alone = len(runs) == 1
    for run in runs:
        sizes, (made, fixed) = run.column("batch_size"), _updates(run)
        lines = [("made", made, "-", run.color)]
        if run.has("gain") or run.has("scale_invariant_steps"):
            lines.append(("worth (τ)", scale_invariant_steps(run.records), "--", run.color))
        if sizes.min() < sizes.max():
            name = f"fixed batch of {sizes[0]:.0f}" if alone else "fixed batch"
            lines.append((name, fixed, ":", GREY if alone else run.color))
        for name, y, style, color in reversed(lines):
            label = f"{name}: {y[-1]:,.0f}" if alone else name
            axis.plot(run.x, y, color=color, linestyle=style, label=label)
    axis.yaxis.set_major_formatter(EngFormatter(sep=""))
    axis.set_ylim(bottom=0)
    if alone:
        axis.legend(loc="upper left", frameon=False, fontsize=8)
    else:
        _legend(axis, runs)


def _draw_means(name: str) -> Callable[[Axes, list[Run]], None]:
    def draw(axis: Axes, runs: list[Run]) -> None:
        for run in runs:
            y = run.column(name)
            axis.plot(run.x, y, color=run.color, alpha=0.3, lw=0.8, label="every batch")
            axis.plot(*binned_means(run.x, y), color=run.color, label="mean")
        axis.set_ylim(bottom=0 if axis.get_ylim()[0] >= 0 else None)
        if axis.get_ylim()[1] >= 1000:
            axis.yaxis.set_major_formatter(EngFormatter(sep=""))

    return draw


class Panel(NamedTuple):
    """A part of the picture.

    Attributes:
        title: Its heading.
        recorded: Whether a run holds what it draws.
        draw: Draws the runs that do.
    """

    title: str
    recorded: Callable[[Run], bool]
    draw: Callable[[Axes, list[Run]], None]


PANELS = {
    "size": Panel("Batch size", lambda run: True, _draw_size),
    "noise": Panel(
        "Noise scale",
        lambda run: run.has("noise_scale") or run.has("variance", "signal"),
        _draw_noise,
    ),
    "gain": Panel("AdaScale gain", lambda run: run.has("gain"), _draw_gain),
    "cost": Panel("Updates to date", lambda run: True, _draw_cost),
    "loss": Panel("Loss", lambda run: run.has("loss"), _draw_means("loss")),
    "speed": Panel(
        "Examples per second", lambda run: run.has("examples_per_s"), _draw_means("examples_per_s")
    ),
}


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
    parser.add_argument(
        "records", nargs="+", type=pathlib.Path,
        help="files of records, one a run; several are drawn over each other",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("run.png"),
        help="where to save the picture; the ending chooses png, pdf or svg (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--x", choices=tuple(X_LABELS), default="examples",
        help="the horizontal axis (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--panels", metavar="A,B", help=f"some of {','.join(PANELS)} (default: all recorded)"
    )
    parser.add_argument("--title", help="heading (default: a summary of the run)")
    parser.add_argument(
        "--dpi", type=int, default=120, help="pixels per inch of the file (default: %(default)s)"
    )
    return parser


if __name__ == "__main__":
    main()
