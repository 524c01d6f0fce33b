"""Sources with random access: what the user has, as rows that can be gathered by index."""

import sys
from collections.abc import Iterator, Mapping, ValuesView
from typing import Any, Protocol

import jax
import numpy as np

from adaoptax.loop.huggingface import HuggingFaceSource
from adaoptax.loop.kinds import is_a, is_of_package
from adaoptax.loop.rows import describe_rows, stack_examples
from adaoptax.loop.signature import Signature
from adaoptax.loop.tensors import is_array, to_host

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
        counts = {jax.tree_util.keystr(path): np.shape(leaf)[:1] for path, leaf in named}
        if not counts or () in counts.values() or len(set(counts.values())) > 1:
            raise ValueError(
                "Expected arrays in source with one equal leading length, the number of "
                f"examples, got {describe_rows(counts)}: put the examples first in every array."
            )
        self._leaves = [to_host(leaf) for _, leaf in named]
        self.length = _checked_length(len(self._leaves[0]))

    def gather(self, indices: np.ndarray) -> Any:
        """Returns the rows at `indices` of every array."""
        return self._structure.unflatten([leaf.take(indices, axis=0) for leaf in self._leaves])


class ExampleSource:
    """An object with `__len__` and `__getitem__` that returns one example pytree an index."""

    def __init__(self, examples: Any) -> None:
        self._examples = examples
        self.length = _checked_length(len(examples))
        self.knows_epochs = is_of_package(examples, "grain", "MapDataset")
        self._signature = Signature()

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
        self._signature.check(batch)
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
