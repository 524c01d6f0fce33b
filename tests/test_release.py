"""What a release needs to hold together: versions in step, a citation, a typed package."""

import pathlib
import re
import tomllib

import adaoptax

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
VERSION = PROJECT["project"]["version"]


def test_the_version_is_the_same_everywhere() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", VERSION)
    assert adaoptax.__version__ == VERSION
    cited = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert cited
    assert cited[1] == VERSION


def test_the_changelog_has_the_version_or_what_is_not_released_yet() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    headings = re.findall(r"^## \[(.+?)\]", text, re.MULTILINE)
    assert headings[0] in ("Unreleased", VERSION)
    sections = set(re.findall(r"^### (.+)$", text, re.MULTILINE))
    assert sections <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_the_package_says_that_it_is_typed() -> None:
    assert (ROOT / "adaoptax" / "py.typed").exists()
    assert "Typing :: Typed" in PROJECT["project"]["classifiers"]
