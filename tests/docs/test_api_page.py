"""The tables of the API page hold every public name of the package, and nothing else."""

import pathlib
import re

import adaoptax

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "api.md"
IN_THE_TEXT = {"Record", "measure", "prox", "rules"}  # a type without docstring, and namespaces


def test_the_tables_hold_every_public_name_once() -> None:
    tables = re.findall(r"   :nosignatures:\n\n(.*?)```", PAGE.read_text(), re.DOTALL)
    listed = [name for table in tables for name in table.split()]
    assert sorted(listed) == sorted(set(adaoptax.__all__) - IN_THE_TEXT)
    assert all(f"`{name}`" in PAGE.read_text() for name in IN_THE_TEXT)


def test_rooms_are_documented_whole_or_by_name() -> None:
    text = PAGE.read_text()
    for room in ("measure", "scaling.rules", "prox"):
        assert f".. automodule:: adaoptax.{room}\n   :members:\n" in text
    for room in ("schedules", "loop"):
        found = re.search(rf"automodule:: adaoptax.{room}\n   :members: (.*)", text)
        assert found is not None
        further = set(getattr(adaoptax, room).__all__) - set(adaoptax.__all__)
        assert set(found[1].split(", ")) == further
    assert all(f".. py:data:: {name}\n" in text for name in adaoptax.typing.__all__)
    for room in ("batch_tests", "scaling"):
        assert set(getattr(adaoptax, room).__all__) <= set(adaoptax.__all__)
