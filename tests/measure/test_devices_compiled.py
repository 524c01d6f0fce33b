"""What the compiled step communicates and holds, against the plain step of the same kind."""

import re
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from device_problem import AUTO, EXPLICIT, PARAMS, loss_fn, mesh_of, put
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import adaoptax
from adaoptax import measure

pytestmark = pytest.mark.topic("devices")

COLLECTIVE = re.compile(
    r"= (\S+|\(.*?\)) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)"
    r"(?:-start)?\("
)


def collectives(step: Any, *args: Any) -> Counter:
    """(kind, sorted operand shapes without layouts) of every collective of the compiled step."""
    text: Any = jax.jit(step).lower(*args).compile().as_text()
    found = COLLECTIVE.findall(text)
    return Counter(
        (kind, tuple(sorted(Counter(re.findall(r"\w+\[[\d,]*\]", shapes)).items())))
        for shapes, kind in found
    )


def elements(shapes: tuple) -> Counter:
    """Counts arrays by type and number of elements: XLA may reduce a transposed gradient."""
    sizes: Counter = Counter()
    for shape, count in shapes:
        dtype, dims = shape[:-1].split("[")
        sizes[dtype, int(np.prod([int(d) for d in dims.split(",") if d]))] += count
    return sizes


def assert_one_scalar_more(plain: Counter, measured: Counter, scalars: int = 1) -> None:
    assert [kind for kind, _ in plain.elements()] == ["all-reduce"]
    assert [kind for kind, _ in measured.elements()] == ["all-reduce"]
    ((_, before),), ((_, after),) = plain, measured
    more = elements(after)
    more.subtract(elements(before))
    assert {size: count for size, count in more.items() if count} == {("f32", 1): scalars}


@pytest.mark.parametrize("kind", [AUTO, EXPLICIT])
@pytest.mark.parametrize("n", [8, 16, 32])
def test_groups_under_jit_add_one_scalar_to_the_all_reduce(kind: Any, n: int) -> None:
    params, batch = put(mesh_of((8,), kind))
    plain = collectives(jax.value_and_grad(loss_fn), params, batch)
    fn = adaoptax.value_grad_and_stats(loss_fn, measure.groups(n))
    assert_one_scalar_more(plain, collectives(fn, params, batch))


@pytest.mark.parametrize("shards", [None, 4])
def test_groups_on_a_mesh_with_a_model_axis_stay_local(shards: int | None) -> None:
    params, batch = put(mesh_of((4, 2)))
    plain = collectives(jax.value_and_grad(loss_fn), params, batch)
    fn = adaoptax.value_grad_and_stats(loss_fn, measure.groups(8, shards=shards))
    assert_one_scalar_more(plain, collectives(fn, params, batch))


@pytest.mark.parametrize("kind", [AUTO, EXPLICIT])
def test_a_mask_adds_its_counts_and_no_collective(kind: Any) -> None:
    mesh = mesh_of((8,), kind)
    params, batch = put(mesh)
    mask = jax.device_put(np.arange(64) < 41, NamedSharding(mesh, P("data")))
    plain = collectives(jax.value_and_grad(loss_fn), params, batch)
    fn = adaoptax.value_grad_and_stats(loss_fn, measure.groups(16))
    masked = collectives(lambda p, b, m: fn(p, b, mask=m), params, batch, mask)
    assert [name for name, _ in masked.elements()] == ["all-reduce"]
    ((_, before),), ((_, after),) = plain, masked
    assert elements(after)["f32", 1] - elements(before)["f32", 1] == 3


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("inner", [None, measure.groups(2)])
def test_devices_add_one_scalar_to_the_all_reduce(check_vma: bool, inner: Any) -> None:
    mesh = mesh_of((8,))

    def plain(params: Any, batch: Any) -> Any:
        out = jax.value_and_grad(loss_fn)(adaoptax.vary(params, "data"), batch)
        return jax.lax.pmean(out, "data")

    def over(fn: Any) -> Counter:
        step = jax.shard_map(
            fn, mesh=mesh, in_specs=(P(), P("data")), out_specs=P(), check_vma=check_vma
        )
        return collectives(step, *put(mesh))

    method = measure.devices("data", inner)
    assert_one_scalar_more(over(plain), over(adaoptax.value_grad_and_stats(loss_fn, method)))


def test_centred_costs_one_scalar_all_reduce() -> None:
    params, batch = put(mesh_of((8,)))
    fn = adaoptax.value_grad_and_stats(loss_fn, measure.groups(8, centred=True))
    found = collectives(fn, params, batch)
    assert ("all-reduce", (("f32[]", 1),)) in found
    assert found.total() == 2


