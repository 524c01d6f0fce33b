"""Why (θ, ν) = (0.9, 5.84) practically never fires in high dimension: the figure of the docs.

    python -m benchmarks.optimal_split [--out docs/methods]

Left: how often each test asks for a larger batch on **pure noise** (a true gradient of zero), by
dimension. Middle and right: batch size and distance to the solution along runs on a noisy quadratic
of known curvature and covariance. Means, S² and V_ip of a batch are drawn from their exact laws
(normal and chi-squared), so that no batch is ever formed. One to two minutes on two cores.
"""

import argparse
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from adaoptax import (
    GradientStats,
    augmented_inner_product_test,
    norm_test,
    required_batch_size,
)
from adaoptax.batch_tests import averaged_gradient, optimal_split
from adaoptax.scaling import optimal_step_size
from benchmarks.tables import markdown

MU, L, DIMENSION, SIGMA, FIRST_SIZE = 1.0, 10.0, 1000, 1.0, 8
BUDGET, CAP, EPSILON = 2_000_000, 200_000, 0.5
DIMENSIONS = (2, 5, 10, 20, 50, 100, 300, 1000)

PUBLISHED = "published pair (0.9, 5.84)"
SAFEGUARD = "... with averaged gradients"
DEBIASED = "... debiased (and the step of ε = 5.9)"
SPLIT = f"optimal split, ε = {EPSILON}"
NORM = "norm test, η = 0.9"
COLOURS = {
    PUBLISHED: "#c2410c",
    SAFEGUARD: "#d97706",
    DEBIASED: "#6d28d9",
    SPLIT: "#0b66c3",
    NORM: "#4b5563",
}


def draw(rng: Any, gradient: np.ndarray, size: int) -> tuple[jax.Array, GradientStats]:
    """Mean gradient and statistics of a batch of examples ~ N(gradient, σ² I)."""
    d, freedom = len(gradient), size - 1
    g = gradient + SIGMA / math.sqrt(size) * rng.normal(size=d)
    along = SIGMA**2 * rng.chisquare(freedom) / freedom
    across = SIGMA**2 * rng.chisquare((d - 1) * freedom) / freedom
    numbers = (size, size, g @ g, along + across, along * (g @ g))
    return jnp.asarray(g, jnp.float32), GradientStats(*(jnp.float32(x) for x in numbers))


def compared() -> dict[str, tuple[Any, float]]:
    """The tests of the runs by name, each with the ε whose step size it is run with."""
    pair = augmented_inner_product_test(0.9, 5.84, signal="plug-in")
    return {
        PUBLISHED: (pair, EPSILON),
        SAFEGUARD: (averaged_gradient(pair), EPSILON),
        DEBIASED: (augmented_inner_product_test(0.9, 5.84), math.hypot(0.9, 5.84)),
        SPLIT: (optimal_split(EPSILON), EPSILON),
    }


def fires_on_noise(test: Any, dimension: int, draws: int = 400, size: int = 32) -> float:
    """Share of batches of pure noise at which the test asks for more examples."""
    rng, nothing = np.random.default_rng(0), np.zeros(dimension)
    pairs = [draw(rng, nothing, size) for _ in range(draws)]
    stats = jax.tree.map(lambda *x: jnp.stack(x), *(stats for _, stats in pairs))
    grads = jnp.stack([g for g, _ in pairs])
    one = lambda g, s: test.update(g, test.init(g), stats=s)[1].required_batch_size
    return float(np.mean(np.asarray(jax.jit(jax.vmap(one))(grads, stats)) > size))


