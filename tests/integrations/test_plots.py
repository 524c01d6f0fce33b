"""Pictures of runs: what is drawn is what was recorded, whatever is missing."""

import json
import math
import os
import pathlib
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

pytest.importorskip("matplotlib")

import matplotlib
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from adaoptax.integrations.plots import PANELS, main, plot_run
from adaoptax.loop import JsonLines, noise_windows

pytestmark = pytest.mark.sampled

ROOT = pathlib.Path(__file__).parents[2]
TITLES = [panel.title for panel in PANELS.values()]


def make_run(seed: int = 0, updates: int = 120) -> list[dict[str, Any]]:
    """A run whose batch doubles at a third and at two thirds; its signal drowns at the end."""
    rng = np.random.default_rng(seed)
    records: list[dict[str, Any]] = []
    examples, tau = 0, 0.0
    for step in range(1, updates + 1):
        size = 32 * 2 ** (3 * (step - 1) // updates)
        examples, gain = examples + size, 1 + step / updates
        tau += gain
        drowned = step > 0.8 * updates
        signal = rng.normal(0, 5) if drowned else rng.normal(1, 0.2)
        records.append(
            {
                "step": step,
                "examples": examples,
                "batch_size": size,
                "required": math.inf if drowned else float(rng.uniform(50, 90)),
                "noise_scale": 60.0,
                "variance": float(rng.normal(60, 5)),
                "signal": float(signal),
                "gain": gain,
                "scale_invariant_steps": tau,
                "loss": 2 / step,
                "examples_per_s": None if step == 1 else 1000.0 + step,
                "decision": "keep",
            }
        )
    return records


RUN = make_run()
EXAMPLES = [record["examples"] for record in RUN]


def axis(figure: Figure, title: str) -> Axes:
    (found,) = [a for a in figure.axes if a.get_title(loc="left") == title]
    return found


def line(drawn: Axes, label: str) -> Line2D:
    (found,) = [each for each in drawn.lines if str(each.get_label()).startswith(label)]
    return found


def values(drawn: Line2D) -> tuple[list[float], list[float]]:
    return list(np.asarray(drawn.get_xdata())), list(np.asarray(drawn.get_ydata()))


def without(*names: str) -> list[dict[str, Any]]:
    return [{k: v for k, v in record.items() if k not in names} for record in RUN]


def test_all_panels_of_a_complete_run_in_order() -> None:
    figure = plot_run(RUN)
    assert [a.get_title(loc="left") for a in figure.axes] == TITLES
    assert figure.get_suptitle() == (
        f"120 updates on {EXAMPLES[-1]:,} examples: 2.3 times fewer than at batch size 32"
    )
    assert figure.get_supxlabel() == ""


def test_the_size_panel_draws_sizes_requirements_and_infinities() -> None:
    drawn = axis(plot_run(RUN), "Batch size")
    in_use = line(drawn, "in use")
    assert values(in_use) == (EXAMPLES, [record["batch_size"] for record in RUN])
    assert in_use.get_drawstyle() == "steps-pre"  # a size holds up to its own update
    x, required = values(line(drawn, "required"))
    finite = [record["required"] for record in RUN if record["required"] < math.inf]
    assert required[: len(finite)] == finite
    assert x == EXAMPLES
    assert np.isnan(required[len(finite) :]).all()
    edge = line(drawn, "infinite")
    assert values(edge) == (EXAMPLES[len(finite) :], [1.0] * (len(RUN) - len(finite)))
    assert edge.get_transform() == drawn.get_xaxis_transform()


def test_a_finite_requirement_above_the_axis_is_marked_at_the_edge() -> None:
    records = [{**r, "required": 1e9 if r["step"] == 5 else 60.0} for r in RUN]
    drawn = axis(plot_run(records), "Batch size")
    assert drawn.get_ylim()[1] < 1000
    assert values(line(drawn, "infinite")) == ([EXAMPLES[4]], [1.0])


def test_the_noise_panel_draws_windows_and_leaves_gaps() -> None:
    drawn = axis(plot_run(RUN), "Noise scale")
    windows = noise_windows(RUN)
    x, estimate = values(line(drawn, "estimate"))
    np.testing.assert_array_equal(estimate, [window.noise_scale for window in windows])
    starts = [0, *EXAMPLES]
    assert x == [(starts[w.first] + EXAMPLES[w.last]) / 2 for w in windows]
    unknown = [window for window in windows if math.isnan(window.noise_scale)]
    assert unknown
    assert len(unknown) < len(windows)
    spans = [p for p in drawn.patches if p.get_label() == "not known yet"]
    ends = [(p.get_extents().transformed(drawn.transData.inverted()).x0) for p in spans]
    np.testing.assert_allclose(ends, [starts[window.first] for window in unknown])
    (band,) = [c for c in drawn.collections if isinstance(c, PolyCollection)]
    corners = np.concatenate([path.vertices for path in band.get_paths()])
    for window in windows:
        for at in (starts[window.first], EXAMPLES[window.last]):
            for end in (window.low, window.high):
                drawn_there = np.isclose(corners, [at, end], rtol=1e-12).all(axis=1).any()
                assert drawn_there == (window not in unknown)


def test_without_variance_and_signal_the_noise_of_single_steps_is_drawn() -> None:
    drawn = axis(plot_run(without("variance", "signal")), "Noise scale")
    assert values(line(drawn, "single steps")) == (EXAMPLES, [60.0] * len(RUN))


def test_a_run_too_short_for_a_window_says_so() -> None:
    drawn = axis(plot_run(RUN[:5]), "Noise scale")
    assert [text.get_text() for text in drawn.texts] == ["too few steps to know it"]


def test_gain_loss_and_speed_are_the_records() -> None:
    figure = plot_run(RUN)
    assert values(axis(figure, "AdaScale gain").lines[0])[1] == [r["gain"] for r in RUN]
    loss = axis(figure, "Loss")
    assert values(line(loss, "every batch")) == (EXAMPLES, [r["loss"] for r in RUN])
    x, means = values(line(loss, "mean"))
    assert (x[0], means[0]) == (np.mean(EXAMPLES[:2]), 1.5)  # two records in each of 60 bins
    assert len(means) == 60
    speed = values(line(axis(figure, "Examples per second"), "every batch"))[1]
    assert math.isnan(speed[0])
    assert speed[1:] == [r["examples_per_s"] for r in RUN[1:]]


def test_the_cost_panel_counts_updates_made_worth_and_of_a_fixed_batch() -> None:
    drawn = axis(plot_run(RUN), "Updates to date")
    assert values(line(drawn, "made: 120"))[1] == [r["step"] for r in RUN]
    assert values(line(drawn, "worth"))[1] == [r["scale_invariant_steps"] for r in RUN]
    fixed = values(line(drawn, f"fixed batch of 32: {EXAMPLES[-1] / 32:,.0f}"))[1]
    np.testing.assert_allclose(fixed, np.array(EXAMPLES) / 32)


def test_tau_is_the_sum_of_gains_where_it_was_not_recorded() -> None:
    drawn = axis(plot_run(without("scale_invariant_steps")), "Updates to date")
    np.testing.assert_allclose(
        values(line(drawn, "worth"))[1], [r["scale_invariant_steps"] for r in RUN]
    )


def test_a_part_of_a_run_counts_from_where_it_begins() -> None:
    drawn = axis(plot_run(RUN[50:]), "Updates to date")
    fixed = values(line(drawn, "fixed batch of 64"))[1]
    assert fixed[0] == 51
    assert fixed[-1] == 51 + (EXAMPLES[-1] - EXAMPLES[50]) / 64


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        ("steps", [float(record["step"]) for record in RUN]),
        ("examples", EXAMPLES),
        (
            "seconds",
            list(np.cumsum([0, *(r["batch_size"] / r["examples_per_s"] for r in RUN[1:])])),
        ),
    ],
)
def test_the_horizontal_axis_is_the_users_choice(x: str, expected: Any) -> None:
    for drawn in plot_run(RUN, x=x).axes:
        np.testing.assert_allclose(values(drawn.lines[0])[0], expected, rtol=1e-12)


