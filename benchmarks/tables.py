"""Tables in Markdown."""

from collections.abc import Sequence
from typing import Any


def markdown(header: Sequence[str], lines: Sequence[Sequence[Any]], right: int = 0) -> str:
    """A table; the last `right` columns are aligned to the right."""
    rules = ["---"] * (len(header) - right) + ["--:"] * right
    rows = [list(header), rules, *lines]
    return "\n".join("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows)
