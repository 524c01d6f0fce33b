"""L1-regularised logistic regression: a growing batch against a working-set solver.

    python examples/l1_logistic.py --out runs/l1_logistic
    python examples/l1_logistic.py --benchmark      # working sets against plain coordinate descent

    P(w) = mean log(1 + exp(-y <x, w>)) + λ ‖w‖₁

**Adaptive sampling**: proximal gradient steps whose batch starts at 2 and grows as the complete-
step test asks (Xie, Bollapragada, Byrd and Nocedal, https://arxiv.org/abs/2012.15411): noise is
compared with the step that is taken, after the soft threshold, since the gradient itself does not
vanish at the optimum. **BlitzWS** (the folder `blitzws`): coordinate descent on working sets, which
also proves the optimum by a duality gap. Both end at a relative gap of 1e-8.
"""

import argparse
import json
import math
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import logistic_data
import numpy as np
import optax
from blitzws import L1Logistic, Solution, make_problem, solve
from blitzws.benchmark import compare, report, scikit_learn, sparse_data
from blitzws.dual import scaled
from blitzws.problem import correlations, largest_penalty, objective, sigmoid_of
from logistic_adaptive_sampling import decorate
from matplotlib.figure import Figure

import adaoptax
from adaoptax.batch_tests import proximal_test
from adaoptax.integrations.progress import ProgressBar
from adaoptax.prox import l1, proximal_gradient

COLORS = {"adaptive": "#2166ac", "full": "#999999"}


class Run(NamedTuple):
    """What proximal gradient descent did.

    Attributes:
        weights: At the end.
        sizes: Batch size of each iteration.
        evaluations: Effective gradient evaluations (examples over N) where the gap was computed.
        gaps: Relative duality gaps there.
    """

    weights: np.ndarray
    sizes: list[int]
    evaluations: list[float]
    gaps: list[float]


def loss_fn(weights: jax.Array, margins_of: jax.Array) -> jax.Array:
    """Mean logistic loss of rows y·x; the penalty is the proximal operator's."""
    return jnp.mean(jnp.logaddexp(0.0, -(margins_of @ weights)))


measure = jax.jit(adaoptax.value_grad_and_stats(loss_fn, adaoptax.measure.exact()))


def relative_gap(problem: L1Logistic, weights: np.ndarray) -> float:
    """(P - D)/P at these weights, with the dual point that they suggest."""
    margins = problem.columns @ weights
    theta = sigmoid_of(margins)
    point = scaled(problem, theta, correlations(problem.columns, theta))
    primal = objective(problem, weights, margins)
    return max(primal - point.value, 0.0) / primal


def proximal_descent(
    problem: L1Logistic, options: argparse.Namespace, adaptive: bool, title: str
) -> Run:
    """Proximal gradient steps of length 1/L until the gap or the budget of evaluations is reached.

    Batches are drawn without replacement, so that the largest one is the whole data set and its
    gradient is exact.
    """
    rows_of = problem.columns.toarray()
    rows = problem.num_examples
    step_size = 4 * rows / float(np.linalg.eigvalsh(rows_of.T @ rows_of)[-1])
    tx = optax.chain(
        proximal_gradient(l1(problem.penalty), step_size),
        proximal_test(options.theta, learning_rate=step_size, dataset_size=rows),
    )

    @jax.jit
    def update(weights: Any, opt_state: Any, loss: Any, grads: Any, stats: Any) -> Any:
        updates, opt_state = tx.update(grads, opt_state, weights, stats=stats)
        seen = adaoptax.observables(loss, stats, opt_state)
        return optax.apply_updates(weights, updates), opt_state, seen

    weights = jax.device_put(np.zeros(problem.num_features))
    opt_state = jax.jit(tx.init)(weights)
    policy = adaoptax.GrowthPolicy(min(2, rows) if adaptive else rows, rows)
    rng = np.random.default_rng(options.seed)
    seen_rows, total, next_point = 0, int(options.evaluations * rows), 0.0
    sizes, evaluations, gaps = [], [0.0], [relative_gap(problem, np.zeros(len(weights)))]
    bar = ProgressBar(total, desc=title)
    while seen_rows < total and gaps[-1] > options.tolerance:
        size = policy.batch_size
        capacity = min(max(16, 1 << (size - 1).bit_length()), rows)  # one program for each
        places = np.zeros(capacity, int)
        places[:size] = rng.choice(rows, size, replace=False)
        batch, mask = jax.device_put((rows_of[places], np.arange(capacity) < size))
        weights, opt_state, output = update(weights, opt_state, *measure(weights, batch, mask=mask))
        seen = jax.device_get(output)
        policy.update(seen["required"])
        seen_rows += size
        sizes.append(size)
        if seen_rows >= next_point:
            next_point = seen_rows + rows
            evaluations.append(seen_rows / rows)
            gaps.append(relative_gap(problem, jax.device_get(weights)))
        required = float(seen["required"])
        bar({"step": len(sizes), "examples": seen_rows, "batch_size": size,
             "required": required if math.isfinite(required) else None,
             "loss": float(seen["loss"])})  # fmt: skip
    bar.close()
    return Run(jax.device_get(weights), sizes, evaluations, gaps)


