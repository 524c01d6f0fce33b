"""What `test_processes.py` runs: one training, in one process or as one of several.

As a program: ``process_worker.py JOB.json`` joins the others, trains, and writes its results.
"""

import json
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import NamedSharding, P
from jax.experimental import multihost_utils
from local_processes import join

import adaoptax
from adaoptax.loop import accumulate

MICRO, LARGEST, EXAMPLES = 8, 64, 203
RANDOM = np.random.default_rng(0)
INPUTS = RANDOM.normal(size=(EXAMPLES, 6)).astype(np.float32)
DATA = {
    "index": np.arange(EXAMPLES),
    "x": INPUTS,
    "y": np.tanh(INPUTS @ np.arange(6, dtype=np.float32)),
}
TX = optax.chain(
    adaoptax.norm_test(0.4, decay=0.8),
    adaoptax.adascale(optax.cosine_decay_schedule(0.05, 400), MICRO, momentum=0.9),
)


def loss_fn(params: Any, batch: Any) -> jax.Array:
    return jnp.mean((jnp.tanh(batch["x"] @ params["w1"]) @ params["w2"] - batch["y"]) ** 2)


def initial_params() -> Any:
    keys = jax.random.split(jax.random.key(1), 2)
    return {
        "w1": 0.4 * jax.random.normal(keys[0], (6, 16)),
        "w2": 0.2 * jax.random.normal(keys[1], (16,)),
    }


def initial_state() -> Any:
    params = initial_params()
    return params, TX.init(params)


def train_step(
    state: Any, batch: adaoptax.Batch, micro_batches: adaoptax.Batch, mesh: jax.sharding.Mesh
) -> Any:
    """Steps by exact statistics; `micro_batches` are the same rows, measured in other ways too."""
    params, opt_state = state
    measure = adaoptax.value_grad_and_stats(loss_fn, adaoptax.measure.per_example())
    loss, grads, stats = measure(params, batch.data, mask=batch.mask)
    updates, opt_state = TX.update(grads, opt_state, params, stats=stats)
    devices = adaoptax.measure.devices("data", adaoptax.measure.groups(LARGEST // MICRO))
    measure_rows = adaoptax.value_grad_and_stats(loss_fn, devices)

    def on_each_device(params: Any, micro_batches: adaoptax.Batch) -> Any:
        own = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), micro_batches)
        return measure_rows(params, own.data, mask=own.mask)[2]

    device_stats = jax.shard_map(
        on_each_device, mesh=mesh, in_specs=(P(), P(None, "data")), out_specs=P()
    )(params, micro_batches)
    return (optax.apply_updates(params, updates), opt_state), {
        "loss": loss,
        "required": adaoptax.required_batch_size(opt_state),
        "gain": optax.tree.get(opt_state, "gain"),
        "examples": stats.num_examples,
        "variance": stats.variance,
        "device_variance": device_stats.variance,
    }


def micro_batch_variances(sharding: NamedSharding) -> list[Any]:
    """Two ways of accumulation, which measure and leave the state as it is."""
    return [
        accumulate(
            loss_fn, lambda state, loss, grads, stats: (state, stats.variance),
            micro_batch_size=MICRO, max_batch_size=LARGEST, sharding=sharding, how=how,
            donate=False,
        )
        for how in ("padded", "host")
    ]  # fmt: skip


