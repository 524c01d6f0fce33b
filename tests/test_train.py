"""The trainer in one file: it resumes after every kind of end, and says what it would do."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
import train

ROOT = pathlib.Path(__file__).parents[1]
TRAIN = str(ROOT / "examples" / "train.py")
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "100"}

# A run of several hundred small updates whose batch grows.
SMALL = ["--examples", "40000", "--width", "48", "--max-batch-size", "64"]


def start(out: pathlib.Path, *options: str, **popen: Any) -> subprocess.Popen:
    command = [sys.executable, TRAIN, "--out", str(out), *options]
    return subprocess.Popen(command, env=ENVIRONMENT, text=True, **popen)


def run(out: pathlib.Path, *options: str) -> str:
    """What the program printed, once it has ended well."""
    with start(out, *options, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        printed, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-3000:]
    return printed


def refused(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    """The last line of the error; in this process, for it ends before anything is trained."""
    with pytest.raises(SystemExit) as exit_:
        train.main(list(options))
    errors = capsys.readouterr().err + (
        exit_.value.code if isinstance(exit_.value.code, str) else ""
    )
    assert exit_.value.code
    return errors.strip().splitlines()[-1]


def summary(out: pathlib.Path) -> dict[str, Any]:
    return json.loads((out / "summary.json").read_text())


def records(out: pathlib.Path) -> list[dict[str, Any]]:
    """All records, without the speed, which no two runs share."""
    lines = (out / "records.jsonl").read_text().splitlines()
    read = [json.loads(line) for line in lines]
    return [{k: v for k, v in record.items() if k != "examples_per_s"} for record in read]


def lines_of(out: pathlib.Path) -> int:
    path = out / "records.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_for(condition: Any, process: subprocess.Popen, timeout: float = 120) -> None:
    """Until the condition holds or the process ends."""
    end = time.monotonic() + timeout
    while not condition() and process.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture(scope="module")
def whole(made_once: Any) -> pathlib.Path:
    """The folder of a run that nobody interrupted."""
    return made_once("train", lambda out: run(out, *SMALL))


@pytest.mark.slow
def test_the_run_grows_and_leaves_what_it_promises(whole: pathlib.Path) -> None:
    sizes = [record["batch_size"] for record in records(whole)]
    assert (sizes[0], max(sizes)) == (32, 64)
    steps = [record["step"] for record in records(whole)]
    assert steps == list(range(1, len(sizes) + 1))
    found = summary(whole)
    assert found["finished"]
    assert found["examples"] == sum(sizes) >= 40000
    assert found["test_accuracy"] > 0.9
    assert (whole / "run.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.topic("signals")
@pytest.mark.slow
def test_goes_on_after_a_signal_and_a_finished_run_is_only_told_again(
    tmp_path: pathlib.Path, whole: pathlib.Path
) -> None:
    for ends in ([signal.SIGTERM], [signal.SIGINT], [signal.SIGINT] * 2):
        before = lines_of(tmp_path)
        with start(tmp_path, *SMALL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            wait_for(lambda before=before: lines_of(tmp_path) > before + 60, process)
            for end in ends:
                process.send_signal(end)
            printed, errors = process.communicate(timeout=120)
        if len(ends) == 1:
            assert process.returncode == 0, errors[-3000:]
            assert "the same command goes on from here" in printed
            assert not summary(tmp_path)["finished"]
            assert "Traceback" not in errors
        assert lines_of(tmp_path) < len(records(whole))
    for _ in range(2):
        assert summary(whole)["sha256"] in run(tmp_path, *SMALL)
        assert summary(tmp_path) == summary(whole)
        assert records(tmp_path) == records(whole)


LONG = ["--examples", "120000", "--width", "16", "--max-batch-size", "64", "--batch-size", "32",
        "--checkpoint-every", "25", "--eta", "0.6"]  # fmt: skip


@pytest.mark.topic("kill -9")
@pytest.mark.slow
def test_twenty_kills_at_random_moments_change_nothing(
    tmp_path: pathlib.Path, tried: Callable[[str, int], None]
) -> None:
    expected = tmp_path / "whole"
    run(expected, *LONG)
    out, seed = tmp_path / "killed", random.SystemRandom().randrange(2**32)
    moments = random.Random(seed)
    kills = reached = 0
    while kills < 20:
        before = lines_of(out)
        with start(out, *LONG, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            if kills % 5:  # while it trains or saves
                wait_for(lambda before=before: lines_of(out) > before, process)
                time.sleep(moments.uniform(0, 0.25))
            else:  # while it starts, restores or compiles
                time.sleep(moments.uniform(0.5, 5))
            process.kill()
        assert process.wait() == -signal.SIGKILL, f"it ended before kill {kills}, {seed=}"
        kills += 1
        reached = max(reached, lines_of(out))
    run(out, *LONG)
    assert 100 < reached < len(records(expected)), f"kills have to spread over the run, {seed=}"
    assert summary(out) == summary(expected), f"{seed=}"
    assert records(out) == records(expected), f"{seed=}"
    tried("kills", kills)


def test_a_dry_run_says_what_would_run_and_touches_nothing(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "never"
    schedule = ["--dry-run", "--batch-schedule", "0:32 4K:64 8K:128", "--examples", "12000"]
    train.main(["--out", str(out), *schedule])
    printed = capsys.readouterr().out
    assert not out.exists()
    assert "parameters" in printed
    for size, steps in ((32, 125), (64, 63), (128, 31)):
        assert any(str(size) in line and str(steps) in line for line in printed.splitlines())


def learned(out: pathlib.Path) -> bool:
    losses = [record["loss"] for record in records(out)]
    return summary(out)["finished"] and losses[-1] < losses[0]


@pytest.mark.slow
def test_diagnose_measures_and_never_acts_on_many_devices(tmp_path: pathlib.Path) -> None:
    run(tmp_path, *SMALL, "--examples", "4000", "--diagnose", "--host-devices", "8")
    seen = records(tmp_path)
    assert learned(tmp_path)
    assert summary(tmp_path)["devices"] == 8
    assert {record["batch_size"] for record in seen} == {32}
    assert max(record["next_batch_size"] for record in seen) > 32


@pytest.mark.slow
def test_a_schedule_decides_instead_of_the_test(tmp_path: pathlib.Path) -> None:
    cnn = ["--problem", "digits-cnn", "--width", "4", "--how", "host", "--max-batch-size", "64"]
    run(tmp_path, *cnn, "--examples", "2000", "--batch-schedule", "0:32 500:48 1K:64")
    assert learned(tmp_path)
    for record in records(tmp_path):
        before = record["examples"] - record["batch_size"]
        assert record["batch_size"] == (32 if before < 500 else 48 if before < 1000 else 64)


@pytest.mark.slow
def test_a_language_model_trains(tmp_path: pathlib.Path) -> None:
    run(tmp_path, "--problem", "stdlib-lm", "--width", "16", "--examples", "600")
    assert learned(tmp_path)


@pytest.mark.slow
def test_options_come_from_a_file_and_the_command_line_wins(tmp_path: pathlib.Path) -> None:
    config, out = tmp_path / "run.toml", tmp_path / "out"
    config.write_text(
        'problem = "cancer"\nbatch_size = 64\nmicro_batch_size = 16\neta = 1\n'
        'method = "exact"\nhow = "ladder"\n'
    )
    run(out, "--config", str(config), "--micro-batch-size", "32", "--examples", "2000")
    assert learned(out)
    options = json.loads((out / "options.json").read_text())
    assert (options["batch_size"], options["micro_batch_size"], options["eta"]) == (64, 32, 1)
    assert options["max_batch_size"] == 256  # of the problem


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batch-size = 64", "there is no option 'batch-size'"),
        ('batch_size = "64"', "batch_size must be of type int, got '64'"),
        ('how = "quickly"', "how must be one of"),
        ("batch_size = ", "--config"),
        ("out = 3", "out must be of type str, got 3"),
        ("# \xe9", "can't decode byte 0xe9"),
    ],
)
def test_a_bad_file_is_one_sentence(
    text: str, message: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "run.toml"
    config.write_text(text, "latin-1")
    assert message in refused(capsys, "--config", str(config))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--batch-size", "40"], "--batch-size must be a multiple of --micro-batch-size"),
        (["--max-batch-size", "16"], "--max-batch-size must be at least --batch-size"),
        (["--batch-size", "16"], "--batch-size must be two micro-batches or more"),
        (["--micro-batch-size", "0"], "--micro-batch-size must be at least 1"),
        (["--examples", "0"], "--examples must be at least 1"),
        (["--batch-schedule", "0:32 1K:1024"], "--max-batch-size must be at least every size"),
        (["--batch-schedule", "0:32 x:64"], "--batch-schedule: Expected"),
        (["--batch-schedule", "0:16 1K:64"], "--batch-schedule must be two micro-batches"),
        (["--config", "no.toml"], "no.toml"),
        (["--out", "/dev/null/run"], "--out /dev/null/run: Not a directory"),
    ],
)
def test_a_bad_option_is_one_sentence(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(capsys, *options)


@pytest.mark.slow
def test_other_options_do_not_go_on_with_a_run(
    whole: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refused(capsys, "--out", str(whole), *SMALL, "--eta", "0.5")
    assert "holds a run with eta=0.8, got eta=0.5: pass another --out" in message


def test_options_that_were_refused_leave_the_folder_free(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match="eta"):
        train.main(["--problem", "cancer", "--out", str(tmp_path), "--eta", "-1"])
    assert [*tmp_path.iterdir()] == []


def test_help_explains_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train.main(["--problem", "cancer", "--help"])
    printed = capsys.readouterr().out
    assert printed.count("default:") >= 12
    assert "27300" in printed  # examples of the problem that was named
