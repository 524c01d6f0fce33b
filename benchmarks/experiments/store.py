"""Runs that were made, kept as CSV: final numbers in one file, curves in another."""

import collections
import csv
import os
import pathlib
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Value = str | int | float
Row = dict[str, Any]


class Store:
    """The rows of an experiment.

    A row is a case's fields, ``seed``, and its metrics; a run is known by the first two, and
    numbered by them in both files. Files are replaced as a whole, so that a kill leaves the old or
    the new ones; a run of which one file has less than the other is missing, and made again.

    Attributes:
        rows: One row a run.
        curves: One row a point, with ``point`` counting them within a run.
    """

    def __init__(self, folder: pathlib.Path, name: str) -> None:
        """Reads what is kept in `folder`.

        Raises:
            ValueError: If one of the files is damaged.
        """
        self._folder, self._name = folder, name
        rows, curves = _read(self._path("")), _read(self._path("_curves"))
        points = collections.Counter(row["run"] for row in curves)
        self.rows: list[Row] = [
            row for row in rows if row.get("curve_points") == points[row["run"]]
        ]
        self.curves: list[Row] = curves
        self._keep_curves()

    def missing(self, case: Mapping[str, Value], seeds: Iterable[int]) -> list[int]:
        """The seeds of a case that were not run yet."""
        done = {row["run"] for row in self.rows}
        return [seed for seed in seeds if _number(case, seed) not in done]

    def add(
        self,
        case: Mapping[str, Value],
        seed: int,
        metrics: Mapping[str, Any],
        curve: Mapping[str, Sequence[float]],
    ) -> None:
        """Adds one run; `save` writes it."""
        of_run = {"run": _number(case, seed), **_as_read(case), "seed": seed}
        points = list(zip(*curve.values(), strict=True))
        self.rows.append({**of_run, "curve_points": len(points), **_as_read(metrics)})
        for i, values in enumerate(points):
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
        kept = {_number(case, seed) for seed in {r["seed"] for r in self.rows} for case in cases}
        self.rows = [row for row in self.rows if row["run"] in kept]
        self._keep_curves()

    def _keep_curves(self) -> None:
        runs = {row["run"] for row in self.rows}
        self.curves = [row for row in self.curves if row["run"] in runs]

    def _path(self, suffix: str) -> pathlib.Path:
        return _path(self._folder, self._name, suffix)


def clear(folder: pathlib.Path, name: str) -> None:
    """Deletes what is kept of an experiment."""
    for suffix in ("", "_curves"):
        _path(folder, name, suffix).unlink(missing_ok=True)


def _path(folder: pathlib.Path, name: str, suffix: str) -> pathlib.Path:
    return folder / f"{name}{suffix}.csv"


def _number(case: Mapping[str, Value], seed: int) -> int:
    """Of a run: the same whatever the order of the fields."""
    return zlib.crc32(repr((sorted(_as_read(case).items()), seed)).encode())


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
    rows = []
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        for record in reader:
            # A line that is too long has a column None, one that is too short values None.
            if None in record or None in record.values() or not record.get("run"):
                raise ValueError(
                    f"Expected runs that were kept in {path}, got something else in line"
                    f" {reader.line_num}: it was edited or damaged; delete the line, or run with"
                    " --fresh."
                )
            rows.append({name: _parse(text) for name, text in record.items() if text != ""})
    return rows


def _write(rows: Sequence[Row], path: pathlib.Path) -> None:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    partial = path.with_suffix(".partial")
    with partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows({name: _show(x) for name, x in row.items()} for row in rows)
    os.replace(partial, path)
