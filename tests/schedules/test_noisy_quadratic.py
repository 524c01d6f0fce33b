"""Schedules on a noisy quadratic, whose expected error is known at every step.

F(w) = h w²/2 with gradients of variance σ²/B: v = E w² follows v' = (1 - lr h)² v + lr² σ²/B.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from real_loader import run_loader

from adaoptax.schedules import BatchSizeSchedule, sebs, seesaw
from adaoptax.schedules.over_examples import as_counts

pytestmark = pytest.mark.sampled


def error(rates, sizes, h, noise, start=0.0):
    """The expected F after each step, by the recursion; `noise` is σ²."""
    v, found = start, []
    for rate, size in zip(rates, sizes, strict=True):
        v = (1 - rate * h) ** 2 * v + rate**2 * noise / size
        found.append(h * v / 2)
    return np.array(found)


def follow(batch_sizes, rate, num_examples):
    """Learning rate and real examples of every step of a loader that follows both."""
    steps = run_loader(batch_sizes, num_examples)
    counts = jnp.asarray(as_counts(np.array([step.before for step in steps]), 1))
    return np.asarray(jax.vmap(rate)(counts), np.float64), [step.num_examples for step in steps]


# h = .01, lr = .5, σ = 1, 400 steps on 12,800 examples, from the optimum.
H, RATE, STEPS, EXAMPLES = 0.01, 0.5, 400, 12_800
KAPPA = H * RATE**2 / 2 * (1 - RATE * H) ** (2 * (STEPS - 1 - np.arange(STEPS)))


def test_the_recursion_is_the_closed_form():
    sizes = np.random.default_rng(0).uniform(1, 100, STEPS)
    by_recursion = error([RATE] * STEPS, sizes, H, 1.0)[-1]
    np.testing.assert_allclose(by_recursion, np.sum(KAPPA / sizes), rtol=1e-12)


def test_the_late_batches_of_the_optimum_beat_a_constant_batch():
    """Σ κ/B is least at B ∝ √κ: (Σ √κ)²/D, by Cauchy-Schwarz."""
    best = EXAMPLES * np.sqrt(KAPPA) / np.sqrt(KAPPA).sum()
    constant = error([RATE] * STEPS, [32] * STEPS, H, 1.0)[-1]
    optimum = error([RATE] * STEPS, best, H, 1.0)[-1]
    np.testing.assert_allclose(constant, 0.00384503, rtol=2e-6)
    np.testing.assert_allclose(optimum, 0.00292507, rtol=2e-6)
    np.testing.assert_allclose(optimum, np.sqrt(KAPPA).sum() ** 2 / EXAMPLES, rtol=1e-12)
    # In whole examples, as a loader delivers them.
    whole = BatchSizeSchedule.from_steps([(i, round(b)) for i, b in enumerate(best)])
    rates, sizes = follow(whole, lambda count: jnp.full_like(count, RATE), EXAMPLES)
    assert abs(len(sizes) - STEPS) <= 1
    np.testing.assert_allclose(error(rates, sizes, H, 1.0)[-1], 0.00292507, rtol=5e-3)


DECAYS = {
    "cosine to a tenth": (optax.cosine_decay_schedule(0.05, 200_000, alpha=0.1), 0.55),
    "line to a fifth": (optax.linear_schedule(0.05, 0.01, 200_000), 0.6),
    "three cuts": (
        optax.piecewise_constant_schedule(0.05, {50_000: 0.5, 100_000: 0.5, 150_000: 0.4}),
        (1 + 0.5 + 0.25 + 0.1) / 4,
    ),
}


@pytest.mark.parametrize("sizes", [None, (32, 64, 128, 256)])
@pytest.mark.parametrize("exponent", [1.0, 0.5])
@pytest.mark.parametrize("name", DECAYS)
def test_seesaw_ends_where_the_decay_ends_in_fewer_steps(name, exponent, sizes):
    """SGD, and (for 0.5) steps normalised by √(σ²/B), the noise that dominates the gradient."""
    schedule, ratio = DECAYS[name]
    total, first, noise = 200_000, 32, 4.0

    def final(batch_sizes, rate):
        rates, each = follow(batch_sizes, rate, total)
        if exponent == 0.5:
            rates = rates * np.sqrt(np.array(each) / first)
        # Without a short last batch: a few examples at the full learning rate add their noise.
        full = len(each) - (each[-1] < each[-2])
        return error(rates[:full], each[:full], 0.1, noise, start=1.0)[-1], full

    expected, steps = final(BatchSizeSchedule([(0, first)]), schedule)
    batch_sizes, rate = seesaw(schedule, first, total, exponent=exponent, sizes=sizes)
    reached, fewer = final(batch_sizes, rate)
    np.testing.assert_allclose(reached, expected, rtol=0.01)
    if sizes is None:
        np.testing.assert_allclose(fewer / steps, ratio, rtol=0.02)
    else:
        assert ratio * steps * 0.99 < fewer < 0.8 * steps
    # Growing the batch without the power of it that belongs to the step would not end there.
    wrong = final(batch_sizes, schedule)[0]
    assert abs(wrong / expected - 1) > 0.05


def test_sebs_divides_the_error_by_rho_in_every_stage_with_the_same_number_of_updates():
    """With C_1 and b_1 of the derivation for α = 2, μ = h/2: the bound holds at every stage."""
    h, rate, noise, rho, start, count = 1.0, 0.1, 1e4, 4, 100.0, 5
    first_error, alpha, mu = h * start / 2, 2.0, h / 2
    first_stage = 2 * noise * rho**2 / (alpha**2 * mu * first_error)
    first_batch = 2 * rate * noise * rho / (alpha * first_error)
    updates = rho / (alpha * mu * rate)
    assert (first_stage, first_batch, updates) == (3200, 80, 40)
    batch_sizes, schedule = sebs(80, rate, rho=rho, first_stage=3200, num_stages=count)
    total = 3200 * (rho**count - 1) // (rho - 1)
    rates, sizes = follow(batch_sizes, lambda n: schedule(n) + 0 * n, total)
    assert len(sizes) == count * updates
    reached = error(rates, sizes, h, noise, start)
    at_ends = reached[int(updates) - 1 :: int(updates)]
    assert (at_ends <= first_error / rho ** np.arange(1, count + 1)).all()

    # Classical stagewise SGD: the same examples and the same error, 68 times the updates.
    ends = [begin for begin, _ in batch_sizes.stages or ()][1:]
    divided = optax.piecewise_constant_schedule(rate, {end: 1 / rho for end in ends})
    rates, sizes = follow(BatchSizeSchedule([(0, 80)]), divided, total)
    assert len(sizes) == total // 80 == 13_640
    np.testing.assert_allclose(error(rates, sizes, h, noise, start)[-1], reached[-1], rtol=0.1)
