"""What a step tells: the same numbers as the functions of their names, whatever the optimizer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adaoptax

ALWAYS = {"loss", "num_groups", "measured", "sq_norm", "variance", "signal", "noise_scale"}


def one_step(tx, rows):
    grads, stats = adaoptax.stats_from_groups(rows, group_size=1)
    _, opt_state = tx.update(grads, tx.init(grads), grads, stats=stats)
    return jax.jit(adaoptax.observables)(jnp.float32(0.5), stats, opt_state)


def test_the_fixture_of_four_rows(rows):
    tx = optax.chain(adaoptax.norm_test(0.5), adaoptax.adascale(0.1, base_batch_size=2))
    seen = {name: np.asarray(value).item() for name, value in one_step(tx, rows).items()}
    gain = (10 / 3 / 2 + 19 / 6) / (10 / 3 / 4 + 19 / 6)  # (σ² of the base batch + μ²) over both
    expected = {
        "loss": 0.5, "num_groups": 4, "measured": True, "sq_norm": 4, "variance": 10 / 3,
        "signal": 19 / 6, "noise_scale": 20 / 19, "required": 10 / 3 / (0.25 * 19 / 6),
        "gain": gain, "scale_invariant_steps": gain,
    }  # fmt: skip
    assert seen == pytest.approx(expected, rel=1e-5)
    assert seen["measured"] is True


def test_finds_state_anywhere_and_leaves_out_what_is_not_there(rows):
    assert set(one_step(optax.with_extra_args_support(optax.adam(0.1)), rows)) == ALWAYS
    nested = optax.named_chain(
        ("inner", optax.chain(adaoptax.norm_test(0.5))), ("sgd", optax.sgd(0.1))
    )
    assert set(one_step(nested, rows)) == ALWAYS | {"required"}
    _, stats = adaoptax.stats_from_groups(rows, group_size=1)
    assert set(adaoptax.observables(jnp.float32(1), stats)) == ALWAYS


def test_a_test_that_waits_for_its_interval_is_no_evidence(rows):
    tx = adaoptax.norm_test(0.5, interval=3)
    grads, stats = adaoptax.stats_from_groups(rows, group_size=1)
    state, measured = tx.init(grads), []
    for _ in range(5):
        _, state = tx.update(grads, state, stats=stats)
        measured.append(bool(adaoptax.observables(jnp.float32(1), stats, state)["measured"]))
    assert measured == [True, False, False, True, False]


def test_says_that_a_step_was_not_measured(rows):
    _, stats = adaoptax.stats_from_groups(rows, group_size=1)
    seen = adaoptax.observables(jnp.float32(1), stats._replace(num_groups=jnp.float32(0)))
    assert not seen["measured"]


@pytest.mark.parametrize("bad", ["one group", "nan"])
def test_a_requirement_that_was_kept_without_evidence_is_undefined(bad, rows):
    tx = adaoptax.norm_test(0.5)
    grads, stats = adaoptax.stats_from_groups(rows, group_size=1)
    _, opt_state = tx.update(grads, tx.init(grads), grads, stats=stats)
    if bad == "one group":
        stats = stats._replace(num_groups=jnp.float32(1), variance=jnp.float32(jnp.nan))
    else:
        grads, stats = adaoptax.stats_from_groups(rows * jnp.nan, group_size=1)
    _, opt_state = tx.update(grads, opt_state, grads, stats=stats)
    seen = adaoptax.observables(jnp.float32(1), stats, opt_state)
    policy = adaoptax.GrowthPolicy(2, 64)
    policy.update(seen["required"])
    assert (policy.decision, policy.batch_size, policy.num_undefined) == ("undefined", 2, 1)
    assert np.isfinite(adaoptax.required_batch_size(opt_state))  # the state keeps it


def test_one_test_that_can_decide_is_enough(rows):
    tx = optax.chain(adaoptax.norm_test(0.5), adaoptax.norm_test(0.5))
    grads, stats = adaoptax.stats_from_groups(rows, group_size=1)
    _, (first, second) = tx.update(grads, tx.init(grads), grads, stats=stats)
    state = first, second._replace(undefined=jnp.bool_(True))
    assert np.isfinite(adaoptax.observables(jnp.float32(1), stats, state)["required"])
