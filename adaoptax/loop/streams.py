"""From a source to the stream that reads it; what could not be resumed is refused here."""

from typing import Any

from adaoptax._numbers import whole_number
from adaoptax.loop.index_stream import IndexStream
from adaoptax.loop.iterator_stream import IteratorStream
from adaoptax.loop.iterators import as_saving_iterator
from adaoptax.loop.permutation import seed_number
from adaoptax.loop.share import Share
from adaoptax.loop.sources import as_random_access

_UNKNOWN_SOURCE = """\
Expected as source one of the two kinds that can be resumed exactly, got {kind}. Pass either \
(a) random access: arrays with equal leading lengths (a dict, tuple or NamedTuple of them), a \
list of examples, or an object with __len__ and __getitem__ (grain.MapDataset, a map-style torch \
dataset instead of its DataLoader, a Hugging Face Dataset, tfds.data_source instead of a \
tf.data.Dataset, list(...) of a set or generator); or \
(b) an iterator of ready micro-batches that can save its place: get_state/set_state (a grain \
iterator) or state_dict/load_state_dict (torchdata's StatefulDataLoader, a Hugging Face \
IterableDataset)."""


def open_stream(
    source: Any,
    share: Share,
    *,
    shuffle: bool,
    seed: int,
    num_epochs: int | None,
    prefetch: int,
) -> IndexStream | IteratorStream:
    """Opens `source` by its kind, or raises TypeError where its place could not be saved."""
    seed = seed_number(seed)
    prefetch = whole_number("prefetch", prefetch, 0, "it counts micro-batches.")
    if num_epochs is not None:
        num_epochs = whole_number("num_epochs", num_epochs, 1, "pass None for no end.")
    rows = as_random_access(source)
    if rows is not None:
        return IndexStream(
            rows,
            share,
            shuffle=bool(shuffle),
            seed=seed,
            num_epochs=num_epochs,
            prefetch=prefetch,
        )
    iterator = as_saving_iterator(source)
    if iterator is None:
        kind = "None" if source is None else f"an object of type {type(source).__name__}"
        raise TypeError(_UNKNOWN_SOURCE.format(kind=kind))
    for name, value in {"num_epochs": num_epochs, "prefetch": prefetch}.items():
        if value:
            raise ValueError(
                f"Expected no {name} with an iterator as source, got {name}={value}: the iterator "
                "decides it; set it where the iterator is made."
            )
    return IteratorStream(iterator, share)