# --- Fully sharded models -------------------------------------------------------------------------


LAYERS, WIDTH, LENGTH = 12, 64, 16


def layer(x: jax.Array, weights: Any, whole: Any) -> tuple[jax.Array, None]:
    """A transformer layer with one head; `whole` makes its weights whole."""
    w = whole(weights)
    norm = lambda x: x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6)
    q, k, v = jnp.split((norm(x) * w["scale"]) @ w["qkv"], 3, axis=-1)
    scores = jnp.where(np.tri(x.shape[1]) > 0, q @ k.swapaxes(1, 2) / WIDTH**0.5, -1e9)
    x = x + jax.nn.softmax(scores) @ v @ w["out"]
    return x + jax.nn.gelu(norm(x) @ w["up"]) @ w["down"], None


def transformer_loss(params: Any, batch: jax.Array, whole: Any = measure.gather) -> jax.Array:
    body = jax.checkpoint(lambda x, w: layer(x, w, whole))
    tokens = whole({"tokens": params["tokens"]})["tokens"]
    x = jax.lax.scan(body, tokens[batch[:, :-1]], params["layers"])[0]
    log_p = jax.nn.log_softmax(x @ tokens.T)
    return -jnp.mean(jnp.take_along_axis(log_p, batch[:, 1:, None], -1))


SPECS = {
    "tokens": P("data"),
    "layers": {
        "qkv": P(None, "data"),
        "out": P(None, "data"),
        "up": P(None, None, "data"),
        "down": P(None, "data"),
        "scale": P(),
    },
}
SCANNED_DIM = {"tokens": 0, "qkv": 0, "out": 0, "up": 1, "down": 0, "scale": None}


def plain_whole(weights: Any) -> Any:
    """What a fully sharded model writes without statistics."""
    dims = {name: SCANNED_DIM[name] for name in weights}
    return {
        name: w
        if dims[name] is None
        else jax.lax.all_gather(w, "data", axis=dims[name], tiled=True)
        for name, w in weights.items()
    }


@pytest.fixture(scope="module")
def model() -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    normal = lambda *shape: (rng.normal(size=shape) / shape[-2] ** 0.5).astype(np.float32)
    layers = {
        "qkv": normal(LAYERS, WIDTH, 3 * WIDTH),
        "out": normal(LAYERS, WIDTH, WIDTH),
        "up": normal(LAYERS, WIDTH, 4 * WIDTH),
        "down": normal(LAYERS, 4 * WIDTH, WIDTH),
        "scale": np.ones((LAYERS, WIDTH), np.float32),
    }
    return {"tokens": normal(64, WIDTH), "layers": layers}, rng.integers(0, 64, (16, LENGTH + 1))


def fsdp_step(check_vma: bool = True) -> Any:
    return jax.shard_map(
        adaoptax.value_grad_and_stats(transformer_loss, measure.fsdp("data", SPECS)),
        mesh=mesh_of((8,)),
        in_specs=(SPECS, P("data")),
        out_specs=(P(), SPECS, P()),
        check_vma=check_vma,
    )


def placed(model: Any) -> tuple[Any, Any]:
    mesh, (params, batch) = mesh_of((8,)), model
    place = lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec))
    return jax.tree.map(place, params, SPECS), place(batch, P("data"))


def test_fsdp_norm_needs_no_memory_and_no_collective_of_its_own(model: Any) -> None:
    def plain(params: Any, batch: Any) -> Any:
        value, grads = jax.value_and_grad(transformer_loss)(params, batch, plain_whole)
        return jax.lax.pmean(value, "data"), jax.tree.map(lambda g: g / 8, grads)

    plain = jax.shard_map(
        plain, mesh=mesh_of((8,)), in_specs=(SPECS, P("data")), out_specs=(P(), SPECS)
    )
    args = placed(model)
    compiled: Any = lambda step: jax.jit(step).lower(*args).compile()
    memory = lambda step: compiled(step).memory_analysis().temp_size_in_bytes
    before, after = memory(plain), memory(fsdp_step())
    assert after <= 1.1 * before
    full = sum(x.nbytes for x in jax.tree.leaves(model[0]))
    assert after < full  # no device holds its own gradient of all layers
    kinds = lambda step: Counter(kind for kind, _ in collectives(step, *args).elements())
    assert kinds(fsdp_step()) == kinds(plain)


