"""Tiny models of every kind that people train: ``ENTRIES[name]()`` builds one.

`entry` says what an entry is; each other file holds one kind. To add a model, write a function
that returns an `Entry`, and decorate it with ``@entry``: all tests of the zoo then run on it.
"""

from zoo import (  # noqa: F401
    control_flow,
    convolutions,
    dense,
    embeddings,
    modules,
    norms,
    options,
    param_math,
    recurrent,
    scans,
    shared,
    transformers,
)
from zoo.entry import ENTRIES, Entry

__all__ = ["ENTRIES", "Entry"]
