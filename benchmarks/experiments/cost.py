"""The whole train loop, adaptive against fixed: seconds to a loss.

    python -m benchmarks.experiments.cost

Fixed batches run in the least loop there is: a loader and a jitted step without statistics.
Adaptive ones run as in `examples/train.py`: `accumulate`, `AdaptiveLoop`, the norm test, and
AdaScale for the step. Time counts data, steps, statistics and decisions; compilation and
evaluations are left out, and reported apart. Repeats are seeds, and all contenders run once for a
seed before the next one.
"""

import functools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import adaoptax
from benchmarks.experiments.cost_report import report
from benchmarks.experiments.experiment import Case, Experiment, Outcome, Size, main
from benchmarks.experiments.problems import PROBLEMS, Problem
from benchmarks.timing import Compilations

COMPILATIONS = Compilations()
LOOKS = 40  # evaluations of a run, at equal examples
PROFILED = 40  # steps whose parts are timed one by one

# Problem → examples of the schedule, loss to reach, tolerance of the test.
RUNS = {"digits_cnn": (28_800, 0.05, 2.0), "byte_lm": (12_800, 3.4, 1.0)}
LONG = {"digits_cnn": (288_000, 0.02, 1.0), "byte_lm": (1_280_000, 2.0, 1.0)}
WIDE = {"digits_cnn": 128, "byte_lm": 256}

METHODS: tuple[tuple[str, float], ...] = (
    ("fixed small", 0.1),
    ("fixed large", 0.1),
    ("fixed large", 0.2),
    ("fixed large", 0.4),
    ("adaptive, exact", 0.1),
    ("adaptive, groups", 0.1),
    ("adaptive, every 8th", 0.1),
)


def cases(size: Size) -> list[Case]:
    """Every contender on every problem."""
    large = {"tiny": 64, "default": 512, "full": 4096}[size]
    methods = [METHODS[0], METHODS[4]] if size == "tiny" else METHODS
    runs = LONG if size == "full" else RUNS
    if size == "tiny":
        runs = {"digits_cnn": (1600, 2.0, 2.0)}
    return [
        {"problem": problem, "width": WIDE[problem] if size == "full" else 0, "examples": examples,
         "target": target, "eta": eta, "small": 32, "large": large, "method": method,
         "learning_rate": rate}
        for problem, (examples, target, eta) in runs.items()
        for method, rate in methods
    ]  # fmt: skip


class Loop(NamedTuple):
    """A train loop in parts, so that each can be timed.

    Attributes:
        draw: Reads a batch.
        step: ``step(state, batch)`` → state and what the host reads.
        tell: Takes that, reads the step before, and decides.
        examples: How many were seen.
    """

    draw: Callable[[], Any]
    step: Callable[[Any, Any], Any]
    tell: Callable[[Any], None]
    examples: Callable[[], int]


class Ready(NamedTuple):
    """A contender whose programs are compiled.

    Attributes:
        start: ``start(seed)`` → a state and a loop.
        loss: Held-out loss of parameters.
        compile_seconds: What tracing and compilation took, with one step of each program.
        programs: How many were compiled.
    """

    start: Callable[[int], tuple[Any, Loop]]
    loss: Callable[[Any], float]
    compile_seconds: float
    programs: int


def run(case: Case, seeds: Sequence[int]) -> list[Outcome]:
    """One contender, a run a seed; programs are compiled for the first."""
    ready = _ready(tuple(case.items()))
    return [_timed(ready, case, seed) for seed in seeds]


def _timed(ready: Ready, case: Case, seed: int) -> Outcome:
    """A run to the target, or to the end of the examples."""
    state, loop = ready.start(seed)
    examples, target = int(case["examples"]), float(case["target"])
    curve: dict[str, list[float]] = {"at_seconds": [], "at_examples": [], "loss": []}
    updates, seconds, compiled = 0, 0.0, COMPILATIONS.count
    started = time.perf_counter()
    while True:
        if loop.examples() * LOOKS // examples >= len(curve["loss"]):
            jax.block_until_ready(state)
            seconds += time.perf_counter() - started
            loss = ready.loss(state[0])
            while loop.examples() * LOOKS // examples >= len(curve["loss"]):  # a large batch skips
                for column, x in zip(curve.values(), (seconds, loop.examples(), loss), strict=True):
                    column.append(x)
            if loss <= target or not math.isfinite(loss) or loop.examples() >= examples:
                break
            started = time.perf_counter()
        state, output = loop.step(state, loop.draw())
        loop.tell(output)
        updates += 1
    reached = loss <= target
    numbers = {
        "reached": float(reached),
        "seconds_to_target": seconds if reached else math.nan,
        "examples_to_target": loop.examples() if reached else math.nan,
        "updates": updates,
        "us_an_example": 1e6 * seconds / loop.examples(),
        "last_loss": loss,
        "programs": ready.programs,
        "programs_later": COMPILATIONS.count - compiled,
        "compile_seconds": ready.compile_seconds,
        "host_share": _host_share(ready, seed),
    }
    return Outcome(numbers, curve)