def train(
    devices: Any,
    *,
    steps: int,
    save_at: int | None = None,
    state: dict[str, Any] | None = None,
    sizes: list[int] | None = None,
) -> dict[str, Any]:
    """Trains on a data mesh of `devices`, from the start or from a saved state.

    Args:
        devices: Devices of all processes.
        steps: Most steps to take; the data end after two epochs.
        save_at: Number of steps after which the state is saved.
        state: What an earlier run saved.
        sizes: Sizes to repeat, rather than those that the policy decides.
    """
    auto = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((len(devices),), ("data",), devices=devices, axis_types=auto)
    sharding, replicated = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    loader = adaoptax.BatchLoader(
        DATA, MICRO, max_batch_size=LARGEST, pad_to="max", seed=3, num_epochs=2,
        process=adaoptax.data_process(sharding), prefetch=2,
    )  # fmt: skip
    policy = adaoptax.GrowthPolicy(MICRO, LARGEST, multiple_of=MICRO)
    train_state = jax.jit(initial_state, out_shardings=replicated)()
    if state is not None:
        leaves, treedef = jax.tree.flatten(train_state)
        saved = [np.asarray(x, leaf.dtype) for x, leaf in zip(state["leaves"], leaves, strict=True)]
        train_state = jax.device_put(jax.tree.unflatten(treedef, saved), replicated)
        loader.set_state(state["loader"])
        policy.set_state(state["policy"])
    step = jax.jit(train_step, static_argnums=3, out_shardings=(replicated, replicated))
    padded, by_host = micro_batch_variances(sharding)
    records: list[dict[str, Any]] = []
    saved_state = None
    for batch in loader:
        rows = adaoptax.global_batch(batch, sharding, loader.num_rows)
        groups = adaoptax.global_batch(
            batch, sharding, loader.num_rows, num_groups=loader.num_rows // MICRO
        )
        with jax.transfer_guard("disallow"):
            variances = [accumulated(train_state, batch)[1] for accumulated in (padded, by_host)]
        train_state, numbers = step(train_state, rows, groups, mesh)
        numbers |= dict(zip(("group_variance", "host_variance"), variances, strict=True))
        numbers = {name: float(x) for name, x in jax.device_get(numbers).items()}
        decided = policy.update(numbers["required"], loader.num_examples)
        loader.resize(decided if sizes is None else sizes[len(records)])
        own = batch.data["index"][batch.mask].tolist()
        records.append(numbers | {"size": loader.num_examples, "decided": decided, "rows": own})
        if len(records) == save_at:
            saved_state = {
                "leaves": [np.asarray(x).tolist() for x in jax.tree.leaves(train_state)],
                "loader": loader.get_state(),
                "policy": policy.get_state(),
            }
        if len(records) == steps:
            break
    loader.close()
    params = {name: np.asarray(x).tolist() for name, x in train_state[0].items()}
    return {"records": records, "params": params, "state": saved_state}


def check_what_has_no_place() -> None:
    """Numbers, arrays and keys of the host go to the devices of all processes, explicitly."""
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    step = accumulate(
        lambda w, x, key, scale: scale * jnp.mean(x @ w) + 0 * jax.random.normal(key),
        lambda state, loss, grads, stats: ((state[0] + grads, state[1] + 1, state[2]), loss),
        micro_batch_size=4, max_batch_size=16, sharding=NamedSharding(mesh, P("data")),
        key_argnums=2,
    )  # fmt: skip
    state, key = (jnp.zeros(2), 0, jax.random.key(0)), jax.random.key(1)
    own = adaoptax.Batch(np.ones((8, 2), np.float32), np.ones(8, bool))
    with jax.transfer_guard("disallow"):
        for _ in range(2):
            state, _ = step(state, own, key, 0.5)
        assert jax.device_get(state[:2])[0].tolist() == [1, 1]
        assert int(jax.device_get(state[1])) == 2


def check_refusals() -> None:
    """What only real processes can show: parts that disagree are errors, the same everywhere."""
    index = jax.process_index()
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = NamedSharding(mesh, P("data"))
    assert adaoptax.data_process(sharding) == (index, 2)
    # The default of the loader is the same: the second process reads the second half.
    loader = adaoptax.BatchLoader(np.arange(100), 8, shuffle=False)
    assert next(loader).data.tolist() == list(range(4 * index, 4 * index + 4))
    # A model axis over both processes: both have to read every row.
    models = jax.make_mesh((1, 4), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    assert adaoptax.data_process(NamedSharding(models, P("data"))) == (0, 1)

    uneven = adaoptax.Batch(np.zeros(4 + 8 * index), np.ones(4 + 8 * index, bool))
    with pytest.raises(ValueError, match=f"got {4 + 8 * index} on process {index}"):
        adaoptax.global_batch(uneven, sharding, 16)
    # JAX alone takes the local rows for the whole array, and the processes would disagree.
    whole = adaoptax.Batch(np.zeros(8), np.ones(8, bool))
    with pytest.raises(ValueError, match="num_rows=8 rows over the 2 processes"):
        adaoptax.global_batch(whole, sharding, 8)

    with jax.transfer_guard("disallow"):
        adaoptax.loop.check_same_everywhere(batch_size=8, examples_seen=2**40)
    with pytest.raises(ValueError, match=r"Expected batch_size to be the same .* got \[8, 9\]"):
        adaoptax.loop.check_same_everywhere(examples_seen=1, batch_size=8 + index)


def main(path: pathlib.Path) -> None:
    """Does the job that is described in a file, beside which the results go."""
    job = json.loads(path.read_text())
    join(devices=2)
    assert (jax.process_count(), jax.device_count()) == (2, 4)
    if job.pop("check_refusals", False):
        check_refusals()
        check_what_has_no_place()
    result = train(jax.devices(), **job)
    path.with_suffix(f".{jax.process_index()}.json").write_text(json.dumps(result))
    multihost_utils.sync_global_devices("done")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
