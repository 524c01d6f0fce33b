"""The noise scale over windows: values by hand, cuts, and the coverage of its interval."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adaoptax.loop import noise_windows
from adaoptax.ratio_interval import student_quantile


def rows(variance: Any, signal: Any, sizes: Any = 10) -> list[dict[str, Any]]:
    columns = np.broadcast_arrays(sizes, variance, signal)
    return [
        {"batch_size": int(b), "variance": float(v), "signal": float(s)}
        for b, v, s in zip(*columns, strict=True)
    ]


def gaussian_rows(
    rng: np.random.Generator, steps: int, size: int, dimensions: int, noise_scale: float
) -> list[dict[str, Any]]:
    """Statistics of real per-example Gaussian gradients, whose noise scale is known exactly."""
    mean = np.zeros(dimensions)
    mean[0] = 1.0
    spread = math.sqrt(noise_scale / dimensions)  # tr Σ = noise_scale · ‖mean‖²
    gradients = mean + spread * rng.standard_normal((steps, size, dimensions))
    average = gradients.mean(axis=1)
    variance = ((gradients - average[:, None]) ** 2).sum(axis=(1, 2)) / (size - 1)
    return rows(variance, (average**2).sum(axis=1) - variance / size, size)


def test_the_interval_is_the_delta_method_where_the_signal_is_well_known() -> None:
    rng = np.random.default_rng(0)
    variance, signal = 6 + 0.1 * rng.standard_normal(40), 2 + 0.01 * rng.standard_normal(40)
    (window,) = noise_windows(rows(variance, signal), num_windows=1)
    ratio = variance.mean() / signal.mean()
    error = (variance - ratio * signal).std(ddof=1) / math.sqrt(40) / signal.mean()
    assert window.noise_scale == pytest.approx(ratio, rel=1e-12)
    assert window.low == pytest.approx(ratio - 2.0227 * error, rel=1e-4)  # t(39, 97.5 %)
    assert window.high == pytest.approx(ratio + 2.0227 * error, rel=1e-4)


def test_the_ends_are_where_the_difference_is_t_standard_errors_from_zero() -> None:
    rng = np.random.default_rng(1)
    sizes = rng.integers(8, 64, 20)
    variance, signal = rng.gamma(4, 2, 20), 1.5 + rng.standard_normal(20)
    (window,) = noise_windows(rows(variance, signal, sizes), num_windows=1, level=0.9)
    weights = sizes / sizes.sum()
    quantile = student_quantile(0.9, 1 / (weights @ weights) - 1, np)
    for end in (window.low, window.high):
        difference = variance - end * signal
        mean = weights @ difference
        error = math.sqrt(weights**2 @ (difference - mean) ** 2 / (1 - weights @ weights))
        assert abs(mean) / error == pytest.approx(quantile, rel=1e-4)
    assert window.low < window.noise_scale < window.high


def test_student_quantiles_agree_with_the_table() -> None:
    table = {(0.95, 7): 2.3646, (0.95, 9): 2.2622, (0.95, 29): 2.0452, (0.99, 7): 3.4995}
    for (level, freedom), quantile in table.items():
        assert student_quantile(level, freedom, np) == pytest.approx(quantile, rel=5e-4)


def test_a_signal_in_the_noise_gives_no_number() -> None:
    signal = np.tile([-1.0, 1.2], 10)
    (window,) = noise_windows(rows(6.0, signal), num_windows=1)
    assert window.num_steps == 20
    assert all(math.isnan(x) for x in (window.noise_scale, window.low, window.high))
    (negative,) = noise_windows(rows(6.0, -1.0 - 0.01 * signal), num_windows=1)
    assert math.isnan(negative.noise_scale)


def test_windows_are_equally_long_in_examples_and_hold_enough_steps() -> None:
    sizes = np.repeat([16, 64, 512], [400, 100, 40])  # 6,400 + 6,400 + 20,480 examples
    windows = noise_windows(rows(6.0, 2.0, sizes), num_windows=26)
    assert [w.first for w in windows[1:]] == [w.last + 1 for w in windows[:-1]]
    assert windows[0].first == 0
    assert windows[-1].last == len(sizes) - 1
    examples = [int(sizes[w.first : w.last + 1].sum()) for w in windows]
    assert examples[:10] == [1280] * 10
    assert all(w.num_steps >= 8 for w in windows)
    assert [w.num_steps for w in windows[10:]] == [8] * 5


def test_a_rest_without_enough_steps_joins_the_last_window() -> None:
    windows = noise_windows(rows(6.0, np.full(30, 2.0)), num_windows=4)
    assert [(w.first, w.last, w.num_steps) for w in windows] == [
        (0, 7, 8),
        (8, 15, 8),
        (16, 29, 14),
    ]


def test_steps_that_did_not_measure_count_as_time_only() -> None:
    measured = rows(6.0, np.tile([1.9, 2.1], 6))
    idle = [{"batch_size": 10, "variance": x, "signal": None} for x in (None, math.nan)]
    mixed = [record for pair in zip(measured, idle * 6, strict=True) for record in pair]
    (alone,) = noise_windows(measured, num_windows=1)
    (window,) = noise_windows(mixed, num_windows=1)
    assert (window.last, window.num_steps) == (23, 12)
    assert window[3:] == alone[3:]


def test_too_few_steps_give_no_window() -> None:
    assert noise_windows(rows(6.0, np.full(7, 2.0))) == []
    assert noise_windows([]) == []
    assert len(noise_windows(rows(6.0, np.full(8, 2.0)))) == 1


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([1e-12, 3.0, 1e9]))
def test_the_units_of_the_loss_do_not_matter(seed: int, unit: float) -> None:
    rng = np.random.default_rng(seed)
    variance, signal = rng.gamma(4, 2, 12), 1 + rng.standard_normal(12)
    (one,) = noise_windows(rows(variance, signal), num_windows=1)
    (other,) = noise_windows(rows(unit * variance, unit * signal), num_windows=1)
    np.testing.assert_allclose(other[3:], one[3:], rtol=1e-9)


@pytest.mark.parametrize("share", [0.05, 1.0, 50.0])  # batch size over noise scale
@pytest.mark.parametrize("steps", [8, 40])
def test_the_interval_covers_the_noise_scale_of_gaussian_gradients(
    share: float, steps: int
) -> None:
    # 600 runs: the standard error of a coverage of 95 % is 0.9 points; the bound leaves 3.4.
    rng = np.random.default_rng(int(100 * share) + steps)
    size = 16
    truth = size / share
    wrong = 0
    for _ in range(600):
        run = gaussian_rows(rng, steps, size, dimensions=20, noise_scale=truth)
        (window,) = noise_windows(run, num_windows=1)
        wrong += not (math.isnan(window.low) or window.low <= truth <= window.high)
    assert wrong / 600 <= 0.08
    if share >= 1 and steps == 40:  # neither is it wider than it says
        assert wrong / 600 >= 0.02


@pytest.mark.parametrize(
    ("option", "message"),
    [({"num_windows": 0}, "num_windows"), ({"min_steps": 2}, "min_steps"), ({"level": 1}, "level")],
)
def test_arguments_out_of_range_are_refused(option: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"Expected .*{message}"):
        noise_windows(rows(6.0, 2.0, [1]), **option)