MISSING = [
    (("gain", "scale_invariant_steps"), ["AdaScale gain"]),
    (("required",), []),
    (("noise_scale", "variance", "signal"), ["Noise scale"]),
    (("loss", "examples_per_s"), ["Loss", "Examples per second"]),
]


@pytest.mark.parametrize(("names", "left_out"), MISSING)
def test_a_panel_without_data_is_left_out_with_the_reason(
    names: tuple[str, ...], left_out: list[str]
) -> None:
    for records in (without(*names), [{**r, **dict.fromkeys(names)} for r in RUN]):
        figure = plot_run(records)
        assert [a.get_title(loc="left") for a in figure.axes] == [
            title for title in TITLES if title not in left_out
        ]
        reason = f"Not recorded: {', '.join(left_out)}" if left_out else ""
        assert figure.get_supxlabel() == reason


def test_a_panel_asked_for_says_in_its_place_that_nothing_is_recorded() -> None:
    figure = plot_run(without("gain"), panels=["gain", "loss"])
    assert [a.get_title(loc="left") for a in figure.axes] == ["AdaScale gain", "Loss"]
    assert [t.get_text() for t in figure.axes[0].texts] == ["not recorded"]
    assert not figure.axes[0].lines


def test_several_runs_lie_over_each_other_in_their_colors() -> None:
    other = [{**r, "batch_size": 32, "examples": 32 * r["step"]} for r in without("gain")]
    figure = plot_run({"adaptive": RUN, "fixed": other})
    sizes = [x for x in axis(figure, "Batch size").lines if x.get_label() == "in use"]
    assert [values(x)[1][-1] for x in sizes] == [128, 32]
    assert len({to_hex(x.get_color()) for x in sizes}) == 2
    assert len(axis(figure, "AdaScale gain").lines) == 1
    (legend,) = figure.legends
    assert [t.get_text() for t in legend.get_texts()] == [
        "adaptive: 120 updates",
        "fixed: 120 updates",
    ]
    handles = [to_hex(h.get_color()) for h in legend.legend_handles if isinstance(h, Line2D)]
    assert handles == [to_hex(x.get_color()) for x in sizes]


