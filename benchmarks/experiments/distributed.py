"""The norm test on the statistics of eight devices, against those of every example."""

import os
import sys

if "jax" not in sys.modules:  # eight devices on one machine; said before JAX is imported
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "")
        + " --xla_force_host_platform_device_count=8"
        # Where eight devices share few cores they may wait long for each other.
        + " --xla_cpu_collective_call_terminate_timeout_seconds=600"
        + " --xla_cpu_collective_call_warn_stuck_timeout_seconds=120"
    )

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import adaoptax
from adaoptax import measure
from benchmarks.experiments import distributed_report
from benchmarks.experiments.experiment import Case, Experiment, Outcome, Size, main
from benchmarks.experiments.fixed_batch import random_rows, truth
from benchmarks.experiments.problems import PROBLEMS

DEVICES, PROBLEM, ROWS, FIXED, ETA = 8, "digits_cnn", 1440, 64, 1.0
SIZES = (32, 64, 128, 256, 512)
PER_EXAMPLE, PER_DEVICE, NO_VARY = "every example", "8 devices", "8 devices, without vary"
DECAYS = (0.0, 0.9, 0.99)


def cases(size: Size) -> list[Case]:
    """Both statistics on the same steps of a fixed batch, then runs that either of them drives."""
    steps, examples, largest, decays = {
        "tiny": (16, 256, 64, DECAYS[:1]),
        "default": (384, 24_576, 512, DECAYS),
        "full": (4_096, 262_144, 512, DECAYS),
    }[size]
    found: list[Case] = [{"kind": "same steps", "source": NO_VARY, "decay": 0.0, "steps": steps}]
    sources = (PER_EXAMPLE, PER_DEVICE)
    for decay in decays:
        on_same: Case = {"kind": "same steps", "decay": decay, "steps": steps}
        found += [{**on_same, "source": source} for source in sources]
    for decay in decays:
        driven: Case = {"kind": "driven", "decay": decay, "examples": examples, "max": largest}
        found += [{**driven, "source": source} for source in sources]
    return found


def run(case: Case, seeds: Sequence[int]) -> list[Outcome]:
    """Runs one case."""
    of_kind = _on_same_steps if case["kind"] == "same steps" else _driven
    return [of_kind(case, seed) for seed in seeds]


@functools.cache
def _mesh() -> Mesh:
    found = jax.devices("cpu")[:DEVICES]
    if len(found) < DEVICES:
        raise ValueError(
            f"Expected {DEVICES} CPU devices, got {len(found)}: JAX was started before this file"
            " could ask for them; run python -m benchmarks.experiments.distributed by itself."
        )
    return Mesh(np.array(found), ("data",))


@functools.cache
def _problem() -> tuple[Any, Any]:
    """The problem, and its first examples, which are all data."""
    problem = PROBLEMS[PROBLEM]()
    data = jax.tree.map(lambda x: x[:ROWS], problem.data)
    return problem, jax.device_put(data, NamedSharding(_mesh(), P()))


def _measured(source: str) -> Callable[..., Any]:
    """``f(params, batch)`` → ``(loss, grads, stats)`` as data-parallel training calls it."""
    problem, _ = _problem()
    inner = measure.per_example() if source == PER_EXAMPLE else None
    fn = adaoptax.value_grad_and_stats(problem.loss_fn, measure.devices("data", inner))
    return jax.shard_map(fn, mesh=_mesh(), in_specs=(P(), P("data")), out_specs=P())


def _by_hand_without_vary(params: Any, batch: Any) -> jax.Array:
    """S² of devices as one would write it, with gradients that JAX has already summed."""
    problem, _ = _problem()

    def variance(params: Any, batch: Any) -> jax.Array:
        rows = len(jax.tree.leaves(batch)[0])
        local = jax.grad(problem.loss_fn)(params, batch)  # here: the sum over devices
        off = jax.tree.map(lambda g: g - jax.lax.pmean(g, "data"), local)
        scatter = sum(jnp.sum(x**2) for x in jax.tree.leaves(off))
        return rows * jax.lax.psum(scatter, "data") / (DEVICES - 1)

    return jax.shard_map(variance, mesh=_mesh(), in_specs=(P(), P("data")), out_specs=P())(
        params, batch
    )


