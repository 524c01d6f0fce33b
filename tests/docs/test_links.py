"""Relative links and pictures of README, CONTRIBUTING and the pages lead to files."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
WRITTEN_BY_COMMANDS = {"does_it_work_with_adam.md", "reliability.md"}  # see docs/conf.py
LINK = re.compile(r"\]\(([^)\s]+)\)|^```\{image\} (\S+)", re.MULTILINE)


def without_code(text: str) -> str:
    """What is no code; directives stay."""
    kept, fence = [], ""
    for line in text.splitlines():
        if not fence and line.startswith("```"):
            fence = "directive" if line.startswith("```{") and "code" not in line else "code"
        elif fence and line.startswith("```"):
            fence = ""
            continue
        if fence != "code":
            kept.append(line)
    return re.sub(r"`[^`\n]+`(?!`)", "", "\n".join(kept))


def targets(page: pathlib.Path) -> list[str]:
    found = [first or second for first, second in LINK.findall(without_code(page.read_text()))]
    return [x.split("#")[0] for x in found if not re.match(r"[a-z]+:|#", x)]


@pytest.mark.parametrize(
    "page", [page for page in PAGES if "_build" not in page.parts], ids=lambda page: page.name
)
def test_relative_links_lead_somewhere(page: pathlib.Path) -> None:
    missing = {target for target in targets(page) if not (page.parent / target).exists()}
    assert {pathlib.Path(target).name for target in missing} <= WRITTEN_BY_COMMANDS


def test_links_are_found_and_code_is_not() -> None:
    assert "docs/guide/loop.md" in targets(ROOT / "README.md")
    assert "run.png" in targets(ROOT / "docs" / "index.md")
    assert without_code("a\n```python\nf[0](x.md)\n```\nb `[c](d)` e") == "a\nb  e"


def test_the_first_page_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120
