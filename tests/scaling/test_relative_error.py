"""The step size and the rate that belong to a relative error of the gradient."""

import numpy as np
import pytest

from adaoptax.scaling import optimal_rate, optimal_step_size


@pytest.mark.parametrize("epsilon", [0.0, 0.3, 1.0, 2.0])
@pytest.mark.parametrize(("mu", "smoothness"), [(1.0, 1.0), (1.0, 9.0), (0.01, 5.0)])
def test_no_step_size_contracts_better_on_the_worst_curvature(epsilon, mu, smoothness):
    # One coordinate of curvature λ: E(x⁺)² = ((1 − αλ)² + α²ε²λ²) x², the error being ε|λx|.
    curvatures = np.linspace(mu, smoothness, 101)
    worst = lambda a: ((1 - a * curvatures) ** 2 + (a * epsilon * curvatures) ** 2).max()
    step = optimal_step_size(epsilon, smoothness=smoothness, strong_convexity=mu)
    rate = optimal_rate(epsilon, smoothness=smoothness, strong_convexity=mu)
    assert worst(step) == pytest.approx(rate, rel=1e-12)
    for factor in (0.5, 0.9, 0.99, 1.01, 1.1, 2.0):
        assert worst(step * factor) > rate


def test_python_numbers_stay_python_numbers():
    assert type(optimal_step_size(0.5, smoothness=2.0)) is float
    assert optimal_step_size(0.5, smoothness=2.0) == 0.8


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((-0.1, 1.0, 0.5), "epsilon=-0.1"),
        ((0.5, 0.0, 0.0), "smoothness=0.0"),
        ((0.5, 1.0, -1.0), "strong_convexity=-1.0"),
        ((0.5, 1.0, 2.0), "strong_convexity=2.0 and smoothness=1.0"),
    ],
)
def test_arguments_out_of_range(arguments, match):
    epsilon, smoothness, mu = arguments
    for fn in (optimal_step_size, optimal_rate):
        with pytest.raises(ValueError, match=match):
            fn(epsilon, smoothness=smoothness, strong_convexity=mu)
