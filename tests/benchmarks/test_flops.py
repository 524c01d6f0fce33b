from typing import Any

import jax
import jax.numpy as jnp
import pytest

from benchmarks.flops import flops


def count(fn: Any, *shapes: tuple[int, ...]) -> float:
    return flops(jax.jit(fn).lower(*(jnp.ones(shape) for shape in shapes)).compile())


@pytest.mark.parametrize("trips", [1, 16])
def test_a_product_in_a_loop_counts_at_every_trip(trips: int) -> None:
    def scanned(w: Any, xs: Any) -> Any:
        return jax.lax.scan(lambda total, x: (total + x.T @ jnp.tanh(x @ w), None), w, xs)[0]

    products = trips * 2 * (2 * 32 * 48 * 48)  # x @ w and x.T @ tanh
    assert count(scanned, (48, 48), (trips, 32, 48)) == pytest.approx(products, rel=0.03)


def test_loops_in_loops_multiply() -> None:
    def inner(w: Any, x: Any) -> Any:
        return jax.lax.fori_loop(0, 3, lambda _, y: jnp.tanh(y @ w), x)

    def outer(w: Any, xs: Any) -> Any:
        return jax.lax.map(lambda x: inner(w, x), xs)

    assert count(outer, (64, 64), (5, 32, 64)) == pytest.approx(15 * 2 * 32 * 64 * 64, rel=0.03)


def test_arithmetic_in_a_loop_counts() -> None:
    def sums(xs: Any) -> Any:
        return jax.lax.scan(lambda total, x: (total + x * x, None), jnp.zeros((100, 100)), xs)[0]

    assert count(sums, (10, 100, 100)) == pytest.approx(2 * 10 * 100 * 100, rel=0.03)


def test_a_convolution_counts_its_products() -> None:
    def convolve(x: Any, kernel: Any) -> Any:
        layout = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=layout)

    def looped(xs: Any, kernel: Any) -> Any:
        return jax.lax.map(lambda x: convolve(x, kernel), xs)

    once = 2 * (4 * 14 * 14) * (3 * 3 * 5) * 6  # positions, window, outputs
    assert count(convolve, (4, 16, 16, 5), (3, 3, 5, 6)) == pytest.approx(once, rel=0.01)
    assert count(looped, (7, 4, 16, 16, 5), (3, 3, 5, 6)) == pytest.approx(7 * once, rel=0.01)
