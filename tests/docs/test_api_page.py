"""The API page holds every public name, in its tables and in full, and nothing else."""

import importlib
import inspect
import pathlib
import re

import adaoptax

PAGE = (pathlib.Path(__file__).parents[2] / "docs" / "api.md").read_text()
ROOMS = (
    "batch_tests", "loop", "measure", "noise_tracker", "prox", "scaling", "scaling.rules",
    "schedules", "stats",
)  # fmt: skip


def own_names(room: str) -> set[str]:
    """What a room has and the package itself has not; `Record` has no docstring of its own."""
    module = importlib.import_module(f"adaoptax.{room}")
    own = {
        name
        for name in module.__all__
        if getattr(module, name) is not getattr(adaoptax, name, None)
    }
    return {name for name in own if not inspect.ismodule(getattr(module, name))} - {"Record"}


def test_the_tables_hold_every_public_name_once() -> None:
    tables = re.findall(r"   :nosignatures:\n\n(.*?)```", PAGE, re.DOTALL)
    listed = [name for table in tables for name in table.split()]
    typed = {n for n in adaoptax.__all__ if not inspect.ismodule(getattr(adaoptax, n))}
    further = {f"{room}.{name}" for room in ROOMS for name in own_names(room)}
    assert sorted(listed) == sorted(typed | further)


def test_every_room_is_documented_in_full() -> None:
    for room in ROOMS:
        found = re.search(rf"automodule:: adaoptax\.{room}\n   :members: (.*)", PAGE)
        assert found is not None, room
        assert set(found[1].split(", ")) == own_names(room)
    assert all(f".. py:data:: {name}\n" in PAGE for name in adaoptax.typing.__all__)
