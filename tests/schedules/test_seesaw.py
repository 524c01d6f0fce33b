"""Seesaw: what is cut, by whole numbers and by integrals, for schedules of every kind."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adaoptax.schedules import BatchSizeSchedule, over_examples, plan, seesaw
from adaoptax.schedules.over_examples import as_counts

pytestmark = pytest.mark.sampled

N = 1_000_000
SMOOTH = {
    "quarter cosine": (lambda n: 1e-3 * jnp.cos(jnp.pi / 2 * n / N), 2 / np.pi),
    "half cosine": (optax.cosine_decay_schedule(1e-3, N), 0.5),
    "line": (optax.linear_schedule(1e-3, 0.0, N), 0.5),
    "cosine to a tenth": (optax.cosine_decay_schedule(1e-3, N, alpha=0.1), 0.55),
    "warm-up and half cosine": (
        optax.warmup_cosine_decay_schedule(0.0, 1e-3, N // 10, N),
        0.1 + 0.9 * 0.5,
    ),
    "exponential": (optax.exponential_decay(1e-3, N, 0.01), 0.99 / np.log(100)),
}


def rate_at(rate, examples):
    """The learning rate, as the clock of examples hands it the count."""
    return np.asarray(jax.vmap(rate)(jnp.asarray(as_counts(examples, 1))), np.float64)


def steps_by_recursion(shape, batch_size, num_examples):
    """A loader in float64 that takes floor(B0 / shape) examples at each step."""
    examples = steps = 0
    while examples < num_examples:
        size = np.floor(batch_size * (1 + 1e-5) / max(shape(examples), 1e-12))
        examples, steps = examples + size, steps + 1
    return steps


@pytest.mark.parametrize("name", SMOOTH)
def test_the_steps_of_a_run_shrink_to_the_integral_of_the_decay(name):
    schedule, integral = SMOOTH[name]
    batch_sizes, _ = seesaw(schedule, 200, N)
    ratio = plan(batch_sizes, N).num_steps / (N / 200)
    # Sizes are rounded down: by half an example of 200 or more, hence never fewer steps.
    assert integral * 0.999 < ratio < integral * 1.004


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("quarter cosine", lambda n: np.cos(np.pi / 2 * n / N)),
        ("half cosine", lambda n: (1 + np.cos(np.pi * n / N)) / 2),
        ("line", lambda n: 1 - n / N),
    ],
)
def test_the_steps_are_those_of_a_recursion_in_float64(name, shape):
    batch_sizes, _ = seesaw(SMOOTH[name][0], 200, N)
    steps = plan(batch_sizes, N).num_steps
    # The float32 rate moves a few of thousands of thresholds by one example.
    assert abs(steps - steps_by_recursion(shape, 200, N)) <= 1


@pytest.mark.parametrize("exponent", [0.5, 1.0, 0.7])
@pytest.mark.parametrize("name", SMOOTH)
def test_rate_and_size_stay_in_proportion_at_every_example(name, exponent):
    schedule, _ = SMOOTH[name]
    batch_sizes, rate = seesaw(schedule, 256, N, exponent=exponent, multiple_of=64)
    examples = np.random.default_rng(0).integers(0, N, 500)
    sizes = np.array([batch_sizes(int(n)) for n in examples])
    expected = rate_at(schedule, examples) * (sizes / 256) ** exponent
    np.testing.assert_allclose(rate_at(rate, examples), expected, rtol=1e-5)
    assert not (sizes % 64).any()


def test_the_continuous_form_of_a_quarter_cosine():
    """B0 / c and lr0 sqrt(c), where sizes are fine enough not to matter."""
    schedule, _ = SMOOTH["quarter cosine"]
    batch_sizes, rate = seesaw(schedule, 10_000, N)
    examples = np.arange(0, 900_000, 9_999)
    c = np.cos(np.pi / 2 * examples / N)
    sizes = np.array([batch_sizes(int(n)) for n in examples])
    np.testing.assert_allclose(sizes, 10_000 / c, rtol=1.2e-4)
    np.testing.assert_allclose(rate_at(rate, examples), 1e-3 * np.sqrt(c), rtol=1e-4)


@settings(max_examples=15)  # each compiles
@given(
    st.lists(st.tuples(st.integers(1, 400), st.sampled_from([2, 3, 4, 10])), max_size=5),
    st.sampled_from([1, 8]),
    st.integers(1, 100),
)
def test_each_cut_of_a_piecewise_schedule_by_alpha_is_a_batch_times_alpha(steps, micro, factor):
    boundaries: dict[int, float] = {}
    cut, stages = 1, [(0, 8 * factor)]
    for length, alpha in steps:
        begin = max(boundaries, default=0) + length
        boundaries[begin], cut = 1 / alpha, cut * alpha
        stages.append((begin, 8 * factor * cut))
    schedule = optax.piecewise_constant_schedule(0.3, boundaries)
    total = stages[-1][0] + 10**9
    if not steps:
        with pytest.raises(ValueError, match="nothing to do"):
            seesaw(schedule, 8 * factor, total, multiple_of=micro)
        return
    batch_sizes, rate = seesaw(schedule, 8 * factor, total, multiple_of=micro)
    assert batch_sizes.stages == tuple(stages)
    for begin, size in stages:
        expected = 0.3 / np.sqrt(size / (8 * factor))
        np.testing.assert_allclose(rate_at(rate, [begin]), expected, rtol=1e-5)


def test_a_warm_up_is_left_as_it_is_and_its_peak_found_between_places():
    """The peak lies between two of the 65,536 places: cuts are measured from its exact height."""
    total, peak = 16_000_000, 1_234_567
    up_then_cut = optax.join_schedules(
        [
            optax.linear_schedule(0.0, 1.0, peak),
            optax.piecewise_constant_schedule(1.0, {9_000_000: 0.1}),
        ],
        [peak],
    )
    batch_sizes, rate = seesaw(up_then_cut, 128, total)
    sudden = optax.join_schedules(
        [optax.linear_schedule(0.0, 1.0, peak), optax.constant_schedule(0.25)], [peak + 1]
    )
    assert batch_sizes.stages == ((0, 128), (peak + 9_000_000, 1280))
    before = np.linspace(0, peak, 99).astype(int)
    np.testing.assert_array_equal(rate_at(rate, before), rate_at(up_then_cut, before))
    assert seesaw(sudden, 128, total)[0].stages == ((0, 128), (peak + 1, 512))


def test_a_warm_restart_brings_the_first_batch_back():
    cycle = {"init_value": 0.0, "peak_value": 1.0, "warmup_steps": 100, "decay_steps": 1000}
    restarts = optax.sgdr_schedule([{**cycle, "end_value": 0.1}] * 3)
    batch_sizes, rate = seesaw(restarts, 32, 3000, sizes=(32, 64, 128, 256))
    examples = np.arange(2900)  # then a batch of 128 takes all the rest
    rates = rate_at(restarts, examples)
    wanted = 32 * np.maximum.accumulate(rates) / np.maximum(rates, 1e-9)
    wanted[0] = 32  # 0 of 0: the warm-up begins
    ladder = np.array([32, 64, 128, 256])
    expected = ladder[np.searchsorted(ladder, wanted * (1 + 1e-5), side="right") - 1]
    np.testing.assert_array_equal([batch_sizes(n) for n in examples.tolist()], expected)
    assert expected[[999, 1100, 1999, 2100]].tolist() == [256, 32, 256, 32]
    assert rate_at(rate, examples).max() <= 1 + 1e-6


@pytest.mark.parametrize("options", [{"max_batch_size": 300}, {"sizes": (32, 64, 128, 300)}])
def test_above_the_largest_size_the_learning_rate_takes_the_whole_cut(options):
    steps = optax.piecewise_constant_schedule(1.0, {100: 0.25, 200: 0.25, 300: 0.25})
    options.setdefault("multiple_of", 4)
    batch_sizes, rate = seesaw(steps, 32, 400, **options)
    assert batch_sizes.stages == ((0, 32), (100, 128), (200, 300))
    expected = [1, 0.5, np.sqrt(300 / 32) / 16, np.sqrt(300 / 32) / 64]
    np.testing.assert_allclose(rate_at(rate, [0, 100, 200, 300]), expected, rtol=1e-6)


def test_a_schedule_that_reaches_zero_runs_with_a_largest_size():
    early = optax.linear_schedule(1.0, 0.0, 500)
    batch_sizes, rate = seesaw(early, 8, 1000, max_batch_size=64)
    assert batch_sizes(600) == 64
    assert rate_at(rate, [600]) == 0


@pytest.mark.parametrize("tokens", [7, 4096])
def test_tokens(tokens):
    """A schedule over tokens gives the sizes of the same one over examples."""
    in_examples = optax.cosine_decay_schedule(1.0, 10_000)
    in_tokens = optax.cosine_decay_schedule(1.0, 10_000 * tokens)
    expected, rate = seesaw(in_examples, 32, 10_000, multiple_of=8)
    sizes, token_rate = seesaw(in_tokens, 32, 10_000, multiple_of=8, tokens_per_example=tokens)
    assert sizes == expected
    steps = np.arange(100)
    np.testing.assert_allclose(
        jax.vmap(over_examples(token_rate, sizes, tokens_per_example=tokens))(steps),
        jax.vmap(over_examples(rate, sizes))(steps),
        rtol=1e-5,
    )


@pytest.mark.parametrize("tokens", [1, 3])
def test_size_and_rate_change_at_one_example_beyond_float32(tokens):
    """At 10^12 examples floats are 65,536 apart; size and rate see the same one."""
    cut = 700_000_000_123
    schedule = optax.piecewise_constant_schedule(1.0, {float(cut * tokens): 0.25})
    sizes, rate = seesaw(schedule, 768, 10**12, tokens_per_example=tokens)
    assert sizes.stages is not None
    (_, (begin, size)) = sizes.stages
    assert size == 4 * 768
    assert abs(begin - cut) <= 65_536
    around = begin + np.arange(-100_000, 100_000, 7)
    rates = np.asarray(jax.vmap(rate)(jnp.asarray(as_counts(around, tokens))))
    np.testing.assert_array_equal(rates, np.where(around < begin, 1.0, 0.5))


@pytest.mark.usefixtures("float64")
def test_a_peak_is_found_by_looking_closer_several_times():
    """Places are 150,000,000 examples apart: the peak of the line is a fraction of it away."""
    peak = 3_210_987_654_321
    rise, fall = 1 / peak, 0.5
    schedule = lambda n: jnp.where(n <= peak, n * rise, fall)
    batch_sizes, _ = seesaw(schedule, 1_000_000, 10**13)
    assert batch_sizes.stages == ((0, 1_000_000), (peak + 1, 2_000_000))


def test_a_new_peak_within_one_look_never_asks_for_less_than_the_first_batch():
    """From a quarter of the old peak to twice of it in 100 of the 244 examples of a look."""
    fall, rise = 5_000_000, 10_000_123
    schedule = lambda n: jnp.where(
        n < fall, 1.0, 0.25 + 1.75 * jnp.clip((n - rise) / 100, 0.0, 1.0)
    )
    batch_sizes, rate = seesaw(schedule, 128, 16_000_000)
    assert batch_sizes.min_batch_size == 128
    sizes = [batch_sizes(rise + n) for n in range(101)]
    c = np.minimum(rate_at(schedule, rise + np.arange(101)), 1)
    np.testing.assert_array_equal(sizes, np.floor(128 * (1 + 1e-5) / c))
    assert rate_at(rate, [rise + 200]) == 2


@pytest.mark.usefixtures("float64")
def test_in_float64_the_cut_is_found_to_the_example():
    schedule = optax.piecewise_constant_schedule(1.0, {700_000_000_123: 0.25})
    assert seesaw(schedule, 768, 10**12)[0].stages == ((0, 768), (700_000_000_123, 3072))


def test_the_stages_bound_a_policy_and_the_rate_runs_over_steps():
    schedule = optax.piecewise_constant_schedule(0.4, {64: 0.25})
    batch_sizes, rate = seesaw(schedule, 8, 200, multiple_of=8)
    assert isinstance(batch_sizes, BatchSizeSchedule)
    over_steps = jax.jit(over_examples(rate, batch_sizes, 8))
    np.testing.assert_allclose([over_steps(7), over_steps(8)], [0.4, 0.2], rtol=1e-6)


def test_runs_under_the_transfer_guard():
    with jax.transfer_guard("disallow"):
        sizes, rate = seesaw(lambda n: 1 / (1 + n), 8, 100)
        jitted = jax.jit(rate)
        jitted(jax.device_put(np.float32(5)))
    assert sizes.stages is not None


def test_a_decay_never_shrinks_the_batch_however_fine_its_sizes():
    """Sizes differ by a millionth, which float32 rates hardly tell apart."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, 1e-3, 10**7, 10**8, end_value=9.9e-4)
    stages = seesaw(schedule, 10**6, 10**8)[0].stages
    sizes = np.array([size for _, size in stages or ()])
    assert (np.diff(sizes) > 0).all()
    assert len(sizes) > 5_000


