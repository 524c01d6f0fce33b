"""The whole loop: loader → jitted step → policy → loader, with kills, NaN and transfer guards."""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adaoptax

MICRO, LARGEST, GROUP = 8, 128, 4
INPUTS = np.random.default_rng(0).normal(size=(500, 6)).astype(np.float32)
TARGETS = np.tanh(INPUTS @ np.arange(6, dtype=np.float32))
TX = optax.chain(
    adaoptax.norm_test(0.5, decay=0.8),
    adaoptax.adascale(optax.cosine_decay_schedule(0.05, 400), MICRO, momentum=0.9),
)


def loss_fn(params: Any, batch: Any, key: jax.Array) -> jax.Array:
    hidden = jnp.tanh(batch["x"] @ params["w1"])
    kept = jax.random.bernoulli(key, 0.9, hidden.shape)
    return jnp.mean((jnp.where(kept, hidden, 0) @ params["w2"] - batch["y"]) ** 2)


MEASURE = adaoptax.value_grad_and_stats(
    loss_fn, adaoptax.measure.groups(LARGEST // GROUP), key_argnums=2
)


def make_step() -> Any:
    @jax.jit
    def step(params: Any, opt_state: Any, batch: adaoptax.Batch, key: jax.Array) -> Any:
        loss, grads, stats = MEASURE(params, batch.data, key, mask=batch.mask)
        updates, opt_state = TX.update(grads, opt_state, params, stats=stats)
        required = adaoptax.required_batch_size(opt_state)
        return optax.apply_updates(params, updates), opt_state, (loss, required, stats)

    return step


def make_loader() -> adaoptax.BatchLoader:
    return adaoptax.BatchLoader(
        {"x": INPUTS, "y": TARGETS}, MICRO, max_batch_size=LARGEST, pad_to="max", seed=3
    )


def initial_state() -> tuple[Any, Any]:
    keys = jax.random.split(jax.random.key(1), 2)
    params = {
        "w1": 0.4 * jax.random.normal(keys[0], (6, 16)),
        "w2": 0.2 * jax.random.normal(keys[1], (16,)),
    }
    return jax.device_put((params, TX.init(params)))


def keys_for(steps: int) -> list[jax.Array]:
    return list(jax.random.split(jax.random.key(2), steps))


def run(step: Any, state: Any, loader: Any, policy: Any, keys: list[jax.Array]) -> Any:
    """Steps once for each key; the size follows the requirement."""
    sizes = []
    for key in keys:
        batch = next(loader)
        sizes.append(batch.num_examples)
        params, opt_state, (_, required, _) = step(*state, jax.device_put(batch), key)
        state = (params, opt_state)
        loader.resize(policy.update(jax.device_get(required), batch.num_examples))
    return state, sizes


def bits(tree: Any) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


@pytest.mark.topic("growth")
def test_one_compilation_serves_every_size_and_the_resume(compilations: Any) -> None:
    step, loader = make_step(), make_loader()
    state = initial_state()
    keys = keys_for(40)
    state, _ = run(step, state, loader, adaoptax.GrowthPolicy(MICRO, LARGEST), keys[:1])
    jax.block_until_ready(state)
    compilations.reset()
    ks = []
    for k in range(1, LARGEST // MICRO + 1):
        assert loader.resize(k * MICRO) == k * MICRO
        ks.append(loader.batch_size // MICRO)
        batch = jax.device_put(next(loader))
        params, opt_state, _ = step(*state, batch, keys[k])
        state = (params, opt_state)
    assert ks == list(range(1, 17))

    # What a checkpoint keeps: numbers without types of their own, and a JSON text.
    treedef = jax.tree.structure(state)
    saved = [np.asarray(leaf) for leaf in jax.tree.leaves(state)]
    text = json.dumps(loader.get_state())
    resumed = make_loader()
    resumed.set_state(json.loads(text))
    state = jax.device_put(jax.tree.unflatten(treedef, saved))
    for key in keys[20:24]:
        params, opt_state, _ = step(*state, jax.device_put(next(resumed)), key)
        state = (params, opt_state)
    jax.block_until_ready(state)
    assert compilations.count == 0


@pytest.mark.topic("dying runs")
def test_kill_and_resume_in_the_middle_of_growth_is_bit_equal() -> None:
    step, keys = make_step(), keys_for(40)
    policy = adaoptax.GrowthPolicy(MICRO, LARGEST, multiple_of=MICRO)
    whole, sizes = run(step, initial_state(), make_loader(), policy, keys)
    assert sizes[0] == MICRO
    assert sizes[-1] >= 4 * MICRO, "the run has to grow for this test to mean anything"

    at = next(i for i, size in enumerate(sizes) if size > MICRO) + 2
    loader, policy = make_loader(), adaoptax.GrowthPolicy(MICRO, LARGEST, multiple_of=MICRO)
    state, before = run(step, initial_state(), loader, policy, keys[:at])
    text = json.dumps([loader.get_state(), policy.get_state()])
    saved = jax.tree.map(np.asarray, state)
    run(step, state, loader, policy, keys[at : at + 3])  # lost to the kill

    loader, policy = make_loader(), adaoptax.GrowthPolicy(MICRO, LARGEST, multiple_of=MICRO)
    loader_state, policy_state = json.loads(text)
    loader.set_state(loader_state)
    policy.set_state(policy_state)
    resumed, after = run(make_step(), jax.device_put(saved), loader, policy, keys[at:])
    assert before + after == sizes
    assert bits(resumed) == bits(whole)


def test_the_loop_makes_explicit_transfers_only() -> None:
    step, state, keys = make_step(), initial_state(), keys_for(12)
    loader, policy = make_loader(), adaoptax.GrowthPolicy(MICRO, LARGEST, multiple_of=MICRO)
    with jax.transfer_guard("disallow"):
        _, sizes = run(step, state, loader, policy, keys)
    assert len(sizes) == 12


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_nonfinite_batch_changes_no_parameter_and_no_average(bad: float) -> None:
    step, loader, keys = make_step(), make_loader(), keys_for(6)
    state = initial_state()
    loader.resize(4 * MICRO)
    policy = adaoptax.GrowthPolicy(4 * MICRO, LARGEST, multiple_of=MICRO)
    state, _ = run(step, state, loader, policy, keys[:3])
    batch = next(loader)
    batch.data["y"][1] = bad
    params, opt_state, (loss, required, _) = step(*state, jax.device_put(batch), keys[3])
    assert not np.isfinite(loss)
    assert bits(params) == bits(state[0])

    before, after = state[1], opt_state
    get = optax.tree.get
    for name in ("trace", "gain_averages", "gain", "scale_invariant_count", "test_averages"):
        assert bits(get(after, name)) == bits(get(before, name)), name
    assert float(required) == float(adaoptax.required_batch_size(before))
    assert int(get(after, "steps_skipped")) == 1
    assert int(get(after, "nonfinite_skipped")) == 1
    assert int(get(after, "tests_undefined")) == int(get(before, "tests_undefined")) + 1

    params, opt_state, (loss, _, _) = step(params, opt_state, jax.device_put(next(loader)), keys[4])
    assert np.isfinite(loss)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(params))
    assert bits(params) != bits(state[0])


def test_a_batch_of_one_group_keeps_the_size_and_says_so() -> None:
    step, state, key = make_step(), initial_state(), keys_for(1)[0]
    loader = adaoptax.BatchLoader(
        {"x": INPUTS, "y": TARGETS}, GROUP, max_batch_size=LARGEST, pad_to="max"
    )
    params, opt_state, (loss, required, stats) = step(*state, jax.device_put(next(loader)), key)
    assert float(stats.num_groups) == 1
    assert np.isnan(stats.variance)
    assert np.isfinite(loss)
    assert bits(params) != bits(state[0]), "the step itself is taken"
    assert float(required) == GROUP
    assert bool(optax.tree.get(opt_state, "undefined"))
    assert float(optax.tree.get(opt_state, "gain")) == 1
    policy = adaoptax.GrowthPolicy(GROUP, LARGEST, multiple_of=GROUP)
    assert policy.update(required) == GROUP
