"""Objects of optional packages, recognised by name, so that nothing of them is imported."""

import functools
from typing import Any


def is_a(value: Any, name: str) -> bool:
    """Whether `value` is an instance of the class ``module.Class``, or of one derived from it."""
    return name in _names(value.__class__)


def is_of_package(value: Any, package: str, name: str) -> bool:
    """Whether `value` is an instance of a class `name` that any module of `package` defines."""
    return any(
        known.partition(".")[0] == package and known.rpartition(".")[2] == name
        for known in _names(value.__class__)
    )


@functools.lru_cache(256)
def _names(cls: Any) -> frozenset[str]:
    return frozenset(f"{base.__module__}.{base.__qualname__}" for base in cls.__mro__)