def refused() -> bool:
    """Whether `stats_from_axis` refuses such gradients."""
    problem, data = _problem()

    def stats(params: Any, batch: Any) -> Any:
        return adaoptax.stats_from_axis(jax.grad(problem.loss_fn)(params, batch), "data", 1)

    mapped = jax.shard_map(stats, mesh=_mesh(), in_specs=(P(), P("data")), out_specs=P())
    try:
        jax.eval_shape(
            mapped, problem.init(jax.random.key(0)), random_rows(data, jax.random.key(0), 0, 8)
        )
    except ValueError:
        return True
    return False


@functools.cache
def _same_steps_program(num_steps: int) -> Any:
    """One jitted run: requirement and S² of both sources at every step, and the truth."""
    problem, data = _problem()
    tx = optax.adam(2e-3)
    of_source = {source: _measured(source) for source in (PER_EXAMPLE, PER_DEVICE)}
    tests = {decay: adaoptax.norm_test(ETA, decay=decay) for decay in DECAYS}

    def step(key: jax.Array, state: Any, number: jax.Array) -> Any:
        params, opt_state, test_states = state
        batch = random_rows(data, key, number, FIXED)
        seen: dict[str, Any] = {NO_VARY: (_by_hand_without_vary(params, batch), {})}
        after = {}
        for source, value_grad_and_stats in of_source.items():
            _, grads, stats = value_grad_and_stats(params, batch)
            found = {}
            for decay, test in tests.items():
                _, after[source, decay] = test.update(
                    grads, test_states[source, decay], stats=stats
                )
                found[decay] = adaoptax.required_batch_size(after[source, decay])
            seen[source] = (stats.variance, found)
        updates, opt_state = tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state, after), (params, seen)

    @jax.jit
    def program(key: jax.Array) -> Any:
        params = problem.init(key)
        test_states = {(s, d): tests[d].init(params) for s in of_source for d in tests}
        state = params, tx.init(params), test_states
        _, (along, seen) = jax.lax.scan(functools.partial(step, key), state, jnp.arange(num_steps))
        return seen, jax.tree.map(lambda x: x[_points(num_steps)], along)

    return program


def _points(num_steps: int) -> np.ndarray:
    """Steps at which the truth is computed."""
    return np.linspace(0, num_steps - 1, min(num_steps, 24)).astype(int)


@functools.cache
def _one_device() -> Any:
    """Truths at several parameters, and metrics of some: computed once and not eight times."""
    problem, data = _problem()
    data = jax.device_get(data)
    truths = jax.jit(lambda along: jax.lax.map(lambda params: truth(problem, data, params), along))
    return truths, jax.jit(problem.metrics)


@functools.cache
def _same_steps(num_steps: int, seed: int) -> Any:
    seen, along = jax.device_get(_same_steps_program(num_steps)(jax.random.key(seed)))
    exact = _one_device()[0](along)
    variance, sq_norm = (
        np.interp(np.arange(num_steps), _points(num_steps), np.asarray(x, float)) for x in exact
    )
    return seen, variance, variance / sq_norm / ETA**2


