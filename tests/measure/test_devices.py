"""The same numbers on every kind of device parallelism."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from device_problem import (
    AUTO,
    BATCH,
    EXPLICIT,
    PARAMS,
    ROWS,
    assert_same,
    by_hand,
    flat,
    loss_fn,
    mesh_of,
    over_fsdp,
    over_shard_map,
    per_row_gradients,
    put,
    under_jit,
)
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import adaoptax
from adaoptax import measure

pytestmark = [pytest.mark.sampled, pytest.mark.topic("devices")]

TENSOR = {"a": P(None, "model"), "b": P("model"), "c": P("model")}
LAST_LAYER = {"a": P(), "b": P(), "c": P(None, "model")}  # no ambiguous contraction
FULLY = {"a": P("data"), "b": P("data"), "c": P("data")}
BOTH = {"a": P("data", "model"), "b": P("model"), "c": P("model", "data")}
DATA, BY_TWO = measure.devices("data"), measure.devices("data", measure.groups(2))
EIGHT = measure.groups(8)


def single_device(method: Any) -> Any:
    return jax.jit(adaoptax.value_grad_and_stats(loss_fn, method))(PARAMS, BATCH)


def in_parts() -> Any:
    return jax.tree.map(lambda x: x.reshape(8, -1, *x.shape[1:]), BATCH)


def over_vmap(method: Any) -> Any:
    fn = adaoptax.value_grad_and_stats(loss_fn, method)
    return jax.jit(jax.vmap(fn, (None, 0), None, axis_name="data"))(PARAMS, in_parts())


def over_pmap(method: Any) -> Any:
    fn = adaoptax.value_grad_and_stats(loss_fn, method)
    return jax.pmap(fn, "data", in_axes=(None, 0), out_axes=None)(PARAMS, in_parts())


PLACES = {
    "single device": lambda: single_device(EIGHT),
    "vmap": lambda: over_vmap(DATA),
    "pmap": lambda: over_pmap(DATA),
    "pmap, centred": lambda: over_pmap(measure.devices("data", centred=True)),
    "shard_map": lambda: over_shard_map(DATA),
    "shard_map, centred": lambda: over_shard_map(measure.devices("data", centred=True)),
    "shard_map, unchecked": lambda: over_shard_map(DATA, check_vma=False),
    "shard_map, Explicit": lambda: over_shard_map(DATA, kind=EXPLICIT),
    "shard_map, two axes": lambda: over_shard_map(
        measure.devices(("data", "model")), shape=(4, 2), rows=P(("data", "model"))
    ),
    "shard_map, 4 x 2 groups": lambda: over_shard_map(BY_TWO, shape=(4, 2), axis_names={"data"}),
    "shard_map over data, TP": lambda: over_shard_map(
        BY_TWO, shape=(4, 2), specs=TENSOR, axis_names={"data"}
    ),
    "shard_map, FSDP": over_fsdp,
    "shard_map, FSDP, unchecked": lambda: over_fsdp(check_vma=False),
    "jit, Auto": lambda: under_jit(EIGHT, AUTO, (8,)),
    "jit, Auto, centred": lambda: under_jit(measure.groups(8, centred=True), AUTO, (8,)),
    "jit, Explicit": lambda: under_jit(EIGHT, EXPLICIT, (8,)),
    "jit, Explicit, centred": lambda: under_jit(measure.groups(8, centred=True), EXPLICIT, (8,)),
    "jit, FSDP": lambda: under_jit(EIGHT, AUTO, (8,), FULLY),
    "jit, TP": lambda: under_jit(EIGHT, AUTO, (1, 8), TENSOR),
    "jit, DP x TP": lambda: under_jit(EIGHT, AUTO, (4, 2), TENSOR),
    "jit, DP x TP, 4 shards": lambda: under_jit(measure.groups(8, shards=4), AUTO, (4, 2), TENSOR),
    "jit, DP x TP, Explicit": lambda: under_jit(EIGHT, EXPLICIT, (4, 2), LAST_LAYER),
    "jit, FSDP x TP": lambda: under_jit(EIGHT, AUTO, (4, 2), BOTH),
}


@pytest.mark.parametrize("place", PLACES)
def test_every_place_gives_the_same_gain_and_requirement(place: str) -> None:
    value, grads, stats = PLACES[place]()
    examples, groups, sq_norm, variance = by_hand(8)
    assert_same(stats, (examples, groups, sq_norm, variance))
    exact = per_row_gradients().mean(axis=0)
    np.testing.assert_allclose(flat(grads), exact, atol=2e-6 * np.abs(exact).max())
    np.testing.assert_allclose(float(value), float(loss_fn(PARAMS, BATCH)), rtol=1e-6)

    grads, stats = jax.tree.map(np.asarray, (grads, stats))
    tx = optax.chain(adaoptax.norm_test(eta=0.5), adaoptax.scale_by_adascale(base_batch_size=16))
    state = tx.update(grads, tx.init(grads), stats=stats)[1]
    signal = sq_norm - variance / examples
    gain = (variance / 16 + signal) / (variance / examples + signal)
    got = [float(adaoptax.required_batch_size(state)), float(optax.tree.get(state, "gain"))]
    np.testing.assert_allclose(got, [variance / (0.25 * signal), gain], rtol=1e-6)


@pytest.mark.parametrize(
    ("specs", "shape"),
    [(FULLY, (8,)), (TENSOR, (4, 2)), (BOTH, (4, 2))],
    ids=["FSDP", "TP", "both"],
)
def test_shardings_pass_through_and_state_is_scalar(specs: Any, shape: Any) -> None:
    mesh = mesh_of(shape)
    params, batch = put(mesh, specs)
    tx = optax.chain(adaoptax.norm_test(eta=0.5), adaoptax.adascale(0.1, base_batch_size=16))

    @jax.jit
    def step(params: Any, state: Any, batch: Any) -> Any:
        _, grads, stats = adaoptax.value_grad_and_stats(loss_fn, EIGHT)(params, batch)
        updates, state = tx.update(grads, state, params, stats=stats)
        return optax.apply_updates(params, updates), state

    new, state = step(params, jax.device_put(tx.init(PARAMS), NamedSharding(mesh, P())), batch)
    for name in params:
        assert new[name].sharding.is_equivalent_to(params[name].sharding, new[name].ndim)
    for leaf in jax.tree.leaves(state):
        assert leaf.ndim == 0
        assert leaf.is_fully_replicated


# --- Groups inside devices ------------------------------------------------------------------------


@pytest.mark.parametrize("inner", [1, 2, 4])
def test_devices_times_groups_are_all_groups(inner: int) -> None:
    method = measure.devices("data", measure.groups(inner) if inner > 1 else None)
    for check_vma in (True, False):
        assert_same(over_shard_map(method, check_vma=check_vma)[2], by_hand(8 * inner))


def test_per_example_inside_devices() -> None:
    for chunk_size in (None, 3):
        method = measure.devices("data", measure.per_example(chunk_size))
        assert_same(over_shard_map(method)[2], by_hand(ROWS))


@pytest.mark.parametrize("mask", [None, np.array([[True, True], [True, False]])])
def test_unbiased_by_enumeration(mask: Any, float64: None) -> None:
    """Every ordered sample of 4 rows out of 5, on 2 devices x 2 groups: the mean is S² exactly."""
    population = np.random.default_rng(1).normal(size=(5, 3)) + 1
    exact = ((population - population.mean(axis=0)) ** 2).sum() / 4
    fn = adaoptax.value_grad_and_stats(lambda w, x: jnp.mean(x @ w), BY_TWO)
    step = lambda x, mask: fn(jnp.ones(3), x, mask=mask)[2]
    axes = (0, None if mask is None else 0)
    over_devices = jax.vmap(step, axes, None, axis_name="data")
    draws = np.array(list(itertools.permutations(range(5), 4)))
    samples = population[draws].reshape(-1, 2, 2, 3)
    stats = jax.jit(jax.vmap(over_devices, (0, None)))(samples, mask)
    assert set(np.asarray(stats.num_groups)) == {4.0 if mask is None else mask.sum()}
    assert np.asarray(stats.variance).mean() == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("inner", [None, measure.groups(2), measure.groups(4)])
@pytest.mark.parametrize("check_vma", [True, False])
def test_unequal_counts_are_weighed_exactly(inner: Any, check_vma: bool) -> None:
    mask = np.arange(ROWS) < 41  # device 5 has one real row, devices 6 and 7 have none
    garbage = {name: np.where(mask[:, None], x, np.nan) for name, x in BATCH.items()}
    fn = adaoptax.value_grad_and_stats(loss_fn, measure.devices("data", inner))
    step = jax.shard_map(
        lambda params, batch, mask: fn(params, batch, mask=mask),
        mesh=mesh_of((8,)),
        in_specs=(P(), P("data"), P("data")),
        out_specs=P(),
        check_vma=check_vma,
    )
    value, grads, stats = jax.jit(step)(PARAMS, garbage, mask)
    assert_same(stats, by_hand(8 * (inner.n if inner else 1), mask))
    mean = per_row_gradients()[:41].mean(axis=0)
    np.testing.assert_allclose(flat(grads), mean, atol=2e-6 * np.abs(mean).max())
    real = jax.tree.map(lambda x: x[:41], BATCH)
    np.testing.assert_allclose(value, loss_fn(PARAMS, real), rtol=1e-6)


@pytest.mark.parametrize("kind", [AUTO, EXPLICIT])
@pytest.mark.parametrize("sharded_mask", [True, False])
def test_masked_groups_under_jit(kind: Any, sharded_mask: bool) -> None:
    mask = np.arange(ROWS) < 41
    garbage = {name: np.where(mask[:, None], x, np.nan) for name, x in BATCH.items()}
    mesh = mesh_of((8,), kind)
    params, batch = put(mesh, P(), garbage)
    fn = jax.jit(adaoptax.value_grad_and_stats(loss_fn, measure.groups(16)))
    placed: Any = jax.device_put(mask, NamedSharding(mesh, P("data"))) if sharded_mask else mask
    assert_same(fn(params, batch, mask=placed)[2], by_hand(16, mask))


@pytest.mark.parametrize("place", ["shard_map", "Auto", "Explicit", "one device"])
def test_coordinate_variance(place: str) -> None:
    both = ("norm", "coordinate")
    if place == "shard_map":
        inner = measure.groups(2, statistics=both)
        stats = over_shard_map(measure.devices("data", inner, statistics=both))[2]
    elif place == "one device":
        stats = single_device(measure.groups(16, statistics=both))[2]
    else:
        kind = EXPLICIT if place == "Explicit" else AUTO
        stats = under_jit(measure.groups(16, statistics=both), kind, (8,))[2]
    groups = per_row_gradients().reshape(16, 4, -1).mean(axis=1)
    exact = 4 * ((groups - groups.mean(axis=0)) ** 2).sum(axis=0) / 15
    got = flat(stats.coordinate_variance)
    np.testing.assert_allclose(got, exact, rtol=1e-5, atol=1e-6 * exact.max())
    assert_same(stats, by_hand(16))


# --- Values, aux, keys ----------------------------------------------------------------------------


def loss_with_aux(params: Any, batch: Any) -> tuple[jax.Array, Any]:
    errors = jnp.sum((batch["x"] @ params["a"]) ** 2, axis=-1)
    return errors.mean(), {"mean": 2 * errors.mean(), "rows": errors, "count": jnp.sum(errors > 1)}


@pytest.mark.parametrize("place", ["shard_map", "groups in devices", "Auto", "Explicit"])
def test_aux_is_that_of_the_whole_batch(place: str) -> None:
    value, aux = loss_with_aux(PARAMS, BATCH)
    if place in ("shard_map", "groups in devices"):
        method = measure.devices("data", measure.groups(4)) if "groups" in place else DATA
        aux_specs = {"mean": P(), "rows": P("data"), "count": P()}
        fn = jax.shard_map(
            adaoptax.value_grad_and_stats(loss_with_aux, method, has_aux=True),
            mesh=mesh_of((8,)),
            in_specs=(P(), P("data")),
            out_specs=((P(), aux_specs), P(), P()),
        )
        (got, got_aux), _, _ = jax.jit(fn)(PARAMS, BATCH)
    else:
        fn = adaoptax.value_grad_and_stats(loss_with_aux, measure.groups(16), has_aux=True)
        kind = EXPLICIT if place == "Explicit" else AUTO
        (got, got_aux), _, _ = jax.jit(fn)(*put(mesh_of((8,), kind)))
    np.testing.assert_allclose(got, value, rtol=1e-6)
    for name in aux:
        np.testing.assert_allclose(got_aux[name], aux[name], rtol=1e-6)


@pytest.mark.parametrize("place", ["shard_map", "Auto", "Explicit"])
def test_devices_draw_different_keys(place: str) -> None:
    def noisy(w: jax.Array, x: jax.Array, key: jax.Array) -> jax.Array:
        return jnp.mean(x @ w) + jax.random.normal(key) * jnp.sum(w)

    kind = EXPLICIT if place == "Explicit" else AUTO
    mesh = mesh_of((8,), kind)
    whole = NamedSharding(mesh, P())
    w, key = jax.device_put((np.ones(3, np.float32), jax.random.key(0)), whole)
    x = jax.device_put(np.ones((16, 3), np.float32), NamedSharding(mesh, P("data")))
    if place == "shard_map":
        fn = adaoptax.value_grad_and_stats(noisy, DATA, key_argnums=2)
        fn = jax.shard_map(fn, mesh=mesh, in_specs=(P(), P("data"), P()), out_specs=P())
    else:
        fn = adaoptax.value_grad_and_stats(noisy, EIGHT, key_argnums=2)
    stats = jax.jit(fn)(w, x, key)[2]
    assert float(stats.num_groups) == 8
    assert float(stats.variance) > 1  # 2 rows x 3 coordinates x the variance of 8 normal draws


def test_batch_norm_sees_real_small_batches() -> None:
    def loss(w: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.mean(jnp.tanh((x - x.mean(axis=0)) @ w))

    x, w = BATCH["x"], np.ones(8, np.float32)
    grads = np.stack([jax.grad(loss)(w, part) for part in x.reshape(8, 8, 8)]).astype(np.float64)
    exact = 8 * ((grads - grads.mean(axis=0)) ** 2).sum() / 7
    placed = jax.device_put(x, NamedSharding(mesh_of((8,)), P("data")))
    stats = jax.jit(adaoptax.value_grad_and_stats(loss, EIGHT, loss_kind="ghost"))(w, placed)[2]
    np.testing.assert_allclose(stats.variance, exact, rtol=1e-5)
