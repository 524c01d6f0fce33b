"""Measuring at every n-th step on 8 devices: the plain gradient between, and no rows that move."""

import functools
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from device_problem import (
    AUTO,
    BATCH,
    EXPLICIT,
    PARAMS,
    flat,
    loss_fn,
    mesh_of,
    per_row_gradients,
    put,
)
from jax.sharding import PartitionSpec as P

from adaoptax import value_grad_and_stats
from adaoptax.measure import devices, every, fsdp, gather, groups, inner_products
from adaoptax.stats import is_measured

pytestmark = [pytest.mark.sampled, pytest.mark.topic("devices")]


def whole_batch():
    """Gradient of the batch of `device_problem`, by one plain call."""
    return flat(jax.grad(loss_fn)(PARAMS, BATCH))


@pytest.mark.parametrize("kind", [AUTO, EXPLICIT], ids=["Auto", "Explicit"])
@pytest.mark.parametrize("due", [True, False])
@pytest.mark.parametrize("static", [True, False])
def test_on_a_mesh_under_jit(kind, due, static):
    method = every(2, groups(8, statistics=("norm", "coordinate")))
    fn = value_grad_and_stats(loss_fn, method)
    fn = jax.jit(fn, static_argnames="due" if static else ())
    _, grads, stats = fn(*put(mesh_of((8,), kind)), due=due)
    np.testing.assert_allclose(flat(grads), whole_batch(), rtol=1e-5, atol=1e-6)
    assert (float(stats.num_groups), float(stats.num_examples)) == (8 * due, 64)
    assert is_measured(stats) == due
    assert np.isnan(stats.variance) == (not due)


@pytest.mark.parametrize("kind", [AUTO, EXPLICIT], ids=["Auto", "Explicit"])
@pytest.mark.parametrize("method", [every(2, groups(8)), inner_products(None)], ids=str)
def test_a_mask_on_a_mesh_leaves_rows_where_they_are(kind, method):
    """Nothing as large as the rows of one device travels: one row, the gradient, counts."""
    mask = np.arange(64) < 20
    weighted = lambda rows: np.average(rows, axis=0, weights=mask)
    params, batch = put(mesh_of((8,), kind))
    batch = jax.tree.map(lambda x: jnp.where(jnp.arange(64)[:, None] < 20, x, jnp.nan), batch)
    fn = functools.partial(value_grad_and_stats(loss_fn, method), due=False)
    step = jax.jit(lambda p, b: fn(p, b, mask=mask)).lower(params, batch).compile()
    np.testing.assert_allclose(
        flat(step(params, batch)[1]), weighted(per_row_gradients()), rtol=1e-5, atol=1e-6
    )
    gathered = re.findall(r"\[([\d,]*)\]\S* all-gather\(", str(step.as_text()))
    sizes = [math.prod(map(int, shape.split(","))) for shape in gathered if shape]
    assert max(sizes, default=0) <= 64  # of numbers of rows, not of the [64, 8] rows


DEVICE_METHODS: dict[str, Any] = {
    "outside": every(2, devices("data", groups(2))),
    "inside": devices("data", every(2, groups(2))),
    "filled": every(2, devices("data", groups(2)), between=devices("data")),
}


@pytest.mark.parametrize("where", DEVICE_METHODS)
@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("static", [True, False])
def test_in_shard_map(where, check_vma, static):
    fn = value_grad_and_stats(loss_fn, DEVICE_METHODS[where])
    mesh = mesh_of((8,))
    for due in (True, False):
        # Python's own bool, or that of a traced argument.
        one = lambda p, b, traced, due=due: fn(p, b, due=due if static else traced)
        step = jax.shard_map(
            one, mesh=mesh, in_specs=(P(), P("data"), P()), out_specs=P(), check_vma=check_vma
        )
        _, grads, stats = jax.jit(step)(*put(mesh), due)
        np.testing.assert_allclose(flat(grads), whole_batch(), rtol=1e-5, atol=1e-6)
        assert float(stats.num_examples) == 64
        between = 8 if where == "filled" else 0
        assert float(stats.num_groups) == (16 if due else between)
        assert np.isfinite(stats.variance) == (float(stats.num_groups) > 0)


def test_fully_sharded():
    specs = {"a": P("data"), "b": P(), "c": P(None, "data")}
    mesh = mesh_of((8,))
    gathering = lambda params, batch: loss_fn(gather(params), batch)
    fn = value_grad_and_stats(gathering, every(2, fsdp("data", specs)))
    step = jax.shard_map(
        lambda p, b: fn(p, b, due=False), mesh=mesh, in_specs=(specs, P("data")),
        out_specs=(P(), specs, P()))  # fmt: skip
    _, grads, stats = jax.jit(step)(*put(mesh, specs))
    np.testing.assert_allclose(flat(grads), whole_batch(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(stats.sq_norm, whole_batch() @ whole_batch(), rtol=1e-5)
    assert not is_measured(stats)
