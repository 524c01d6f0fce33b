"""The code on every page runs as printed, in the order of the page; what it prints is shown."""

import pathlib
import re

import pytest

pytestmark = pytest.mark.sampled

ROOT = pathlib.Path(__file__).parents[2]
PYTHON = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
# Right below the code that prints it.
SHOWN = re.compile(r"^```\n\n```text\n(.*?)^```", re.DOTALL | re.MULTILINE)

# They have tests of their own, which run the code and look at more than that.
ELSEWHERE = {"docs/guide/devices.md", "docs/guide/schedules.md", "docs/methods/optimal_split.md"}
BUILT = {"_build", "results"}


def pages() -> list[str]:
    found = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    names = [str(page.relative_to(ROOT)) for page in found if not BUILT & set(page.parts)]
    return [name for name in names if name not in ELSEWHERE and code_of(name)]


def code_of(page: str) -> list[str]:
    return PYTHON.findall((ROOT / page).read_text())


@pytest.mark.parametrize("page", pages())
def test_the_code_on_the_pages_runs(
    page: str,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)  # some pages write files
    namespace: dict = {"__name__": page}
    for block in code_of(page):
        exec(compile(block, page, "exec"), namespace)
    printed = capsys.readouterr().out
    for output in SHOWN.findall((ROOT / page).read_text()):
        assert output in printed


def test_pages_are_found() -> None:
    assert {"README.md", "docs/guide/loop.md", "docs/sharp_edges.md"} <= set(pages())


def test_the_readme_snippet_is_short() -> None:
    assert len(code_of("README.md")[0].strip().splitlines()) <= 30
