"""Averages over steps (ratio of means) and the interval between tests."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adaoptax

pytestmark = pytest.mark.sampled

TESTS: dict[str, Any] = {
    "norm": lambda **o: adaoptax.norm_test(0.25, **o),
    "inner": lambda **o: adaoptax.inner_product_test(0.3, **o),
    "augmented": lambda **o: adaoptax.augmented_inner_product_test(0.3, 0.2, **o),
    "coordinate": lambda **o: adaoptax.coordinate_test(0.25, coverage=1.0, **o),
}
KINDS = ("plug-in", "debiased")


def stream(seed: int, steps: int = 40) -> list[np.ndarray]:
    """Rows of changing number; some steps are NaN, infinite or a single group."""
    rng = np.random.default_rng(seed)
    batches = []
    for step in range(steps):
        n = int(rng.integers(2, 9))
        rows = rng.normal(size=(n, 5)) + np.array([1.0, 2.0, -1.5, 0.8, 1.2])
        if step in (0, 7, 21):
            rows[0, 1] = np.nan
        elif step in (3, 22):
            rows[-1, 2] = -np.inf
        elif step in (11, 30):
            rows = rows[:1]
        batches.append(rows)
    return batches


def terms(name: str, rows: np.ndarray, kind: str) -> tuple[Any, Any]:
    """Numerators and denominators of one step, from the definitions."""
    n, g = len(rows), rows.mean(axis=0)
    each = ((rows - g) ** 2).sum(axis=0) / (n - 1)
    along = ((rows @ g - g @ g) ** 2).sum() / (n - 1)
    across = ((rows - np.outer(rows @ g / (g @ g), g)) ** 2).sum() / (n - 1)
    bias = (kind == "debiased") / n
    square = g @ g - bias * each.sum()
    if name == "coordinate":
        return each, g**2 - bias * each
    return np.array(
        {"norm": [each.sum()], "inner": [along], "augmented": [along, across]}[name]
    ), square


def requirement(name: str, noise: Any, square: Any) -> float:
    if name == "coordinate":
        held = square > 0
        return (noise[held] / square[held]).max() / 0.25**2
    if name == "norm":
        return noise[0] / (0.25**2 * square)
    if name == "inner":
        return noise[0] / (0.3**2 * square**2)
    return max(noise[0] / (0.3**2 * square**2), noise[1] / (0.2**2 * square))


def numpy_loop(name: str, batches: list[np.ndarray], kind: str, decay: float) -> list[float]:
    noise: Any = 0.0
    square: Any = 0.0
    weight, required, sizes = 0.0, None, []
    for rows in batches:
        if len(rows) > 1 and np.isfinite(rows).all():
            sample = terms(name, rows, kind)
            noise = decay * noise + (1 - decay) * sample[0]
            square = decay * square + (1 - decay) * sample[1]
            weight = decay * weight + (1 - decay)
            required = requirement(name, noise / weight, square / weight)
        sizes.append(float(len(rows)) if required is None else required)
    return sizes


def package_loop(tx: Any, batches: list[np.ndarray], numpy_stats: Any, dtype: Any) -> list[float]:
    state = tx.init(jnp.zeros(5, dtype))
    update, sizes = jax.jit(tx.update), []
    for rows in batches:
        grads, stats = numpy_stats(rows, 1, dtype)
        _, state = update(grads, state, stats=stats)
        sizes.append(float(state.required_batch_size))
    return sizes


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.95])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TESTS)
def test_ratio_of_means_survives_bad_steps(name, kind, decay, numpy_stats):
    batches = stream(1)
    sizes = package_loop(TESTS[name](signal=kind, decay=decay), batches, numpy_stats, np.float32)
    np.testing.assert_allclose(sizes, numpy_loop(name, batches, kind, decay), rtol=1e-5)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TESTS)
def test_ratio_of_means_in_float64(name, kind, numpy_stats):
    batches = stream(2)
    sizes = package_loop(TESTS[name](signal=kind, decay=0.9), batches, numpy_stats, np.float64)
    np.testing.assert_allclose(sizes, numpy_loop(name, batches, kind, 0.9), rtol=1e-10)


@pytest.mark.parametrize("name", TESTS)
def test_no_decay_equals_no_average(name, numpy_stats):
    # Well-conditioned steps: total + (x − total) is x to the rounding of the larger of the two.
    rng = np.random.default_rng(3)
    batches = [rng.normal(size=(8, 5)) + rng.uniform(4, 6) for _ in range(20)]
    alone = package_loop(TESTS[name](), batches, numpy_stats, np.float32)
    averaged = package_loop(TESTS[name](decay=0.0), batches, numpy_stats, np.float32)
    np.testing.assert_allclose(alone, averaged, rtol=1e-6)


@pytest.mark.parametrize("name", TESTS)
def test_the_first_sample_counts_in_full(name, numpy_stats):
    rows = stream(4)[1]
    alone = package_loop(TESTS[name](), [rows], numpy_stats, np.float32)
    averaged = package_loop(TESTS[name](decay=0.999), [rows], numpy_stats, np.float32)
    np.testing.assert_allclose(averaged, alone, rtol=1e-5)


def test_a_step_without_signal_lowers_the_average_instead_of_being_clamped(numpy_stats):
    noise = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -0.6]])
    clear = np.array([[1.0, 1.0], [2.0, 1.0], [1.0, 2.0], [1.0, 1.5]])
    decay = 0.5
    (n1,), s1 = terms("norm", clear, "debiased")
    (n2,), s2 = terms("norm", noise, "debiased")
    assert s2 < 0
    expected = (n1 / 2 + n2) / (0.25**2 * (s1 / 2 + s2))
    tx = TESTS["norm"](decay=decay)
    state = tx.init(jnp.zeros(2))
    for rows in (clear, noise):
        grads, stats = numpy_stats(rows)
        _, state = tx.update(grads, state, stats=stats)
    assert float(state.required_batch_size) == pytest.approx(expected, rel=1e-5)
    assert not bool(state.noise_dominated)


@pytest.mark.parametrize("decay", [None, 0.8])
@pytest.mark.parametrize("name", TESTS)
def test_between_tests_the_state_is_held(name, decay, numpy_stats):
    batches = stream(5, 8)
    batches[0], batches[3], batches[6] = batches[4], batches[5], batches[2]  # finite where tested
    batches[1] = np.full([3, 5], np.nan)  # not looked at
    batches[5] = batches[5][:1]  # neither is this
    tx = TESTS[name](interval=3, decay=decay)
    update = jax.jit(tx.update)
    state = tx.init(jnp.zeros(5))
    for step, rows in enumerate(batches):
        grads, stats = numpy_stats(rows)
        _, new = update(grads, state, stats=stats)
        assert int(new.steps_seen) == step + 1
        assert bool(new.tested) == (step % 3 == 0)
        if step % 3:
            held = lambda state: jax.tree.leaves(state._replace(steps_seen=0, tested=False))
            for old_leaf, new_leaf in zip(held(state), held(new), strict=True):
                np.testing.assert_array_equal(old_leaf, new_leaf)
        state = new
    assert int(state.tests_run) == 3  # steps 0, 3, 6
    assert int(state.tests_undefined) == 0
    tested = package_loop(TESTS[name](decay=decay), batches[::3], numpy_stats, np.float32)
    assert float(state.required_batch_size) == pytest.approx(tested[-1], rel=1e-6)
