"""The examples on many devices and in several processes, run as a newcomer runs them."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import jax
import multi_process
import numpy as np
import pytest
import stdlib_lm
from stdlib_data import read_standard_library, unigram_bits, windows
from test_processes import gone

import adaoptax

pytestmark = pytest.mark.topic("processes")

ROOT = pathlib.Path(__file__).parents[1]


def command(name: str, *options: str) -> list[str]:
    return [sys.executable, str(ROOT / "examples" / name), *options]


def run(name: str, *options: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    return subprocess.run(
        command(name, *options), capture_output=True, text=True, env=environment, timeout=120
    )


def outputs(out: pathlib.Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    records = [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(1, len(records) + 1))
    sizes = [record["batch_size"] for record in records]
    assert np.cumsum(sizes).tolist() == [record["examples"] for record in records]
    assert all({"loss", "noise_scale", "gain"} <= set(record) for record in records)
    return records, json.loads((out / "summary.json").read_text())


SMALL = ("--processes", "2", "--epochs", "1", "--hidden", "16")


@pytest.mark.slow
def test_processes_train_on_digits(tmp_path: pathlib.Path) -> None:
    done = run("multi_process.py", *SMALL, "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr[-2000:]
    records, summary = outputs(tmp_path)
    assert (summary["processes"], summary["devices"]) == (2, 4)
    assert summary["examples"] == 7200, "each example once"
    assert summary["largest_batch_size"] >= 2 * records[0]["batch_size"]
    assert summary["test_accuracy"] > 0.5, "guessing is 0.1"
    assert done.stdout.count("2 processes, 4 devices") == 1, "process 0 alone prints the table"
    assert "examples/s" in done.stderr


@pytest.mark.topic("signals")
@pytest.mark.slow
@pytest.mark.skipif(not pathlib.Path("/proc/self/stat").exists(), reason="needs /proc")
def test_interrupting_it_ends_all_processes(tmp_path: pathlib.Path) -> None:
    many = ("--processes", "2", "--epochs", "1000", "--hidden", "16", "--out", str(tmp_path))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command("multi_process.py", *many), env=environment, stderr=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stderr is not None
        watchdog = threading.Timer(90, parent.kill)  # the test fails then, rather than waits
        watchdog.start()
        while "batch=" not in parent.stderr.readline(200):
            assert parent.poll() is None
        tasks = pathlib.Path(f"/proc/{parent.pid}/task").glob("*/children")
        children = [int(pid) for task in tasks for pid in task.read_text().split()]
        assert len(children) == 2
        parent.send_signal(signal.SIGINT)
        _, message = parent.communicate(timeout=20)
        watchdog.cancel()
    assert parent.returncode == 130
    assert "Interrupted: ended all 2 processes." in message
    assert all(map(gone, children))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "pass --processes 2 to start one here"),
        ((*SMALL, "--devices", "3"), "--micro-batch-size must be a multiple of all 6 devices"),
    ],
)
def test_processes_that_do_not_fit_are_one_sentence(options: tuple[str, ...], message: str) -> None:
    cluster = ("JAX_", "SLURM_", "OMPI_", "TPU_", "KUBERNETES_")
    outside = {key: value for key, value in os.environ.items() if not key.startswith(cluster)}
    done = subprocess.run(
        command("multi_process.py", *options),
        capture_output=True,
        text=True,
        env=outside | {"PYTHONPATH": str(ROOT)},
        timeout=60,
    )
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("parse", "options", "message"),
    [
        (multi_process.main, ("--processes", "0"), "--processes must be at least 1"),
        (multi_process.main, ("--batch-size", "40"), "--batch-size must be a multiple of"),
        (
            stdlib_lm.main,
            ("--tiny", "--data", "4"),
            "--data 4 times --model 1 must be all 8 devices",
        ),
        (
            stdlib_lm.main,
            ("--tiny", "--model", "2", "--heads", "1"),
            "--heads must be a multiple of --model",
        ),
    ],
)
def test_a_bad_option_is_one_sentence(
    parse: Callable[[list[str]], Any],
    options: tuple[str, ...],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as end:
        parse([*options])
    assert end.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("main", [multi_process.main, stdlib_lm.main])
def test_they_explain_every_option(
    main: Callable[[list[str]], Any],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        main(["--help"])
    out = capsys.readouterr().out
    options = re.findall(r"^  (--[a-z-]+)(?: [A-Z_]+|  |\n| \{.*\})\s+(.*)$", out, re.MULTILINE)
    assert len(options) >= 10
    assert all(len(text) > 10 for _, text in options)


@pytest.mark.slow
def test_the_language_model_learns_and_its_batch_grows(tmp_path: pathlib.Path) -> None:
    mesh = ("--host-devices", "8", "--data", "4", "--model", "2", "--fsdp")
    done = run("stdlib_lm.py", "--tiny", *mesh, "--examples", "2000", "--eta", "0.3",
               "--out", str(tmp_path))  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    records, summary = outputs(tmp_path)
    assert summary["mesh"] == {"data": 4, "model": 2}
    assert summary["validation_bits_per_byte"] < summary["unigram_bits_per_byte"] - 0.5
    assert summary["largest_batch_size"] >= 2 * records[0]["batch_size"]
    assert re.search(r"Python 3\.\d+\.\d+\S* standard library, .* sha256 [0-9a-f]{12}", done.stdout)
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")


def two_steps(**changes: Any) -> tuple[list[list[float]], list[np.ndarray], Any]:
    """Outputs and parameters of two steps of a small model on some mesh, and the trainer."""
    options = stdlib_lm.parse_arguments(
        ["--tiny", "--width", "32", "--length", "16", "--dtype", "float32", "--data", "8"]
    )
    vars(options).update(max_batch_size=64, examples=500, **changes)
    text = np.random.default_rng(0).integers(97, 103, (2, 64, 17)).astype(np.uint8)
    mask = np.arange(64) < 48  # three micro-batches of four
    auto = (jax.sharding.AxisType.Auto,) * 2
    shape = (options.data, options.model)
    devices = jax.devices()[: options.data * options.model]
    mesh = jax.make_mesh(shape, ("data", "model"), devices=devices, axis_types=auto)
    with jax.set_mesh(mesh):
        trainer = stdlib_lm.Trainer(options, mesh)
        steps = [trainer.step(adaoptax.Batch(rows, mask)) for rows in text]
    params = [np.asarray(leaf) for leaf in jax.tree.leaves(trainer.state[0])]
    return [[float(step[name]) for name in sorted(step)] for step in steps], params, trainer


@pytest.fixture(scope="module")
def on_one_device() -> Any:
    return two_steps(data=1, model=1, fsdp=False)


@pytest.mark.slow
@pytest.mark.parametrize(("data", "model", "fsdp"), [(8, 1, True), (4, 2, False), (2, 4, True)])
def test_every_mesh_gives_the_same_step(
    data: int, model: int, fsdp: bool, on_one_device: Any
) -> None:
    outputs, params, trainer = two_steps(data=data, model=model, fsdp=fsdp)
    np.testing.assert_allclose(outputs, on_one_device[0], rtol=1e-5)
    for here, there in zip(params, on_one_device[1], strict=True):
        np.testing.assert_allclose(here, there, rtol=0, atol=2e-6)
    for leaf in jax.tree.leaves(trainer.state):  # parameters and both of Adam's moments
        if leaf.shape == (2, 32, 128):  # the first matrix of the MLP
            wanted = (2, 32 // (data if fsdp else 1), 128 // model)
            assert {shard.data.shape for shard in leaf.addressable_shards} == {wanted}
    assert sum(leaf.shape == (2, 32, 128) for leaf in jax.tree.leaves(trainer.state)) == 3


def test_the_corpus_is_cut_by_file() -> None:
    corpus = read_standard_library(300_000)
    again = read_standard_library(300_000)
    assert corpus.sha256 == again.sha256
    assert 0 < len(corpus.validation) < len(corpus.train) <= 300_000 - len(corpus.validation)
    ends = [int((part == 0).sum()) for part in (corpus.train, corpus.validation)]
    assert sum(ends) == corpus.num_files
    assert min(ends) > 0
    assert 3 < unigram_bits(corpus.train) < 6


def test_windows_predict_every_byte_once() -> None:
    text = np.arange(30, dtype=np.uint8)
    rows = windows(text, 7)
    assert rows.shape == (4, 8)
    assert rows[:, 1:].ravel().tolist() == list(range(1, 29))
    assert rows[:, 0].tolist() == [0, 7, 14, 21]
    assert unigram_bits(np.array([1, 1, 2, 2, 3, 3, 4, 4], np.uint8)) == 2
