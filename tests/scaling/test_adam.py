"""Adam that follows the batch: Optax's own at the base batch, and right where the batch moves."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from changing_batches import RULES, SIZES, assert_bits, beside_optax, bits, stats, tree

from adaoptax.scaling import adam_hyperparams, adamw_with_batch, scale_by_adam_with_batch

pytestmark = pytest.mark.sampled

OPTIONS: list[dict[str, Any]] = [
    {},
    {"b1": 0.95, "b2": 0.98, "eps": 1e-6},
    {"eps_root": 1e-8},
    {"b1": 0.0},
    {"mu_dtype": jnp.float32},
]


@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("rule", RULES)
def test_it_is_adam_to_the_bit_while_the_batch_never_changes(rule, options, jit):
    ours, theirs = (
        scale_by_adam_with_batch(48, rule=rule, **options),
        optax.scale_by_adam(**options),
    )
    steps = beside_optax(ours, theirs, 100 if jit else 5, compiled=jit, spread=6)
    for updates, expected, state, optax_state in steps:
        assert_bits(updates, expected)
        assert_bits((state.mu, state.nu), (optax_state.mu, optax_state.nu))
        assert bool(state.only_base_batches)


@pytest.mark.usefixtures("optimised", "float64")
def test_it_is_adam_to_the_bit_in_float64():
    ours, theirs = scale_by_adam_with_batch(48), optax.scale_by_adam()
    steps = beside_optax(ours, theirs, 50, compiled=True, dtype=jnp.float64, spread=6)
    for updates, expected, _, _ in steps:
        assert_bits(updates, expected)
        assert updates["w"].dtype == jnp.float64


# Without jit to the bit; a fused multiply-add may differ by the last bit of a term.
@pytest.mark.parametrize(("jit", "tolerance"), [(False, 0.0), (True, 3e-7)])
def test_nesterov_is_that_of_optax(jit, tolerance):
    ours, theirs = scale_by_adam_with_batch(48, nesterov=True), optax.scale_by_adam(nesterov=True)
    for updates, expected, _, _ in beside_optax(ours, theirs, 10, compiled=jit):
        for a, b in zip(bits(updates), bits(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)


def test_complex_gradients_are_those_of_optax():
    ours, theirs = scale_by_adam_with_batch(48), optax.scale_by_adam()
    grads = jnp.array([1 + 2j, -0.5j, 3.0], jnp.complex64)
    state, optax_state = ours.init(grads), theirs.init(grads)
    for _ in range(3):
        updates, state = ours.update(grads, state, stats=stats(48))
        expected, optax_state = theirs.update(grads, optax_state)
        np.testing.assert_allclose(updates, expected, rtol=1e-6)
    assert updates.dtype == jnp.complex64


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_it_follows_the_batch_as_float64_numpy_does(rule, nesterov):
    tx = scale_by_adam_with_batch(32, 0.9, 0.999, 1e-3, 1e-4, nesterov=nesterov, rule=rule)
    update, params = jax.jit(tx.update), tree(0)
    state = tx.init(params)
    mu, nu = np.zeros((7, 5)), np.zeros((7, 5))
    product_1 = product_2 = 1.0
    for seed, size in enumerate(SIZES):
        grads = tree(seed)
        updates, state = update(grads, state, params, stats=stats(size))
        moved = adam_hyperparams(size, 32, 0.9, 0.999, 1e-3, 1e-4, rule=rule)
        g = np.asarray(grads["w"], np.float64)
        mu = moved.b1 * mu + (1 - moved.b1) * g
        nu = moved.b2 * nu + (1 - moved.b2) * g**2
        product_1, product_2 = product_1 * moved.b1, product_2 * moved.b2
        hat = mu / (1 - product_1)
        if nesterov:
            ahead = mu / (1 - product_1 * moved.b1)
            hat = moved.b1 * ahead + (1 - moved.b1) * g / (1 - product_1)
        expected = hat / (np.sqrt(nu / (1 - product_2) + moved.eps_root) + moved.eps)
        np.testing.assert_allclose(updates["w"], expected, rtol=3e-5, atol=1e-6)
        assert float(state.mu_weight) == pytest.approx(1 - product_1, rel=1e-5)
        assert float(state.nu_weight) == pytest.approx(1 - product_2, rel=1e-5)


def second_moment(state: Any) -> np.ndarray:
    return np.asarray(state.nu["w"], np.float64) / float(state.nu_weight)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("story", [SIZES, (32,) * 10 + (256,) * 10, (1,) * 5 + (256,) * 5])
def test_a_constant_gradient_is_its_own_moment_at_every_step(rule, story):
    tx = scale_by_adam_with_batch(32, eps=0.0, rule=rule)
    grads = tree(1)
    state, update = tx.init(grads), jax.jit(tx.update)
    for size in story:
        updates, state = update(grads, state, stats=stats(size))
        # v̂ = g² to rounding, from the moment and the running product of the decays …
        np.testing.assert_allclose(second_moment(state), np.square(grads["w"]), rtol=1e-6)
        # … and so the update is a sign. (At the base batch Optax rounds 1 − β in float32.)
        np.testing.assert_allclose(updates["w"], np.sign(grads["w"]), rtol=3e-5)


def test_a_constant_gradient_of_one_is_its_own_moment_to_the_bit():
    tx = scale_by_adam_with_batch(32)
    state = tx.init({"w": jnp.ones(2)})
    for size in (32,) * 3 + SIZES:  # without jit, which may fuse a product into a sum
        _, state = tx.update({"w": jnp.ones(2)}, state, stats=stats(size))
        assert float(state.nu["w"][0]) == float(state.nu_weight)
        assert float(state.mu["w"][0]) == float(state.mu_weight)


def test_a_constant_gradient_in_float64_is_exact_at_every_step(float64):
    tx = scale_by_adam_with_batch(32, eps=0.0)
    grads = tree(1, jnp.float64)
    state, update = tx.init(grads), jax.jit(tx.update)
    for size in (32,) * 10 + SIZES:
        updates, state = update(grads, state, stats=stats(size, jnp.float64))
        np.testing.assert_allclose(updates["w"], np.sign(grads["w"]), rtol=1e-12)


def test_the_correction_of_optax_is_wrong_after_a_decay_has_changed():
    # What the running product is for: 0.999 for ten steps, then 0.99.
    tx = optax.inject_hyperparams(optax.scale_by_adam, hyperparam_dtype=jnp.float32)(
        b2=lambda step: jnp.where(step < 10, 0.999, 0.99), eps=0.0
    )
    grads = jnp.ones(1)
    state, off = tx.init(grads), []
    for _ in range(12):
        updates, state = tx.update(grads, state, grads)
        off.append(abs(float(updates[0]) - 1))
    assert max(off[:10]) < 1e-4 < 0.1 < off[10]


@pytest.mark.parametrize("size", [1, 4, 512])
def test_a_constant_batch_of_another_size_is_adam_with_moved_numbers(size):
    ours = scale_by_adam_with_batch(64, b2=0.99)
    moved = adam_hyperparams(size, 64, b2=0.99)
    theirs = optax.scale_by_adam(moved.b1, moved.b2, moved.eps)
    for updates, expected, _, _ in beside_optax(ours, theirs, 20, batch=size):
        np.testing.assert_allclose(updates["w"], expected["w"], rtol=2e-3, atol=1e-4)


def test_the_moments_of_a_tiny_batch_keep_their_precision():
    # A 512th of the base batch: in float32 1 − β2 would be wrong by 3 %.
    tx = scale_by_adam_with_batch(512, eps=0.0)
    grads = {"w": jnp.array([3.0, -1e-3])}
    state = tx.init(grads)
    updates, state = tx.update(grads, state, stats=stats(1))
    np.testing.assert_allclose(updates["w"], [1, -1], rtol=1e-6)
    assert float(state.nu_weight) == pytest.approx(-math.expm1(math.log(0.999) / 512), rel=1e-6)


def test_two_half_batches_remember_as_one_batch():
    # The half-life in examples: after the same examples the old moment has the same share.
    tx = scale_by_adam_with_batch(64)
    start = {"w": jnp.ones(1)}
    left = []
    for size, steps in ((64, 4), (32, 8), (128, 2), (256, 1)):
        _, state = tx.update(start, tx.init(start), stats=stats(64))
        for _ in range(steps):
            _, state = tx.update({"w": jnp.zeros(1)}, state, stats=stats(size))
        left.append([float(state.mu["w"][0]), float(state.nu["w"][0])])
    np.testing.assert_allclose(left, [[0.1 * 0.9**4, 0.001 * 0.999**4]] * 4, rtol=1e-6)


def test_beyond_its_range_the_square_root_rule_forgets_and_counts():
    tx = scale_by_adam_with_batch(32, rule="malladi")
    grads = tree(0)
    _, state = tx.update(tree(1), tx.init(grads), stats=stats(32))
    assert int(state.decays_held) == 0
    _, state = tx.update(grads, state, stats=stats(32 * 10))  # κ(1 − β1) = 1
    assert int(state.decays_held) == 1
    np.testing.assert_allclose(state.mu["w"], grads["w"], rtol=1e-6)
    updates, state = tx.update(tree(2), state, stats=stats(32 * 5000))
    np.testing.assert_allclose(state.mu["w"], tree(2)["w"], rtol=1e-6)
    np.testing.assert_allclose(updates["w"], np.sign(tree(2)["w"]), rtol=1e-4)
    assert int(state.decays_held) == 2
    for leaf in jax.tree.leaves((updates, state)):
        assert np.isfinite(leaf).all()


@pytest.mark.parametrize(
    ("batch", "sq_norm", "entry"), [(48, np.nan, np.nan), (48, np.inf, np.inf), (0, 0.0, 0.0)]
)
def test_a_step_without_a_finite_gradient_or_examples_changes_a_count_only(batch, sq_norm, entry):
    tx = scale_by_adam_with_batch(32)
    _, state = tx.update(tree(1), tx.init(tree(0)), stats=stats(48))
    broken = jax.tree.map(lambda g: g.at[0].set(entry), tree(2))
    bad = stats(batch, sq_norm=sq_norm)
    if batch == 0:
        broken = jax.tree.map(jnp.zeros_like, broken)
        bad = bad._replace(num_groups=jnp.float32(0), variance=jnp.float32(jnp.nan))
    updates, after = tx.update(broken, state, stats=bad)
    assert all((leaf == 0).all() for leaf in bits(updates))
    assert int(after.adam_steps_skipped) == 1
    assert_bits(after._replace(adam_steps_skipped=state.adam_steps_skipped), state)


def test_moments_in_bfloat16_are_computed_in_float32():
    # 0.999 is 1 in bfloat16: Optax's second moment would only grow.
    tx = scale_by_adam_with_batch(32, b2=0.9, mu_dtype=jnp.bfloat16)
    grads = {"w": jnp.full(4, 0.7, jnp.bfloat16)}
    state = tx.init(grads)
    for _ in range(60):
        updates, state = tx.update(grads, state, stats=stats(48))
    assert state.mu["w"].dtype == state.nu["w"].dtype == updates["w"].dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(updates["w"], np.float32), 1, rtol=0.03)


def test_no_batch_size_compiles_again(compilations):
    tx = adamw_with_batch(optax.cosine_decay_schedule(0.1, 100), 32, rule="malladi")
    params = tree(0)
    update, state = jax.jit(tx.update), tx.init(params)
    story = [(tree(seed), stats(size)) for seed, size in enumerate(SIZES)]
    _, state = update(story[0][0], state, params, stats=story[0][1])
    compilations.reset()
    with jax.transfer_guard("disallow"):
        for grads, each in story:
            _, state = update(grads, state, params, stats=each)
    assert compilations.count == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"base_batch_size": 0}, "base_batch_size=0"),
        ({"b1": 1.0}, r"b1=1\.0"),
        ({"rule": "sqrt"}, "rule to be one of"),
        ({"rule": "malladi", "max_batch_size": 321}, "below 10 base batches for b1"),
        ({"max_batch_size": 0}, "max_batch_size=0"),
    ],
)
def test_arguments_that_cannot_be_are_refused(arguments, message):
    for factory, more in ((scale_by_adam_with_batch, {}), (adamw_with_batch, {"learning_rate": 1})):
        with pytest.raises(ValueError, match=message):
            factory(**{"base_batch_size": 32, **arguments, **more})


def test_an_injected_decay_may_change_while_training():
    tx = optax.inject_hyperparams(scale_by_adam_with_batch)(32.0, eps=0.0)
    grads = {"w": jnp.ones(1)}
    state = tx.init(grads)
    for step in range(12):
        if step == 10:
            state.hyperparams["b2"] = jnp.float32(0.99)
        updates, state = tx.update(grads, state, grads, stats=stats(32))
        assert float(updates["w"][0]) == pytest.approx(1, rel=1e-5)


def test_numbers_may_be_injected():
    tx = optax.inject_hyperparams(scale_by_adam_with_batch)(32.0)
    plain = scale_by_adam_with_batch(32)
    params = tree(0)
    state, plain_state = tx.init(params), plain.init(params)
    for seed, size in enumerate(SIZES):
        updates, state = tx.update(tree(seed), state, params, stats=stats(size))
        expected, plain_state = plain.update(tree(seed), plain_state, stats=stats(size))
        np.testing.assert_allclose(updates["w"], expected["w"], rtol=1e-4, atol=1e-6)
