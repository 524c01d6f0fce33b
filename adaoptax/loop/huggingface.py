"""A Hugging Face `Dataset`, read by columns; nothing of the package is imported."""

from typing import Any

import numpy as np

from adaoptax.loop.rows import stack_examples
from adaoptax.loop.signature import Signature
from adaoptax.loop.tensors import is_array, to_host

_TABLES = ("arrow", "pandas", "polars")


class HuggingFaceSource:
    """Columns of a map-style dataset, in the format that it has, or else in that of NumPy.

    The columns are read at once. (Taking them apart into examples and stacking these again costs
    3 to 4 microseconds more an example.)
    """

    knows_epochs = False

    def __init__(self, dataset: Any) -> None:
        kind = dataset.format["type"]
        if kind in _TABLES:
            raise ValueError(
                f"Expected a dataset of arrays as source, got one with the format {kind!r}: pass "
                'dataset.with_format("numpy").'
            )
        if not len(dataset):
            raise ValueError(
                "Expected source with at least one example, got none: check the filter or the "
                "split that made it."
            )
        columns = dataset.format["columns"]
        if kind is None:  # lists of Python numbers, and pictures as objects
            dataset = dataset.with_format("numpy", columns=columns)
        self.length = len(dataset)
        self._dataset = dataset
        # What a transform of the user's makes of None is its own affair.
        self._holes = [] if kind == "custom" else _columns_with_holes(dataset, columns)
        self._arrow = dataset.with_format("arrow", columns=self._holes) if self._holes else None
        self._signature = Signature()

    def gather(self, indices: np.ndarray) -> Any:
        """Returns the examples at `indices` as a dict of columns."""
        wanted = _as_slice(indices)
        self._refuse_holes(wanted)
        columns = self._dataset[wanted]
        if all(_is_column(column, len(indices)) for column in columns.values()):
            batch = {name: to_host(column) for name, column in columns.items()}
        else:  # nested features, or shapes that differ, which is refused there
            names = list(columns)
            rows = zip(*columns.values(), strict=True)
            examples = [dict(zip(names, row, strict=True)) for row in rows]
            batch = stack_examples(examples, indices.tolist())
        self._signature.check(batch)
        return batch

    def _refuse_holes(self, wanted: Any) -> None:
        if self._arrow is None:
            return
        table = self._arrow[wanted]
        for name in self._holes:
            if _has_holes(table.column(name)):
                raise ValueError(
                    f"Expected numbers in column {name!r} of source, got None: fill or filter it, "
                    f"or leave it out by dataset.remove_columns({name!r})."
                )


def _as_slice(indices: np.ndarray) -> Any:
    """A slice where `indices` follow each other, which is many times faster to read."""
    first, last = int(indices[0]), int(indices[-1])
    if last - first == len(indices) - 1 and (np.diff(indices) == 1).all():
        return slice(first, last + 1)
    return indices.tolist()


def _is_column(column: Any, rows: int) -> bool:
    """Whether one array holds the column; of unequal shapes there is an array of objects."""
    return is_array(column) and column.shape[:1] == (rows,) and column.dtype != object


def _columns_with_holes(dataset: Any, columns: list[str]) -> list[str]:
    return [name for name in columns if _has_holes(dataset.data.column(name))]


def _has_holes(column: Any) -> bool:
    """Whether an Arrow column holds None, in lists too (NumPy would show NaN)."""
    return any(map(_array_has_holes, column.chunks))


def _array_has_holes(array: Any) -> bool:
    if array.null_count:
        return True
    array = getattr(array, "storage", array)
    inner = array.flatten() if array.type.num_fields else []
    # Fields of a structure may well be empty: a picture has its bytes or its path.
    return not isinstance(inner, list) and _array_has_holes(inner)
