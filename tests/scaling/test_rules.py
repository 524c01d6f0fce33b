"""The scaling rules as plain functions: closed forms, limits, identities, refusals."""

import functools
import math
from typing import Any

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

import adaoptax
from adaoptax import GradientStats
from adaoptax.scaling import rules

pytestmark = pytest.mark.sampled

CURVED: dict[str, Any] = {
    "mean": jnp.array([0.1, -0.2, 0.3]),
    "deviation": jnp.array([1.0, 2.0, 1.0]),
    "hessian": jnp.array([[2.0, -1.0, 1.0], [-1.0, 3.0, -1.0], [1.0, -1.0, 2.0]]),
}


def stats(batch: float = 64.0, variance: float = 80.0, sq_norm: float = 3.0) -> GradientStats:
    return GradientStats(*map(jnp.float32, (batch, 4, sq_norm, variance)))


RULES: dict[str, Any] = {
    "linear": rules.linear,
    "sqrt": rules.sqrt,
    "adascale": lambda b, base: rules.adascale(b, base, stats()),
    "mccandlish": functools.partial(rules.mccandlish, noise_scale=300.0),
    "mccandlish half": functools.partial(rules.mccandlish, noise_scale=300.0, exponent=0.5),
    "legw early": lambda b, base: rules.legw(b, base, 10, base_warmup_examples=1000),
    "legw late": lambda b, base: rules.legw(b, base, 10**6, base_warmup_examples=1000),
    "surge": functools.partial(rules.surge, noise_scale=300.0),
    "surge saturated": functools.partial(rules.surge, noise_scale=300.0, saturation=0.9),
    "surge hold": functools.partial(rules.surge, noise_scale=300.0, form="hold"),
    "surge raw": functools.partial(rules.surge, noise_scale=300.0, form="raw"),
    "surge exact": functools.partial(rules.surge_exact, **CURVED),
}
every_rule = pytest.mark.parametrize("name", RULES)


@every_rule
@hypothesis.given(st.floats(2.0**-6, 2.0**23, width=32))
@hypothesis.settings(max_examples=20)
def test_every_rule_is_the_identity_at_the_base_batch(name, size):
    assert float(RULES[name](size, size)) == pytest.approx(1, abs=3e-7)


@pytest.mark.parametrize("name", [name for name in RULES if name != "legw early"])
def test_going_there_in_two_steps_is_going_there_at_once(name):
    rule = RULES[name]
    at_once = float(rule(4096, 32))
    assert float(rule(4096, 500)) * float(rule(500, 32)) == pytest.approx(at_once, rel=1e-5)
    assert float(rule(32, 4096)) == pytest.approx(1 / at_once, rel=1e-5)


def test_legw_in_two_steps_takes_the_longer_warm_up_with_it():
    for seen in (10, 1500, 40_000, 10**6):
        legw = lambda size, base, warmup, e=seen: float(
            rules.legw(size, base, e, base_warmup_examples=warmup)
        )
        between = legw(320, 32, 1000) * legw(4096, 320, 10_000)
        assert between == pytest.approx(legw(4096, 32, 1000), rel=1e-5)


@every_rule
def test_every_rule_works_under_jit_and_vmap(name):
    rule = RULES[name]
    sizes = jnp.array([8.0, 64.0, 1024.0])
    expected = [float(rule(float(b), 64.0)) for b in sizes]
    np.testing.assert_allclose(jax.jit(lambda b: rule(b, 64.0))(sizes[2]), expected[2], rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(lambda b: rule(b, 64.0))(sizes), expected, rtol=1e-6)
    assert rule(8, 64).dtype == jnp.float32


@every_rule
def test_one_program_serves_every_batch_size(name, compilations):
    rule = jax.jit(RULES[name])
    sizes = [jnp.float32(b) for b in (8, 64, 1024)]
    rule(sizes[0], sizes[1])
    compilations.reset()
    for size in sizes:
        rule(size, sizes[1])
    assert compilations.count == 0


@every_rule
def test_float64_sizes_give_float64_factors(name, float64):
    size = jnp.asarray(96.0, jnp.float64)
    assert RULES[name](size, jnp.asarray(32.0, jnp.float64)).dtype == jnp.float64


def test_linear_and_square_root():
    assert float(rules.linear(96, 32)) == 3
    assert float(rules.sqrt(128, 32)) == 2
    assert [float(rules.sqrt(s, 1)) for s in (1, 4, 9, 16, 25)] == [1, 2, 3, 4, 5]  # adaptdl


def test_adascale_is_mccandlish_at_the_measured_noise_scale():
    rng = np.random.default_rng(0)
    for _ in range(50):
        measured_at, batch, base = np.exp(rng.uniform(0, 8, 3))
        signal, variance = np.exp(rng.uniform(-4, 4, 2))
        found = stats(measured_at, variance, signal + variance / measured_at)
        gain = float(rules.adascale(batch, base, found))
        closed = (1 + variance / signal / base) / (1 + variance / signal / batch)
        assert gain == pytest.approx(closed, rel=2e-3)  # the signal is a difference in float32
        by_scale = rules.mccandlish(batch, base, adaoptax.noise_scale(found))
        assert gain == pytest.approx(float(by_scale), rel=1e-4)


