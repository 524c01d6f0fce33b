"""`stats_from_axis` and `vary`, and the errors that replace silently wrong numbers."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from device_problem import (
    AUTO,
    BATCH,
    BY_ROWS,
    EXPLICIT,
    PARAMS,
    ROWS,
    WHOLE,
    assert_same,
    by_hand,
    loss_fn,
    mesh_of,
    over_shard_map,
    put,
)
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import adaoptax
from adaoptax import measure

pytestmark = [pytest.mark.sampled, pytest.mark.topic("devices")]


def on_axis(fn: Any, *args: Any) -> Any:
    return jax.vmap(fn, out_axes=None, axis_name="data")(*args)


def on_mesh(fn: Any, *, kind: Any = AUTO, in_specs: Any = (WHOLE, BY_ROWS)) -> Any:
    mesh = mesh_of((8,), kind)
    return jax.jit(jax.shard_map(fn, mesh=mesh, in_specs=in_specs, out_specs=P()))


@pytest.mark.parametrize("centred", [False, True])
def test_hand_checked(rows: np.ndarray, centred: bool) -> None:
    grads, stats = on_axis(
        functools.partial(
            adaoptax.stats_from_axis,
            axis_name="data",
            local_batch_size=1,
            statistics=("norm", "coordinate"),
            centred=centred,
        ),
        rows,
    )
    np.testing.assert_array_equal(grads, [2, 0])
    np.testing.assert_allclose(stats.coordinate_variance, [2 / 3, 8 / 3], rtol=1e-6)
    assert_same(stats, (4, 4, 4, 10 / 3))


def test_uneven_counts_by_hand() -> None:
    """Devices with 1, 3, 8 and no rows; the last holds garbage."""
    counts = np.array([1, 3, 8, 0])
    grads = np.random.default_rng(5).normal(size=(4, 6)).astype(np.float32)
    grads[3] = np.nan
    got, stats = on_axis(lambda g, n: adaoptax.stats_from_axis(g, "data", n), grads, counts)
    h, weight = grads[:3].astype(np.float64), counts[:3, None]
    mean = (weight * h).sum(axis=0) / 12
    np.testing.assert_allclose(got, mean, rtol=1e-5, atol=1e-7)
    assert_same(stats, (12, 3, mean @ mean, (weight * (h - mean) ** 2).sum() / 2))


def test_own_accumulation_is_pooled() -> None:
    """`local_stats`: two groups on each device, measured there by the user."""
    groups = np.random.default_rng(0).normal(size=(4, 2, 10)).astype(np.float32)

    def one(groups: jax.Array) -> Any:
        grads, stats = adaoptax.stats_from_groups(groups, group_size=3)
        return adaoptax.stats_from_axis(grads, "data", 6, local_stats=stats)[1]

    h = groups.reshape(8, 10).astype(np.float64)
    mean = h.mean(axis=0)
    assert_same(on_axis(one, groups), (24, 8, mean @ mean, 3 * ((h - mean) ** 2).sum() / 7))


def test_bfloat16_gradients_are_summed_in_float32() -> None:
    grads = np.random.default_rng(0).normal(size=(8, 4096)).astype(jnp.bfloat16)
    mean, stats = on_axis(lambda g: adaoptax.stats_from_axis(g, "data", 1), grads)
    assert mean.dtype == jnp.bfloat16
    assert stats.variance.dtype == jnp.float32
    exact = grads.astype(np.float64)
    g = exact.mean(axis=0)
    assert_same(stats, (8, 8, g @ g, ((exact - g) ** 2).sum() / 7))


@pytest.mark.parametrize("condition", [1e2, 1e4, 1e6])
def test_precision_of_one_all_reduce(condition: float) -> None:
    """The error grows with the condition as stated; a second all-reduce takes it away."""
    rng, size = np.random.default_rng(0), 20_000
    noise = rng.normal(size=(8, size)) * (8 / 7 / condition) ** 0.5
    grads = (rng.normal(size=size) + noise).astype(np.float32)
    exact = grads.astype(np.float64)
    variance = ((exact - exact.mean(axis=0)) ** 2).sum() / 7

    def measured(centred: bool) -> float:
        one = lambda g: adaoptax.stats_from_axis(g, "data", 1, centred=centred)[1].variance
        return float(on_axis(one, grads))

    assert measured(True) == pytest.approx(variance, rel=1e-6)
    assert measured(False) == pytest.approx(variance, rel=4e-7 * condition)
    assert measured(False) >= 0


@pytest.mark.parametrize("kind", [AUTO, EXPLICIT])
def test_vary_makes_gradients_local(kind: Any) -> None:
    def step(params: Any, batch: Any) -> Any:
        grads = jax.grad(loss_fn)(adaoptax.vary(params, "data"), batch)
        return adaoptax.stats_from_axis(grads, "data", 8)[1]

    assert_same(on_mesh(step, kind=kind)(*put(mesh_of((8,), kind))), by_hand(8))


def test_vary_can_be_repeated_and_keeps_values() -> None:
    def step(w: jax.Array, x: jax.Array) -> jax.Array:
        del x
        varying = adaoptax.vary(adaoptax.vary(w, "data"), "data")
        return jax.lax.pmean(varying, "data")

    np.testing.assert_array_equal(on_mesh(step)(np.arange(3.0), np.ones(8)), [0, 1, 2])


# --- Bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize("then", ["nothing", "pmean", "psum"])
def test_reduced_gradients_are_refused(then: str) -> None:
    def step(w: jax.Array, x: jax.Array) -> Any:
        grads = jax.grad(lambda w: jnp.mean(x @ w))(w)  # already summed by JAX
        if then != "nothing":
            grads = getattr(jax.lax, then)(grads, "data")
        return adaoptax.stats_from_axis(grads, "data", x.shape[0])

    with pytest.raises(ValueError, match=r"This usually means that jax\.grad was taken inside"):
        on_mesh(step)(np.ones(3, np.float32), np.ones((16, 3), np.float32))


def test_only_the_reduced_leaves_are_named() -> None:
    def step(params: Any, batch: Any) -> Any:
        params = params | {"a": adaoptax.vary(params["a"], "data")}
        return adaoptax.stats_from_axis(jax.grad(loss_fn)(params, batch), "data", 8)

    with pytest.raises(ValueError, match=r"equal on all of them: \['b'\], \['c'\]\."):
        on_mesh(step)(PARAMS, BATCH)


def test_params_that_differ_between_devices_are_refused() -> None:
    fn = adaoptax.value_grad_and_stats(lambda w, x: jnp.mean(x @ w), measure.devices("data"))
    wrong = on_mesh(fn, in_specs=(P("data"), P("data")))
    with pytest.raises(ValueError, match=r"Expected params that are replicated over .*'data'"):
        wrong(np.ones(8, np.float32), np.ones((16, 1), np.float32))


def test_an_unbound_axis_is_named() -> None:
    fn = adaoptax.value_grad_and_stats(loss_fn, measure.devices("date"))
    with pytest.raises(NameError, match=r"Expected axis_name='date' to be bound here"):
        fn(PARAMS, BATCH)
    with pytest.raises(NameError, match=r"under plain jax\.jit measure with"):
        adaoptax.stats_from_axis(PARAMS, ("data", "date"), 8)
    with pytest.raises(NameError, match="Expected axis_name='data'"):
        adaoptax.vary(PARAMS, "data")


def test_one_device_with_one_group_is_undefined_and_flagged() -> None:
    mesh = jax.sharding.Mesh(jax.devices()[:1], ("data",))

    def run(method: Any) -> Any:
        fn = adaoptax.value_grad_and_stats(loss_fn, method)
        step = jax.shard_map(fn, mesh=mesh, in_specs=(P(), P("data")), out_specs=P())
        return jax.jit(step)(PARAMS, BATCH)

    value, grads, stats = run(measure.devices("data"))
    assert np.isfinite(value)
    assert np.isnan(stats.variance)
    tx = adaoptax.norm_test(eta=0.5)
    state = tx.update(grads, tx.init(grads), stats=stats)[1]
    assert bool(state.undefined)
    assert float(state.required_batch_size) == ROWS  # keeps the batch
    assert_same(run(measure.devices("data", measure.groups(4)))[2], by_hand(4))


def test_no_real_row_anywhere() -> None:
    fn = adaoptax.value_grad_and_stats(loss_fn, measure.devices("data"))
    step = on_mesh(lambda p, b, m: fn(p, b, mask=m), in_specs=(P(), P("data"), P("data")))
    value, grads, stats = step(PARAMS, BATCH, np.zeros(ROWS, bool))
    assert np.isnan(value)
    assert np.isnan(stats.variance)
    assert float(stats.num_groups) == 0
    assert all(np.all(np.asarray(leaf) == 0) for leaf in jax.tree.leaves(grads))


def test_nan_on_one_device_reaches_the_statistics() -> None:
    batch = BATCH | {"y": np.where(np.arange(ROWS)[:, None] == 3, np.nan, BATCH["y"])}
    _, grads, stats = on_mesh(adaoptax.value_grad_and_stats(loss_fn, measure.devices("data")))(
        PARAMS, batch
    )
    assert np.isnan(stats.sq_norm)
    assert np.isnan(stats.variance)
    tx = adaoptax.norm_test(eta=0.5)
    assert bool(tx.update(grads, tx.init(grads), stats=stats)[1].undefined)


def test_groups_that_straddle_explicit_shards_are_refused() -> None:
    params, batch = put(mesh_of((8,), EXPLICIT))
    with pytest.raises(ValueError, match="Expected n=4 groups to be a multiple of the 8 shards"):
        jax.jit(adaoptax.value_grad_and_stats(loss_fn, measure.groups(4)))(params, batch)


def test_groups_that_straddle_auto_shards_are_right() -> None:
    """There the type does not tell: the numbers hold, rows are moved."""
    step = jax.jit(adaoptax.value_grad_and_stats(loss_fn, measure.groups(4)))
    assert_same(step(*put(mesh_of((8,))))[2], by_hand(4))


def test_a_mesh_that_does_not_divide_the_batch() -> None:
    odd = {name: x[:60] for name, x in BATCH.items()}
    with pytest.raises(ValueError, match="should evenly divide"):
        put(mesh_of((8,)), P(), odd)
    with pytest.raises(ValueError, match="divisible"):
        on_mesh(adaoptax.value_grad_and_stats(loss_fn, measure.devices("data")))(PARAMS, odd)


def test_parameters_and_batch_on_different_meshes() -> None:
    half = jax.sharding.Mesh(jax.devices()[:4], ("data",))
    params = jax.device_put(PARAMS, NamedSharding(half, P()))
    _, batch = put(mesh_of((8,)))
    with pytest.raises(ValueError, match="incompatible devices"):
        jax.jit(adaoptax.value_grad_and_stats(loss_fn, measure.groups(8)))(params, batch)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: measure.groups(8, shards=3), "Expected shards to divide n=8, got shards=3"),
        (lambda: measure.devices("data", statistics=("inner",)), "devices measures these only"),
        (
            lambda: over_shard_map(
                measure.devices("data", measure.groups(2), statistics=("norm", "coordinate"))
            ),
            "Expected inner to measure",
        ),
        (
            lambda: on_axis(lambda g: adaoptax.stats_from_axis(g, "data", 0), np.ones((4, 2))),
            "Expected local_batch_size >= 1, got local_batch_size=0",
        ),
    ],
)
def test_bad_arguments(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_inner_must_be_a_method() -> None:
    with pytest.raises(TypeError, match=r"Expected inner to be made by adaoptax\.measure"):
        measure.devices("data", inner=4)  # type: ignore[arg-type]


def test_an_inner_method_that_was_not_called_is_refused() -> None:
    with pytest.raises(TypeError, match=r"Expected inner .* call it"):
        measure.devices("data", measure.groups)  # type: ignore[arg-type]
