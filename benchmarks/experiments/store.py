"""Runs that were made, kept as CSV: final numbers in one file, curves in another."""

import csv
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Value = str | int | float
Row = dict[str, Any]


class Store:
    """The rows of an experiment.

    A row is a case's fields, ``seed``, and its metrics; a run is known by the first two. Files are
    replaced as a whole, so that a kill leaves the old or the new ones.

    Attributes:
        rows: One row a run.
        curves: One row a point, with ``point`` counting them within a run.
    """

    def __init__(self, folder: pathlib.Path, name: str) -> None:
        """Reads what is kept in `folder`."""
        self._folder, self._name = folder, name
        self.rows: list[Row] = _read(self._path(""))
        self.curves: list[Row] = _read(self._path("_curves"))

    def missing(self, case: Mapping[str, Value], seeds: Iterable[int]) -> list[int]:
        """The seeds of a case that were not run yet."""
        done = {row["seed"] for row in self.rows if _is_of(row, case)}
        return [seed for seed in seeds if seed not in done]

    def add(
        self,
        case: Mapping[str, Value],
        seed: int,
        metrics: Mapping[str, Any],
        curve: Mapping[str, Sequence[float]],
    ) -> None:
        """Adds one run; `save` writes it."""
        of_run = {**_as_read(case), "seed": seed}
        self.rows.append({**of_run, **_as_read(metrics)})
        for i, values in enumerate(zip(*curve.values(), strict=True)):
            point = _as_read(dict(zip(curve, values, strict=True)))
            self.curves.append({**of_run, "point": i, **point})

    def save(self) -> None:
        """Writes both files."""
        self._folder.mkdir(parents=True, exist_ok=True)
        _write(self.rows, self._path(""))
        if self.curves:
            _write(self.curves, self._path("_curves"))

    def keep_only(self, cases: Sequence[Mapping[str, Value]]) -> None:
        """Leaves out, in memory only, what belongs to none of the cases (another size)."""
        kept = lambda row: any(_is_of(row, case) for case in cases)
        self.rows = [row for row in self.rows if kept(row)]
        self.curves = [row for row in self.curves if kept(row)]

    def clear(self) -> None:
        """Forgets all rows, also on disk."""
        self.rows, self.curves = [], []
        for path in (self._path(""), self._path("_curves")):
            path.unlink(missing_ok=True)

    def _path(self, suffix: str) -> pathlib.Path:
        return self._folder / f"{self._name}{suffix}.csv"


def _is_of(row: Mapping[str, Any], case: Mapping[str, Value]) -> bool:
    return all(row.get(name) == value for name, value in _as_read(case).items())


def _as_read(values: Mapping[str, Any]) -> Row:
    """Values as they come back from the file."""
    return {name: _parse(_show(value)) for name, value in values.items()}


def _show(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return str(int(value))
    return str(value) if isinstance(value, int) else f"{float(value):.6g}"


def _parse(text: str) -> Value:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _read(path: pathlib.Path) -> list[Row]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [
            {name: _parse(text) for name, text in record.items() if text != ""}
            for record in csv.DictReader(file)
        ]


def _write(rows: Sequence[Row], path: pathlib.Path) -> None:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    partial = path.with_suffix(".partial")
    with partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows({name: _show(x) for name, x in row.items()} for row in rows)
    os.replace(partial, path)