def test_the_picture_is_legible_whatever_the_style_of_the_session(tmp_path: pathlib.Path) -> None:
    with matplotlib.rc_context({"text.color": "white", "axes.facecolor": "black"}):
        matplotlib.rcParams["figure.facecolor"] = "black"
        figure = plot_run(RUN, tmp_path / "run.png")
    assert to_hex(figure.get_facecolor()) == "#ffffff"
    for drawn in figure.axes:
        assert to_hex(drawn.get_facecolor()) == "#ffffff"
        assert to_hex(drawn.title.get_color()) == "#000000"
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")


REFUSED = [
    (([],), {}, "Expected records of at least one update"),
    (({},), {}, "Expected at least one run"),
    (({"a": RUN, "b": []},), {}, r"records\['b'\] without any"),
    (([{"step": 1, "examples": 8}],), {}, "Expected 'batch_size' in all of records"),
    ((RUN,), {"x": "epochs"}, "Expected x to be one of 'examples', 'steps', 'seconds'"),
    ((RUN,), {"panels": ["size", "accuracy"]}, "Expected panels to be one of .*'accuracy'"),
    ((without("examples_per_s"),), {"x": "seconds"}, "draw over x='examples'"),
]


@pytest.mark.parametrize(("args", "options", "message"), REFUSED)
def test_what_cannot_be_drawn_is_refused(args: Any, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plot_run(*args, **options)


@pytest.mark.parametrize(
    "odd",
    [
        math.inf,
        None,
        *(pytest.param(x, marks=pytest.mark.slow) for x in (-math.inf, math.nan, 0.0)),
    ],
)
def test_odd_numbers_in_every_column_still_give_a_picture(
    tmp_path: pathlib.Path, odd: float | None
) -> None:
    names = ["required", "noise_scale", "variance", "signal", "gain", "loss", "examples_per_s"]
    for run in ([{**r, **dict.fromkeys(names, odd)} for r in RUN], RUN[:1]):
        plot_run(run, tmp_path / "odd.png", dpi=20)
        mixed = [a if a["step"] % 2 else b for a, b in zip(run, RUN, strict=False)]
        plot_run(mixed, tmp_path / "mixed.png", dpi=20)


@pytest.fixture
def files(tmp_path: pathlib.Path) -> list[str]:
    paths = []
    for name in ("one", "two"):
        write = JsonLines(tmp_path / name / "records.jsonl")
        for record in RUN:
            write(record)
        write.close()
        paths.append(str(tmp_path / name / "records.jsonl"))
    return paths


def test_the_command_line_draws_files_with_infinities(
    tmp_path: pathlib.Path, files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for paths in (files[:1], files):
        out = tmp_path / f"{len(paths)}.png"
        main([*paths, "--out", str(out), "--x", "steps", "--panels", "size,cost"])
        assert out.read_bytes().startswith(b"\x89PNG")
        assert str(out) in capsys.readouterr().out


def test_the_command_line_runs_as_a_module_and_explains_itself(tmp_path: pathlib.Path) -> None:
    command = [sys.executable, "-m", "adaoptax.integrations.plots"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    run = lambda *options: subprocess.run(
        [*command, *options], capture_output=True, text=True, env=environment, check=False
    )
    shown = run("--help")
    assert shown.returncode == 0
    for option in ("records", "--out", "--x", "--panels", "--title", "--dpi"):
        assert option in shown.stdout
    (tmp_path / "bad.jsonl").write_text(json.dumps({"step": 1}) + "\nnonsense\n")
    for path in ("missing.jsonl", "bad.jsonl"):
        failed = run(str(tmp_path / path))
        assert failed.returncode == 1
        assert path in failed.stderr
        assert len(failed.stderr.splitlines()) == 1
