"""One small problem, its statistics by hand in float64, and ways to run it on 8 devices."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import adaoptax
from adaoptax import measure

RNG = np.random.default_rng(7)
DIMS, HIDDEN, OUT, ROWS = 8, 16, 8, 64
PARAMS: Any = {
    "a": RNG.normal(size=(DIMS, HIDDEN)).astype(np.float32) / 3,
    "b": np.zeros(HIDDEN, np.float32),
    "c": RNG.normal(size=(HIDDEN, OUT)).astype(np.float32) / 4,
}
BATCH: Any = {
    "x": RNG.normal(size=(ROWS, DIMS)).astype(np.float32),
    "y": RNG.normal(size=(ROWS, OUT)).astype(np.float32),
}
AUTO, EXPLICIT = AxisType.Auto, AxisType.Explicit
WHOLE, BY_ROWS = P(), P("data")


def loss_fn(params: Any, batch: Any) -> jax.Array:
    hidden = jnp.tanh(batch["x"] @ params["a"] + params["b"])
    return jnp.mean(jnp.sum((hidden @ params["c"] - batch["y"]) ** 2, axis=-1))


def per_row_gradients() -> np.ndarray:
    """[rows, parameters] by hand, in float64."""
    p = {name: np.asarray(value, np.float64) for name, value in PARAMS.items()}
    x, y = (np.asarray(BATCH[name], np.float64) for name in "xy")
    hidden = np.tanh(x @ p["a"] + p["b"])
    d_out = 2 * (hidden @ p["c"] - y)
    d_hidden = (d_out @ p["c"].T) * (1 - hidden**2)
    parts = (x[:, :, None] * d_hidden[:, None, :], d_hidden, hidden[:, :, None] * d_out[:, None, :])
    return np.concatenate([part.reshape(len(x), -1) for part in parts], axis=1)


def by_hand(groups: int, mask: Any = None) -> tuple[float, float, float, float]:
    """(examples, real groups, squared norm, variance) from the definitions."""
    mask = np.ones(ROWS) if mask is None else np.asarray(mask, np.float64)
    weight = mask.reshape(groups, -1)
    total, squares = weight.sum(axis=1), (weight**2).sum(axis=1)
    sums = (mask[:, None] * per_row_gradients()).reshape(groups, ROWS // groups, -1).sum(axis=1)
    real = total > 0
    h, g = sums[real] / total[real, None], sums.sum(axis=0) / total.sum()
    freedom = (squares[real] / total[real]).sum() - squares.sum() / total.sum()
    scatter = (total[real] * ((h - g) ** 2).sum(axis=1)).sum()
    return total.sum() ** 2 / squares.sum(), real.sum(), g @ g, scatter / freedom


def assert_same(stats: Any, expected: tuple[float, ...], rtol: float = 1e-6) -> None:
    got = (stats.num_examples, stats.num_groups, stats.sq_norm, stats.variance)
    np.testing.assert_allclose([float(x) for x in got], expected, rtol=rtol)


def flat(tree: Any) -> np.ndarray:
    """The leaves of a tree like PARAMS, in the order of `per_row_gradients`."""
    return np.concatenate([np.asarray(tree[name]).ravel() for name in "abc"])


def mesh_of(shape: tuple[int, ...], kind: AxisType = AUTO) -> Any:
    return jax.make_mesh(shape, ("data", "model")[: len(shape)], axis_types=(kind,) * len(shape))


def put(mesh: Any, specs: Any = WHOLE, batch: Any = BATCH, rows: Any = BY_ROWS) -> tuple[Any, Any]:
    """Parameters and batch on a mesh."""
    if isinstance(specs, P):
        specs = jax.tree.map(lambda _: specs, PARAMS)
    place = lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec))
    return jax.tree.map(place, PARAMS, specs), jax.tree.map(lambda x: place(x, rows), batch)


def over_shard_map(
    method: Any,
    *,
    kind: AxisType = AUTO,
    shape: tuple[int, ...] = (8,),
    rows: Any = BY_ROWS,
    specs: Any = WHOLE,
    **kwargs: Any,
) -> Any:
    mesh = mesh_of(shape, kind)
    fn = adaoptax.value_grad_and_stats(loss_fn, method)
    step = jax.shard_map(fn, mesh=mesh, in_specs=(P(), rows), out_specs=P(), **kwargs)
    return jax.jit(step)(*put(mesh, specs, rows=rows))


def over_fsdp(check_vma: bool = True) -> Any:
    """Parameters sharded over the data axis, but for one leaf; made whole in the loss."""
    specs = {"a": P("data"), "b": P(), "c": P(None, "data")}
    mesh = mesh_of((8,))
    gathering = lambda params, batch: loss_fn(measure.gather(params), batch)
    step = jax.shard_map(
        adaoptax.value_grad_and_stats(gathering, measure.fsdp("data", specs)),
        mesh=mesh,
        in_specs=(specs, P("data")),
        out_specs=(P(), specs, P()),
        check_vma=check_vma,
    )
    value, grads, stats = jax.jit(step)(*put(mesh, specs))
    assert {name: g.sharding.spec for name, g in grads.items()} == specs
    return value, grads, stats


def under_jit(method: Any, kind: AxisType, shape: tuple[int, ...], specs: Any = WHOLE) -> Any:
    step = adaoptax.value_grad_and_stats(loss_fn, method)
    return jax.jit(step)(*put(mesh_of(shape, kind), specs))
