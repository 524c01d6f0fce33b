"""What the page on schedules shows as printed is what its code prints."""

import pathlib
import re

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "guide" / "schedules.md"


def test_the_tables_and_errors_on_the_page_are_printed_by_its_code(capsys):
    text = PAGE.read_text()
    namespace: dict = {}
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(compile(code, PAGE.name, "exec"), namespace)
    printed = capsys.readouterr().out
    shown = re.findall(r"```text\n(.*?)```", text, re.DOTALL)
    shown += re.findall(r"^print\(.*\)  # (.*)$", text, re.MULTILINE)
    assert len(shown) == 14
    for output in shown:
        assert output in printed
