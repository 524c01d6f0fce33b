"""All methods on the same problems: updates, examples, error and time, by one command.

    python -m benchmarks.comparison                    # prints the tables of docs/comparison.md
    python -m benchmarks.comparison --only norm_test --seeds 1

Every run sees the same number of examples. The learning rate decays over them as a cosine, from one
value for the small batch (SGD with momentum 0.9 but where the name says otherwise). Means over
seeds, with the standard error of the final error. The batch grows from 32 to at most 512.
"""

import argparse
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

import adaoptax
from benchmarks.experiments.summary import mean
from benchmarks.tables import markdown
from benchmarks.timing import machine
from benchmarks.training import Contender, Trained, Trainer

SMALL, LARGE, MICRO = 32, 512, 16
CAPACITIES = (32, 128, 512)  # rows that batches are padded to: a compilation each


class Problem(NamedTuple):
    """Something to minimize.

    Attributes:
        data: Arrays with one entry an example.
        init: ``init(key)`` → parameters.
        loss_fn: ``loss_fn(params, batch)`` → mean loss.
        error: ``error(params)`` → what is left to gain, a scalar; see `name_of_error`.
        name_of_error: What it is.
        examples: Examples to train on.
        learning_rate: For batches of `SMALL` and SGD with momentum.
        distance: About the distance from the start to the solution: the rate of AdaGrad-Norm.
    """

    data: Any
    init: Callable[[jax.Array], Any]
    loss_fn: Callable[[Any, Any], jax.Array]
    error: Callable[[Any], jax.Array]
    name_of_error: str
    examples: int
    learning_rate: float
    distance: float

    @property
    def schedule(self) -> optax.Schedule:
        """Learning rate over examples."""
        return optax.cosine_decay_schedule(self.learning_rate, self.examples)

    @property
    def ramp(self) -> adaoptax.BatchSizeSchedule:
        """Batch sizes by hand: doubled at every quarter of the run."""
        first, second, third = (self.examples * i // 4 for i in (1, 2, 3))
        return adaoptax.BatchSizeSchedule.parse(f"0:32 {first}:64 {second}:128 {third}:256")


ADAPTIVE = (SMALL, LARGE)


def steps(schedule: optax.Schedule, *before: Any, after: Any = ()) -> optax.GradientTransformation:
    """SGD with momentum over the examples seen, with `before` in front and `after` behind."""
    over_examples = adaoptax.scale_by_schedule_over_examples(schedule)
    return optax.chain(*before, optax.trace(0.9), *after, over_examples)


def gain() -> Any:
    """AdaScale for what is tuned at the small batch."""
    return adaoptax.scale_by_adascale(SMALL, decay=0.99)


def ramp(rule: Any) -> Callable[[Problem], Contender]:
    """The hand-made ramp, with a step that follows the batch by a rule."""
    return lambda p: Contender(
        steps(p.schedule, after=[adaoptax.scale_by_batch(rule, SMALL)]), p.ramp
    )


def adaptive(test: Any, *statistics: str, after: Any = ()) -> Callable[[Problem], Contender]:
    """The batch that a test requires."""
    return lambda p: Contender(
        steps(p.schedule, test, after=after), ADAPTIVE, ("norm", *statistics)
    )


def with_seesaw(problem: Problem) -> Contender:
    """Cuts of the learning rate become growth of the batch, by the rule for SGD."""
    sizes, rate = adaoptax.seesaw(
        problem.schedule,
        SMALL,
        problem.examples,
        exponent=1.0,
        multiple_of=MICRO,
        max_batch_size=LARGE,
    )
    return Contender(steps(rate), sizes)


def with_sebs(problem: Problem) -> Contender:
    """Stages of four times the batch at a constant learning rate, as many as fit in `LARGE`."""
    sizes, rate = adaoptax.sebs(
        SMALL,
        problem.learning_rate,
        rho=4,
        milestones=[problem.examples // 2, 3 * problem.examples // 4],
        max_batch_size=LARGE,
    )
    return Contender(steps(rate), sizes)


def with_adamw(sizes: Any) -> Callable[[Problem], Contender]:
    """AdamW tuned at the small batch; at others by half-lives in examples and the square root."""

    def contender(problem: Problem) -> Contender:
        rate = problem.learning_rate / 5
        tx = adaoptax.adamw_with_batch(
            lambda examples: rate * problem.schedule(examples) / problem.learning_rate,
            SMALL,
            weight_decay=0.0,
            learning_rate_rule=adaoptax.rules.sqrt,
        )
        return Contender(tx, problem.ramp if sizes is None else sizes)

    return contender


METHODS: dict[str, Callable[[Problem], Contender]] = {
    "constant 32": lambda p: Contender(steps(p.schedule), SMALL),
    "constant 512": lambda p: Contender(steps(p.schedule), LARGE),
    "ramp by hand": lambda p: Contender(steps(p.schedule), p.ramp),
    "ramp, rules.linear": ramp(adaoptax.rules.linear),
    "ramp, rules.sqrt": ramp(adaoptax.rules.sqrt),
    "ramp, scale_by_adascale": lambda p: Contender(steps(p.schedule, after=[gain()]), p.ramp),
    "seesaw": with_seesaw,
    "sebs": with_sebs,
    "norm_test": adaptive(adaoptax.norm_test(0.8, decay=0.9)),
    "norm_test, scale_by_adascale": adaptive(
        adaoptax.norm_test(0.8, decay=0.9), after=[adaoptax.scale_by_adascale(SMALL, decay=0.99)]
    ),
    "inner_product_test": adaptive(adaoptax.inner_product_test(0.5, decay=0.9), "inner"),
    "augmented_inner_product_test": adaptive(
        adaoptax.augmented_inner_product_test(0.5, 0.6, decay=0.9), "inner"
    ),
    "optimal_split": adaptive(adaoptax.batch_tests.optimal_split(0.8, decay=0.9), "inner"),
    "coordinate_test": adaptive(adaoptax.coordinate_test(2.0, decay=0.9), "coordinate"),
    "averaged_gradient, plug-in": adaptive(
        adaoptax.batch_tests.averaged_gradient(adaoptax.norm_test(0.8, signal="plug-in"))
    ),
    "adadagrad_norm": lambda p: Contender(
        adaoptax.adadagrad_norm(p.distance, eta=0.8, decay=0.9), ADAPTIVE
    ),
    "adamw_with_batch, 32": with_adamw(SMALL),
    "adamw_with_batch, ramp": with_adamw(None),
}


def quadratic() -> Problem:
    """Noisy quadratic in 100 dimensions: curvatures 0.05 to 1, unit noise in every direction."""
    curvature = jnp.geomspace(0.05, 1.0, 100)
    noise = np.random.default_rng(0).normal(size=(20_000, 100)).astype(np.float32)
    noise -= noise.mean(0)  # the optimum of the data is zero
    return Problem(
        data=noise,
        init=lambda key: 3 * jax.random.normal(key, (100,)),
        loss_fn=lambda w, batch: 0.5 * jnp.sum(curvature * w**2) + jnp.mean(batch @ w),
        error=lambda w: 0.5 * jnp.sum(curvature * w**2),
        name_of_error="loss above the optimum",
        examples=40_000,
        learning_rate=0.02,
        distance=30.0,
    )


def logistic() -> Problem:
    """L2 logistic regression on scikit-learn's breast cancer, above its optimum."""
    x, y = load_breast_cancer(return_X_y=True)
    x = ((x - x.mean(0)) / x.std(0)).astype(np.float32)
    data = {"x": x, "y": (2 * y - 1).astype(np.float32)}

    def loss_fn(w: jax.Array, batch: Any) -> jax.Array:
        margins = batch["y"] * (batch["x"] @ w[:-1] + w[-1])
        return jnp.mean(jax.nn.softplus(-margins)) + 0.005 * jnp.sum(w**2)

    def newton(w: jax.Array, _: None) -> tuple[jax.Array, None]:
        return w - jnp.linalg.solve(jax.hessian(loss_fn)(w, data), jax.grad(loss_fn)(w, data)), None

    best = jax.lax.scan(newton, jnp.zeros(31), length=12)[0]
    return Problem(
        data=data,
        init=lambda key: jax.random.normal(key, (31,)),
        loss_fn=loss_fn,
        error=lambda w: loss_fn(w, data) - loss_fn(best, data),
        name_of_error="loss above the optimum",
        examples=30_000,
        learning_rate=0.02,
        distance=6.0,
    )


def digits() -> Problem:
    """An MLP of 128 hidden units on scikit-learn's digits."""
    x, y = load_digits(return_X_y=True)
    x_train, x_test, y_train, y_test = train_test_split(
        (x / 16).astype(np.float32), y.astype(np.int32), test_size=357, stratify=y, random_state=0
    )

    def scores(params: Any, x: Any) -> jax.Array:
        return jax.nn.relu(x @ params["w1"] + params["b1"]) @ params["w2"]

    def loss_fn(params: Any, batch: Any) -> jax.Array:
        losses = optax.softmax_cross_entropy_with_integer_labels(
            scores(params, batch["x"]), batch["y"]
        )
        return losses.mean()

    def init(key: jax.Array) -> Any:
        first, second = jax.random.split(key)
        return {
            "w1": jax.random.normal(first, (64, 128)) / 8,
            "b1": jnp.zeros(128),
            "w2": jax.random.normal(second, (128, 10)) / 11,
        }

    return Problem(
        data={"x": x_train, "y": y_train},
        init=init,
        loss_fn=loss_fn,
        error=lambda params: jnp.mean(scores(params, x_test).argmax(-1) != y_test),
        name_of_error="test error",
        examples=40_000,
        learning_rate=0.05,
        distance=6.0,
    )


PROBLEMS = {"quadratic": quadratic, "logistic": logistic, "digits": digits}


def compare(
    problem: Problem, names: list[str], seeds: int, bar: Any
) -> dict[str, list[tuple[Trained, float]]]:
    """Runs of every method, with what they left to gain."""
    trainer = Trainer(
        problem,
        lambda statistics: adaoptax.measure.per_example(statistics=statistics),
        micro_batch_size=MICRO,
        capacities=CAPACITIES,
        padded=True,
    )
    error = jax.jit(problem.error)
    results: dict[str, list[tuple[Trained, float]]] = {}
    for name in names:
        bar.set_postfix_str(name)
        run = trainer.prepare(METHODS[name](problem))
        for seed in range(seeds):
            trained = run(seed, problem.examples)
            results.setdefault(name, []).append((trained, float(error(trained.params))))
            bar.update()
    return results


def table(problem: Problem, results: dict[str, list[tuple[Trained, float]]]) -> str:
    """In Markdown."""
    lines = []
    for name, runs in results.items():
        of = lambda field, runs=runs: mean([getattr(run, field) for run, _ in runs]).value
        counts = [f"{of(field):.0f}" for field in ("updates", "examples", "largest")]
        error = mean([error for _, error in runs])
        lines.append([name, *counts, error.show(), f"{of('seconds'):.2f}"])
    header = ["method", "updates", "examples", "largest batch", problem.name_of_error, "seconds"]
    return markdown(header, lines)


def main(argv: list[str] | None = None) -> None:
    """Prints a table for each problem."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, help="runs that are averaged")
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=list(PROBLEMS))
    parser.add_argument("--only", nargs="+", choices=METHODS, default=list(METHODS),
                        help="some of the methods", metavar="METHOD")  # fmt: skip
    options = parser.parse_args(argv)
    print(f"{machine()}, {options.seeds} seeds\n")
    total = len(options.problems) * len(options.only) * options.seeds
    with tqdm(total=total, unit=" runs", file=sys.stderr) as bar:
        for name in options.problems:
            problem = PROBLEMS[name]()
            results = compare(problem, options.only, options.seeds, bar)
            print(f"## {problem_title(name)}\n\n{table(problem, results)}\n", flush=True)


def problem_title(name: str) -> str:
    """The first sentence of the problem's docstring."""
    return (PROBLEMS[name].__doc__ or name).split("\n")[0].rstrip(".")


if __name__ == "__main__":
    main()
