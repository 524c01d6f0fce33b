"""Which test asks for how many examples: L2 logistic regression by adaptive sampling.

    python examples/logistic_adaptive_sampling.py --out runs/logistic

The experiment of Bollapragada, Byrd and Nocedal (2018, https://arxiv.org/abs/1710.11258):

    R(w) = mean log(1 + exp(-y <x, w>)) + ‖w‖² / (2N)

by gradient steps of constant length whose batch starts at 2 and grows as a test asks. Three tests
(norm, inner product, augmented), the augmented one with the safeguard of an averaged gradient, and
plain gradient descent; the error R(w) - R* against effective gradient evaluations (examples seen
over N), and the batch size of each iteration.

The tests are as printed (signal="plug-in") unless --signal says otherwise. What to look for: the
inner-product test takes small batches and wins while gradients are large, but the squared norm of a
small batch is mostly noise, so that it passes for ever where the dimension is high and the error
stays where the noise leaves it; the safeguard sees that.

Only the abstract of the paper and code by others could be read: the synthetic sets have the sizes
of public data sets, and step lengths are multiples of 1/L instead of hand-tuned powers of two.
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
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import adaoptax
from adaoptax.batch_tests import averaged_gradient
from adaoptax.integrations.progress import ProgressBar

METHODS = ("norm", "inner product", "augmented", "safeguarded", "full gradient")
COLORS = dict(zip(METHODS, ("#2166ac", "#d6604d", "#1b7837", "#762a83", "#999999"), strict=True))
POINTS = 200  # of each error curve


class Problem(NamedTuple):
    """Data, and what is known about it.

    Attributes:
        features: x [examples, features], float64.
        labels: -1 or 1 [examples].
        penalty: 1/N, the weight of ‖w‖²/2.
        smoothness: L of R.
        minimum: R*.
    """

    features: np.ndarray
    labels: np.ndarray
    penalty: float
    smoothness: float
    minimum: float


class Run(NamedTuple):
    """What one method did.

    Attributes:
        sizes: Batch size of each iteration.
        required: What the test asked for at each iteration.
        evaluations: Effective gradient evaluations at the points of the error curve.
        errors: R(w) - R* there.
    """

    sizes: list[int]
    required: list[float]
    evaluations: list[float]
    errors: list[float]


def loss_fn(weights: jax.Array, batch: dict[str, jax.Array], penalty: jax.Array) -> jax.Array:
    """Mean loss; the penalty is the same for all examples and adds no noise."""
    margins = batch["y"] * (batch["x"] @ weights)
    return jnp.mean(jnp.logaddexp(0.0, -margins)) + 0.5 * penalty * weights @ weights


# Compiled once for each number of rows, whatever the method.
risk = jax.jit(loss_fn)
measure = jax.jit(
    adaoptax.value_grad_and_stats(loss_fn, adaoptax.measure.exact(statistics=("norm", "inner")))
)


def make_problem(features: np.ndarray, labels: np.ndarray) -> Problem:
    """Checks the data and finds the minimum by Newton's method in NumPy."""
    features, labels = np.asarray(features, np.float64), np.asarray(labels, np.float64)
    logistic_data.check(features, labels)
    rows, columns = features.shape
    penalty = 1 / rows
    hessian_bound = features.T @ features / (4 * rows)
    smoothness = float(np.linalg.eigvalsh(hessian_bound)[-1]) + penalty

    weights = np.zeros(columns)
    value = lambda w: np.logaddexp(0, -labels * (features @ w)).mean() + penalty / 2 * w @ w
    for _ in range(100):
        wrong = np.exp(-np.logaddexp(0, labels * (features @ weights)))
        gradient = -features.T @ (labels * wrong) / rows + penalty * weights
        curvature = (features.T * (wrong * (1 - wrong))) @ features / rows
        step = np.linalg.solve(curvature + penalty * np.eye(columns), gradient)
        length = 1.0
        while value(weights - length * step) > value(weights) and length > 1e-8:
            length /= 2
        weights -= length * step
        if gradient @ step < 1e-26:
            break
    return Problem(features, labels, penalty, smoothness, float(value(weights)))


