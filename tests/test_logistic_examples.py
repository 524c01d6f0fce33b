"""The convex examples: they run, write what they promise, refuse bad input, and are right."""

import json
import pathlib
import re
from collections.abc import Callable
from typing import Any

import jax
import l1_logistic
import logistic_adaptive_sampling as sampling
import logistic_data
import numpy as np
import pytest
import scipy.optimize
from blitzws import make_problem
from blitzws.problem import largest_penalty

PNG = b"\x89PNG"
MAINS = [sampling.main, l1_logistic.main]


def data(rows: int = 60, columns: int = 4) -> tuple[np.ndarray, np.ndarray]:
    return logistic_data.draw(rows, columns, np.random.default_rng(0))


@pytest.mark.slow
def test_the_tests_are_compared_in_small(tmp_path: pathlib.Path) -> None:
    sampling.main(["--tiny", "--data", "cancer", "--out", str(tmp_path)])
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert set(summary["cancer"]) == set(sampling.METHODS)
    for row in summary["cancer"].values():
        assert 0 < row["final_error"] < np.log(2)
    assert (
        summary["cancer"]["norm"]["iterations"] > summary["cancer"]["full gradient"]["iterations"]
    )
    assert (tmp_path / "run.png").read_bytes().startswith(PNG)


@pytest.mark.slow
def test_adaptive_sampling_and_working_sets_agree_in_small(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    l1_logistic.main(["--tiny", "--data", "synthetic", "--out", str(tmp_path)])
    rows = json.loads((tmp_path / "summary.json").read_text())["synthetic"]
    best = rows["scikit-learn"]["objective"]
    for name in ("adaptive proximal gradient", "full proximal gradient", "BlitzWS"):
        assert rows[name]["relative_gap"] <= 1e-8
        assert rows[name]["objective"] == pytest.approx(best, rel=1e-7)
        assert rows[name]["nonzero"] == rows["BlitzWS"]["nonzero"]
    assert (tmp_path / "run.png").read_bytes().startswith(PNG)
    assert "BlitzWS" in capsys.readouterr().out


def test_the_benchmark_prints_the_ratio(capsys: pytest.CaptureFixture[str]) -> None:
    l1_logistic.main(
        ["--benchmark", "--rows", "200", "--columns", "500", "--rounds", "1", "--penalty", "0.4"]
    )
    assert re.search(r"[\d.]+ times faster than plain coordinate descent", capsys.readouterr().out)


@pytest.mark.parametrize("main", MAINS)
def test_help_explains_every_option(
    main: Callable[..., None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    options = re.findall(r"^  (--[a-z-]+).*?\s{2,}(\S.*)$", capsys.readouterr().out, re.MULTILINE)
    assert len(options) >= 8
    assert all(len(text) > 10 for _, text in options)


@pytest.mark.parametrize(
    ("main", "options", "named"),
    [
        (sampling.main, ["--theta", "0"], "--theta"),
        (sampling.main, ["--step", "nan"], "--step"),
        (sampling.main, ["--data", "gisette"], "--data"),
        (l1_logistic.main, ["--penalty", "-1"], "--penalty"),
        (l1_logistic.main, ["--rows", "0"], "--rows"),
    ],
)
def test_a_bad_option_is_one_sentence(
    main: Callable[..., None], options: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(options)
    assert end.value.code == 2
    assert named in capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda x, y: (x, y[:-1]), "one label for each row"),
        (lambda x, y: (x[:, 0], y), "one label for each row"),
        (lambda x, y: (x, (y + 1) / 2), "labels -1 and 1"),
        (lambda x, y: (x, np.where(y > 0, np.nan, y)), "labels -1 and 1"),
        (lambda x, y: (np.where(x > 1, np.nan, x), y), "NaN or inf"),
    ],
)
def test_data_that_do_not_fit_are_refused(break_it: Callable[..., Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sampling.make_problem(*break_it(*data()))


def test_the_minimum_that_errors_are_measured_from_is_one() -> None:
    x, y = data()
    problem = sampling.make_problem(x, y)

    def risk(w: np.ndarray) -> float:
        return float(np.log1p(np.exp(-y * (x @ w))).mean() + w @ w / (2 * len(y)))

    found = scipy.optimize.minimize(risk, np.zeros(4), method="BFGS", options={"gtol": 1e-9})
    assert problem.minimum == pytest.approx(found.fun, abs=1e-12)
    # L bounds the curvature everywhere, and is attained where all margins are zero.
    hessian = x.T @ x / (4 * len(y)) + np.eye(4) / len(y)
    assert problem.smoothness == pytest.approx(np.linalg.norm(hessian, 2), rel=1e-12)


@pytest.mark.parametrize("method", sampling.METHODS)
def test_batches_are_as_large_as_the_test_asked_one_step_before(
    method: str, tmp_path: pathlib.Path
) -> None:
    options = sampling.parse_arguments(["--evaluations", "5", "--theta", "0.5"])
    problem = sampling.make_problem(*data(150, 6))
    with jax.enable_x64(True):
        run = sampling.run(problem, method, options, method)
    if method == "full gradient":
        assert set(run.sizes) == {150}
        assert np.diff(run.errors).max() < 0
        return
    expected = [2]
    for required in run.required[:-1]:
        asked = 150 if np.isinf(required) else min(int(np.ceil(required)), 150)
        expected.append(max(expected[-1], asked))
    assert run.sizes == expected
    assert run.sizes[-1] > 2
    assert run.evaluations[-1] == pytest.approx(sum(run.sizes) / 150)


def test_the_batch_of_proximal_descent_grows_to_all_examples_and_ends_at_the_gap() -> None:
    x, y = data(200, 8)
    problem = make_problem(x, y, 0.2 * largest_penalty(x, y))
    options = l1_logistic.parse_arguments(["--tolerance", "1e-6"])
    with jax.enable_x64(True):
        run = l1_logistic.proximal_descent(problem, options, True, "test")
    assert run.sizes[0] == 2
    assert run.sizes == sorted(run.sizes)
    assert run.sizes[-1] == 200
    assert run.gaps[-1] <= 1e-6 < run.gaps[-2]
    assert run.gaps[-1] == pytest.approx(l1_logistic.relative_gap(problem, run.weights))


@pytest.mark.parametrize("name", logistic_data.NAMES)
def test_every_data_set_has_both_classes_and_its_size(name: str) -> None:
    if name == "covertype":
        pytest.skip("half a million rows; drawn like the others")
    x, y = logistic_data.load(name)
    assert x.shape == logistic_data.SIZES.get(name, (569, 30))
    assert set(np.unique(y)) == {-1.0, 1.0}
    assert 0.2 < (y > 0).mean() < 0.8
    logistic_data.check(x, y)
