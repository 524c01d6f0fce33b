"""One room reads programs: nobody else knows what JAX calls its operations."""

import pathlib
import re

import adaoptax

PACKAGE = pathlib.Path(adaoptax.__file__).parent
ROOM = PACKAGE / "measure" / "programs"
READS = re.compile(
    r"jax\.extend|\bjex\b|\.primitive\b|\.eqn_params|eqn\.params|equation\.params"
    r"|source_info_util|jaxprs_in_params|get_bind_params|_p\.bind"
)


def test_one_room_reads_programs():
    found = {
        str(path.relative_to(PACKAGE)): sorted(set(READS.findall(path.read_text())))
        for path in PACKAGE.rglob("*.py")
        if ROOM not in path.parents and READS.search(path.read_text())
    }
    assert found == {}


def test_the_room_does_read_them():
    """Else the pattern above has gone blind."""
    assert sum(bool(READS.search(path.read_text())) for path in ROOM.glob("*.py")) >= 4
