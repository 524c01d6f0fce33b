"""The exact method on eight devices: the numbers of one device, in one all-reduce."""

import re
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import adaoptax
from adaoptax import measure

sys.path.append(str(Path(__file__).parents[1]))
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
    per_row_gradients,
    put,
)

pytestmark = [pytest.mark.sampled, pytest.mark.topic("devices")]


@pytest.mark.parametrize(("kind", "shards"), [(EXPLICIT, None), (AUTO, None), (AUTO, 1), (AUTO, 2)])
def test_a_sharded_batch_under_jit(kind: Any, shards: int | None) -> None:
    params, batch = put(mesh_of((8,), kind))
    fn = adaoptax.value_grad_and_stats(loss_fn, measure.exact(shards=shards))
    _, grads, stats = jax.jit(fn)(params, batch)
    assert_same(stats, by_hand(ROWS), rtol=1e-5)
    np.testing.assert_allclose(flat(grads), per_row_gradients().mean(axis=0), rtol=0, atol=1e-6)


def test_inner_products_of_a_sharded_batch() -> None:
    params, batch = put(mesh_of((8,), AUTO))
    names = ("norm", "inner", "coordinate")
    fn = adaoptax.value_grad_and_stats(loss_fn, measure.exact(names))
    stats = jax.jit(fn)(params, batch)[2]
    rows = per_row_gradients()
    along = rows @ rows.mean(axis=0)
    np.testing.assert_allclose(stats.inner_product_variance, along.var(ddof=1), rtol=1e-5)
    found = flat(stats.coordinate_variance)
    np.testing.assert_allclose(found, rows.var(axis=0, ddof=1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{"statistics": ("inner",)}, {"probe_size": 8}, {"shards": 1}])
def test_all_rows_at_once_on_an_explicit_mesh(options: Any) -> None:
    params, batch = put(mesh_of((8,), EXPLICIT))
    fn = adaoptax.value_grad_and_stats(loss_fn, measure.exact(**options))
    message = r"not sharded over Explicit mesh axes \('data',\).*AxisType.Auto"
    with pytest.raises(ValueError, match=message):
        jax.jit(fn)(params, batch)
    with pytest.raises(ValueError, match=message):
        jax.jit(measure.per_example_moments(loss_fn))(params, batch)


@pytest.mark.parametrize("kind", [AUTO, EXPLICIT])
def test_norms_take_one_all_reduce_and_no_gather(kind: Any) -> None:
    params, batch = put(mesh_of((8,), kind))
    fn = adaoptax.value_grad_and_stats(loss_fn, measure.exact())
    text: Any = jax.jit(fn).lower(params, batch).compile().as_text()
    kinds = re.findall(r" (all-reduce|all-gather|all-to-all|collective-permute)(?:-start)?\(", text)
    assert kinds == ["all-reduce"]


@pytest.mark.parametrize("kind", [AUTO, EXPLICIT])
def test_a_mask_on_a_sharded_batch(kind: Any) -> None:
    mesh = mesh_of((8,), kind)
    params, batch = put(mesh)
    mask = jax.device_put(np.arange(ROWS) < 41, NamedSharding(mesh, P("data")))
    fn = adaoptax.value_grad_and_stats(loss_fn, measure.exact())
    stats = jax.jit(lambda p, b, m: fn(p, b, mask=m))(params, batch, mask)[2]
    assert_same(stats, by_hand(ROWS, np.arange(ROWS) < 41), rtol=1e-5)


def test_inside_shard_map() -> None:
    """With `devices` around it; alone it would see gradients that are sums over devices."""
    mesh = mesh_of((8,))
    inside = lambda method: jax.shard_map(
        adaoptax.value_grad_and_stats(loss_fn, method),
        mesh=mesh,
        in_specs=(P(), P("data")),
        out_specs=P(),
    )
    stats = jax.jit(inside(measure.devices("data", measure.exact())))(PARAMS, BATCH)[2]
    assert_same(stats, by_hand(ROWS), rtol=1e-5)
    with pytest.raises(ValueError, match=r"local to each device of mesh axes \['data'\].*devices"):
        jax.jit(inside(measure.exact()))(PARAMS, BATCH)


def test_inside_pmap() -> None:
    parts = jax.tree.map(lambda x: x.reshape(8, -1, *x.shape[1:]), BATCH)
    method = measure.devices("data", measure.exact())
    fn = jax.pmap(adaoptax.value_grad_and_stats(loss_fn, method), "data", in_axes=(None, 0))
    stats = jax.tree.map(lambda x: x[0], fn(PARAMS, parts)[2])
    assert_same(stats, by_hand(ROWS), rtol=1e-5)


@pytest.mark.parametrize(
    "options", [{"statistics": ("inner",)}, {"statistics": ("norm",), "probe_size": 8}]
)
def test_shards_that_cannot_be(options: Any) -> None:
    with pytest.raises(ValueError, match="shards=1 with inner products or a probe, got shards=4"):
        measure.exact(shards=4, **options)
