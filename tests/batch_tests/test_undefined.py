"""Pass, fail, noise only, and everything that leaves a test without evidence: flags and counts."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adaoptax
from adaoptax.batch_tests import optimal_split, proximal_test

pytestmark = [pytest.mark.sampled, pytest.mark.topic("edge cases")]

TESTS: dict[str, Any] = {
    "norm": lambda **o: adaoptax.norm_test(0.5, **o),
    "inner": lambda **o: adaoptax.inner_product_test(0.5, **o),
    "augmented": lambda **o: adaoptax.augmented_inner_product_test(0.5, 0.5, **o),
    "coordinate": lambda **o: adaoptax.coordinate_test(0.5, **o),
    "split": lambda **o: optimal_split(0.5, **o),
    "proximal": lambda **o: proximal_test(0.5, **o),
}
KINDS = ("plug-in", "debiased")

CLEAR = np.array([[1.0, 1.0], [1.1, 0.9], [0.9, 1.0], [1.0, 1.1]])  # passes at η = 0.5
NOISY = np.array([[5.0, 1.0], [-3.0, 2.0], [4.0, -4.0], [-2.0, 5.0]])  # fails
NOISE = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -0.6]])  # ‖g‖² < S²/B
CANCELLED = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])  # g = 0 exactly
ALIKE = np.array([[1.0, 2.0]] * 4)
NOTHING = np.zeros([4, 2])
WITH_NAN = np.array([[1.0, np.nan], [1.0, 2.0]])
WITH_INF = np.array([[1.0, np.inf], [1.0, 2.0]])
ONE_GROUP = np.array([[1.0, 2.0]])


@functools.cache
def compiled(name: str, kind: str, decay: float | None) -> Any:
    tx = TESTS[name](signal=kind, decay=decay)
    return tx.init, jax.jit(tx.update)


def run(
    name: str, kind: str, numpy_stats: Any, *batches: np.ndarray, decay: float | None = None
) -> Any:
    init, update = compiled(name, kind, decay)
    state = init(jnp.zeros(2))
    for rows in batches:
        grads, stats = numpy_stats(rows)
        _, state = update(grads, state, stats=stats)
    return state


def counts(state: Any) -> tuple[int, ...]:
    fields = ("steps_seen", "tests_run", "tests_failed", "tests_noise_dominated", "tests_undefined")
    return tuple(int(getattr(state, field)) for field in fields)


def flags(state: Any) -> tuple[bool, ...]:
    return bool(state.test_passed), bool(state.noise_dominated), bool(state.undefined)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("batches", "least", "most", "passed", "counted"),
    [
        ([], 0, 0, False, (0, 0, 0, 0, 0)),
        ([CLEAR], 1e-6, 4, True, (1, 1, 0, 0, 0)),
        ([ALIKE], 0, 0, True, (1, 1, 0, 0, 0)),
        ([NOISY], 4.001, 1e6, False, (1, 1, 1, 0, 0)),
    ],
    ids=["before any step", "pass", "no noise", "fail"],
)
@pytest.mark.parametrize("name", TESTS)
def test_what_is_defined(name, kind, batches, least, most, passed, counted, numpy_stats):
    if least > 4:
        kind = "plug-in"  # debiased it is all noise
    state = run(name, kind, numpy_stats, *batches)
    assert least <= float(state.required_batch_size) <= most
    assert flags(state) == (passed, False, False)
    assert counts(state) == counted


def test_passing_is_exact_at_the_boundary(numpy_stats):
    # S² = 4/3·… of rows 2 ± 1: variance 4/3, ‖g‖² = 4, so b = 1/(3η²); at η² = 1/12, b = 4 = B.
    rows = np.array([[1.0], [3.0], [1.0], [3.0]])
    grads, stats = numpy_stats(rows)
    stats = stats._replace(variance=jnp.float32(4.0))
    for eta, passes in [(0.5, True), (np.nextafter(np.float32(0.5), np.float32(0)).item(), False)]:
        tx = adaoptax.norm_test(eta, signal="plug-in")
        state = tx.update(grads, tx.init(grads), stats=stats)[1]
        assert bool(state.test_passed) is passes
        assert int(state.tests_failed) == (not passes)


@pytest.mark.parametrize("name", TESTS)
def test_noise_dominated_asks_for_infinity_and_says_so(name, numpy_stats):
    state = run(name, "debiased", numpy_stats, CLEAR, NOISE)
    assert float(state.required_batch_size) == np.inf
    assert flags(state) == (False, True, False)
    assert counts(state) == (2, 2, 1, 1, 0)
    plug_in = run(name, "plug-in", numpy_stats, NOISE)
    assert np.isfinite(float(plug_in.required_batch_size))
    assert not bool(plug_in.noise_dominated)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["norm", "augmented", "coordinate", "split", "proximal"])
def test_zero_gradient_with_noise_is_noise_only(name, kind, numpy_stats):
    state = run(name, kind, numpy_stats, CANCELLED)
    assert float(state.required_batch_size) == np.inf
    assert flags(state) == (False, True, False)
    assert counts(state) == (1, 1, 1, 1, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_zero_gradient_with_noise_never_passes_the_inner_product_test(kind, numpy_stats):
    # No direction to take inner products with: V_ip = 0 is no evidence of agreement.
    state = run("inner", kind, numpy_stats, NOISY, CANCELLED)
    before = run("inner", kind, numpy_stats, NOISY)
    undefined = kind == "plug-in"
    assert flags(state) == (False, not undefined, undefined)
    assert float(state.required_batch_size) == (before.required_batch_size if undefined else np.inf)


NO_EVIDENCE = {
    "one group": ONE_GROUP,
    "neither gradient nor noise": NOTHING,
    "NaN": WITH_NAN,
    "inf": WITH_INF,
}


@pytest.mark.topic("NaN")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("case", "decay"),
    [
        ("one group", None),
        ("one group", 0.9),
        ("NaN", None),
        ("NaN", 0.9),
        ("inf", None),
        ("inf", 0.9),
        ("neither gradient nor noise", None),  # for an average, zeros are a sample like others
    ],
)
@pytest.mark.parametrize("name", TESTS)
def test_no_evidence_keeps_the_requirement(name, case, kind, decay, numpy_stats):
    result = lambda *batches: run(name, kind, numpy_stats, *batches, decay=decay)
    first = result(NO_EVIDENCE[case])
    assert float(first.required_batch_size) == len(NO_EVIDENCE[case])  # the size at hand
    assert flags(first) == (False, False, True)
    assert counts(first) == (1, 0, 0, 0, 1)

    before = result(NOISY)
    after = result(NOISY, NO_EVIDENCE[case])
    assert float(after.required_batch_size) == float(before.required_batch_size)
    assert flags(after) == (False, False, True)
    assert counts(after) == (2, 1, 1, int(before.tests_noise_dominated), 1)

    again = result(NO_EVIDENCE[case], CLEAR)
    clean = result(CLEAR)
    assert float(again.required_batch_size) == float(clean.required_batch_size)
    assert flags(again) == flags(clean)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TESTS)
def test_for_an_average_neither_gradient_nor_noise_is_a_sample(name, kind, numpy_stats):
    state = run(name, kind, numpy_stats, CLEAR, NOTHING, decay=0.5)
    clean = run(name, kind, numpy_stats, CLEAR)
    assert float(state.required_batch_size) > 0
    assert not bool(state.undefined)
    if name in ("norm", "proximal", "coordinate"):  # ratios of means: halving both changes nothing
        np.testing.assert_allclose(state.required_batch_size, clean.required_batch_size, rtol=1e-6)


@pytest.mark.parametrize("name", TESTS)
def test_an_infinite_requirement_is_kept_too(name, numpy_stats):
    state = run(name, "debiased", numpy_stats, NOISE, WITH_NAN)
    assert float(state.required_batch_size) == np.inf
    assert flags(state) == (False, False, True)


@pytest.mark.topic("NaN")
@pytest.mark.parametrize("field", ["variance", "sq_norm", "inner_product_variance"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_one_bad_statistic_is_no_evidence(field, bad, numpy_stats):
    grads, stats = numpy_stats(CLEAR)
    tx = TESTS["augmented"](signal="plug-in")
    state = tx.update(grads, tx.init(grads), stats=stats._replace(**{field: jnp.float32(bad)}))[1]
    assert flags(state) == (False, False, True)


@pytest.mark.parametrize("variance", [0.0, 3.0])
@pytest.mark.parametrize("name", TESTS)
def test_one_group_is_no_evidence_whatever_its_variance_says(name, variance, numpy_stats):
    grads, stats = numpy_stats(CLEAR)
    one = stats._replace(num_groups=jnp.float32(1), variance=jnp.float32(variance))
    init, update = compiled(name, "debiased", None)
    _, state = update(grads, init(grads), stats=one)
    assert flags(state) == (False, False, True)
    assert float(state.required_batch_size) == 4


@pytest.mark.parametrize("kind", KINDS)
def test_underflow_of_the_fourth_power_is_no_evidence(kind, numpy_stats):
    tiny = 1e-12 * NOISY  # ‖g‖⁴ ~ 1e-47 is zero in float32, V_ip as well
    for name in ("inner", "augmented"):
        state = run(name, kind, numpy_stats, tiny)
        assert flags(state) == (False, False, True)
        assert float(state.required_batch_size) == 4
    for name in ("norm", "coordinate"):
        state, usual = (run(name, kind, numpy_stats, r) for r in (tiny, NOISY))
        assert float(state.required_batch_size) == pytest.approx(
            float(usual.required_batch_size), rel=1e-5
        )


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("name", TESTS)
def test_counts_of_a_long_story(name, jit, numpy_stats):
    story = [CLEAR, WITH_NAN, NOISE, ONE_GROUP, CLEAR, CANCELLED[:2], ALIKE, WITH_INF, NOTHING]
    tx = TESTS[name]()
    update = jax.jit(tx.update) if jit else tx.update
    state = tx.init(jnp.zeros(2))
    for rows in story:
        grads, stats = numpy_stats(rows)
        _, state = update(grads, state, stats=stats)
    steps, tested, failed, noise, undefined = counts(state)
    assert steps == len(story)
    assert tested + undefined == len(story)
    if name == "inner":  # a gradient of exactly zero has no direction
        assert (failed, noise) in [(1, 1), (2, 2)]
    else:
        assert (failed, noise, undefined) == (2, 2, 4)
