"""The order of an epoch: pinned, complete, uniform."""

import itertools

import numpy as np
import pytest

from adaoptax.loop import epoch_permutation


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        # Pinned for ever: a change of these numbers reorders the data of every checkpoint.
        ((10, 3, 0), [5, 0, 9, 7, 6, 4, 3, 1, 8, 2]),
        ((1, 0, 0), [0]),
    ],
)
def test_fingerprint(arguments, expected):
    assert epoch_permutation(*arguments).tolist() == expected


def test_agrees_with_arithmetic_on_python_integers():
    mask = 2**64 - 1

    def mix(x):
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & mask
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB & mask
        return x ^ (x >> 31)

    golden = 0x9E3779B97F4A7C15
    for n, seed, epoch in [(7, 0, 0), (100, 2**64 - 1, 12), (33, 5, 10**6)]:
        key = mix((mix((seed + golden) & mask) + epoch * 0xD1342543DE82EF95) & mask)
        keys = [mix(mix((key + i * golden) & mask) ^ key) for i in range(n)]
        expected = sorted(range(n), key=keys.__getitem__)
        assert epoch_permutation(n, seed, epoch).tolist() == expected


@pytest.mark.parametrize("n", [1, 2, 17, 1000, 65537])
def test_holds_every_index_once(n):
    order = epoch_permutation(n, seed=7, epoch=2)
    assert order.dtype == np.int64
    np.testing.assert_array_equal(np.sort(order), np.arange(n))


@pytest.mark.parametrize(("vary", "n"), [("seed", 4), ("epoch", 4), ("seed", 3), ("epoch", 2)])
def test_all_orders_are_equally_likely(vary, n):
    orders = {order: 0 for order in itertools.permutations(range(n))}
    draws = 4000
    for value in range(draws):
        orders[
            tuple(epoch_permutation(n, **({"seed": 1, "epoch": 0} | {vary: value})).tolist())
        ] += 1
    expected = draws / len(orders)
    chi_square = sum((count - expected) ** 2 / expected for count in orders.values())
    freedom = len(orders) - 1
    # Four standard deviations of the chi-square distribution above its mean.
    assert chi_square < freedom + 4 * (2 * freedom) ** 0.5


def test_orders_of_epochs_and_seeds_are_unrelated():
    n = 2000
    first = epoch_permutation(n, 0, 0)
    for other in (epoch_permutation(n, 0, 1), epoch_permutation(n, 1, 0)):
        # The number of fixed points of a random permutation is Poisson with mean 1.
        assert np.count_nonzero(first == other) < 8
        assert abs(np.corrcoef(first, other)[0, 1]) < 4 / n**0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 0, 0), "Expected n >= 1, got n=0"),
        ((2.5, 0, 0), "Expected n to be a whole number, got n=2.5"),
        ((3, -1, 0), "Expected seed >= 0, got seed=-1"),
        ((3, 2**64, 0), "Expected seed < 2"),
        ((3, 0, -1), "Expected epoch >= 0, got epoch=-1"),
    ],
)
def test_refuses_numbers_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        epoch_permutation(*arguments)
