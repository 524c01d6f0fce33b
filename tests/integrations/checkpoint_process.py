"""One of several processes that train and save together: ``FOLDER STEPS PAUSE [join]``."""

import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax import NamedSharding, P
from local_processes import join, use_host_devices

import adaoptax
from adaoptax.integrations.orbax import Checkpointer


def main(folder: str, steps: str, pause: str, *options: str) -> None:
    """Trains from what is in the folder; prints where it began, each step, and the end."""
    if options == ("join",):
        join(devices=2)
    else:
        use_host_devices(2)
    auto = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=auto)
    rows, everywhere = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    places = {"w": everywhere, "sharded": rows}
    fresh = jax.jit(lambda: {"w": jnp.zeros(8), "sharded": jnp.arange(16.0)}, out_shardings=places)
    step = jax.jit(
        lambda state, x: {"w": state["w"] + x.sum(), "sharded": state["sharded"] * 1.01 + 1},
        out_shardings=places,
        donate_argnums=0,
    )
    loader = adaoptax.BatchLoader(np.arange(100, dtype=np.float32), 8)
    with jax.transfer_guard("disallow"), Checkpointer(folder, every=10) as saver:
        state = saver.restore(fresh(), loader)
        print("restored", saver.restored_step, flush=True)
        for batch in loader:
            with jax.transfer_guard("allow"):
                x = adaoptax.global_batch(batch, rows, loader.num_rows).data
            state = step(state, x)
            print("step", loader.step, flush=True)
            time.sleep(float(pause))
            if saver.after_step(state, loader) or loader.step >= int(steps):
                break
    total = sum(float(part.data.sum()) for part in state["sharded"].addressable_shards)
    print("end", loader.step, loader.examples_seen, float(state["w"][0]), flush=True)
    assert total > 0


if __name__ == "__main__":
    main(*sys.argv[1:])