def summary(
    problem: L1Logistic, runs: dict[str, Run], exact: Solution
) -> dict[str, dict[str, Any]]:
    """What the table shows of each method."""
    reference, value = scikit_learn(problem)
    rows: dict[str, dict[str, Any]] = {}
    for kind, r in runs.items():
        rows[f"{kind} proximal gradient"] = {
            "iterations": len(r.sizes),
            "evaluations": sum(r.sizes) / problem.num_examples,
            "objective": objective(problem, r.weights, problem.columns @ r.weights),
            "relative_gap": relative_gap(problem, r.weights),
            "nonzero": int(np.count_nonzero(r.weights)),
        }
    rows["BlitzWS"] = {
        "iterations": len(exact.steps),
        "evaluations": None,
        "objective": exact.objective,
        "relative_gap": exact.relative_gap,
        "nonzero": int(np.count_nonzero(exact.weights)),
    }
    rows["scikit-learn"] = {
        "iterations": None,
        "evaluations": None,
        "objective": value,
        "relative_gap": relative_gap(problem, reference),
        "nonzero": int(np.count_nonzero(reference)),
    }
    return rows


def table(name: str, problem: L1Logistic, rows: dict[str, dict[str, Any]]) -> str:
    """The summary of one data set as text."""
    lines = [
        f"{name} ({problem.num_examples} x {problem.num_features}), λ = {problem.penalty:.3g}",
        f"  {'':<26}{'iterations':>10}{'evaluations':>13}{'objective':>16}{'gap/P':>10}"
        f"{'nonzero':>9}",
    ]
    show = lambda x, form: "-" if x is None else format(x, form)
    for method, row in rows.items():
        lines.append(
            f"  {method:<26}{show(row['iterations'], ','):>10}{show(row['evaluations'], '.1f'):>13}"
            f"{row['objective']:>16.11f}{row['relative_gap']:>10.1e}{row['nonzero']:>9}"
        )
    return "\n".join(lines)


def draw(results: dict[str, tuple[dict[str, Run], Solution]], path: pathlib.Path) -> None:
    """Gap and batch size of proximal gradient descent; gap of BlitzWS over time."""
    figure = Figure(figsize=(12, 0.5 + 2.8 * len(results)), layout="constrained")
    axes = figure.subplots(len(results), 3, squeeze=False)
    floor = lambda values: np.maximum(values, 1e-16)
    for (name, (runs, exact)), (gap, size, blitz) in zip(results.items(), axes, strict=True):
        for kind, r in runs.items():
            style = {"color": COLORS[kind], "label": kind}
            gap.plot(r.evaluations, floor(r.gaps), **style)
            size.plot(range(1, len(r.sizes) + 1), r.sizes, **style)
        decorate(gap, f"{name}: relative duality gap", "effective gradient evaluations")
        decorate(size, f"{name}: batch size", "iteration")
        size.set_xscale("log")
        blitz.plot([1000 * s.seconds for s in exact.steps],
                   floor([s.relative_gap for s in exact.steps]), "o-", color="#1b7837")  # fmt: skip
        decorate(blitz, f"{name}: gap of BlitzWS", "milliseconds")
    axes[0, 0].legend(frameon=False, fontsize=8)
    figure.suptitle("L1 logistic regression: adaptive sampling, and working sets")
    figure.savefig(path, dpi=120)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line, with every option explained."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--out", type=pathlib.Path, default=pathlib.Path("runs/l1_logistic"),
        help="folder for summary.json and run.png")  # fmt: skip
    add("--data", nargs="+", choices=logistic_data.NAMES, default=["cancer", "synthetic"],
        help="data sets; all but cancer are drawn in the sizes of the sets named")  # fmt: skip
    add("--penalty", type=float, default=0.2, help="λ as a share of the largest useful one")
    add("--theta", type=float, default=0.9, help="tolerance of the complete-step test")
    add("--tolerance", type=float, default=1e-8, help="relative duality gap to reach")
    add("--evaluations", type=float, default=20_000.0,
        help="effective gradient evaluations at most")  # fmt: skip
    add("--seed", type=int, default=0, help="of the drawn data and of the batches")
    add("--tiny", action="store_true", help="few examples, to see that it runs")
    add("--benchmark", action="store_true",
        help="time BlitzWS against plain coordinate descent on sparse data instead")  # fmt: skip
    add("--rows", type=int, default=5_000, help="examples of the benchmark")
    add("--columns", type=int, default=50_000, help="features of the benchmark")
    add("--rounds", type=int, default=3, help="timed calls of each solver in the benchmark")
    options = parser.parse_args(argv)
    for name in ("penalty", "theta", "evaluations", "tolerance"):
        if not 0 < getattr(options, name) < math.inf:
            parser.error(f"--{name} must be a number above 0")
    for name in ("rows", "columns", "rounds"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1")
    return options


def main(argv: list[str] | None = None) -> None:
    """Solves all problems in all ways, or runs the benchmark."""
    options = parse_arguments(argv)
    if options.benchmark:
        data = sparse_data(options.rows, options.columns, seed=options.seed)
        print(report(compare(*data, options.penalty, options.tolerance, options.rounds)))
        return
    results, summaries = {}, {}
    for name in options.data:
        data = logistic_data.load(name, options.seed, 200 if options.tiny else None)
        problem = make_problem(*data, options.penalty * largest_penalty(*data))
        with jax.enable_x64(True):
            runs = {
                kind: proximal_descent(problem, options, kind == "adaptive", f"{name}, {kind}")
                for kind in COLORS
            }
        for _ in range(2):  # the first call compiles
            exact = solve(problem, options.tolerance)
        results[name] = (runs, exact)
        summaries[name] = summary(problem, runs, exact)
        print(table(name, problem, summaries[name]), flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    settings = {name: str(value) for name, value in vars(options).items()}
    text = json.dumps({**summaries, "options": settings}, indent=2)
    (options.out / "summary.json").write_text(text + "\n")
    draw(results, options.out / "run.png")
    print(f"\nWrote summary.json and run.png to {options.out}/")


if __name__ == "__main__":
    main()