@pytest.mark.parametrize("check_vma", [True, False])
def test_fsdp_norm_is_the_norm_of_full_gradients(model: Any, check_vma: bool) -> None:
    params, batch = model
    value, grads, stats = jax.jit(fsdp_step(check_vma))(*placed(model))
    parts = batch.reshape(8, 2, -1)
    each = jax.jit(jax.vmap(jax.grad(transformer_loss), (None, 0)))(params, parts)
    h = np.concatenate([np.asarray(x, np.float64).reshape(8, -1) for x in jax.tree.leaves(each)], 1)
    g = h.mean(axis=0)
    flat = np.concatenate([np.asarray(x).ravel() for x in jax.tree.leaves(grads)])
    np.testing.assert_allclose(flat, g, atol=1e-5 * np.abs(g).max())
    np.testing.assert_allclose(stats.sq_norm, g @ g, rtol=1e-5)
    np.testing.assert_allclose(stats.variance, 2 * ((h - g) ** 2).sum() / 7, rtol=1e-5)
    np.testing.assert_allclose(value, transformer_loss(params, batch), rtol=1e-6)


def test_a_model_of_one_example_may_be_mapped(model: Any) -> None:
    """`gather` inside vmap: weights are not mapped, so that its gradient is that of all rows."""
    one = lambda params, row: transformer_loss(params, row[None])
    mapped = lambda params, batch: jnp.mean(jax.vmap(one, (None, 0))(params, batch))
    step = jax.shard_map(
        adaoptax.value_grad_and_stats(mapped, measure.fsdp("data", SPECS)),
        mesh=mesh_of((8,)),
        in_specs=(SPECS, P("data")),
        out_specs=(P(), SPECS, P()),
    )
    got, expected = (jax.jit(fn)(*placed(model))[2] for fn in (step, fsdp_step()))
    np.testing.assert_allclose(got.variance, expected.variance, rtol=1e-5)


def test_gather_is_nothing_outside() -> None:
    assert measure.gather(PARAMS)["a"] is PARAMS["a"]


def run_fsdp(loss: Any, specs: Any, mask: Any = None, in_specs: Any = None) -> Any:
    fn = adaoptax.value_grad_and_stats(loss, measure.fsdp("data", specs))
    step = jax.shard_map(
        lambda params, batch: fn(params, batch, mask=mask),
        mesh=mesh_of((8,)),
        in_specs=(specs if in_specs is None else in_specs, P("data")),
        out_specs=(P(), specs, P()),
    )
    return jax.jit(step)(np.ones((8, 8), np.float32), np.eye(16, 8, dtype=np.float32))


def test_gather_twice_is_undefined() -> None:
    """The norm of a sum cannot be told from the norms of its parts: NaN, never a wrong number."""
    once = lambda w, x: jnp.mean((x @ (whole := measure.gather(w))) ** 2 + x @ whole)
    twice = lambda w, x: jnp.mean((x @ measure.gather(w)) ** 2 + x @ measure.gather(w))
    assert np.isfinite(run_fsdp(once, P("data"))[2].variance)
    _, grads, stats = run_fsdp(twice, P("data"))
    assert np.isnan(stats.variance)
    np.testing.assert_allclose(grads, run_fsdp(once, P("data"))[1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: run_fsdp(
                lambda w, x: jnp.sum(
                    jax.vmap(jax.grad(lambda w, r: jnp.sum(r @ measure.gather(w))), (None, 0))(
                        w, x
                    ).value
                ),
                P("data"),
            ),
            "This usually means that jax.grad was taken inside jax.vmap over examples",
        ),
        (
            lambda: run_fsdp(
                lambda w, x: jnp.mean(x @ measure.gather(w)), P("data"), np.ones(2, bool)
            ),
            "Expected mask=None with adaoptax.measure.fsdp",
        ),
        (
            lambda: run_fsdp(lambda w, x: jnp.mean(x @ measure.gather(w)), P("data"), in_specs=P()),
            "Expected specs to tell how params lie .* which is replicated",
        ),
        (
            lambda: run_fsdp(lambda w, x: jnp.mean(x @ measure.gather(w)), P(), in_specs=P("data")),
            "Expected specs to tell how params lie .* which is different on its devices",
        ),
    ],
)
def test_bad_fsdp(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_a_forgotten_gather_is_an_error() -> None:
    with pytest.raises(TypeError, match="Shard"):
        run_fsdp(lambda w, x: jnp.mean(x @ w), P("data"))
