"""What `test_processes_checkpoint.py` runs: a run with checkpoints, in one process or in several.

As a program: ``checkpoint_worker.py JOB.json`` joins the others, trains, and writes what it read.
"""

import json
import pathlib
import sys
from typing import Any

import jax
import numpy as np
import optax
from jax import NamedSharding, P
from jax.experimental import multihost_utils
from local_processes import join
from process_worker import DATA, LARGEST, MICRO, initial_params, loss_fn

import adaoptax
from adaoptax.integrations.orbax import Checkpointer

TX = optax.chain(adaoptax.norm_test(0.4, decay=0.8), optax.adam(0.01))


def initial_state() -> Any:
    params = initial_params()
    return params, TX.init(params)


def update(state: Any, loss: Any, grads: Any, stats: adaoptax.GradientStats) -> Any:
    params, opt_state = state
    updates, opt_state = TX.update(grads, opt_state, params, stats=stats)
    params = optax.apply_updates(params, updates)
    return (params, opt_state), adaoptax.observables(loss, stats, opt_state)


def train(devices: Any, *, folder: str, steps: int, fixed: bool = False) -> dict[str, Any]:
    """Goes on from the last checkpoint in `folder`, or begins; saves at every fifth step and last.

    Args:
        devices: Devices of all processes.
        folder: Where checkpoints lie.
        steps: Steps to reach, counted from the first start.
        fixed: Whether sizes follow a schedule, rather than the norm test.
    """
    auto = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((len(devices),), ("data",), devices=devices, axis_types=auto)
    rows, everywhere = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    step = adaoptax.accumulate(
        loss_fn, update, micro_batch_size=MICRO, max_batch_size=LARGEST, sharding=rows
    )
    loader = adaoptax.BatchLoader(
        DATA, 2 * MICRO, micro_batch_size=MICRO, max_batch_size=LARGEST, pad_to=step.capacities,
        seed=3, process=adaoptax.data_process(rows), prefetch=2,
    )  # fmt: skip
    policy: Any = adaoptax.GrowthPolicy(2 * MICRO, LARGEST, multiple_of=MICRO)
    if fixed:
        policy = lambda examples: 16 if examples < 100 else 48 if examples < 300 else 64
    loop = adaoptax.AdaptiveLoop(loader, policy)
    read: list[dict[str, Any]] = []
    with Checkpointer(folder, every=5) as saver, loop:
        state = saver.restore(jax.jit(initial_state, out_shardings=everywhere)(), loop)
        first = loop.step
        while loop.step < steps:
            batch = next(loop)
            state, output = step(state, batch)
            loop.observe(output)
            saver.after_step(state, loop)
            own = batch.data["index"][batch.mask].tolist()
            read.append({"size": loader.num_examples, "rows": own})
        saver.save(state, loop)
    loader.close()
    params = {name: np.asarray(x).tolist() for name, x in state[0].items()}
    return {"first": first, "read": read, "params": params}


def main(path: pathlib.Path) -> None:
    """Does the job that is described in a file, beside which the results go."""
    job = json.loads(path.read_text())
    join(devices=2)
    assert (jax.process_count(), jax.device_count()) == (2, 4)
    result = train(jax.devices(), **job)
    path.with_suffix(f".{jax.process_index()}.json").write_text(json.dumps(result))
    multihost_utils.sync_global_devices("done")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
