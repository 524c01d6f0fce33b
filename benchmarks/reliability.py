"""The reliability report, written from the report files of a run of all tests.

    python -m pytest -n auto --junitxml=runs/tests.xml
    python -m pytest -n auto -m slow --junitxml=runs/slow.xml
    python -m benchmarks.reliability runs/tests.xml runs/slow.xml > docs/reliability.md

Tests say by the marker ``topic`` what they try; `benchmarks.reliability_topics` has the words.
How often is counted here: cases of the run, examples that hypothesis drew, and what tests tell by
the fixture ``tried``, such as kills. What happened is the outcome of these cases: a topic with a
failure says so.
"""

import argparse
import ast
import collections
import functools
import importlib.metadata
import pathlib
import platform
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from benchmarks.reliability_topics import HYPOTHESIS, REFUSALS, TOPICS, Topic
from benchmarks.tables import markdown

TESTS = pathlib.Path(__file__).parents[1] / "tests"
EXAMPLES = "examples drawn"
PACKAGES = ("jax", "optax", "flax", "numpy", "orbax-checkpoint")


class Case(NamedTuple):
    """One case of a test.

    Attributes:
        file: File of the test, below the folder of tests.
        test: Name of the function.
        parameters: What stood in brackets.
        outcome: ``passed``, ``failed`` or ``skipped``.
        seconds: How long it took.
        tried: What it counted by itself: ``(what, times)``.
        reason: Why it was skipped.
        marked: Topics that it is marked with.
    """

    file: str
    test: str
    parameters: str = ""
    outcome: str = "passed"
    seconds: float = 0.0
    tried: tuple[tuple[str, int], ...] = ()
    reason: str = ""
    marked: frozenset[str] = frozenset()

    @property
    def topics(self) -> set[str]:
        """The topics that it belongs to: by its marks, by its name, and by what it does."""
        found = set(self.marked)
        name = f"{self.test}[{self.parameters}]"
        for topics in TOPICS.values():
            found |= {key for key, topic in topics.items() if any(w in name for w in topic.words)}
        if any(what == EXAMPLES for what, _ in self.tried):
            found.add(HYPOTHESIS)
        if every_test().get((self.file, self.test), False):
            found.add(REFUSALS)
        return found


def read_cases(path: pathlib.Path) -> list[Case]:
    """The cases of a report that ``pytest --junitxml`` wrote, but for those that judge the page."""
    cases = [_case(node) for node in ET.parse(path).getroot().iter("testcase")]
    return [case for case in cases if case.file != "benchmarks/test_reliability.py"]


def _case(node: ET.Element) -> Case:
    name, _, parameters = node.get("name", "").partition("[")
    module = node.get("classname", "").removeprefix("tests.")
    if not module:  # a file that could not be imported, or was skipped as a whole
        module, name = name.removeprefix("tests."), ""
    failed = node.find("failure") is not None or node.find("error") is not None
    skipped = node.find("skipped")
    properties = [(each.get("name", ""), each.get("value", "")) for each in node.iter("property")]
    return Case(
        module.replace(".", "/") + ".py",
        name,
        parameters.removesuffix("]"),
        "failed" if failed else "passed" if skipped is None else "skipped",
        float(node.get("time", 0)),
        tuple((what, int(times)) for what, times in properties if what != "topic"),
        "" if skipped is None else skipped.get("message", ""),
        frozenset(topic for what, topic in properties if what == "topic"),
    )


