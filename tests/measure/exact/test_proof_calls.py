"""How a proof is asked for: inputs, keys, transformations, meshes, and the line that is blamed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from proving import BATCH, PARAMS, ROWS, check, check_separable, of_logits

pytestmark = pytest.mark.topic("mixing losses")

good = of_logits(lambda z, b: jnp.mean(z**2))
bad = of_logits(lambda z, b: jnp.mean(jnp.tanh(z - z.mean(axis=0))))


def test_one_entry_a_row_outside_of_the_batch():
    weighted = lambda p, b, w: jnp.mean((b["x"] @ p)[:, 0] * w["rows"])
    message = r"any length, got TypeError .* with 3 of its 6 rows.*closes over"
    with pytest.raises(ValueError, match=message):
        check(weighted, args=({"rows": jnp.ones(ROWS), "other": jnp.ones(3)},))
    captured = lambda p, b: jnp.mean((b["x"] @ p)[:, 0] * jnp.ones(ROWS))
    with pytest.raises(ValueError, match=message):
        check(captured)


def test_a_loss_that_insists_on_its_length():
    """`exact` calls it with the whole batch only, and other methods with parts of it."""

    def loss_fn(params, batch):
        assert batch["x"].shape[0] == ROWS
        return jnp.mean(batch["x"] @ params)

    check_separable(loss_fn)
    with pytest.raises(ValueError, match="any length, got AssertionError"):
        check(loss_fn)


def test_errors_of_the_loss_itself():
    for proof in (check_separable, check):
        with pytest.raises(TypeError, match="dot_general"):
            proof(lambda p, b: jnp.mean(b["x"] @ p.T))


def test_aux_may_mix():
    z = lambda p, b: b["x"] @ p
    check(lambda p, b: (jnp.mean(z(p, b) ** 2), {"spread": jnp.std(z(p, b))}), has_aux=True)
    with pytest.raises(ValueError, match="examples meet"):
        check(lambda p, b: (jnp.std(z(p, b)), jnp.mean(z(p, b))), has_aux=True)


@pytest.mark.parametrize(
    "key", [jax.random.key(1), jax.random.PRNGKey(1)], ids=["typed key", "raw key"]
)
def test_keys(key):
    """Of each row in the batch, or declared: then each part of a batch has a key of its own."""
    draw = lambda k, v: jnp.sum(v * jax.random.bernoulli(k, 0.5, v.shape))
    batch = {"x": BATCH["x"], "key": jax.random.split(key, ROWS)}
    check(lambda p, b: jax.vmap(draw)(b["key"], b["x"] @ p).mean(), batch=batch)
    split = lambda p, b, k: jax.vmap(draw)(jax.random.split(k, len(b["x"])), b["x"] @ p).mean()
    at_once = lambda p, b, k: draw(k, b["x"] @ p) / len(b["x"])
    folded = lambda p, b, k: at_once(p, b, jax.random.fold_in(k, 3))
    counted = lambda p, b, k: jnp.mean(
        (b["x"] @ p)[:, 0] * jax.random.uniform(k, (len(b["x"]),)) * jnp.arange(len(b["x"]))
    )
    for loss_fn in (split, at_once, folded, counted):
        check_separable(loss_fn, args=(key,))
        with pytest.raises(ValueError, match=r"key_argnums=.* numbers drawn from a random key"):
            check(loss_fn, args=(key,))
    for loss_fn in (split, at_once, folded):
        check(loss_fn, args=(key,), key_argnums=2)
    with pytest.raises(ValueError, match="by its place in the batch"):
        check(counted, args=(key,), key_argnums=2)


def test_inputs_of_other_kinds():
    pair = (np.ones((4, 8)), np.ones(4))
    check(lambda p, b: jnp.mean((b[0] @ p)[:, 0] * b[1]), batch=pair)
    check_separable(lambda p, b: jnp.mean(b[0] @ p) + jnp.mean(b[1]), batch=pair)
    check(lambda p, b, mode: jnp.mean(b["x"] @ p) if mode == "mean" else 0.0, args=("mean",))
    check(lambda p, b: jnp.mean(b["x"] * p["w"]), params={"w": 2.0, "none": None})


@pytest.mark.parametrize(
    "inside",
    [
        pytest.param(lambda f: jax.jit(f), id="jit"),
        pytest.param(lambda f: jax.jit(jax.grad(f)), id="grad"),
        pytest.param(lambda f: jax.checkpoint(f), id="remat"),
        pytest.param(
            lambda f: (
                lambda p, b: jax.vmap(f, in_axes=(None, 0))(
                    p, jax.tree.map(lambda x: x.reshape(2, 3, *x.shape[1:]), b)
                )
            ),
            id="vmap",
        ),
    ],
)
def test_inside_of_transformations(inside):
    def checked(loss_fn, params, batch):
        check(loss_fn, params, batch)
        return loss_fn(params, batch)

    with jax.transfer_guard("disallow"):
        jax.eval_shape(inside(functools.partial(checked, good)), PARAMS, BATCH)
        with pytest.raises(ValueError, match="examples meet"):
            jax.eval_shape(inside(functools.partial(checked, bad)), PARAMS, BATCH)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_on_a_mesh(kind):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        params = jax.device_put(PARAMS, NamedSharding(mesh, P()))
        batch = jax.device_put(BATCH, NamedSharding(mesh, P("data")))
        check(good, params, batch)
        with pytest.raises(ValueError, match="examples meet"):
            check(bad, params, batch)


@pytest.mark.parametrize("check_vma", [True, False])
def test_inside_of_shard_map(check_vma):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    over_devices = lambda p, b: jax.lax.pmean(good(p, b), "data")
    across = lambda p, b: jnp.mean(jnp.tanh(b["x"] - jax.lax.pmean(b["x"].mean(0), "data")))

    def run(loss_fn):
        def each(params, batch):
            check(loss_fn, params, batch)
            return loss_fn(params, batch)[None]

        mapped = jax.shard_map(
            each, mesh=mesh, in_specs=(P(), P("data")), out_specs=P("data"), check_vma=check_vma
        )
        jax.eval_shape(mapped, PARAMS, BATCH)

    run(good)
    with pytest.raises(ValueError, match="psum"):  # each device has its own rows only
        run(over_devices)
    for mixing in (bad, across):
        with pytest.raises(ValueError, match=r"examples meet|is not known here|whole batch"):
            run(mixing)


def test_a_cached_function_is_blamed_where_it_is_called():
    """The body of jnp.var was traced elsewhere before, with the same shapes."""
    jax.make_jaxpr(lambda z: jnp.var(z, axis=0))(jnp.ones((ROWS, 5)))

    def spread(z, batch):
        return jnp.sum(jnp.var(z, axis=0))

    line = spread.__code__.co_firstlineno + 1
    for prove in (check_separable, check):
        with pytest.raises(ValueError, match=rf" at \S*test_proof_calls\.py:{line}:"):
            prove(of_logits(spread))