def _host_share(ready: Ready, seed: int) -> float:
    """Data and decisions over all of a step, at the first batch size, one after the other."""
    state, loop = ready.start(seed)
    host, device = 0.0, 0.0
    for _ in range(PROFILED):
        times = [time.perf_counter()]
        batch = loop.draw()
        times.append(time.perf_counter())
        state, output = jax.block_until_ready(loop.step(state, batch))
        times.append(time.perf_counter())
        loop.tell(output)
        times.append(time.perf_counter())
        host += times[1] - times[0] + times[3] - times[2]
        device += times[2] - times[1]
    return host / (host + device)


@functools.cache
def _ready(items: tuple[tuple[str, Any], ...]) -> Ready:
    """Compiles a contender; kept for the other seeds."""
    case = dict(items)
    problem = PROBLEMS[case["problem"]](**({"width": case["width"]} if case["width"] else {}))
    metrics = jax.jit(problem.metrics)
    make = _fixed if case["method"].startswith("fixed") else _adaptive
    start = make(problem, case)
    state, loop = start(0)
    started, before = time.perf_counter(), COMPILATIONS.count
    for _ in range(3):
        state, output = loop.step(state, loop.draw())
        loop.tell(output)
    jax.block_until_ready(state)
    seconds, programs = time.perf_counter() - started, COMPILATIONS.count - before

    def loss(params: Any) -> float:
        found = metrics(params)
        return float(found["bits_per_byte" if "bits_per_byte" in found else "test_loss"])

    loss(state[0])
    return Ready(start, loss, seconds, programs)


def _fixed(problem: Problem, case: Case) -> Callable[[int], tuple[Any, Loop]]:
    """A loader, and a plain step whose loss is read one step late."""
    small, large, examples = (int(case[name]) for name in ("small", "large", "examples"))
    size = small if case["method"] == "fixed small" else large
    schedule = optax.cosine_decay_schedule(float(case["learning_rate"]), -(-examples // size))
    tx = optax.chain(optax.trace(0.9), optax.scale_by_learning_rate(schedule))

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: Any, batch: Any) -> Any:
        params, opt_state = state
        loss, grads = jax.value_and_grad(problem.loss_fn)(params, batch)
        updates, opt_state = tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), loss

    init = jax.jit(problem.init)

    def start(seed: int) -> tuple[Any, Loop]:
        loader = adaoptax.BatchLoader(problem.data, size, seed=seed)
        params = init(jax.random.key(seed))
        unread: list[Any] = []

        def tell(loss: Any) -> None:
            unread.append(loss)
            if len(unread) > 1:
                float(unread.pop(0))

        draw = lambda: next(loader).data
        return (params, tx.init(params)), Loop(draw, step, tell, lambda: loader.examples_seen)

    return start


def _adaptive(problem: Problem, case: Case) -> Callable[[int], tuple[Any, Loop]]:
    """As in `examples/train.py`."""
    small, large, examples = (int(case[name]) for name in ("small", "large", "examples"))
    schedule = optax.cosine_decay_schedule(float(case["learning_rate"]), examples)
    tx = optax.chain(
        adaoptax.norm_test(float(case["eta"]), decay=0.9),
        optax.trace(0.9),
        adaoptax.scale_by_adascale(small, decay=0.99),
        adaoptax.scale_by_schedule_over_examples(schedule),
    )
    micro = small // 2 if case["method"] == "adaptive, groups" else small
    exact = None if case["method"] == "adaptive, groups" else adaoptax.measure.exact()
    rare = case["method"] == "adaptive, every 8th"

    def update(state: Any, loss: Any, grads: Any, stats: adaoptax.GradientStats) -> Any:
        params, opt_state = state
        updates, opt_state = tx.update(grads, opt_state, params, stats=stats)
        params = optax.apply_updates(params, updates)
        return (params, opt_state), adaoptax.observables(loss, stats, opt_state)

    def between(state: Any, loss: Any, grads: Any, stats: adaoptax.GradientStats) -> Any:
        nothing = stats._replace(num_groups=0 * stats.num_groups, variance=stats.variance * np.nan)
        return update(state, loss, grads, nothing)

    make = functools.partial(
        adaoptax.accumulate, problem.loss_fn, micro_batch_size=micro, max_batch_size=large
    )
    measured = make(update, method=exact)
    plain = make(between) if rare else measured
    init = jax.jit(problem.init)

    def start(seed: int) -> tuple[Any, Loop]:
        loader = adaoptax.BatchLoader(
            problem.data, small, micro_batch_size=micro, max_batch_size=large,
            pad_to=measured.capacities, seed=seed,
        )  # fmt: skip
        policy = adaoptax.GrowthPolicy(small, large, multiple_of=micro, patience=2)
        loop = adaoptax.AdaptiveLoop(loader, policy)
        params = init(jax.random.key(seed))

        def step(state: Any, batch: Any) -> Any:
            due = not rare or (loop.step - 1) % 8 == 0
            return (measured if due else plain)(state, batch)

        draw = lambda: next(loop)
        return (params, tx.init(params)), Loop(draw, step, loop.observe, lambda: loop.examples_seen)

    return start


EXPERIMENT = Experiment(
    name="cost",
    title="What the whole loop costs",
    claim=(
        "A batch that grows as the norm test asks reaches the loss of the fixed small batch in less"
        " time, with statistics, decisions and all."
    ),
    cases=cases,
    run=run,
    report=report,
    interleaved=True,
)

if __name__ == "__main__":
    main(EXPERIMENT)