@functools.cache
def every_test() -> dict[tuple[str, str], bool]:
    """Every test that there is, as (file, name), and whether it checks the words of an error."""
    found = {}
    for path in sorted(TESTS.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                file = path.relative_to(TESTS).as_posix()
                found[file, node.name] = any(map(_checks_words, ast.walk(node)))
    return found


def _checks_words(node: ast.AST) -> bool:
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
        return False
    return node.func.attr == "raises" and any(word.arg == "match" for word in node.keywords)


def often(cases: Sequence[Case]) -> str:
    """How often something was tried: cases, and what these counted by themselves."""
    counted: collections.Counter[str] = collections.Counter()
    for what, times in (each for case in cases for each in case.tried):
        counted[what] += times
    parts = [f"{len(cases):,} case{'s' * (len(cases) != 1)}"]
    return ", ".join(parts + [f"{times:,} {what}" for what, times in sorted(counted.items())])


def what_happened(topic: Topic, cases: Sequence[Case]) -> str:
    """What the tests assert, unless one of them failed or none ran."""
    ran = [case for case in cases if case.outcome != "skipped"]
    failed = [case for case in ran if case.outcome == "failed"]
    if failed:
        names = ", ".join(sorted({f"`{case.test}`" for case in failed}))
        return f"**{len(failed)} of {len(ran)} failed**: {names}"
    return topic.happened if ran else "**did not run**"


def report(cases: Sequence[Case], date: str) -> str:
    """The page."""
    counts = collections.Counter(case.outcome for case in cases)
    tests = {(case.file, case.test) for case in cases if case.test}
    refusals = [case for case in cases if REFUSALS in case.topics]
    examples = sum(times for case in cases for what, times in case.tried if what == EXAMPLES)
    minutes = sum(case.seconds for case in cases) / 60
    releases = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    lines = [
        "# Reliability: what was tried, how often, what happened",
        "",
        "Written by `python -m benchmarks.reliability` from the report of a run of the whole test"
        " suite: the numbers are counted, not typed. "
        "[What happens when...](guide/faults.md) states the outcome of each fault in words.",
        "",
        f"The run of {date}: **{len(cases):,} cases** of {len(tests):,} tests in"
        f" {len({file for file, _ in tests})} files; {counts['passed']:,} passed,"
        f" **{counts['failed']} failed**, {counts['skipped']} skipped; {minutes:.0f} minutes of"
        f" tests on CPUs, Python {platform.python_version()}, {releases};"
        " [other releases](stability.md#releases-of-others).",
        f"{examples:,} examples were drawn by hypothesis, and {len(refusals):,} cases expect an"
        " error and compare its words.",
        "",
    ]
    for group, topics in TOPICS.items():
        of = lambda name: [case for case in cases if name in case.topics]
        rows = [_row(topic, of(name)) for name, topic in topics.items()]
        table = markdown(["tried", "how often", "what happened", "tests"], rows)
        lines += [f"## {group}", "", table, ""]
    lines += ["## Not tried", "", *_not_tried(cases)]
    lines += ["## All tests by folder", "", *_folders(cases)]
    return "\n".join(lines)


def _row(topic: Topic, cases: Sequence[Case]) -> list[str]:
    files = sorted({case.file for case in cases})
    shown = ", ".join(f"`{file}`" for file in files) if len(files) <= 4 else f"{len(files)} files"
    return [topic.tried, often(cases), what_happened(topic, cases), shown]


def _not_tried(cases: Sequence[Case]) -> list[str]:
    reasons = collections.Counter(case.reason for case in cases if case.outcome == "skipped")
    lines = [
        "- Accelerators: this run was on CPUs, its devices were virtual ones.",
        "- Operating systems other than Linux, Python before 3.11, file systems over a network.",
        "- More than one machine: processes and devices here share one, over loopback.",
        "- Power loss: `kill -9` ends the process, not the operating system's cache.",
    ]
    lines += [
        f"- Skipped, {times} case{'s' * (times != 1)}: {_plain(reason)}"
        for reason, times in sorted(reasons.items())
    ]
    return [*lines, ""]


def _plain(reason: str) -> str:
    return re.sub(r"[|<>`*_\[\]]", " ", reason.splitlines()[0] if reason else "no reason given")


def _folders(cases: Iterable[Case]) -> list[str]:
    rooms: dict[str, list[Case]] = {}
    for case in cases:
        folder = pathlib.PurePosixPath(case.file).parent.as_posix()
        rooms.setdefault("tests" if folder == "." else f"tests/{folder}", []).append(case)
    lines = []
    for room, inside in sorted(rooms.items()):
        counts = collections.Counter(case.outcome for case in inside)
        minutes = sum(case.seconds for case in inside) / 60
        outcomes = [f"{counts[each]:,}" for each in ("passed", "failed", "skipped")]
        lines.append([f"`{room}`", *outcomes, f"{minutes:.1f}"])
    return [markdown(["folder", "passed", "failed", "skipped", "minutes"], lines, right=4), ""]


def main() -> None:
    """Prints the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "reports", nargs="+", type=pathlib.Path, help="what pytest --junitxml wrote"
    )
    args = parser.parse_args()
    suite = next(ET.parse(args.reports[-1]).getroot().iter("testsuite"))
    cases = [case for each in args.reports for case in read_cases(each)]
    print(report(cases, suite.get("timestamp", "")[:10]), end="")


if __name__ == "__main__":
    main()
