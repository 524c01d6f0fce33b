"""The code of docs/guide/devices.md runs as it stands, block after block."""

import re
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.topic("devices")

PAGE = Path(__file__).parents[2] / "docs" / "guide" / "devices.md"


def test_the_code_of_the_page_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) >= 8
    namespace: dict[str, Any] = {}
    for i, block in enumerate(blocks):
        exec(compile(block, f"{PAGE.name}, block {i + 1}", "exec"), namespace)