def run(test: Any, epsilon: float) -> dict[str, list[float]]:
    """Examples, batch size and squared distance along a run with the step of ε."""
    curvature = np.geomspace(MU, L, DIMENSION)
    rate = optimal_step_size(epsilon, smoothness=L, strong_convexity=MU)
    update, state = jax.jit(test.update), test.init(jnp.zeros(DIMENSION))
    rng, x, size = (
        np.random.default_rng(0),
        np.full(DIMENSION, 10 / math.sqrt(DIMENSION)),
        FIRST_SIZE,
    )
    examples = 0
    seen: dict[str, list[float]] = {"examples": [], "size": [], "distance": []}
    while examples < BUDGET and len(seen["size"]) < 3000:
        g, stats = draw(rng, curvature * x, size)
        state = update(g, state, stats=stats)[1]
        x, examples = x - rate * np.asarray(g, np.float64), examples + size
        for name, value in (("examples", examples), ("size", size), ("distance", x @ x)):
            seen[name].append(float(value))
        wanted = min(
            float(required_batch_size(state)), 4 * size
        )  # growth is capped, as by a policy
        size = int(min(max(size, math.ceil(wanted)), CAP))
    return seen


def plot_noise(shares: dict[str, list[float]], axis: Axes) -> None:
    """How often a test asks for more on pure noise."""
    for name, values in shares.items():
        axis.plot(DIMENSIONS, values, "o-", color=COLOURS[name], label=name, ms=3.5, lw=1.5)
    axis.set(xscale="log", ylim=(-0.03, 1.05), xlabel="dimension")
    axis.set_title("share of tests that ask for more,\non pure noise", fontsize=10)


def draw_figure(shares: dict[str, list[float]], runs: dict[str, Any], path: pathlib.Path) -> None:
    """Saves the three panels, on white to be legible on dark pages too."""
    figure = Figure(figsize=(10.5, 3.6), facecolor="white", layout="constrained")
    noise, sizes, errors = figure.subplots(1, 3)
    plot_noise(shares, noise)
    for name, seen in runs.items():
        sizes.plot(seen["examples"], seen["size"], color=COLOURS[name], label=name, lw=1.5)
        errors.plot(seen["examples"], seen["distance"], color=COLOURS[name], lw=1.5)
    for axis, title in ((sizes, "batch size"), (errors, "squared distance to the solution")):
        axis.set(xscale="log", yscale="log", xlabel="examples")
        axis.set_title(title, fontsize=10)
    for axis in (noise, sizes, errors):
        axis.grid(color="#e5e7eb", lw=0.6)
        axis.tick_params(labelsize=8)
    lines = {line.get_label(): line for axis in (sizes, noise) for line in axis.get_lines()}
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=5, fontsize=8,
                  frameon=False)  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def table(shares: dict[str, list[float]], runs: dict[str, Any]) -> str:
    """The numbers of the page, in Markdown."""
    shown = [DIMENSIONS.index(d) for d in (2, 10, 100, 1000)]
    on_noise = markdown(
        ["test, on pure noise", *(f"d = {DIMENSIONS[i]}" for i in shown)],
        [[name, *(f"{values[i]:.2f}" for i in shown)] for name, values in shares.items()],
    )
    lines = []
    for name, seen in runs.items():
        examples, size, distance = (values[-1] for values in seen.values())
        numbers = [f"{examples:,.0f}", f"{size:,.0f}", f"{distance:.2g}"]
        lines.append([name, len(seen["size"]), *numbers])
    header = ["run", "updates", "examples", "last batch", "squared distance"]
    return f"{on_noise}\n\n{markdown(header, lines)}"


def main() -> None:
    """Runs, prints the tables and saves the picture."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("docs/methods"))
    out = parser.parse_args().out
    on_noise = {
        PUBLISHED: augmented_inner_product_test(0.9, 5.84, signal="plug-in"),
        DEBIASED: augmented_inner_product_test(0.9, 5.84),
        SPLIT: optimal_split(EPSILON),
        NORM: norm_test(0.9, signal="plug-in"),
    }
    shares = {name: [fires_on_noise(t, d) for d in DIMENSIONS] for name, t in on_noise.items()}
    runs = {name: run(*test) for name, test in compared().items()}
    draw_figure(shares, runs, out / "optimal_split.png")
    print(table(shares, runs))


if __name__ == "__main__":
    main()
