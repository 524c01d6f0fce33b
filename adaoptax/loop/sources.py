"""Sources with random access: what the user has, as rows that can be gathered by index."""

import sys
from collections.abc import Iterator, Mapping, ValuesView
from typing import Any, Protocol

import jax
import numpy as np

from adaoptax.loop.packages import is_a, is_array, is_of_package, to_host
from adaoptax.loop.rows import SameKind, equal_rows, stack_examples

# Far more examples than any order fits in memory: `len` of an endlessly repeated dataset.
_ENDLESS = min(2**40, sys.maxsize)
_TENSOR_DATASET = "torch.utils.data.dataset.TensorDataset"


class RandomAccess(Protocol):
    """Examples that can be read in any order.

    Attributes:
        length: Number of examples n.
        knows_epochs: Whether index e * n + i is example i as the source varies it in epoch e
            (grain datasets: fresh random augmentation), rather than out of range.
    """

    length: int
    knows_epochs: bool

    def gather(self, indices: np.ndarray) -> Any:
        """Returns the examples at `indices` as one pytree with a leading axis of rows."""


class ArraySource:
    """A pytree of arrays with equal leading lengths, read by one fancy index a leaf."""

    knows_epochs = False

    def __init__(self, arrays: Any) -> None:
        self._structure: Any
        named, self._structure = jax.tree.flatten_with_path(arrays)
        for path, leaf in named:
            if not is_array(leaf):
                raise TypeError(
                    f"Expected NumPy, JAX or torch arrays in source, got {type(leaf).__name__} at "
                    f"source{jax.tree_util.keystr(path)}: convert it with np.asarray, or pass a "
                    "list where the elements are examples."
                )
        self.length = _checked_length(
            equal_rows(
                arrays,
                "arrays in source with one equal leading length, the number of examples",
                "put the examples first in every array.",
            )
        )
        self._leaves = [to_host(leaf) for _, leaf in named]

    def gather(self, indices: np.ndarray) -> Any:
        """Returns the rows at `indices` of every array."""
        return self._structure.unflatten([leaf.take(indices, axis=0) for leaf in self._leaves])


class ExampleSource:
    """An object with `__len__` and `__getitem__` that returns one example pytree an index."""

    def __init__(self, examples: Any) -> None:
        self._examples = examples
        self.length = _checked_length(len(examples))
        self.knows_epochs = is_of_package(examples, "grain", "MapDataset")
        self._kind = SameKind()

    def gather(self, indices: np.ndarray) -> Any:
        """Reads the examples in one call where `__getitems__` is offered, else one by one."""
        wanted = indices.tolist()
        self._check_length()
        try:
            examples = self._read(wanted)
        except IndexError:
            self._check_length()
            raise
        except StopIteration as error:
            # Inside `next` it would look like the end of the data, and drop the rest in silence.
            raise RuntimeError(
                "Expected source to return examples, but it raised StopIteration: an index "
                "below its length must give an example."
            ) from error
        if len(examples) != len(wanted):
            raise ValueError(
                f"Expected {len(wanted)} examples from source.__getitems__, got {len(examples)}: "
                "it must return a list with one example an index."
            )
        batch = stack_examples(examples, wanted)
        self._kind.check(batch)
        return batch

    def _read(self, wanted: list[int]) -> list[Any]:
        if hasattr(self._examples, "__getitems__"):
            return self._examples.__getitems__(wanted)
        return [self._examples[index] for index in wanted]

    def _check_length(self) -> None:
        length = len(self._examples)
        if length != self.length:
            raise ValueError(
                f"Expected source with {self.length} examples as at first, got {length}: it must "
                "not change while it is read; make a new loader for the changed data."
            )


class HuggingFaceSource:
    """Columns of a map-style `datasets.Dataset`, in its own format, or else in that of NumPy.

    The columns are read at once. (Taking them apart into examples and stacking these again costs
    3 to 4 microseconds more an example.)
    """

    knows_epochs = False

    def __init__(self, dataset: Any) -> None:
        kind = dataset.format["type"]
        if kind in ("arrow", "pandas", "polars"):
            raise ValueError(
                f"Expected a dataset of arrays as source, got one with the format {kind!r}: pass "
                'dataset.with_format("numpy").'
            )
        self.length = _checked_length(len(dataset))
        columns = dataset.format["columns"]
        if kind is None:  # lists of Python numbers, and pictures as objects
            dataset = dataset.with_format("numpy", columns=columns)
        self._dataset = dataset
        # What a transform of the user's makes of None is its own affair.
        checked = [] if kind == "custom" else columns
        self._holes = [name for name in checked if _has_holes(dataset.data.column(name))]
        self._arrow = dataset.with_format("arrow", columns=self._holes) if self._holes else None
        self._kind = SameKind()

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
        self._kind.check(batch)
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


def as_random_access(source: Any) -> RandomAccess | None:
    """Wraps `source` for reading by index; None where it offers no random access."""
    if is_array(source) or _is_container(source):
        return ArraySource(source)
    if type(source).__name__ == "TensorDataset" and is_a(source, _TENSOR_DATASET):
        return ArraySource(tuple(source.tensors))  # the same examples, by one index for all
    if is_a(source, "datasets.arrow_dataset.Dataset"):
        return HuggingFaceSource(source)
    if isinstance(source, (str, bytes)):
        raise TypeError(
            f"Expected examples as source, got {source!r:.80}: this usually means a path or "
            "the name of a dataset; load it first and pass its arrays or a list of examples."
        )
    if isinstance(source, Mapping):
        raise TypeError(
            f"Expected examples as source, got a {type(source).__name__} with the keys "
            f"{list(source)[:6]}: pass one of its values (one split), or a dict of arrays."
        )
    if hasattr(source, "__len__") and hasattr(source, "__getitem__"):
        return ExampleSource(source)
    return None


def _is_container(source: Any) -> bool:
    """Whether `source` is a pytree node; a list is a sequence of examples instead."""
    if source is None or isinstance(source, (list, Iterator, ValuesView)):
        return False  # (JAX deprecates asking whether an iterator is a pytree)
    leaves = jax.tree.leaves(source)
    return not (len(leaves) == 1 and leaves[0] is source)


def _checked_length(length: int) -> int:
    if length == 0:
        raise ValueError(
            "Expected source with at least one example, got none: check the filter or the split "
            "that made it."
        )
    if length >= _ENDLESS:
        raise ValueError(
            f"Expected source with a finite number of examples, got a length of {length}: pass "
            "the dataset without .repeat(); the loader repeats it (see num_epochs)."
        )
    return length
