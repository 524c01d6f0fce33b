"""Runs the tests with a set of releases, and writes the table of docs/stability.md.

A set is `oldest` (the lower bounds of pyproject.toml), `newest` (what pip gives) or a release of
jax, as in 0.11.2, with the newest of all else. Each gets an environment of the Python that runs
this command::

    python3.11 -m benchmarks.versions oldest
    python3.13 -m benchmarks.versions 0.11.2 --tests tests/measure
    python3.13 -m benchmarks.versions newest

prints how it went and puts a row into `docs/versions.csv`; ten minutes for all tests on two cores.
"""

import argparse
import csv
import pathlib
import re
import subprocess
import sys
import tempfile
import time
import tomllib
import xml.etree.ElementTree as ET
from collections.abc import Sequence

ROOT = pathlib.Path(__file__).parents[1]
TABLE = ROOT / "docs" / "versions.csv"
SHOWN = ("jax", "optax", "flax", "numpy")
ALL = "all"
# It judges the table, which has no row of this run yet.
JUDGE = "tests/measure/test_equations.py::test_the_versions_known_to_work_are_those_that_ran"


def lower_bounds(extras: Sequence[str] = ("test",)) -> dict[str, str]:
    """The oldest release of every dependency that pyproject.toml allows, those of extras too."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    bounds: dict[str, str] = {}
    waiting = [*project["dependencies"]]
    for extra in extras:
        waiting += project["optional-dependencies"][extra]
    while waiting:
        requirement = waiting.pop()
        name, more, bound = re.fullmatch(
            r"([\w-]+)(?:\[([\w,]+)\])?(?:>=([\d.]+))?", requirement
        ).groups()  # type: ignore[union-attr]
        if name == project["name"]:
            for extra in more.split(","):
                waiting += project["optional-dependencies"][extra]
        elif bounds.setdefault(name, bound) != bound:
            raise ValueError(f"{name} has two lower bounds, {bounds[name]} and {bound}.")
    return bounds


def pins(which: str) -> dict[str, str]:
    """What pip has to take for a set, by package; it chooses all else."""
    if which == "oldest":
        bounds = lower_bounds()
        return bounds | {"jaxlib": bounds["jax"]}
    return {} if which == "newest" else {"jax": which, "jaxlib": which}


def environment(which: str, folder: pathlib.Path) -> str:
    """The python of an environment with that set of releases, made where there is none."""
    python = str(folder / which / "bin" / "python")
    if not pathlib.Path(python).exists():
        subprocess.run([sys.executable, "-m", "venv", folder / which], check=True)
    constraints = folder / f"{which}.txt"
    lines = [f"{name}=={release}\n" for name, release in pins(which).items()]
    constraints.write_text("".join(lines))
    install = [python, "-m", "pip", "install", "--quiet", "--upgrade", "-c", str(constraints)]
    subprocess.run([*install, f"{ROOT}[test]"], check=True)
    return python


def installed(python: str) -> dict[str, str]:
    """The releases that an environment has, of the packages in the table."""
    code = f"import importlib.metadata as m; print(*map(m.version, {SHOWN!r}))"
    out = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    return dict(zip(SHOWN, out.stdout.split(), strict=True))


def run(which: str, folder: pathlib.Path, tests: Sequence[str]) -> dict[str, str]:
    """Runs the tests with one set of releases; a row of the table."""
    python = environment(which, folder)
    report = folder / f"{which}.xml"
    options = ["-q", "-n", "auto", "-p", "no:cacheprovider", f"--deselect={JUDGE}"]
    start = time.monotonic()
    subprocess.run(
        [python, "-m", "pytest", *options, f"--junitxml={report}", *tests], cwd=ROOT, check=False
    )
    minutes = (time.monotonic() - start) / 60
    counts = ET.parse(report).getroot().find("testsuite")
    assert counts is not None
    number = lambda name: int(counts.get(name, 0))
    failed = number("failures") + number("errors")
    version = subprocess.run([python, "-V"], capture_output=True, text=True, check=True).stdout
    return {
        "set": which,
        "python": version.split()[1],
        **installed(python),
        "tests": " ".join(tests) or ALL,
        "passed": str(number("tests") - failed - number("skipped")),
        "skipped": str(number("skipped")),
        "failed": str(failed),
        "minutes": f"{minutes:.1f}",
    }


def with_row(rows: Sequence[dict[str, str]], new: dict[str, str]) -> list[dict[str, str]]:
    """`rows` with `new` in the place of an older run of the same set, by jax and by Python."""
    same = lambda row: all(row[name] == new[name] for name in ("set", "python", "tests"))
    order = lambda row: [[*map(int, row[name].split("."))] for name in ("jax", "python")]
    return sorted([row for row in rows if not same(row)] + [new], key=order)


def main() -> None:
    """Runs one set and prints how it did."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], epilog="The Python is the one that runs this command."
    )
    parser.add_argument("which", metavar="SET", help="oldest, newest, or a release of jax")
    parser.add_argument("--keep", type=pathlib.Path, help="folder of the environment, kept")
    parser.add_argument("--tests", nargs="+", default=[], help="some tests; without it, all")
    args = parser.parse_args()
    if not re.fullmatch(r"oldest|newest|\d+(\.\d+)+", args.which):
        parser.error(f"SET must be oldest, newest or a release of jax, got {args.which!r}")
    with tempfile.TemporaryDirectory() as scratch:
        folder = (args.keep or pathlib.Path(scratch)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        row = run(args.which, folder, args.tests)
    print("\n" + "\n".join(f"{name:>10}  {value}" for name, value in row.items()))
    with TABLE.open(newline="") as file:
        rows = with_row(list(csv.DictReader(file)), row)
    with TABLE.open("w", newline="") as file:
        writer = csv.DictWriter(file, row, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    sys.exit(row["failed"] != "0")


if __name__ == "__main__":
    main()
