"""Accumulated steps on eight devices: the numbers of one, and rows that stay where they are."""

import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import NamedSharding, P
from jax.sharding import AxisType

import adaoptax
from adaoptax import measure
from adaoptax.loop import Batch, BatchLoader, accumulate

pytestmark = [pytest.mark.sampled, pytest.mark.topic("devices")]

MICRO, LARGEST = 16, 64
RNG = np.random.default_rng(2)
DATA = {
    "x": RNG.normal(size=(150, 24)).astype(np.float32),
    "y": RNG.normal(size=(150, 8)).astype(np.float32),
}
PARAMS = {
    "in": RNG.normal(size=(24, 32)).astype(np.float32) / 5,
    "out": RNG.normal(size=(32, 8)).astype(np.float32) / 6,
}
CUT = {"in": P("data"), "out": P(None, "data")}
TX = optax.chain(adaoptax.norm_test(eta=0.5), optax.adam(0.01))
HOWS = ["padded", "ladder", "host"]


def loss_fn(params, batch):
    error = jnp.tanh(batch["x"] @ params["in"]) @ params["out"] - batch["y"]
    return jnp.mean(jnp.sum(error**2, axis=-1))


def update(state, loss, grads, stats):
    params, opt_state = state
    updates, opt_state = TX.update(grads, opt_state, params, stats=stats)
    return (optax.apply_updates(params, updates), opt_state), (loss, stats)


def mesh_of(shape=(8,), kind=AxisType.Auto):
    return jax.make_mesh(shape, ("data", "model")[: len(shape)], axis_types=(kind,) * len(shape))


def make(mesh, how="padded", method=None):
    return accumulate(
        loss_fn, update, micro_batch_size=MICRO, max_batch_size=LARGEST, how=how, method=method,
        sharding=None if mesh is None else NamedSharding(mesh, P("data")),
    )  # fmt: skip


def initial_state(mesh=None, specs=None):
    params = jax.tree.map(jnp.asarray, PARAMS)
    if specs is not None:
        places = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
        params = jax.device_put(params, places)
    return params, TX.init(params)


def train(step, state, compilations=None):
    """Four growing steps; the last batch is ragged. Nothing compiles after the first round."""
    loader = BatchLoader(DATA, MICRO, max_batch_size=LARGEST, pad_to=step.capacities, num_epochs=1)
    outputs = []
    with jax.transfer_guard("disallow"):
        for size in (16, 48, 64, 64):
            loader.resize(size)
            state, output = step(state, next(loader))
            outputs.append(jax.device_get(output))
    assert loader.num_examples == 22
    return state, outputs


def assert_same(here, there):
    for x, y in zip(jax.tree.leaves(here), jax.tree.leaves(there), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def alone():
    return {method: train(make(None, method=method), initial_state()) for method in METHODS}


METHODS = [None, measure.exact(), measure.groups(8)]


@pytest.mark.parametrize("method", METHODS, ids=["micro-batches", "exact", "groups"])
@pytest.mark.parametrize("how", HOWS)
def test_eight_devices_do_what_one_does(how, method, alone):
    state, outputs = train(make(mesh_of(), how, method), initial_state())
    assert_same(outputs, alone[method][1])
    assert_same(state[0], alone[method][0][0])
    for leaf in jax.tree.leaves((state, outputs)):
        assert not isinstance(leaf, jax.Array) or leaf.sharding.is_fully_replicated


@pytest.mark.parametrize("shape", [(8,), (4, 2)])
@pytest.mark.parametrize("how", ["padded", "host"])
def test_parameters_and_moments_stay_cut(shape, how, alone):
    mesh = mesh_of(shape)
    state, outputs = train(make(mesh, how), initial_state(mesh, CUT))
    assert_same(outputs, alone[None][1])
    params, opt_state = state
    for tree in (params, opt_state[1][0].mu, opt_state[1][0].nu):
        assert {name: leaf.sharding.spec for name, leaf in tree.items()} == CUT


def test_an_explicit_mesh_knows_it_by_its_types(alone):
    _, outputs = train(make(mesh_of(kind=AxisType.Explicit)), initial_state())
    assert_same(outputs, alone[None][1])


@pytest.mark.parametrize("specs", [None, CUT], ids=["replicated", "fsdp"])
@pytest.mark.parametrize("how", HOWS)
def test_every_size_runs_what_the_first_has_compiled(how, specs, compilations):
    mesh = mesh_of()
    step, state = make(mesh, how), initial_state(mesh, specs)
    compilations.reset()
    state, _ = train(step, state)
    # Rows of the ladder: 16, 64, 64 and 32. The host also has a program for the ragged end.
    assert compilations.count == {"padded": 1, "ladder": 3, "host": 4}[how]
    train(step, state)
    assert compilations.count == {"padded": 1, "ladder": 3, "host": 4}[how]


@pytest.mark.parametrize("how", HOWS)
def test_compiled_ahead_for_the_mesh(how, compilations):
    mesh = mesh_of()
    step, state = make(mesh, how), initial_state(mesh, CUT)
    step.compile(state, {name: x[0] for name, x in DATA.items()}, progress=False)
    compilations.reset()
    train(step, state)
    assert compilations.count == 0


COLLECTIVE = re.compile(
    r"= (\S+|\(.*?\)) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)"
    r"(?:-start)?\("
)


def collectives(compiled):
    """(kind, elements of the largest array) of every collective in a program."""
    size = lambda shape: int(np.prod([int(d) for d in re.findall(r"\d+", shape.split("[")[1])]))
    return Counter(
        (kind, max(size(shape) for shape in re.findall(r"\w+\[[\d,]*\]", shapes)))
        for shapes, kind in COLLECTIVE.findall(compiled.as_text())
    )


@pytest.mark.parametrize("method", METHODS, ids=["micro-batches", "exact", "groups"])
@pytest.mark.parametrize("how", ["padded", "host"])
def test_no_row_leaves_its_device(how, method):
    step = make(mesh_of(), how, method)
    step.compile(initial_state(), {name: x[0] for name, x in DATA.items()}, progress=False)
    largest_leaf = max(x.size for x in PARAMS.values())
    for program in step._compiled.values():
        for (kind, size), _ in collectives(program).items():
            # What is gathered is one number a device: which row of the mask is the first real one.
            assert kind == "all-reduce" or (kind, size) == ("all-gather", 8)
            assert size <= largest_leaf
    if how == "host":  # a full micro-batch: the gradient and nothing else, as the plain step has it
        (found,) = collectives(step._compiled["add"]).items()
        assert found == (("all-reduce", largest_leaf), 1)


def test_rows_of_a_placed_batch_lie_on_all_devices():
    step = make(mesh_of())
    data = {name: x[:LARGEST] for name, x in DATA.items()}
    placed = step.place(Batch(data, np.ones(LARGEST, bool)))
    assert placed.data["x"].shape == (4, 16, 24)
    shards = placed.data["x"].addressable_shards
    assert {shard.data.shape for shard in shards} == {(4, 2, 24)}


def test_devices_that_do_not_divide_a_micro_batch():
    with pytest.raises(ValueError, match=r"multiple of the 8 parts .*pass micro_batch_size=16"):
        accumulate(
            loss_fn, update, micro_batch_size=12, max_batch_size=48,
            sharding=NamedSharding(mesh_of(), P("data")),
        )  # fmt: skip
