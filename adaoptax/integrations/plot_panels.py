"""The panels of a picture of runs: what each draws, and what it needs."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter

from adaoptax.loop.noise_windows import noise_windows

GREY, LIGHT = "#999999", "#e4e4e4"


class Run(NamedTuple):
    """One run, ready to be drawn.

    Attributes:
        name: What the legend calls it.
        records: Its records.
        x: Where every record lies on the horizontal axis.
        color: Of its lines.
    """

    name: str
    records: Sequence[Mapping[str, Any]]
    x: np.ndarray
    color: str

    def column(self, name: str) -> np.ndarray:
        """Numbers of one name, NaN where a record has none."""
        return column(self.records, name)

    def has(self, *names: str) -> bool:
        """Whether at least one record has a number for each of the names."""
        return all(not np.isnan(self.column(name)).all() for name in names)


def column(records: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
    """Numbers of one name, NaN where a record has none."""
    known = (record.get(name) for record in records)
    return np.array([math.nan if x is None or isinstance(x, str) else x for x in known], float)


def fixed_batch_updates(records: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Updates in which the first batch size would have seen the same examples."""
    examples, sizes = column(records, "examples"), column(records, "batch_size")
    return column(records, "step")[0] + (examples - examples[0]) / sizes[0]


def _scale_invariant_steps(run: Run) -> np.ndarray:
    """τ after every update: as recorded, otherwise the gains added up."""
    if run.has("scale_invariant_steps"):
        return run.column("scale_invariant_steps")
    return np.nancumsum(run.column("gain"))


def _binned_means(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means of x and y over sixty bins of equally many records, without what is not finite."""
    known = np.isfinite(x) & np.isfinite(y)
    parts = np.array_split(np.stack([x[known], y[known]]), min(60, max(known.sum(), 1)), 1)
    means = np.array([part.mean(axis=1) for part in parts if part.size]).reshape(-1, 2)
    return means[:, 0], means[:, 1]


def say(axis: Axes, text: str) -> None:
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
    ends = np.array([[starts[window.first], run.x[window.last]] for window in windows])
    low, high = ([getattr(window, end) for window in windows] for end in ("low", "high"))
    # As steps as wide as the windows: one between two that are not known is seen, too.
    axis.fill_between(
        ends.ravel(), np.repeat(low, 2), np.repeat(high, 2), color=run.color, alpha=0.2, lw=0,
        label="95 %",
    )  # fmt: skip
    estimates = [window.noise_scale for window in windows]
    middles = ends.mean(axis=1)
    axis.plot(middles, estimates, color=run.color, marker="o", markersize=3, label="estimate")
    for (start, stop), estimate in zip(ends, estimates, strict=True):
        if math.isnan(estimate):
            axis.axvspan(start, stop, color=LIGHT, alpha=0.6, lw=0, label="not known yet")


def _draw_gain(axis: Axes, runs: list[Run]) -> None:
    for run in runs:
        axis.plot(run.x, run.column("gain"), color=run.color)
    axis.set_ylim(bottom=min(0.8, axis.get_ylim()[0]))


def _draw_cost(axis: Axes, runs: list[Run]) -> None:
    alone = len(runs) == 1
    for run in runs:
        sizes = run.column("batch_size")
        lines = [("made", run.column("step"), "-", run.color)]
        if run.has("gain") or run.has("scale_invariant_steps"):
            lines.append(("worth (τ)", _scale_invariant_steps(run), "--", run.color))
        if sizes.min() < sizes.max():
            name = f"fixed batch of {sizes[0]:.0f}" if alone else "fixed batch"
            lines.append(
                (name, fixed_batch_updates(run.records), ":", GREY if alone else run.color)
            )
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
            axis.plot(*_binned_means(run.x, y), color=run.color, label="mean")
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
