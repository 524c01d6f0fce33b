"""Does what docs/start.md tells a reader to do, word for word, in the present folder."""

import pathlib
import re
import subprocess

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "start.md"
PROGRAM = "first.py"
COMMANDS = re.compile(r"^```sh\n(.*?)^```", re.DOTALL | re.MULTILINE)
CELL = re.compile(r"^```\{code-cell\} python\n(.*?)^```", re.DOTALL | re.MULTILINE)


def commands() -> list[str]:
    """The shell blocks of the page, in order."""
    return COMMANDS.findall(PAGE.read_text())


def program() -> str:
    """What the reader saves as first.py: the first cell."""
    cell = CELL.search(PAGE.read_text())
    assert cell is not None
    return cell[1]


if __name__ == "__main__":
    pathlib.Path(PROGRAM).write_text(program())
    for block in commands():
        subprocess.run(["bash", "-euc", block], check=True)
    assert pathlib.Path("first.png").stat().st_size > 10_000
