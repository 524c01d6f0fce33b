"""A reader who follows docs/start.md gets what the page says."""

import pathlib
import re
import subprocess
import sys

import pytest
from follow_start import PROGRAM, commands, program

ROOT = pathlib.Path(__file__).parents[2]


def test_the_commands_install_and_run_the_program() -> None:
    install, run = commands()
    assert install.startswith("python3 -m venv .venv\n.venv/bin/pip install ")
    assert run == f".venv/bin/python {PROGRAM}\n"


@pytest.mark.slow
def test_the_program_prints_and_draws_what_the_page_says(tmp_path: pathlib.Path) -> None:
    (tmp_path / PROGRAM).write_text(program())
    done = subprocess.run(
        [sys.executable, PROGRAM], cwd=tmp_path, capture_output=True, text=True, check=True,
        env={"PATH": "", "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    fixed, grown, where = done.stdout.splitlines()
    line = r": 43,200 examples in ([\d,]+) updates, test accuracy (.+) %"
    first, second = re.findall(line, f"{fixed}\n{grown}")
    assert first[0] == "1,350"
    assert int(second[0]) < 300  # "a fraction of the updates"
    assert min(float(first[1]), float(second[1])) > 95
    assert where == "The picture is in first.png"
    assert (tmp_path / "first.png").read_bytes().startswith(b"\x89PNG")
