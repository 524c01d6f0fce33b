"""Examples as rows: stack them, join micro-batches, fill up to a fixed number of rows."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from adaoptax.loop.tensors import to_host

# One call converts a list of them, and all have one type.
_PLAIN = {int, float, bool}


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
    leaves, _ = jax.tree.flatten_with_path(batch)
    counts = {jax.tree_util.keystr(path): np.shape(leaf)[:1] for path, leaf in leaves}
    if not counts or () in counts.values() or len(set(counts.values())) > 1:
        raise ValueError(
            "Expected a micro-batch whose leaves are arrays with one equal number of rows, got "
            f"{describe_rows(counts)}: this usually means that the source yields single examples "
            "or lists of numbers; batch it into NumPy arrays first (a Hugging Face dataset by "
            '.with_format("numpy").batch(micro_batch_size)).'
        )
    return next(iter(counts.values()))[0]


def describe_rows(counts: dict[str, tuple[int, ...]]) -> str:
    """Lists leaves with their leading sizes; the first six are enough to see the mistake."""
    named = [
        f"{path or 'the array'}: {count[0] if count else 'no rows'}"
        for path, count in list(counts.items())[:6]
    ]
    return ", ".join(named) if named else "no array"


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
