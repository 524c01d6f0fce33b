"""`python -m benchmarks.measure` on a tiny model: everything but the numbers."""

import csv
import math
import os
import pathlib
import subprocess
import sys

import pytest

from benchmarks.measure import prepare
from benchmarks.methods import METHODS, PLAIN
from benchmarks.models import MODELS
from benchmarks.results import Row, overview, page, read_csv, write_csv

NAMES = ("table.csv", "picture.png", "tables.md")
ROOT = pathlib.Path(__file__).parents[2]


def run(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.measure", *options]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ)


@pytest.mark.slow
def test_a_run_prints_tables_and_writes_them(tmp_path: pathlib.Path) -> None:
    table, picture, tables = (tmp_path / "new" / name for name in NAMES)
    options = ["--models", "tiny", "--rounds", "1", "--minutes", "0.2", "--csv", str(table)]
    own = ["exact: norm", "groups"]
    done = run(*options, "--methods", *own, "--figure", str(picture), "--tables", str(tables))
    assert done.returncode == 0, done.stderr[-2000:]
    assert "| exact: norm + inner |" in done.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")
    with table.open() as file:
        records = {record["method"]: record for record in csv.DictReader(file)}
    assert PLAIN in records  # always there, to compare with
    assert {name for name in METHODS if "exact: norm" in name} <= set(records)
    for name in ("exact: norm", "groups(8): norm"):
        ratios = [float(records[name][ratio]) for ratio in ("time", "memory", "flops", "compile")]
        assert all(0 < ratio < math.inf for ratio in ratios)
        assert (records[name]["base"], records[name]["note"]) == (PLAIN, "")

    again = run("--from", str(table), "--figure", str(picture))
    assert again.returncode == 0
    assert again.stdout.strip() in done.stdout
    assert tables.read_text().strip() in done.stdout
    assert "](picture.png)" in tables.read_text()


@pytest.mark.slow
def test_every_method_serves_a_small_model() -> None:
    programs, notes = prepare(MODELS["tiny"], list(METHODS), math.inf, lambda text: None)
    assert notes == {}
    assert all(program.run() > 0 for program in programs.values())
    plain, exact = programs[PLAIN], programs["exact: norm"]
    rare = programs["every(16), exact: norm"]
    assert rare.flops == pytest.approx((15 * plain.flops + exact.flops) / 16, rel=0.02)
    assert rare.temp_bytes == max(exact.temp_bytes, plain.temp_bytes)


def test_what_needs_too_much_memory_is_told() -> None:
    _, notes = prepare(MODELS["tiny"], [PLAIN], 1.0, lambda text: None)
    assert notes == {PLAIN: "needs 0.0 GB"}


def test_help_explains_every_option() -> None:
    done = run("--help")
    assert done.returncode == 0
    for option in ("--models", "--methods", "--rounds", "--minutes", "--csv", "--figure", "--from"):
        assert len(done.stdout.split(f"  {option} ")[1].split("  --")[0].split()) > 5
    assert "vit" in done.stdout


@pytest.mark.parametrize("options", [["--methods", "exakt"], ["--rounds", "0"]])
def test_a_bad_option_is_one_sentence(options: list[str]) -> None:
    done = run("--models", "tiny", *options)
    assert done.returncode == 1
    assert done.stderr.startswith("Expected --")
    assert done.stderr.count("\n") == 1


def test_rows_survive_the_file(tmp_path: pathlib.Path) -> None:
    rows = [Row("MLP, B=2", "exact", "plain", 1.0625, math.nan, 2.0, rounds=7, note="a, b")]
    write_csv(rows, tmp_path / "rows.csv")
    read = read_csv(tmp_path / "rows.csv")
    assert [str(x) for x in read[0]] == [str(x) for x in rows[0]]


def test_the_page_says_why_numbers_are_missing() -> None:
    rows = [
        Row("A", "plain", "plain", 1.0, 1.0, 1.0, 1.0, rounds=7, load=0.2, machine="a CPU"),
        Row("A", "vmap", "plain", memory=900.0, flops=1.0, load=0.3, note="needs 90 GB"),
        Row("B", "vmap", "plain", memory=900.0, flops=1.0, load=0.5, note="needs 90 GB"),
    ]
    text = page(rows, None)
    assert text.startswith("Measured on a CPU, at a load of 0.2 to 0.5; medians of 7 to 7 rounds.")
    assert "*vmap* did not run on A; B: needs 90 GB." in text


def test_the_overview_shows_two_ratios_a_cell() -> None:
    rows = [
        Row("A", "plain", "plain", 1.0, 1.0),
        Row("A", "exact", "plain", 1.046, 12.34),
        Row("B", "plain", "plain", 1.0, 1.0),
        Row("B", "exact", "plain", 365.4, math.nan),
        Row("B", "ghost", "plain", note="unsupported"),
    ]
    assert overview(rows, "time", "memory").splitlines() == [
        "| method | A | B |",
        "| --- | --- | --- |",
        "| exact | 1.05 / 12.3 | 365 / – |",
        "| ghost |  | – |",
    ]