def _on_same_steps(case: Case, seed: int) -> Outcome:
    """What one source says at every step of a run that no test drives."""
    num_steps, source = int(case["steps"]), str(case["source"])
    seen, true_variance, true_required = _same_steps(num_steps, seed)
    variance, required = np.asarray(seen[source][0], float), seen[source][1]
    beside = np.asarray(seen[PER_EXAMPLE][0], float)  # the same batch, every example
    metrics = {
        "variance_over_truth": float(variance.mean() / true_variance.mean()),
        "variance_spread": float(np.std(variance / true_variance)),
        "variance_over_examples": float(variance.mean() / beside.mean()),
        "spread_beside_examples": float(np.std(variance / beside)),
    }
    if source == NO_VARY:
        return Outcome({**metrics, "refused": float(refused())})
    asked = np.asarray(required[float(case["decay"])], float)
    late = slice(num_steps // 4, None)  # averages have forgotten the start
    ratio = asked[late] / true_required[late]
    finite = np.isfinite(ratio)
    metrics |= {
        "required_over_truth": float(np.median(ratio)),
        "required_spread": float(np.std(np.log2(ratio[finite]))),
        "no_signal": float(np.isinf(ratio).mean()),
    }
    shown = np.linspace(0, num_steps - 1, min(num_steps, 48)).astype(int)
    curve = {
        "at": (shown + 1) * FIXED,
        "variance": variance[shown],
        "true_variance": true_variance[shown],
        "required": asked[shown],
        "true_required": true_required[shown],
    }
    return Outcome(metrics, curve)


@functools.cache
def _driven_step(source: str) -> Any:
    """The jitted train step, for any decay of the test."""
    measured, tx = _measured(source), optax.adam(2e-3)

    @jax.jit
    def step(state: Any, batch: Any, decay: jax.Array) -> Any:
        params, opt_state, test_state = state
        loss, grads, stats = measured(params, batch)
        test = adaoptax.norm_test(ETA, decay=decay)
        _, test_state = test.update(grads, test_state, stats=stats)
        updates, opt_state = tx.update(grads, opt_state, params)
        state = optax.apply_updates(params, updates), opt_state, test_state
        return state, adaoptax.observables(loss, stats, test_state)

    return tx, step


def _driven(case: Case, seed: int) -> Outcome:
    """One run whose batch grows as the test on this source says."""
    problem, _ = _problem()
    tx, step = _driven_step(str(case["source"]))
    decay, examples = np.float32(float(case["decay"])), int(case["examples"])
    sizes = [size for size in SIZES if size <= int(case["max"])]
    rows = jax.tree.map(lambda x: x[:ROWS], problem.data)
    loader = adaoptax.BatchLoader(rows, sizes[0], max_batch_size=sizes[-1], seed=seed)
    records: list[adaoptax.loop.Record] = []
    policy = adaoptax.GrowthPolicy(sizes[0], sizes[-1], multiple_of=sizes[0], sizes=sizes)
    loop = adaoptax.AdaptiveLoop(loader, policy, callbacks=[records.append])
    replicated, sharded = (NamedSharding(_mesh(), spec) for spec in (P(), P("data")))
    params = problem.init(jax.random.key(seed))
    test_state = adaoptax.norm_test(ETA, decay=0.5).init(params)
    state = jax.device_put((params, tx.init(params), test_state), replicated)
    while loop.examples_seen < examples:
        batch = next(loop)
        state, output = step(state, jax.device_put(batch.data, sharded), decay)
        loop.observe(output)
    reached = {
        size: min((r["examples"] for r in records if r["next_batch_size"] >= size), default=None)
        for size in sizes[1:]
    }
    at = np.linspace(0, examples, 49)[1:]
    step_at = np.searchsorted([record["examples"] for record in records], at)
    curve: dict[str, Any] = {
        "at": at,
        "batch_size": [records[min(i, len(records) - 1)]["batch_size"] for i in step_at],
    }
    metrics = _one_device()[1](jax.device_get(state[0]))
    return Outcome(
        {
            "updates": float(loop.step),
            **{f"until_{s}": float(examples if x is None else x) for s, x in reached.items()},
            **{k: float(v) for k, v in metrics.items()},
        },
        curve,
    )


EXPERIMENT = Experiment(
    name="distributed",
    title="The norm test on eight devices",
    claim="Statistics between the gradients of eight devices are unbiased, and drive the batch like"
    " those of every example.",
    cases=cases,
    run=run,
    report=distributed_report.report,
)

if __name__ == "__main__":
    main(EXPERIMENT)