def test_two_seesaws_of_one_schedule_are_the_same():
    schedule = optax.cosine_decay_schedule(1.0, 5000, alpha=0.01)
    assert seesaw(schedule, 16, 5000)[0] == seesaw(schedule, 16, 5000)[0]


cosine = optax.cosine_decay_schedule(1.0, 1000, alpha=0.1)


@pytest.mark.parametrize(
    ("schedule", "options", "message"),
    [
        (optax.constant_schedule(0.1), {}, "falls to 1 of its peak within 1000.*nothing to do"),
        (optax.linear_schedule(0.0, 1.0, 1000), {}, "nothing to do"),
        (optax.linear_schedule(0.0, 0.0, 1000), {}, "nothing to do"),
        (cosine, {"num_examples": 100}, "falls to 0.978 of its peak within 100 examples"),
        (cosine, {"sizes": (8, 800)}, "a larger batch than 8.*nothing to do"),
        (cosine, {"max_batch_size": 8}, "a larger batch than 8.*nothing to do"),
        (lambda n: 0.5 - n / 1000, {}, "rates >= 0 and finite, got -0.* after 501 examples"),
        (lambda n: jnp.log(n - 10), {}, "rates >= 0 and finite, got nan after 0 examples"),
        (optax.linear_schedule(1.0, 0.0, 500), {}, "got 0 after 500 of 1000.*without end"),
        (cosine, {"batch_size": 0}, "batch_size >= 1, got batch_size=0"),
        (cosine, {"batch_size": 8.5}, "whole number, got batch_size=8.5"),
        (cosine, {"num_examples": 0}, "num_examples >= 1"),
        (cosine, {"exponent": 0}, "0 < exponent <= 1, got exponent=0"),
        (cosine, {"exponent": 2.0}, "0 < exponent <= 1, got exponent=2.0"),
        (cosine, {"multiple_of": 0}, "multiple_of >= 1"),
        (cosine, {"multiple_of": 3}, "a multiple of multiple_of=3, got batch_size=8.*pass 9"),
        (cosine, {"max_batch_size": 4}, "max_batch_size >= 8, got max_batch_size=4"),
        (cosine, {"sizes": (16, 32)}, "with batch_size=8 among them, got sizes="),
        (cosine, {"sizes": (16, 8)}, "increasing multiples"),
        (cosine, {"sizes": (8, 12), "multiple_of": 8}, "increasing multiples of multiple_of=8"),
        (cosine, {"tokens_per_example": 0}, "tokens_per_example > 0"),
        (
            optax.exponential_decay(1.0, 1e10, 1e-4),
            {"batch_size": 10**5, "num_examples": 10**10},
            "at most 100,000 batch sizes",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_sentence(schedule, options, message):
    arguments = {"batch_size": 8, "num_examples": 1000, **options}
    with pytest.raises(ValueError, match=message) as error:
        seesaw(schedule, arguments.pop("batch_size"), arguments.pop("num_examples"), **arguments)
    assert "\n" not in str(error.value)


def test_a_constant_is_no_schedule():
    with pytest.raises(TypeError, match=r"got 0\.1: a constant is never cut, seesaw has nothing"):
        seesaw(0.1, 8, 1000)
