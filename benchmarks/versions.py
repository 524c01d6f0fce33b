"""Runs a part of the tests with the oldest releases of pyproject.toml, and with the newest.

``python -m benchmarks.versions`` makes an environment for each of the two, installs the package
with its extra `test` there, runs `TESTS`, prints a table and writes `docs/versions.csv`; some five
minutes a set on two cores. ``python -m benchmarks.versions oldest --keep envs`` runs one of them
and keeps its environment for the next time. Nothing of it is part of the tests or of `.ci/run`.

What runs is what depends on the releases: names and behaviour of jax and Optax (`conformance` of a
few transformations, the ways of measuring, which read jaxprs, and sharding), files and processes
(the loop), and every package that is adapted (integrations, data sources).
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
SETS = ("oldest", "newest")
SHOWN = ("jax", "optax", "flax", "numpy", "orbax-checkpoint", "datasets", "grain", "scikit-learn")
TESTS = (  # what changes with releases; the formulas do not
    "tests/test_public_api.py",
    "tests/test_conformance.py",
    "tests/measure/test_measure_transforms.py",
    "tests/measure/test_devices.py",
    "tests/measure/exact/test_exact_transforms.py",
    "tests/measure/exact/test_zoo.py",
    "tests/loop/test_accumulate.py",
    "tests/loop/test_adaptive.py",
    "tests/loop/test_loader.py",
    "tests/loop/test_real_sources.py",
    "tests/integrations",
)
# Of the two long lists a part: one transformation, and models of attention and of scans.
CHOSEN = "not (conformance or zoo) or half-life or attention or lstm"


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


def environment(which: str, folder: pathlib.Path) -> str:
    """The python of an environment with that set of releases, made where there is none."""
    python = str(folder / which / "bin" / "python")
    if not pathlib.Path(python).exists():
        subprocess.run([sys.executable, "-m", "venv", folder / which], check=True)
    constraints = folder / f"{which}.txt"
    pinned = lower_bounds() if which == "oldest" else {}
    constraints.write_text("".join(f"{name}=={bound}\n" for name, bound in pinned.items()))
    install = [python, "-m", "pip", "install", "--quiet", "--upgrade", "-c", str(constraints)]
    subprocess.run([*install, f"{ROOT}[test]"], check=True)
    return python


def installed(python: str) -> dict[str, str]:
    """The releases that an environment has, of the packages in the table."""
    code = f"import importlib.metadata as m; print(*map(m.version, {SHOWN!r}))"
    out = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    return dict(zip(SHOWN, out.stdout.split(), strict=True))


def run(which: str, folder: pathlib.Path, options: Sequence[str]) -> dict[str, str]:
    """Runs the tests with one set of releases; a row of the table."""
    python = environment(which, folder)
    report = folder / f"{which}.xml"
    chosen = options or [*TESTS, "-k", CHOSEN]
    command = [python, "-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider"]
    start = time.monotonic()
    subprocess.run([*command, f"--junitxml={report}", *chosen], cwd=ROOT, check=False)
    seconds = time.monotonic() - start
    counts = ET.parse(report).getroot().find("testsuite")
    assert counts is not None
    number = lambda name: int(counts.get(name, 0))
    failed = number("failures") + number("errors")
    version = subprocess.run([python, "-V"], capture_output=True, text=True, check=True).stdout
    return {
        "set": which,
        "python": version.split()[1],
        **installed(python),
        "passed": str(number("tests") - failed - number("skipped")),
        "skipped": str(number("skipped")),
        "failed": str(failed),
        "minutes": f"{seconds / 60:.1f}",
    }


def kept(path: pathlib.Path) -> dict[str, dict[str, str]]:
    """The rows of the table that there is, by set."""
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        return {row["set"]: row for row in csv.DictReader(file)}


def main() -> None:
    """Runs the sets that were asked for and prints how they did."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sets", nargs="*", metavar="SET", help="oldest, newest (default: both)")
    parser.add_argument("--keep", type=pathlib.Path, help="folder of the environments, kept")
    parser.add_argument("--tests", nargs="+", default=[], help="other tests; the table stays")
    args = parser.parse_args()
    wanted = args.sets or SETS
    for which in wanted:
        if which not in SETS:
            parser.error(f"expected oldest or newest, got {which}")
    rows = kept(TABLE)
    with tempfile.TemporaryDirectory() as scratch:
        folder = (args.keep or pathlib.Path(scratch)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        for which in wanted:
            rows[which] = run(which, folder, args.tests)
    ordered = [rows[which] for which in SETS if which in rows]
    for row in ordered:
        print("\n" + "\n".join(f"{name:>18}  {value}" for name, value in row.items()))
    if not args.tests:
        with TABLE.open("w", newline="") as file:
            writer = csv.DictWriter(file, ordered[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(ordered)
    sys.exit(any(int(rows[which]["failed"]) for which in wanted))


if __name__ == "__main__":
    main()
