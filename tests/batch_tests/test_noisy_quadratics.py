"""Noisy quadratics of known μ, L and Σ: the realised error is the tolerance asked for, and runs end
within the bound of the theory.

F(x) = Σ λ_j x_j² / 2 with λ from μ to L; the gradient of an example adds N(0, σ² I). Mean, S² and
V_ip of a batch of any size are drawn from their exact laws (normal and chi-squared), so that no
batch is ever formed; float64 numpy, fixed seeds.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adaoptax
from adaoptax import GradientStats, required_batch_size
from adaoptax.batch_tests import optimal_split, proximal_test
from adaoptax.prox import box, proximal_gradient
from adaoptax.scaling import optimal_rate, optimal_step_size

MU, L, D, SIGMA = 1.0, 8.0, 100, 0.3
CURVATURE = np.geomspace(MU, L, D)


def draw(
    rng: Any, gradient: np.ndarray, size: int, sigma: float = SIGMA
) -> tuple[jax.Array, GradientStats]:
    """Mean gradient and statistics of one batch of `size` Gaussian examples."""
    d, freedom = len(gradient), size - 1
    g = gradient + sigma / math.sqrt(size) * rng.normal(size=d)
    along = sigma**2 * rng.chisquare(freedom) / freedom
    across = sigma**2 * rng.chisquare((d - 1) * freedom) / freedom
    numbers = (size, size, g @ g, along + across, along * (g @ g))
    stats = GradientStats(*(jnp.asarray(x, jnp.float32) for x in numbers))
    return jnp.asarray(g, jnp.float32), stats


@functools.cache
def compiled(make: Any, *arguments: float, **options: Any) -> Any:
    tx = make(*arguments, **options)
    return tx.init, jax.jit(tx.update)


def next_size(state: Any, size: int) -> int:
    """The requirement, at most ten times the size at hand."""
    return int(min(math.ceil(max(float(required_batch_size(state)), 2)), 10 * size))


def settled_size(make: Any, arguments: tuple[float, ...], gradient: np.ndarray) -> int:
    """What a test asks for at a point, its own sizes followed, averaged over the last steps."""
    init, update = compiled(make, *arguments, decay=0.98)
    rng, size, state = np.random.default_rng(0), 8, init(jnp.zeros(len(gradient)))
    for _ in range(300):
        g, stats = draw(rng, gradient, size)
        state = update(g, state, stats=stats)[1]
        size = next_size(state, size)
    return size


def realised_errors(gradient: np.ndarray, size: int) -> tuple[float, float, float]:
    """Root mean square of ‖g − ∇F‖/‖∇F‖ over 2000 batches: of all, along and across ∇F."""
    rng, norm = np.random.default_rng(1), np.linalg.norm(gradient)
    error = SIGMA / math.sqrt(size) * rng.normal(size=(2000, len(gradient))) / norm
    along = error @ (gradient / norm)
    total = (error**2).sum(axis=1).mean()
    return math.sqrt(total), math.sqrt((along**2).mean()), math.sqrt(total - (along**2).mean())


@pytest.mark.parametrize("epsilon", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("make", [adaoptax.norm_test, optimal_split])
def test_the_realised_relative_error_is_the_tolerance(make, epsilon):
    gradient = CURVATURE / np.linalg.norm(CURVATURE)
    size = settled_size(make, (epsilon,), gradient)
    assert realised_errors(gradient, size)[0] == pytest.approx(epsilon, rel=0.1)


@pytest.mark.parametrize("pair", [(0.1, 0.5), (0.03, 0.9)])
def test_the_realised_errors_along_and_across_are_the_two_tolerances(pair):
    gradient = CURVATURE / np.linalg.norm(CURVATURE)
    size = settled_size(adaoptax.augmented_inner_product_test, pair, gradient)
    _, along, across = realised_errors(gradient, size)
    assert max(along / pair[0], across / pair[1]) == pytest.approx(1, rel=0.1)


def test_the_realised_error_along_is_theta_of_the_inner_product_test():
    gradient = CURVATURE / np.linalg.norm(CURVATURE)
    size = settled_size(adaoptax.inner_product_test, (0.02,), gradient)
    assert realised_errors(gradient, size)[1] == pytest.approx(0.02, rel=0.1)


def test_the_realised_error_of_a_projected_step_is_theta():
    """Half of the coordinates at a bound: the gradient is large, the complete step is not."""
    target = np.where(np.arange(D) % 2 == 0, 3.0, 0.1)
    x, rate, theta = np.where(np.arange(D) % 2 == 0, 1.0, 0.0), 0.1, 0.3
    gradient = CURVATURE * (x - target)
    complete = (np.minimum(x - rate * gradient, 1.0) - x) / rate
    tx = optax.chain(
        proximal_gradient(box(upper=1.0), rate),
        proximal_test(theta, learning_rate=rate, decay=0.98),
    )
    update, start = jax.jit(tx.update), jnp.asarray(x, jnp.float32)
    rng, size, state = np.random.default_rng(0), 8, tx.init(start)
    for _ in range(300):
        g, stats = draw(rng, gradient, size)
        state = update(g, state, start, stats=stats)[1]
        size = next_size(state, size)
    noise = SIGMA * math.sqrt(D / size)
    assert noise / np.linalg.norm(complete) == pytest.approx(theta, rel=0.1)
    assert noise / np.linalg.norm(gradient) < theta / 5  # a test of the gradient would ask for less


def test_along_a_whole_run_the_error_is_the_tolerance():
    """Each step takes the size that the step before required; contraction is 5 % a step here."""
    epsilon, curvature = 0.4, np.geomspace(1.0, 40.0, D)
    rate = optimal_step_size(epsilon, smoothness=40.0, strong_convexity=1.0)
    init, update = compiled(adaoptax.norm_test, epsilon)
    rng, x, size, state = np.random.default_rng(2), np.full(D, 1.0), 64, init(jnp.zeros(D))
    errors = []
    for step in range(90):
        gradient = curvature * x
        g, stats = draw(rng, gradient, size)
        if step >= 10:  # the first directions die out at once
            sq_error = ((np.asarray(g) - gradient) ** 2).sum()
            errors.append(sq_error / (gradient @ gradient))
        state = update(g, state, stats=stats)[1]
        size = next_size(state, size)
        x = x - rate * np.asarray(g, np.float64)
    assert math.sqrt(np.mean(errors)) == pytest.approx(epsilon, rel=0.1)
    assert size > 100  # it grew on the way


EPSILON, TARGET = 0.5, 1e-4
RUNS: dict[str, Any] = {
    "norm": (adaoptax.norm_test, (EPSILON,)),
    "split": (optimal_split, (EPSILON,)),
    "augmented": (
        adaoptax.augmented_inner_product_test,
        (EPSILON * math.sqrt(0.1), EPSILON * math.sqrt(0.9)),
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_reaches_the_target_within_the_bound(name):
    """E‖x_t‖² ≤ ρ^t ‖x_0‖², and a batch asks for tr Σ/(ε² ‖∇F‖²) ≤ tr Σ/(ε² μ² ‖x‖²) examples.

    Backwards from the target the distances are at least target/ρ^k, so that all batches together
    have at most T + tr Σ/(ε² μ² target (1 − ρ)) examples, one for rounding up each.
    """
    make, arguments = RUNS[name]
    rate = optimal_step_size(EPSILON, smoothness=L, strong_convexity=MU)
    rho = optimal_rate(EPSILON, smoothness=L, strong_convexity=MU)
    trace = SIGMA**2 * D
    start = np.full(D, 1 / math.sqrt(D))
    most_steps = math.log(TARGET) / math.log(rho)
    most_examples = most_steps + trace / (EPSILON**2 * MU**2 * TARGET * (1 - rho))
    init, update = compiled(make, *arguments)
    for seed in range(3):
        rng, x, size, state = np.random.default_rng(seed), start, 8, init(jnp.zeros(D))
        steps = examples = 0
        while x @ x > TARGET:
            g, stats = draw(rng, CURVATURE * x, size)
            state = update(g, state, stats=stats)[1]
            x, steps, examples = x - rate * np.asarray(g, np.float64), steps + 1, examples + size
            size = next_size(state, size)
            assert steps <= most_steps
        assert examples <= most_examples


def constrained_run(test: Any, rate: float, steps: int) -> float:
    """Squared distance to the solution of a box problem with half of the bounds active."""
    target = np.where(np.arange(D) % 2 == 0, 1.5, 0.3)
    curvature = np.geomspace(1.0, 3.0, D)
    solution = np.minimum(target, 1.0)
    tx = optax.chain(proximal_gradient(box(upper=1.0), rate), test)
    update, x = jax.jit(tx.update), jnp.zeros(D)
    rng, size, state = np.random.default_rng(3), 8, tx.init(jnp.zeros(D))
    for _ in range(steps):
        g, stats = draw(rng, curvature * (np.asarray(x, np.float64) - target), size)
        updates, state = update(g, state, x, stats=stats)
        x, size = x + updates, next_size(state, size)
    return ((np.asarray(x) - solution) ** 2).sum()


def test_a_constrained_run_reaches_the_target_within_the_bound_and_a_test_of_the_gradient_stalls():
    """With q = (L − μ)/(L + μ): E‖x⁺ − x*‖² ≤ (q² + θ² (1 + q)²) ‖x − x*‖² (derived)."""
    rate, q, theta, target = 2 / (1.0 + 3.0), 0.5, 0.4, 1e-4
    rho = q**2 + theta**2 * (1 + q) ** 2
    start = D / 2 + D / 2 * 0.3**2
    most_steps = math.ceil(math.log(target / start) / math.log(rho))
    assert constrained_run(proximal_test(theta, learning_rate=rate), rate, most_steps) <= target
    # Its updates put in the units of gradients again, a norm test sees the raw gradient's size
    # in `stats` and never asks for what the last steps need.
    assert constrained_run(adaoptax.norm_test(theta), rate, 3 * most_steps) > 10 * target
