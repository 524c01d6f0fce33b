"""The experiments: what is kept of them, what a stop leaves, and every one of them once, tiny."""

import importlib
import math
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterable

import jax
import pytest

from benchmarks.experiments import __main__ as command
from benchmarks.experiments import adascale_lm
from benchmarks.experiments.experiment import Case, Experiment, Outcome, Report, main, write_report
from benchmarks.experiments.mnist1d import make_mnist1d
from benchmarks.experiments.problems import PROBLEMS
from benchmarks.experiments.store import Store
from benchmarks.experiments.summary import Mean, average, mean, paired, split, table

RESULTS = pathlib.Path(__file__).parents[2] / "docs" / "results"
SQUARES = {
    "x": lambda key, rows: key,
    "size": lambda key, rows: rows[0]["size"],
    "square": lambda key, rows: average(rows, "square").show(),
}


def squares(made: list, stop_at: int | None = None) -> Experiment:
    """Two cases whose runs are noted in `made`; `stop_at` raises at that case."""

    def run(case, seeds):
        if case["x"] == stop_at:
            raise KeyboardInterrupt
        made.extend((case["x"], seed) for seed in seeds)
        return [Outcome({"square": case["x"] ** 2 + s}, {"at": [0.5, s]}) for s in seeds]

    return Experiment(
        name="squares",
        title="Squares",
        claim="They grow.",
        cases=lambda size: [{"x": x, "size": size, "rate": 0.1} for x in (2, 3)],
        run=run,
        report=lambda store: Report([table(split(store.rows, "x"), SQUARES)]),
    )


def test_what_is_kept_comes_back(tmp_path):
    store = Store(tmp_path, "a")
    case: Case = {"method": "lsw", "scale": 8, "rate": 1 / 3}
    metrics = {"loss": math.pi, "steps": 1_234_567, "lost": math.nan, "machine": "2 cores, here"}
    store.add(case, 0, metrics, {"tau": [0.0, 1.5], "loss": [math.inf, 2]})
    store.add({**case, "method": ""}, 1, {"loss": 1.0}, {})
    store.save()
    back = Store(tmp_path, "a")
    row, other = back.rows
    assert (row["method"], row["scale"], row["rate"], row["seed"]) == ("lsw", 8, 0.333333, 0)
    assert (row["loss"], row["steps"], row["machine"]) == (3.14159, 1_234_567, "2 cores, here")
    assert math.isnan(row["lost"])
    assert "steps" not in other
    assert [(p["point"], p["tau"], p["loss"]) for p in back.curves] == [
        (0, 0, math.inf),
        (1, 1.5, 2),
    ]
    assert back.missing(case, range(3)) == [1, 2]
    assert back.missing(dict(reversed(case.items())), [0]) == []
    assert back.missing({**case, "method": ""}, [0, 1]) == [0]
    assert back.missing({**case, "scale": 16}, [0]) == [0]
    assert back.missing({"method": "lsw", "scale": 8}, [0]) == [0]  # fewer fields, another case


def test_only_the_cases_of_a_size_are_reported(tmp_path, capsys):
    main(squares([]), ["--out", str(tmp_path), "--seeds", "2", "--size", "tiny"])
    main(squares([]), ["--out", str(tmp_path), "--seeds", "2"])
    assert "tiny" not in capsys.readouterr().out.split("## Squares")[2]
    assert len(Store(tmp_path, "squares").rows) == 8
    assert len(Store(tmp_path, "squares").curves) == 16


def test_a_stopped_command_goes_on_where_it_was(tmp_path, capsys):
    made: list = []
    arguments = ["--out", str(tmp_path), "--seeds", "2"]
    with pytest.raises(KeyboardInterrupt):
        main(squares(made, stop_at=3), arguments)
    assert made == [(2, 0), (2, 1)]
    main(squares(made), arguments)
    assert made == [(2, 0), (2, 1), (3, 0), (3, 1)]
    main(squares(made), [*arguments[:-1], "3"])
    assert made[4:] == [(2, 2), (3, 2)]
    main(squares(made), [*arguments, "--fresh"])
    assert len(made) == 10
    page = (tmp_path / "squares.md").read_text()
    assert "| 2 | default | 4.5 ± 0.5 |" in page
    assert "(4 runs, 2 seeds" in page
    assert page in capsys.readouterr().out


@pytest.mark.parametrize(
    ("file", "again"), [("squares.csv", [(2, 0), (2, 1)]), ("squares_curves.csv", [(2, 1)])]
)
def test_runs_that_a_file_lacks_are_made_again(tmp_path, file, again):
    arguments = ["--out", str(tmp_path), "--seeds", "2"]
    main(squares([]), arguments)
    lines = (tmp_path / file).read_text().splitlines(keepends=True)
    if "curves" in file:
        del lines[3]  # a point of the second run
    else:
        del lines[1:3]
    (tmp_path / file).write_text("".join(lines))
    made: list = []
    main(squares(made), arguments)
    assert made == again
    assert len(Store(tmp_path, "squares").curves) == 8
    for path in tmp_path.glob("*.csv"):
        path.unlink()
    main(squares(made), arguments)
    assert len(made) == len(again) + 4


