"""Cost of statistics on 8 devices, against plain data parallelism in the same run.

    python benchmarks/devices.py            # time and memory, ratios to the plain step
    python benchmarks/devices.py precision  # error of the variance against its condition number

Times are medians of interleaved repeats. Without accelerators 8 virtual CPU devices share the
cores, so that only ratios mean anything.
"""

import argparse
import functools
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import jax

jax.config.update("jax_num_cpu_devices", 8)  # before anything starts the backend

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from jax.sharding import AxisType, NamedSharding  # noqa: E402
from jax.sharding import PartitionSpec as P  # noqa: E402

import adaoptax  # noqa: E402
from adaoptax import measure  # noqa: E402
from adaoptax.measure import gather  # noqa: E402

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))  # this is run as a file, too

from benchmarks.timing import Measurement, Program, interleave, temp_bytes, timed  # noqa: E402

WIDTH, LAYERS, HEADS, LENGTH, ROWS = 128, 12, 4, 64, 32


def attention(x: jax.Array, qkv: jax.Array, out: jax.Array) -> jax.Array:
    """Causal self-attention of [rows, length, width]."""
    q, k, v = (part.reshape(*x.shape[:2], HEADS, -1) for part in jnp.split(x @ qkv, 3, axis=-1))
    return jax.nn.dot_product_attention(q, k, v, is_causal=True).reshape(x.shape) @ out


def layer(x: jax.Array, weights: Any) -> tuple[jax.Array, None]:
    """One pre-norm transformer layer; its weights are made whole on entry."""
    w = gather(weights)
    norm = lambda x: x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6)
    x = x + attention(norm(x) * w["scale"], w["qkv"], w["out"])
    return x + jax.nn.gelu(norm(x) @ w["up"]) @ w["down"], None


def loss_fn(params: Any, batch: Any) -> jax.Array:
    """Next-byte cross-entropy of a transformer whose layers are scanned and rematerialised."""
    tokens = gather(params["tokens"])
    x = tokens[batch[:, :-1]]
    x, _ = jax.lax.scan(jax.checkpoint(layer), x, params["layers"])
    logits = x @ tokens.T
    targets = jax.nn.one_hot(batch[:, 1:], logits.shape[-1])
    return -jnp.mean(jnp.sum(targets * jax.nn.log_softmax(logits), -1))


def transformer() -> tuple[Any, Any, Any]:
    """Parameters, their fully sharded specs, and a batch."""
    rng = np.random.default_rng(0)
    normal: Any = lambda *shape: (rng.normal(size=shape) / shape[-2] ** 0.5).astype(np.float32)
    params = {
        "tokens": normal(256, WIDTH),
        "layers": {
            "qkv": normal(LAYERS, WIDTH, 3 * WIDTH),
            "out": normal(LAYERS, WIDTH, WIDTH),
            "up": normal(LAYERS, WIDTH, 4 * WIDTH),
            "down": normal(LAYERS, 4 * WIDTH, WIDTH),
            "scale": np.ones((LAYERS, WIDTH), np.float32),
        },
    }
    matrix = P(None, "data")
    specs = {
        "tokens": P("data"),
        "layers": {"qkv": matrix, "out": matrix, "up": matrix, "down": matrix, "scale": P()},
    }
    batch = rng.integers(0, 256, size=(ROWS, LENGTH + 1)).astype(np.int32)
    return params, specs, batch


def plain_devices(params: Any, batch: Any) -> tuple[jax.Array, Any]:
    """Data parallelism as it is written without statistics, inside shard_map."""
    value, grads = jax.value_and_grad(loss_fn)(adaoptax.vary(params, "data"), batch)
    return jax.lax.pmean((value, grads), "data")


def plain_fsdp(specs: Any) -> Callable[..., Any]:
    """Fully sharded training without statistics: plain collectives where `gather` stands."""

    def whole(shards: Any, specs: Any, scanned: int) -> Any:
        def one(x: jax.Array, spec: Any) -> jax.Array:
            if "data" not in spec:
                return x
            return jax.lax.all_gather(x, "data", axis=spec.index("data") - scanned, tiled=True)

        return jax.tree.map(one, shards, specs)

    def loss(params: Any, batch: Any) -> jax.Array:
        tokens = whole(params["tokens"], specs["tokens"], 0)
        x = tokens[batch[:, :-1]]
        body = lambda x, w: layer(x, whole(w, specs["layers"], 1))
        x, _ = jax.lax.scan(jax.checkpoint(body), x, params["layers"])
        logits = x @ tokens.T
        targets = jax.nn.one_hot(batch[:, 1:], logits.shape[-1])
        return -jnp.mean(jnp.sum(targets * jax.nn.log_softmax(logits), -1))

    def step(params: Any, batch: Any) -> tuple[jax.Array, Any]:
        value, grads = jax.value_and_grad(loss)(params, batch)
        return jax.lax.pmean(value, "data"), jax.tree.map(lambda g: g / 8, grads)

    return step


