"""A batch of rows: examples are stacked, joined, padded, counted, and checked to be alike."""

import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from adaoptax._tree import ArrayTree
from adaoptax.loop.packages import to_host

# One call converts a list of them, and all have one type.
_PLAIN = {int, float, bool}


class Batch(NamedTuple):
    """One batch on the host, or the rows of it that one process reads.

    Attributes:
        data: A pytree like one example, of NumPy arrays with a leading axis of rows.
        mask: Booleans, one a row: True for real examples, False for padding. Real rows come
            first; padding rows are copies of the first row (where this process has no real row at
            all: of the first of the batch).
    """

    data: ArrayTree
    mask: np.ndarray

    @property
    def num_examples(self) -> int:
        """Number of real examples in these rows; see `BatchLoader.num_examples` for all."""
        return int(np.count_nonzero(self.mask))


def stack_examples(examples: Sequence[Any], indices: Sequence[int]) -> Any:
    """Stacks example pytrees into one pytree whose leaves have a leading axis of rows."""
    for index, example in zip(indices, examples, strict=True):
        if example is None:
            raise ValueError(
                f"Expected an example at source[{index}], got None: this usually means a "
                "grain.MapDataset after .filter(), which leaves holes; pass "
                "dataset.to_iter_dataset().batch(micro_batch_size) instead."
            )
    return _join(examples, np.stack, [f"source[{index}]" for index in indices])


def join_micro_batches(parts: Sequence[Any]) -> Any:
    """Joins micro-batches along their leading axis."""
    if len(parts) == 1:
        return jax.tree.map(to_host, parts[0])
    return _join(
        parts, np.concatenate, [f"micro-batch {i} of this batch" for i in range(len(parts))]
    )


def _join(
    trees: Sequence[Any], join: Callable[[Sequence[Any]], np.ndarray], names: Sequence[str]
) -> Any:
    structure: Any
    first, structure = jax.tree.flatten(trees[0])
    rows = [first]
    for name, tree in zip(names[1:], trees[1:], strict=True):
        leaves, other = jax.tree.flatten(tree)
        if other != structure:
            raise ValueError(
                f"Expected examples of one structure, got {structure} at {names[0]} and {other} "
                f"at {name}: give every example the same keys and fields, and lists one length "
                "(or make them arrays)."
            )
        rows.append(leaves)
    columns = zip(*rows, strict=True)
    return structure.unflatten([_join_leaf(column, join, names) for column in columns])


def _join_leaf(
    column: Sequence[Any], join: Callable[[Sequence[Any]], np.ndarray], names: Sequence[str]
) -> np.ndarray:
    types = set(map(type, column))
    if len(types) == 1 and types <= _PLAIN:
        return np.asarray(column)
    arrays = column if types == {np.ndarray} else [to_host(leaf) for leaf in column]
    dtypes = [array.dtype for array in arrays]
    if len(set(dtypes)) > 1 and not all(dtype.kind in "US" for dtype in dtypes):
        odd = next(i for i, dtype in enumerate(dtypes) if dtype != dtypes[0])
        raise ValueError(
            f"Expected examples of one type, got {dtypes[0]} at {names[0]} and {dtypes[odd]} at "
            f"{names[odd]}: convert them to one type in the source."
        )
    try:
        return join(arrays)
    except ValueError as error:
        shapes = [array.shape for array in arrays]
        odd = next((i for i, shape in enumerate(shapes) if shape != shapes[0]), 0)
        raise ValueError(
            f"Expected examples of one shape, got {shapes[0]} at {names[0]} and {shapes[odd]} at "
            f"{names[odd]}: pad or crop them to one shape before the loader."
        ) from error


def num_rows(batch: Any) -> int:
    """The common number of rows of all leaves of a micro-batch, or a ValueError that names them."""
    return equal_rows(
        batch,
        "a micro-batch whose leaves are arrays with one equal number of rows",
        "this usually means that the source yields single examples or lists of numbers; batch it "
        "into NumPy arrays first (a Hugging Face dataset by "
        '.with_format("numpy").batch(micro_batch_size)).',
    )


def equal_rows(tree: Any, expected: str, remedy: str) -> int:
    """The leading length that all leaves share, or a ValueError made of `expected` and `remedy`."""
    leaves, _ = jax.tree.flatten_with_path(tree)
    rows = {jax.tree_util.keystr(path): np.shape(leaf)[:1] for path, leaf in leaves}
    if rows and () not in rows.values() and len(set(rows.values())) == 1:
        return next(iter(rows.values()))[0]
    named = [  # the first six are enough to see the mistake
        f"{path or 'the array'}: {count[0] if count else 'no rows'}"
        for path, count in list(rows.items())[:6]
    ]
    raise ValueError(f"Expected {expected}, got {', '.join(named) or 'no array'}: {remedy}")


def pad_rows(batch: Any, rows: int) -> Any:
    """Fills every leaf up to `rows` rows with copies of its first row (harmless numbers)."""

    def pad(leaf: np.ndarray) -> np.ndarray:
        if len(leaf) == rows:
            return leaf
        padded = np.empty((rows, *leaf.shape[1:]), leaf.dtype)
        padded[: len(leaf)] = leaf
        padded[len(leaf) :] = leaf[0]
        return padded

    return jax.tree.map(pad, batch)


def checksum_of_rows(batch: Any) -> int:
    """Checksum of types, shapes and values."""
    checksum = 0
    for leaf in jax.tree.leaves(batch):
        array = np.asarray(leaf)
        checksum = zlib.crc32(f"{array.dtype.str}{array.shape}".encode(), checksum)
        # Objects are pointers in memory, which differ from run to run.
        if not (array.dtype.hasobject or array.dtype.kind == "T"):
            checksum = zlib.crc32(array.tobytes(), checksum)
    return checksum


class SameKind:
    """Checks that all rows of a source have one structure, and its types and shapes.

    A change would compile the training step again.
    """

    def __init__(self) -> None:
        self._first: tuple[Any, list[str]] | None = None

    def check(self, batch: Any) -> None:
        """Raises ValueError where the rows of `batch` differ from the first that were checked."""
        leaves, structure = jax.tree.flatten(batch)
        found = structure, [_describe(leaf) for leaf in leaves]
        if self._first is None:
            self._first = found
        elif found != self._first:
            before, now = (f"{tree.unflatten(text)!r:.300}" for tree, text in (self._first, found))
            raise ValueError(
                f"Expected examples as before, {before}, got {now}: the source changed in the "
                "middle, and the training step would be compiled again or compute something "
                "else; give all examples the same fields, types and shapes."
            )


def _describe(leaf: np.ndarray) -> str:
    # Texts of another length are no other type.
    dtype = leaf.dtype.kind if leaf.dtype.kind in "US" else leaf.dtype.name
    return f"{dtype}{list(leaf.shape[1:])}"
