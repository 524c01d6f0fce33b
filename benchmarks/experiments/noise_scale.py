"""The measured noise scale against that of all data, and how often its interval holds it."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import adaoptax
from benchmarks.experiments import noise_scale_report
from benchmarks.experiments.experiment import Case, Experiment, Outcome, Size, main
from benchmarks.experiments.fixed_batch import gradient_rows, take_steps, truth
from benchmarks.experiments.problems import PROBLEMS

LEVEL = 0.95
TRUTHS = 4  # for every point at which a run is asked: the true signal moves fast


def cases(size: Size) -> list[Case]:
    """Along runs, and at standing parameters of such runs, where nothing drifts."""
    problems, batch_sizes, examples, points, draws, steps = {
        "tiny": (("mnist1d",), (32,), 2_048, 8, 16, 32),
        "default": (("digits_cnn", "mnist1d"), (8, 32, 128), 24_576, 16, 80, 128),
        "full": (("digits_cnn", "mnist1d", "byte_lm"), (8, 32, 128, 512), 196_608, 48, 400, 512),
    }[size]
    found: list[Case] = []
    for problem in problems:
        for batch_size in batch_sizes:
            case: Case = {
                "problem": problem,
                "batch_size": batch_size,
                "rows": 480 if size == "tiny" else 1440,
            }
            run: Case = {"kind": "run", "examples": examples, "points": points, "truths": TRUTHS}
            found.append({**case, **run, "horizon": examples // 4})
            for trained in (examples // 16, examples):
                standing: Case = {"kind": "standing", "examples": trained}
                found.append({**case, **standing, "draws": draws, "steps": steps})
    return found


@functools.cache
def _problem(name: str, rows: int) -> tuple[Any, Any]:
    """A problem, and the first `rows` of its examples, which are all data of these runs."""
    problem = PROBLEMS[name]()
    return problem, jax.device_put(jax.tree.map(lambda x: x[:rows], problem.data))


def run(case: Case, seeds: Sequence[int]) -> list[Outcome]:
    """Runs one case."""
    of_kind = _along_run if case["kind"] == "run" else _standing
    return [of_kind(case, seed) for seed in seeds]


@functools.cache
def _segment(name: str, rows: int, batch_size: int, horizon: int, num_steps: int) -> Any:
    """A jitted piece of a run of Adam, with what is known at its end."""
    problem, data = _problem(name, rows)
    tx = optax.chain(adaoptax.track_noise_scale(horizon), optax.adam(2e-3))

    @jax.jit
    def segment(state: Any, key: jax.Array, first: jax.Array) -> Any:
        numbers = first + jnp.arange(num_steps)
        state, each = take_steps(problem, data, tx, batch_size, numbers, state, key)
        estimate = adaoptax.noise_scale_estimate(state[1], level=LEVEL)
        return state, each, estimate, truth(problem, data, state[0])

    return tx, segment


def _along_run(case: Case, seed: int) -> Outcome:
    """One run: at every point the estimate, and the truth over the steps that it spans."""
    name, rows, points = str(case["problem"]), int(case["rows"]), int(case["points"])
    batch_size, horizon = int(case["batch_size"]), int(case["horizon"])
    truths = int(case["truths"])
    num_steps = int(case["examples"]) // batch_size // (points * truths)
    problem, _ = _problem(name, rows)
    tx, segment = _segment(name, rows, batch_size, horizon, num_steps)
    key = jax.random.key(seed)
    params = problem.init(key)
    state = params, tx.init(params)
    steps, exact = [], [_truth(name, rows)(params)]
    columns: dict[str, list[float]] = {}
    for piece in range(points * truths):
        state, each, estimate, now = segment(state, key, np.int32(piece * num_steps))
        steps.append(np.asarray(each, float))
        exact.append(now)
        if (piece + 1) % truths:
            continue
        spanned = round(float(estimate.num_examples) / batch_size)
        values = {
            "at": (piece + 1) * num_steps * batch_size,
            "estimate": float(estimate.noise_scale),
            "low": float(estimate.low),
            "high": float(estimate.high),
            "truth_now": float(now.variance / now.sq_norm),
            "truth": _truth_over(exact, num_steps, spanned),
            **_others(np.concatenate(steps, axis=1)[:, -spanned:], batch_size),
        }
        for column, value in values.items():
            columns.setdefault(column, []).append(value)
    return Outcome(_summary(columns), columns)


@functools.cache
def _truth(name: str, rows: int) -> Any:
    problem, data = _problem(name, rows)
    return jax.jit(lambda params: truth(problem, data, params))


def _truth_over(exact: Sequence[Any], num_steps: int, spanned: int) -> float:
    """True noise over true signal, both averaged over the last steps, linear between points."""
    at = np.arange(len(exact)) * num_steps
    inside = np.arange(max(at[-1] - spanned, 0), at[-1])
    mean = lambda values: np.interp(inside, at, np.asarray(values, float)).mean()
    return float(mean([t.variance for t in exact]) / mean([t.sq_norm for t in exact]))


def _others(measured: np.ndarray, batch_size: int) -> dict[str, float]:
    """What others report over the same steps."""
    variance, sq_norm = measured
    return {
        "mean_of_ratios": float(np.mean(variance / (sq_norm - variance / batch_size))),
        "plug_in": float(variance.sum() / sq_norm.sum()),
    }


def _summary(columns: dict[str, list[float]]) -> dict[str, float]:
    """The numbers of one run, over its points."""
    points = {name: np.asarray(values) for name, values in columns.items()}
    known = np.isfinite(points["estimate"])
    holds = lambda exact: (points["low"] <= exact) & (exact <= points["high"])
    share = lambda hits: float(hits[known].mean()) if known.any() else float("nan")
    off = lambda name: float(np.nanmedian(points[name][known] / points["truth"][known]))
    metrics = {
        "known": float(known.mean()),
        "coverage": share(holds(points["truth"])),
        "coverage_now": share(holds(points["truth_now"])),
        "wrong": float((known & ~holds(points["truth"])).mean()),
        "width": share((points["high"] - points["low"]) / points["truth"]),
    }
    if known.any():
        for name in ("estimate", "mean_of_ratios", "plug_in"):
            metrics[f"{name}_over_truth"] = off(name)
    return metrics


def _standing(case: Case, seed: int) -> Outcome:
    """Many trackers at the same parameters: a curve over the steps that they have seen."""
    name, rows = str(case["problem"]), int(case["rows"])
    products = _products(name, rows)(jax.random.key(seed), np.int32(int(case["examples"]) // 32))
    draw = _draws(int(case["batch_size"]), int(case["steps"]), int(case["draws"]))
    exact, estimates, measured = jax.device_get(draw(products, jax.random.key(seed + 1)))
    columns: dict[str, list[float]] = {}
    metrics: dict[str, float] = {"true_noise_scale": float(exact)}
    for steps in _looks(int(case["steps"])):
        at = jax.tree.map(lambda x, i=steps - 1: x[:, i], estimates)
        seen = np.asarray(measured, float)[..., :steps]
        others = [_others(of_draw, int(case["batch_size"])) for of_draw in seen.swapaxes(0, 1)]
        metrics |= _of_draws(at, others, float(exact))
        for column, value in {"seen": float(steps), **metrics}.items():
            columns.setdefault(column, []).append(value)
    return Outcome(metrics, columns)


def _looks(steps: int) -> list[int]:
    """After how many steps trackers are read."""
    return [2**i for i in range(3, steps.bit_length()) if 2**i <= steps]


@functools.cache
def _products(name: str, rows: int) -> Any:
    """``(key, steps)`` → inner products of the gradients of all examples, after that training."""
    problem, data = _problem(name, rows)
    tx = optax.adam(2e-3)

    @jax.jit
    def products(key: jax.Array, steps: jax.Array) -> jax.Array:
        params = problem.init(key)

        def step(number: jax.Array, state: Any) -> Any:
            return take_steps(problem, data, tx, 32, number[None], state, key)[0]

        params, _ = jax.lax.fori_loop(0, steps, step, (params, tx.init(params)))
        gradients = gradient_rows(problem, data, params)
        return gradients @ gradients.T

    return products


@functools.cache
def _draws(batch_size: int, steps: int, draws: int) -> Any:
    """``(products, key)`` → truth, estimates [draws, steps], and S², ‖g‖² [2, draws, steps].

    Norms of mean gradients are means of inner products, so that no gradient is formed.
    """
    tracker = adaoptax.track_noise_scale(10**9)

    def step(products: jax.Array, state: Any, key: jax.Array) -> Any:
        rows = jax.random.randint(key, (batch_size,), 0, len(products))
        sq_norm = products[rows][:, rows].mean()
        scatter = jnp.diagonal(products)[rows].mean() - sq_norm
        count = jnp.float32(batch_size)
        variance = scatter * count / (count - 1)
        stats = adaoptax.GradientStats(count, count, sq_norm, variance)
        _, state = tracker.update(jnp.zeros(1), state, stats=stats)
        return state, (adaoptax.noise_scale_estimate(state, level=LEVEL), (variance, sq_norm))

    @jax.jit
    def draw(products: jax.Array, key: jax.Array) -> Any:
        of_draw = lambda key: jax.lax.scan(
            functools.partial(step, products),
            tracker.init(jnp.zeros(1)),
            jax.random.split(key, steps),
        )[1]
        signal = products.mean()
        estimates, measured = jax.vmap(of_draw)(jax.random.split(key, draws))
        exact = (jnp.diagonal(products).mean() - signal) / signal
        return exact, estimates, jnp.stack(measured)

    return draw


def _of_draws(at: Any, others: Sequence[dict[str, float]], exact: float) -> dict[str, float]:
    """The numbers of all draws after so many steps."""
    known = np.isfinite(at.noise_scale)
    holds = (at.low <= exact) & (exact <= at.high)
    ratios = {
        "estimate": at.noise_scale[known] / exact,
        "mean_of_ratios": np.array([x["mean_of_ratios"] for x in others]) / exact,
        "plug_in": np.array([x["plug_in"] for x in others]) / exact,
    }
    metrics = {
        "known": float(known.mean()),
        "coverage": float(holds[known].mean()) if known.any() else float("nan"),
        "wrong": float((known & ~holds).mean()),
    }
    for name, ratio in ratios.items():
        metrics[f"{name}_over_truth"] = float(np.median(ratio)) if len(ratio) else float("nan")
        within = (ratio > 0.5) & (ratio < 2)
        metrics[f"{name}_within_2"] = float(within.mean()) if len(ratio) else float("nan")
    return metrics


EXPERIMENT = Experiment(
    name="noise_scale",
    title="The noise scale against the truth",
    claim="The measured noise scale is that of all data, and its 95 % interval holds it in 95 % of"
    " the cases in which a number is given.",
    cases=cases,
    run=run,
    report=noise_scale_report.report,
)

if __name__ == "__main__":
    main(EXPERIMENT)
