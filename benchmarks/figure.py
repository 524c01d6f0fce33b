"""The picture of `benchmarks.measure`: ratios of time and memory, a panel for each model."""

import math
import pathlib

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullLocator

from benchmarks.methods import PLAIN
from benchmarks.results import Row, models_of, show

SHOWN = (
    "exact: norm",
    "exact: norm + inner",
    "exact: norm + inner + coordinate",
    "every(16), exact: norm",
    "one jvp: inner",
    "groups(8): norm",
    "vmap(grad): norm",
    "vmap(grad), 16 at once: norm",
    "torch.func vmap(grad): norm",
    "BackPACK BatchL2Grad: norm",
    "BackPACK SumGradSquared: coordinate",
    "Opacus hooks: norm",
    "Opacus ghost: norm",
)
EXACT, OTHER, PEERS = "adaoptax, exact", "JAX, other ways", "PyTorch"
COLOURS = {EXACT: "#0b66c3", OTHER: "#4b5563", PEERS: "#c2410c"}


def draw(rows: list[Row], path: pathlib.Path) -> None:
    """Saves the picture of the first six models, on white to be legible on dark pages too."""
    models = models_of(rows)[:6]
    columns = min(3, len(models))
    lines = math.ceil(len(models) / columns)
    methods = [name for name in SHOWN if any(row.method == name for row in rows)]
    size = (2.2 + 2.9 * columns, 0.9 + lines * (0.5 + 0.21 * len(methods)))
    figure = Figure(figsize=size, facecolor="white", layout="constrained")
    axes = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flat
    for axis, model in zip(axes, models, strict=False):
        panel({row.method: row for row in rows if row.model == model}, methods, axis)
        axis.set_title(model, fontsize=10)
    for axis in list(axes)[len(models) :]:
        axis.set_visible(False)
    for axis in figure.axes[(lines - 1) * columns :]:
        axis.set_xlabel("ratio to the plain step", fontsize=9)
    figure.legend(handles=legend(), loc="outside upper center", ncols=5, fontsize=8, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def legend() -> list[Line2D]:
    """What dots, rings and colours mean."""
    dot = lambda label, colour, fill: Line2D(
        [], [], marker="o", linestyle="", mec=colour, mfc=fill, label=label
    )
    shapes = [dot("time, in figures on the right", "#4b5563", "#4b5563")]
    shapes += [dot("temporary memory", "#4b5563", "none")]
    return shapes + [dot(kind, colour, colour) for kind, colour in COLOURS.items()]


def panel(rows: dict[str, Row], methods: list[str], axis: Axes) -> None:
    """Time as dots, memory as rings, one line for each method."""
    axis.axvline(1, color="#9ca3af", linewidth=0.8, zorder=0)
    for y, name in enumerate(methods):
        row = rows.get(name)
        if row is None or math.isnan(row.time):
            axis.annotate("–", (1, y), (3, 0), xycoords=("axes fraction", "data"),
                          textcoords="offset points", fontsize=7, va="center")  # fmt: skip
            continue
        kind = EXACT if "exact" in name else OTHER if row.base == PLAIN else PEERS
        axis.plot(row.memory, y, "o", mec=COLOURS[kind], mfc="none", ms=6, zorder=2)
        axis.plot(row.time, y, "o", color=COLOURS[kind], ms=4.5, zorder=3)
        axis.annotate(show(row.time), (1, y), (3, 0), xycoords=("axes fraction", "data"),
                      textcoords="offset points", fontsize=7, va="center")  # fmt: skip
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_yticks(range(len(methods)), methods, fontsize=8)
    axis.set_ylim(len(methods) - 0.5, -0.5)
    axis.grid(axis="x", color="#e5e7eb", linewidth=0.6)
    axis.tick_params(labelsize=8)