def make_test(method: str, options: argparse.Namespace) -> optax.GradientTransformation:
    """The test of one method."""
    theta, nu, signal = options.theta, options.nu, options.signal
    if method == "norm":
        return adaoptax.norm_test(theta, signal=signal)
    if method == "inner product":
        return adaoptax.inner_product_test(theta, signal=signal)
    augmented = adaoptax.augmented_inner_product_test(theta, nu, signal=signal)
    return augmented if method == "augmented" else averaged_gradient(augmented)


def run(problem: Problem, method: str, options: argparse.Namespace, title: str) -> Run:
    """Steps of constant length until the budget of gradient evaluations is spent."""
    rows = len(problem.labels)
    full = method == "full gradient"
    test = optax.identity() if full else make_test(method, options)
    tx = optax.chain(test, optax.sgd(options.step / problem.smoothness))

    @jax.jit
    def update(weights: Any, opt_state: Any, loss: Any, grads: Any, stats: Any) -> Any:
        updates, opt_state = optax.with_extra_args_support(tx).update(
            grads, opt_state, weights, stats=stats
        )
        seen = adaoptax.observables(loss, stats, opt_state)
        return optax.apply_updates(weights, updates), opt_state, seen

    put = jax.device_put
    penalty = put(np.float64(problem.penalty))
    everything = put({"x": problem.features, "y": problem.labels})
    weights: Any = put(np.zeros(problem.features.shape[1]))
    error = lambda: float(jax.device_get(risk(weights, everything, penalty))) - problem.minimum

    opt_state = jax.jit(tx.init)(weights)
    policy = adaoptax.GrowthPolicy(min(2, rows), rows, max_growth=math.inf)
    rng = np.random.default_rng(options.seed)
    seen_rows, total, next_point = 0, int(options.evaluations * rows), 0.0
    result = Run([], [], [0.0], [error()])
    bar = ProgressBar(total, desc=title)
    while seen_rows < total:
        size = rows if full else policy.batch_size
        batch, mask = padded(problem, rng.choice(rows, size, replace=False))
        measured = measure(weights, put(batch), penalty, mask=put(mask))
        weights, opt_state, output = update(weights, opt_state, *measured)
        seen = jax.device_get(output)
        required = float(seen.get("required", rows))
        policy.update(required)
        seen_rows += size
        result.sizes.append(size)
        result.required.append(required)
        if seen_rows >= min(next_point, total):
            result.evaluations.append(seen_rows / rows)
            result.errors.append(error())
            next_point = seen_rows + total / POINTS
        bar({"step": len(result.sizes), "examples": seen_rows, "batch_size": size,
             "required": required if math.isfinite(required) else None,
             "loss": float(seen["loss"])})  # fmt: skip
    bar.close()
    return result