@pytest.mark.parametrize("line", ["1,2", "x," * 30, "\0\0", ",,,,,,,,"])
def test_a_damaged_file_is_named(tmp_path, line):
    arguments = ["--out", str(tmp_path), "--seeds", "2"]
    main(squares([]), arguments)
    with (tmp_path / "squares.csv").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=r"squares\.csv.* line 6.*delete the line"):
        main(squares([]), arguments)
    main(squares([]), [*arguments, "--fresh"])


def test_means_are_of_runs_and_show_their_error():
    found = average([{"seed": s, "y": s + 1} for s in range(3)], "y")
    assert (found.value, found.runs) == (2, 3)
    assert found.error == pytest.approx(1 / 3**0.5)
    assert found.show() == "2 ± 0.58"
    assert mean([60.0, 80.0]).show(2) == "70 ± 10"
    assert mean([1.0, math.inf]).value == math.inf
    assert mean([]).show() == "–"


def test_differences_are_paired_by_seed_and_judged_by_their_error():
    rows, base = (
        [{"seed": s, "y": k * s} for s in seeds] for k, seeds in ((3, (2, 1)), (1, (0, 2)))
    )
    assert paired(rows, base, "y") == [4]
    assert Mean(1.0, 0.6, 3).outcome(2) == "no difference seen"
    assert Mean(1.0, 0.4, 3).outcome(2) == "worse"
    assert Mean(-1.0, 0.4, 3).outcome(2) == "better"
    assert Mean(math.inf, math.nan, 3).outcome(2) == "worse"


def test_the_command_lists_and_refuses(capsys):
    command.main(["--list"])
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed] == list(command.NAMES)
    with pytest.raises(SystemExit):
        command.main(["adascal"])
    assert "unknown experiment 'adascal': choose from adascale" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(squares([]), ["--seeds", "1"])
    assert "one run has no standard error" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", PROBLEMS)
def test_problems_start_at_a_guess(name):
    problem = PROBLEMS[name]()
    params = problem.init(jax.random.key(0))
    batch = {name: rows[:256] for name, rows in problem.data.items()}
    loss, metrics = jax.jit(lambda w, b: (problem.loss_fn(w, b), problem.metrics(w)))(params, batch)
    assert float(loss) == pytest.approx(problem.guess, rel=0.15)
    assert all(math.isfinite(x) for x in metrics.values())


def test_mnist1d_is_the_same_on_every_machine_and_has_equal_classes():
    curves, labels = make_mnist1d(500, seed=3)
    assert curves.shape == (500, 40)
    assert all((labels == digit).sum() == 50 for digit in range(10))
    again, _ = make_mnist1d(500, seed=3)
    assert (curves == again).all()
    other, _ = make_mnist1d(500, seed=4)
    assert (curves != other).any(axis=1).all()
    assert curves.std() == pytest.approx(0.405, abs=0.002)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in command.NAMES if name != "adascale_lm"])
def test_every_experiment_runs_tiny(name, tmp_path):
    module = importlib.import_module(f"benchmarks.experiments.{name}")
    main(module.EXPERIMENT, ["--size", "tiny", "--seeds", "2", "--out", str(tmp_path)])
    assert_report(name, tmp_path)


@pytest.mark.slow
def test_the_language_model_runs_and_its_page_is_what_the_kept_runs_say(tmp_path):
    # Run and report are those of `adascale`: one case, and the page, show what differs.
    experiment = adascale_lm.EXPERIMENT
    case = {**experiment.cases("tiny")[-1], "method": "adascale"}
    (outcome,) = experiment.run(case, [0])
    assert 0 < outcome.metrics["bits_per_byte"] < 8.5
    store = Store(RESULTS, "adascale_lm")
    assert write_report(experiment, store, tmp_path) == (RESULTS / "adascale_lm.md").read_text()
    assert_report("adascale_lm", tmp_path, range(5), RESULTS)


@pytest.mark.slow
def test_an_experiment_runs_in_a_process_of_its_own_with_the_devices_that_it_asks_for(
    monkeypatch, request
):
    lines: list = []
    monkeypatch.setattr(subprocess, "run", lambda line, **options: lines.append(line))
    command.main(["distributed", "--size", "tiny", "--fresh"])
    (line,) = lines
    assert line[:3] == [sys.executable, "-m", "benchmarks.experiments.distributed"]
    assert line[-3:] == ["--size", "tiny", "--fresh"]
    monkeypatch.undo()
    asked = "from benchmarks.experiments import distributed as d; assert d._mesh().size == 8"
    clean = {k: x for k, x in os.environ.items() if k != "XLA_FLAGS"}
    subprocess.run(
        [sys.executable, "-c", asked], check=True, cwd=request.config.rootpath, env=clean
    )


def assert_report(
    name: str, out: pathlib.Path, seeds: Iterable[int] = (0, 1), runs: pathlib.Path | None = None
) -> None:
    """A page with a claim, a table and its figures; runs in a file."""
    page = (out / f"{name}.md").read_text()
    assert page.startswith("## ")
    assert "**Claim.**" in page
    assert "| --- |" in page
    assert f"`python -m benchmarks.experiments {name}`" in page
    figures = list(out.glob("*.png"))
    assert figures
    assert all(f"]({path.name})" in page for path in figures)
    rows = Store(runs or out, name).rows
    assert {row["seed"] for row in rows} == set(seeds)
