"""The examples and the README's snippet, run as a newcomer runs them."""

import json
import os
import pathlib
import re
import subprocess
import sys

import digits_common
import pytest

ROOT = pathlib.Path(__file__).parents[1]
PNG = b"\x89PNG"


ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"}


def run_example(name: str, out: pathlib.Path, *options: str) -> str:
    command = [sys.executable, str(ROOT / "examples" / name), "--out", str(out), *options]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def check_outputs(out: pathlib.Path) -> tuple[list[dict], dict]:
    records = [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]
    for record in records:
        assert {"step", "examples", "batch_size", "noise_scale", "gain"} <= set(record)
    assert [record["step"] for record in records] == list(range(1, len(records) + 1))
    sizes = [record["batch_size"] for record in records]
    assert sum(sizes) == records[-1]["examples"]
    summary = json.loads((out / "summary.json").read_text())
    for kind in ("adaptive", "fixed"):
        assert {"updates", "examples", "test_accuracy"} <= set(summary[kind])
    assert (out / "run.png").read_bytes().startswith(PNG)
    return records, summary


@pytest.mark.slow
def test_digits_keeps_its_promise(tmp_path: pathlib.Path) -> None:
    printed = run_example("digits.py", tmp_path)
    records, summary = check_outputs(tmp_path)
    adaptive, fixed = summary["adaptive"], summary["fixed"]
    assert adaptive["examples"] == fixed["examples"]
    assert fixed["updates"] >= 5 * adaptive["updates"]
    assert adaptive["test_accuracy"] >= 0.98
    assert abs(adaptive["test_accuracy"] - fixed["test_accuracy"]) <= 0.005
    sizes = [record["batch_size"] for record in records]
    assert (sizes[0], max(sizes)) == (32, 512)
    assert "times fewer updates" in printed


@pytest.mark.slow
def test_the_linen_example_runs_in_small(tmp_path: pathlib.Path) -> None:
    run_example("digits_linen.py", tmp_path, "--epochs", "1", "--seeds", "1", "--hidden", "32")
    records, _ = check_outputs(tmp_path)
    assert records[0]["batch_size"] == 32


def test_examples_explain_every_option(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        digits_common.parse_arguments("", ["--help"])
    options = re.findall(r"^  (--[a-z-]+) \S+\s+(.*)$", capsys.readouterr().out, re.MULTILINE)
    assert len(options) >= 10
    assert all(len(text) > 10 for _, text in options)


def test_a_bad_option_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        digits_common.parse_arguments("", ["--batch-size", "20"])
    assert end.value.code == 2
    assert "--batch-size" in capsys.readouterr().err.splitlines()[-1]
