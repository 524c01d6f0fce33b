"""Inside `pmap` and `shard_map`: a method of one's own, and losses in which devices meet."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from device_problem import BATCH, PARAMS, flat, loss_fn, mesh_of
from jax.sharding import PartitionSpec as P

import adaoptax
from adaoptax import measure

pytestmark = pytest.mark.topic("devices")

ROWS = P("data")
PARTS = jax.tree.map(lambda x: x.reshape(8, 8, *x.shape[1:]), BATCH)


def over_pmap(fn: Any) -> Any:
    return jax.pmap(fn, "data", in_axes=(None, 0), out_axes=None)(PARAMS, PARTS)


def over_vmap(fn: Any) -> Any:
    return jax.vmap(fn, axis_name="data", in_axes=(None, 0), out_axes=None)(PARAMS, PARTS)


def over_mesh(fn: Any, rows: Any = ROWS, **kwargs: Any) -> Any:
    step = jax.shard_map(fn, mesh=mesh_of((8,)), in_specs=(P(), rows), out_specs=P(), **kwargs)
    return jax.jit(step)(PARAMS, BATCH)


def over_untracked_mesh(fn: Any) -> Any:
    return over_mesh(fn, check_vma=False)


WAYS = [over_pmap, over_vmap, over_mesh, over_untracked_mesh]


def normalised(axis_name: Any = "data") -> Any:
    """A loss with BatchNorm, over the devices of an axis or over its rows alone."""

    def fn(params: Any, batch: Any) -> jax.Array:
        over = (lambda x: jax.lax.pmean(x, axis_name)) if axis_name else lambda x: x
        hidden = batch["x"] @ params["a"]
        centred = hidden - over(hidden.mean(axis=0))
        hidden = jnp.tanh(centred / jnp.sqrt(over((centred**2).mean(axis=0)) + 1e-3) + params["b"])
        return jnp.mean((hidden @ params["c"] - batch["y"]) ** 2)

    return fn


@pytest.mark.parametrize("way", [over_pmap, over_mesh, over_untracked_mesh])
def test_no_method_where_devices_hold_rows_of_their_own(way: Any) -> None:
    """Each would return the gradient of its own rows as if it were that of the batch."""
    with pytest.raises(ValueError, match=r"got method=None.*devices\('data', adaoptax\.measure"):
        way(adaoptax.value_grad_and_stats(loss_fn))
    loss, grads, _ = way(adaoptax.value_grad_and_stats(loss_fn, measure.devices("data")))
    value, gradient = jax.value_and_grad(loss_fn)(PARAMS, BATCH)
    np.testing.assert_allclose(loss, value, rtol=1e-5)
    np.testing.assert_allclose(flat(grads), flat(gradient), rtol=1e-4, atol=1e-6)


def test_no_method_is_needed_where_all_devices_hold_the_same() -> None:
    loss, grads, _ = over_mesh(adaoptax.value_grad_and_stats(loss_fn), rows=P())
    value, gradient = jax.value_and_grad(loss_fn)(PARAMS, BATCH)
    np.testing.assert_allclose(loss, value, rtol=1e-5)
    np.testing.assert_allclose(flat(grads), flat(gradient), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["separable", "ghost"])
def test_a_loss_in_which_devices_meet_is_refused(way: Any, kind: str) -> None:
    method = measure.devices("data", measure.groups(2))
    step = adaoptax.value_grad_and_stats(normalised(), method, loss_kind=kind)
    with pytest.raises(ValueError, match=r"psum\w* at .*test_devices_meet\.py.*drop its axis_name"):
        way(step)


def test_it_is_found_in_loops_and_branches_and_in_any_collective() -> None:
    def gathering(params: Any, batch: Any) -> Any:
        turn = lambda total, _: (total + jax.lax.all_gather(loss_fn(params, batch), "data")[0], 0)
        return jax.lax.scan(jax.checkpoint(turn), 0.0, None, length=2)[0]

    def passing_on(params: Any, batch: Any) -> jax.Array:
        value = loss_fn(params, batch)
        following = [(i, (i + 1) % 8) for i in range(8)]
        return jax.lax.cond(
            value > 0, lambda: jax.lax.ppermute(value, "data", following), lambda: value
        )

    for fn, name in ((gathering, "all_gather"), (passing_on, "ppermute")):
        with pytest.raises(ValueError, match=f"devices meet: {name} at"):
            over_vmap(adaoptax.value_grad_and_stats(fn, measure.devices("data")))


def test_another_axis_and_the_number_of_a_device_are_no_meeting() -> None:
    def fn(params: Any, batch: Any) -> jax.Array:
        own = jax.vmap(lambda x: x + jax.lax.pmean(x, "here"), axis_name="here")(batch["x"][None])
        own = own[0] * (1 + 0 * jax.lax.axis_index("data"))
        return loss_fn(params, batch | {"x": own / 2})

    loss, *_ = over_vmap(adaoptax.value_grad_and_stats(fn, measure.devices("data")))
    np.testing.assert_allclose(loss, loss_fn(PARAMS, BATCH), rtol=1e-5)


@pytest.mark.parametrize("way", WAYS)
def test_on_the_word_of_the_user_loss_and_gradient_stay_the_plain_ones(way: Any) -> None:
    """The BatchNorm of all devices is that of the whole batch."""
    step = adaoptax.value_grad_and_stats(normalised(), measure.devices("data"), loss_kind="assumed")
    loss, grads, _ = way(step)
    value, gradient = jax.value_and_grad(normalised(None))(PARAMS, BATCH)
    np.testing.assert_allclose(loss, value, rtol=1e-5)
    np.testing.assert_allclose(flat(grads), flat(gradient), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("way", WAYS)
def test_a_ghost_on_each_device_is_the_mean_of_the_batches_of_devices(way: Any) -> None:
    step = adaoptax.value_grad_and_stats(
        normalised(None), measure.devices("data"), loss_kind="ghost"
    )
    loss, grads, stats = way(step)
    parts = [jax.tree.map(lambda x, j=j: x[j], PARTS) for j in range(8)]
    each = [jax.value_and_grad(normalised(None))(PARAMS, part) for part in parts]
    h = np.stack([flat(gradient) for _, gradient in each])
    np.testing.assert_allclose(loss, np.mean([value for value, _ in each]), rtol=1e-5)
    np.testing.assert_allclose(flat(grads), h.mean(axis=0), rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(stats.variance, 8 * ((h - h.mean(axis=0)) ** 2).sum() / 7, rtol=1e-4)


def test_the_mean_over_devices_is_not_the_loss_to_take() -> None:
    """With tracked values, the gradient would be an eighth, whatever the word of the user."""
    reduced = lambda params, batch: jax.lax.pmean(loss_fn(params, batch), "data")
    step = adaoptax.value_grad_and_stats(reduced, measure.devices("data"), loss_kind="assumed")
    with pytest.raises(ValueError, match=r"equal on all of them.*Leave that out"):
        over_mesh(step)
    for way in (over_pmap, over_untracked_mesh):
        _, grads, _ = way(step)
        gradient = jax.grad(loss_fn)(PARAMS, BATCH)
        np.testing.assert_allclose(flat(grads), flat(gradient), rtol=1e-4, atol=1e-6)