def padded(problem: Problem, chosen: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Those rows, filled up to a power of two: one program for each. And which of them are real."""
    size, rows = len(chosen), len(problem.labels)
    capacity = min(max(16, 1 << (size - 1).bit_length()), rows)
    places = np.zeros(capacity, int)
    places[:size] = chosen
    batch = {"x": problem.features[places], "y": problem.labels[places]}
    return batch, np.arange(capacity) < size


def summary(runs: dict[str, Run]) -> dict[str, Any]:
    """What the table shows of each method."""
    rows = {}
    for method, r in runs.items():
        reached = [e for e, x in zip(r.evaluations, r.errors, strict=True)
                   if x <= 1e-3 * r.errors[0]]  # fmt: skip
        rows[method] = {
            "iterations": len(r.sizes),
            "evaluations_to_a_thousandth": reached[0] if reached else None,
            "final_error": r.errors[-1],
            "last_batch_size": r.sizes[-1],
        }
    return rows


def table(name: str, problem: Problem, rows: dict[str, Any]) -> str:
    """The summary of one data set as text."""
    examples, features = problem.features.shape
    lines = [
        f"{name} ({examples} x {features})",
        "  method          iterations   evaluations to 1/1000   final error   last batch",
    ]
    for method, row in rows.items():
        reached = row["evaluations_to_a_thousandth"]
        reached = "-" if reached is None else f"{reached:.1f}"
        lines.append(
            f"  {method:<15}{row['iterations']:>11}{reached:>24}"
            f"{row['final_error']:>14.1e}{row['last_batch_size']:>13}"
        )
    return "\n".join(lines)


def draw(results: dict[str, dict[str, Run]], path: pathlib.Path) -> None:
    """Error and batch size, one row of panels for each data set."""
    figure = Figure(figsize=(10, 0.5 + 2.7 * len(results)), layout="constrained")
    axes = figure.subplots(len(results), 2, squeeze=False)
    for (name, runs), (error, size) in zip(results.items(), axes, strict=True):
        for method, r in runs.items():
            style = {"color": COLORS[method], "label": method, "lw": 1.4}
            style |= {"ls": "--"} if method in ("augmented", "full gradient") else {}
            error.plot(r.evaluations, np.maximum(r.errors, 1e-16), **style)
            size.plot(range(1, len(r.sizes) + 1), r.sizes, **style)
        decorate(error, f"{name}: error R(w) − R*", "effective gradient evaluations")
        decorate(size, f"{name}: batch size", "iteration")
        size.set_xscale("log")
    axes[0, 0].legend(frameon=False, fontsize=8)
    figure.suptitle("L2 logistic regression: the batch grows as each test asks")
    figure.savefig(path, dpi=120)


def decorate(axis: Axes, title: str, xlabel: str) -> None:
    """What all panels share."""
    axis.set_yscale("log")
    axis.set_title(title, fontsize=10)
    axis.set_xlabel(xlabel, fontsize=9)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line, with every option explained."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--out", type=pathlib.Path, default=pathlib.Path("runs/logistic"),
        help="folder for summary.json and run.png")  # fmt: skip
    add("--data", nargs="+", choices=logistic_data.NAMES,
        default=["cancer", "synthetic", "mushrooms"],
        help="data sets; all but cancer are drawn in the sizes of the sets named")  # fmt: skip
    add("--evaluations", type=float, default=50.0, help="effective gradient evaluations of a run")
    add("--step", type=float, default=1.0, help="step length, in units of 1/L")
    add("--theta", type=float, default=0.9, help="tolerance of all tests along the gradient")
    add("--nu", type=float, default=5.84, help="tolerance of the augmented test across it")
    add("--signal", choices=("plug-in", "debiased"), default="plug-in",
        help="squared gradient norm of the tests: as printed, or without its noise")  # fmt: skip
    add("--seed", type=int, default=0, help="of the drawn data and of the batches")
    add("--tiny", action="store_true", help="few examples and evaluations, to see that it runs")
    options = parser.parse_args(argv)
    for name in ("evaluations", "step", "theta", "nu"):
        if not 0 < getattr(options, name) < math.inf:
            parser.error(f"--{name} must be a number above 0")
    if options.tiny:
        options.evaluations = min(options.evaluations, 3.0)
    return options


def main(argv: list[str] | None = None) -> None:
    """Runs all methods on all data sets, and writes what they did."""
    options = parse_arguments(argv)
    results, summaries = {}, {}
    with jax.enable_x64(True):
        for name in options.data:
            data = logistic_data.load(name, options.seed, 200 if options.tiny else None)
            problem = make_problem(*data)
            runs = {m: run(problem, m, options, f"{name}, {m}") for m in METHODS}
            results[name], summaries[name] = runs, summary(runs)
            print(table(name, problem, summaries[name]), flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    settings = {name: str(value) for name, value in vars(options).items()}
    text = json.dumps(summaries | {"options": settings}, indent=2)
    (options.out / "summary.json").write_text(text + "\n")
    draw(results, options.out / "run.png")
    print(f"\nWrote summary.json and run.png to {options.out}/")


if __name__ == "__main__":
    main()
