"""Relative links and pictures of README, CONTRIBUTING and the pages lead to files."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
CODE = re.compile(r"^```(?!\{).*?^```|`[^`\n]*`", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)|^```\{image\} (\S+)", re.MULTILINE)


def targets(page: pathlib.Path) -> list[str]:
    text = CODE.sub("", page.read_text())
    found = [first or second for first, second in LINK.findall(text)]
    return [x.split("#")[0] for x in found if not re.match(r"[a-z]+:|#", x)]


@pytest.mark.parametrize(
    "page", [page for page in PAGES if "_build" not in page.parts], ids=lambda page: page.name
)
def test_relative_links_lead_somewhere(page: pathlib.Path) -> None:
    missing = [target for target in targets(page) if not (page.parent / target).exists()]
    assert not missing


def test_links_are_found_and_code_is_not() -> None:
    assert "docs/guide/loop.md" in targets(ROOT / "README.md")
    assert "run.png" in targets(ROOT / "docs" / "index.md")
    assert CODE.sub("", "```python\nf[0](x.md)\n```\n") == "\n"