def test_mccandlish_by_hand_and_at_its_limits():
    assert float(rules.mccandlish(1024, 256, 1024)) == 2.5
    assert float(rules.mccandlish(1024, 256, 0)) == 1
    assert float(rules.mccandlish(1024, 256, math.inf)) == 4
    assert float(rules.mccandlish(1024, math.inf, 1024)) == 0.5  # of the largest rate, 1/(1 + 1)
    assert float(rules.mccandlish(1e12, 256, 1024)) == pytest.approx(5)
    assert float(rules.mccandlish(1024, 256, 1024, exponent=0.5)) == pytest.approx(2.5**0.5)
    for unknown in (jnp.float32(jnp.nan), jnp.float32(-3)):
        assert np.isnan(rules.mccandlish(1024, 256, unknown))


@hypothesis.given(*[st.floats(2.0**-3, 2.0**20, width=32)] * 3)
@hypothesis.settings(max_examples=100)
def test_steps_and_examples_of_mccandlish_trade_off(batch, noise, least_steps):
    # A step of size 1/(1 + B_noise/B) makes as much of the progress that is possible.
    steps = least_steps / float(rules.mccandlish(batch, math.inf, noise))
    examples, least_examples = steps * batch, least_steps * noise
    product = (steps / least_steps - 1) * (examples / least_examples - 1)
    hypothesis.assume(1e-3 < batch / noise < 1e3)
    assert product == pytest.approx(1, rel=2e-3)


def test_legw_gives_the_table_of_adaptdl():
    # Ten warm-up epochs of 1000 examples; progress in steps of the base batch.
    table: dict[tuple[int, int], list[float]] = {
        (100, 5): [1 / 20, 1 / 40, 1 / 60, 1 / 80, 1 / 100],
        (50, 400): [1, 1, 2 / 3, 0.5, 0.4],
        (100, 400): [1, 2, 4 / 3, 1, 0.8],
    }
    for (base, progress), expected in table.items():
        seen, warmup = base * progress, 10_000
        base_run = min(1, seen / warmup)
        ours = [
            base_run * float(rules.legw(base * s, base, seen, base_warmup_examples=warmup))
            for s in (1, 4, 9, 16, 25)
        ]
        np.testing.assert_allclose(ours, expected, rtol=1e-6)


@pytest.mark.parametrize("kappa", [0.25, 1, 3, 16])
def test_legw_is_the_quotient_of_two_warm_ups(kappa):
    for seen in (1e-3, 30, 100, 250, 1600, 1e5):
        longer, base = min(1, seen / (100 * kappa)), min(1, seen / 100)
        factor = float(rules.legw(8 * kappa, 8, seen, base_warmup_examples=100))
        assert factor == pytest.approx(math.sqrt(kappa) * longer / base, rel=1e-6)
    start = float(rules.legw(8 * kappa, 8, 0, base_warmup_examples=100))
    assert start == pytest.approx(1 / math.sqrt(kappa))


@pytest.mark.parametrize("rule", [rules.surge, rules.mccandlish])
def test_a_rule_refuses_to_run_without_its_noise_scale(rule):
    with pytest.raises(ValueError, match=f"noise_scale for rules.{rule.__name__}, got None"):
        rule(64, 32)
    with pytest.raises(ValueError, match="noise_scale=-1"):
        rule(64, 32, -1)


def test_adascale_refuses_to_run_without_statistics():
    with pytest.raises(TypeError, match="GradientStats, got NoneType"):
        rules.adascale(64, 32, None)  # type: ignore[arg-type]


@every_rule
@pytest.mark.parametrize("sizes", [(0, 32), (32, 0), (-1, 32), (float("nan"), 32)])
def test_sizes_must_be_positive(name, sizes):
    with pytest.raises(ValueError, match="batch_size"):
        RULES[name](*sizes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise_scale": 0}, "noise_scale > 0"),
        ({"noise_scale": float("nan")}, "noise_scale"),
        ({"saturation": 0}, "saturation=0"),
        ({"saturation": 1}, "saturation=1"),
        ({"form": "eq2"}, "form='eq2'"),
    ],
)
def test_surge_refuses_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        rules.surge(64, 32, **{"noise_scale": 10.0, **options})


def test_legw_needs_a_warm_up():
    with pytest.raises(ValueError, match="base_warmup_examples=0"):
        rules.legw(64, 32, 10, base_warmup_examples=0)


def test_surge_exact_wants_one_vector_and_its_matrix():
    with pytest.raises(ValueError, match=r"\(3,\), \(3,\) and \(2, 2\)"):
        rules.surge_exact(64, 32, mean=jnp.ones(3), deviation=jnp.ones(3), hessian=jnp.eye(2))
