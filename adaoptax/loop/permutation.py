"""The order of one epoch: a permutation that no library upgrade can change."""

import numpy as np

from adaoptax._validate import whole_number

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_EPOCH_STRIDE = np.uint64(0xD1342543DE82EF95)


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64: a bijection of the 64-bit integers."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def epoch_permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    """Order in which the n examples of one epoch are read.

    The order is made by 64-bit integer arithmetic alone. It is the same for every version of
    NumPy and on every machine, so that a checkpoint still means the same data after an upgrade
    (the streams of `numpy.random.Generator` carry no such promise). It needs 8 n bytes.

    Args:
        n: Number of examples, at least 1.
        seed: Chooses the sequence of orders, from 0 to 2**64 - 1.
        epoch: Number of the epoch, counted from 0; each has an order of its own.

    Returns:
        An int64 array that holds each of 0, ..., n - 1 exactly once.

    Raises:
        ValueError: If `n`, `seed` or `epoch` is not a whole number in its range.

    Examples:
        >>> from adaoptax.loop import epoch_permutation
        >>> epoch_permutation(10, seed=3, epoch=0).tolist()
        [5, 0, 9, 7, 6, 4, 3, 1, 8, 2]
    """
    n = whole_number("n", n, 1, "it is the number of examples of one epoch.")
    seed = seed_number(seed)
    epoch = whole_number("epoch", epoch, 0, "epochs are counted from 0.")
    # One-element arrays rather than scalars: integer arrays wrap around without a warning.
    key = _mix(np.array([seed], np.uint64) + _GOLDEN)
    key = _mix(key + np.array([epoch], np.uint64) * _EPOCH_STRIDE)
    index = np.arange(n, dtype=np.uint64) * _GOLDEN
    # `_mix` is a bijection, so all keys differ and the order does not depend on the sort used.
    return np.argsort(_mix(_mix(key + index) ^ key))


def seed_number(seed: int) -> int:
    """Returns `seed` as a plain int, or raises ValueError where it is not in [0, 2**64)."""
    seed = whole_number("seed", seed, 0, "it chooses the order of the examples.")
    if seed >= 2**64:
        raise ValueError(f"Expected seed < 2**64, got seed={seed}: pass a smaller number.")
    return seed