def ways(mesh: Any) -> dict[str, tuple[str, Any, Any]]:
    """Name → (the plain step to compare with, jitted step, its arguments)."""
    params, specs, batch = transformer()
    replicated = NamedSharding(mesh, P())
    shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
    whole, sharded = jax.device_put(params, replicated), jax.device_put(params, shardings)
    rows = jax.device_put(batch, NamedSharding(mesh, P("data")))
    plain = jax.value_and_grad(loss_fn)
    stats = lambda method: adaoptax.value_grad_and_stats(loss_fn, method)

    def mapped(fn: Any, specs: Any, *out: Any) -> Any:
        in_specs = (specs, P("data"))
        return jax.jit(
            jax.shard_map(fn, mesh=mesh, in_specs=in_specs, out_specs=(P(), specs, *out))
        )

    over_data = lambda method: mapped(stats(method), P(), P())
    devices = functools.partial(measure.devices, "data")
    families: dict[str, tuple[Any, dict[str, Any]]] = {
        "jit": (whole, {
            "plain": jax.jit(plain),
            "groups(8)": jax.jit(stats(measure.groups(8))),
            "groups(16)": jax.jit(stats(measure.groups(16))),
        }),
        "shard_map": (whole, {
            "plain": mapped(plain_devices, P()),
            "devices": over_data(devices()),
            "devices, centred": over_data(devices(centred=True)),
            "devices(groups(2))": over_data(devices(measure.groups(2))),
        }),
        "FSDP shard_map": (sharded, {
            "plain": mapped(plain_fsdp(specs), specs),
            "fsdp": mapped(stats(measure.fsdp("data", specs)), specs, P()),
        }),
        "FSDP jit": (sharded, {
            "plain": jax.jit(plain, out_shardings=(replicated, shardings)),
            "groups(8)": jax.jit(
                stats(measure.groups(8)), out_shardings=(replicated, shardings, replicated)
            ),
        }),
    }  # fmt: skip
    return {
        f"{family}, {name}": (f"{family}, plain", step, (params, rows))
        for family, (params, steps) in families.items()
        for name, step in steps.items()
    }


def cost(repeats: int) -> None:
    """Prints ratios of time and memory."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    table = ways(mesh)
    programs = {}
    for name, (_, step, args) in table.items():
        compiled = step.lower(*args).compile()
        finish = lambda compiled=compiled, args=args: jax.block_until_ready(compiled(*args))
        programs[name] = Program(timed(finish), temp_bytes(compiled))
    times = interleave({name: program.run for name, program in programs.items()}, repeats)
    results = {name: Measurement(times[name], program) for name, program in programs.items()}
    print(f"{'':32} {'time':>6} {'temp MB':>8} {'ratio':>6}")
    for name, (base, *_) in table.items():
        own, other = results[name], results[base]
        megabytes = own.program.temp_bytes / 2**20
        ratios = own.time_ratio(other), own.memory_ratio(other)
        print(f"{name:32} {ratios[0]:6.2f} {megabytes:8.2f} {ratios[1]:6.3f}")


def precision() -> None:
    """Prints the relative error of the variance for ever less noise between 8 devices."""
    rng = np.random.default_rng(0)
    measured = lambda centred: jax.jit(
        jax.vmap(
            lambda g: adaoptax.stats_from_axis(g, "data", 4, centred=centred)[1].variance,
            axis_name="data",
        )
    )
    print(f"{'condition':>10} {'one all-reduce':>15} {'centred=True':>13}")
    for power in range(0, 9):
        rows = rng.normal(size=100_000) + rng.normal(size=(8, 100_000)) * 10 ** (-power / 2)
        rows = rows.astype(np.float32)
        exact = rows.astype(np.float64)
        mean = exact.mean(axis=0)
        variance = 4 * ((exact - mean) ** 2).sum() / 7
        condition = 32 * (mean @ mean) / (7 * variance)
        errors = [
            abs(float(measured(centred)(rows)[0]) / variance - 1) for centred in (False, True)
        ]
        print(f"{condition:10.2g} {errors[0]:15.1e} {errors[1]:13.1e}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="?", choices=["cost", "precision"], default="cost")
    parser.add_argument("--repeats", type=int, default=15)
    chosen = parser.parse_args()
    if chosen.what == "cost":
        cost(chosen.repeats)
    else:
        precision()
