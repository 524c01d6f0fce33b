"""Whole runs of SGD with momentum at S times a base batch, each one compiled loop.

The learning rate decays exponentially to a hundredth, as in AdaScale's CIFAR-10 runs. All that
varies between runs of one S is traced, so that a problem takes two compilations an S.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import adaoptax
from adaoptax import measure
from benchmarks.experiments.experiment import Case, Outcome
from benchmarks.experiments.problems import PROBLEMS, Problem

LAST = 0.01  # of the learning rate
MOMENTUM = 0.9
WARM_UP = 0.055  # of a run, as the paper's
# Averages that hold 100 base batches; the paper's hold 1000, of runs ten times as long.
DECAY = 0.99
POINTS, COLUMNS = 40, ("tau", "scale", "iterations", "loss", "gain", "variance", "signal")
LEARNT = 0.98  # a run diverged if its last loss is above this share of a uniform guess's


class Setting(NamedTuple):
    """What is the same at every S.

    Attributes:
        problem: Its name.
        width: Of its model.
        base_batch: Examples of a batch at S = 1.
        steps: Steps at S = 1.
        learning_rate: First learning rate at S = 1.
    """

    problem: str
    width: int
    base_batch: int
    steps: int
    learning_rate: float

    @classmethod
    def of_case(cls, case: Case) -> "Setting":
        """The setting among the fields of a case."""
        return cls(**{name: case[name] for name in cls._fields})  # type: ignore[arg-type]


# S, and the share of the run at which it ends.
Phases = tuple[tuple[int, float], ...]


class Carry(NamedTuple):
    """What a run hands on from step to step, also where S changes."""

    params: Any
    opt_state: Any
    iterations: jax.Array
    examples: jax.Array
    curve: jax.Array  # [points, 1 + columns]: steps, and sums over them


class Loops(NamedTuple):
    """The compiled loops of one problem at one S.

    Attributes:
        adascale: ``adascale(carry, key, rate, steps, until)`` → carry: AdaScale for a schedule of
            `steps`, until τ is `until`.
        fixed: ``fixed(carry, key, rate, factor, examples, until)`` → carry: SGD for a schedule of
            `examples`, times a factor that rises from one to `factor` within the warm-up, until
            `until` examples.
    """

    adascale: Callable[..., Carry]
    fixed: Callable[..., Carry]


def problem_of(name: str, width: int) -> Problem:
    """A problem by its name."""
    return PROBLEMS[name](width=width)  # type: ignore[call-arg]


def start(problem: Problem, key: jax.Array, tx: optax.GradientTransformation) -> Carry:
    """A run that has not begun."""
    params = problem.init(key)
    zero = jnp.zeros([], jnp.int32)
    return Carry(params, tx.init(params), zero, zero, jnp.zeros((POINTS, 1 + len(COLUMNS))))


def adascale(base_batch: int, rate: Any, steps: Any) -> optax.GradientTransformationExtraArgs:
    """AdaScale, with its schedule on τ."""
    schedule = lambda tau: rate * LAST ** (tau / steps)
    return adaoptax.adascale(schedule, base_batch, momentum=MOMENTUM, decay=DECAY)


def sgd() -> optax.GradientTransformation:
    """The same without gain and learning rate."""
    return optax.trace(MOMENTUM)


def tau(carry: Carry) -> jax.Array:
    """Steps of the base batch that a run of AdaScale is worth so far."""
    of_state = functools.partial(optax.tree.get, carry.opt_state)
    return of_state("scale_invariant_count") + of_state("scale_invariant_fraction")


@functools.cache
def loops_of(name: str, width: int, base_batch: int, scale: int) -> Loops:
    """The loops; each is compiled when it is first called."""
    problem = problem_of(name, width)
    data = jax.tree.map(jnp.asarray, problem.data)
    rows = len(jax.tree.leaves(data)[0])
    batch = scale * base_batch
    # As the paper does: noise is what differs between base batches. One of them has to be cut.
    method = measure.groups(scale) if scale > 1 else measure.per_example()
    with_stats = adaoptax.value_grad_and_stats(problem.loss_fn, method)
    plain = jax.value_and_grad(problem.loss_fn)

    def draw(key: jax.Array, carry: Carry) -> Any:
        key = jax.random.fold_in(key, carry.iterations)
        chosen = jax.random.randint(key, (batch,), 0, rows)
        return jax.tree.map(lambda x: x[chosen], data)

    def after(carry: Carry, updates: Any, opt_state: Any, progress: Any, **values: Any) -> Carry:
        """The next carry; a point of the curve is the mean of a fortieth of the run."""
        values |= {"scale": scale, "iterations": carry.iterations}
        point = [1.0, *(values.get(name, jnp.nan) for name in COLUMNS)]
        at = jnp.clip(POINTS * progress, 0, POINTS - 1).astype(jnp.int32)
        return Carry(
            optax.apply_updates(carry.params, updates),
            opt_state,
            carry.iterations + 1,
            carry.examples + batch,
            carry.curve.at[at].add(jnp.stack([*map(jnp.float32, point)])),
        )

    @jax.jit
    def with_adascale(carry: Carry, key: Any, rate: Any, steps: Any, until: Any) -> Carry:
        tx = adascale(base_batch, rate, steps)

        def step(carry: Carry) -> Carry:
            loss, grads, stats = with_stats(carry.params, draw(key, carry))
            updates, state = tx.update(grads, carry.opt_state, carry.params, stats=stats)
            averages = optax.tree.get(state, "gain_averages").total
            now = tau(carry)
            values = {
                "tau": now,
                "loss": loss,
                "gain": optax.tree.get(state, "gain"),
                "variance": averages.base_variance,
                "signal": averages.signal,
            }
            return after(carry, updates, state, now / steps, **values)

        # No gain is below one, so that τ falls behind only where NaNs are skipped: it diverged.
        going = lambda carry: (tau(carry) < until) & (carry.iterations < tau(carry) + 20)
        return jax.lax.while_loop(going, step, carry)

    @jax.jit
    def with_fixed(
        carry: Carry, key: Any, rate: Any, factor: Any, examples: Any, until: Any
    ) -> Carry:
        def step(carry: Carry) -> Carry:
            loss, grads = plain(carry.params, draw(key, carry))
            updates, state = sgd().update(grads, carry.opt_state)
            progress = carry.examples / examples
            risen = jnp.minimum(progress / WARM_UP, 1)
            rate_now = rate * LAST**progress * (1 + (factor - 1) * risen)
            updates = jax.tree.map(lambda u: -rate_now * u, updates)
            return after(carry, updates, state, progress, loss=loss)

        return jax.lax.while_loop(lambda carry: carry.examples < until, step, carry)

    return Loops(with_adascale, with_fixed)


@functools.cache  # other runs take its length
def run_adascale(setting: Setting, phases: Phases, seed: int) -> Outcome:
    """AdaScale through its phases, whose ends are shares of τ."""
    problem = problem_of(setting.problem, setting.width)
    of_params, of_rows = jax.random.split(jax.random.key(seed))
    carry = start(problem, of_params, adascale(setting.base_batch, 0.0, 1.0))
    steps = float(setting.steps)
    for scale, end in phases:
        loop = loops_of(setting.problem, setting.width, setting.base_batch, scale).adascale
        carry = loop(carry, of_rows, setting.learning_rate, steps, end * steps)
    return _outcome(setting, carry)


def run_fixed(
    setting: Setting, phases: Phases, seed: int, rule: Callable[[int], float], examples: int
) -> Outcome:
    """SGD whose learning rate follows S by a rule, through phases whose ends are in examples."""
    problem = problem_of(setting.problem, setting.width)
    of_params, of_rows = jax.random.split(jax.random.key(seed))
    carry = start(problem, of_params, sgd())
    for scale, end in phases:
        loop = loops_of(setting.problem, setting.width, setting.base_batch, scale).fixed
        until = round(end * examples)
        carry = loop(carry, of_rows, setting.learning_rate, rule(scale), float(examples), until)
    return _outcome(setting, carry)


@functools.cache
def _final_metrics(problem: str, width: int) -> Callable[[Any], dict[str, jax.Array]]:
    made = problem_of(problem, width)
    rows = len(jax.tree.leaves(made.data)[0])
    some = jax.tree.map(lambda x: jnp.asarray(x[:: max(rows // 2048, 1)][:2048]), made.data)
    return jax.jit(lambda w: {**made.metrics(w), "train_loss": made.loss_fn(w, some)})


def _outcome(setting: Setting, carry: Carry) -> Outcome:
    final = _final_metrics(setting.problem, setting.width)(carry.params)
    metrics = {name: float(x) for name, x in final.items()}
    guess = problem_of(setting.problem, setting.width).guess
    metrics |= {
        "iterations": int(carry.iterations),
        "examples": int(carry.examples),
        "diverged": int(not metrics["train_loss"] < LEARNT * guess),
    }
    points = np.asarray(carry.curve)
    points = points[points[:, 0] > 0]
    curve = dict(zip(COLUMNS, points[:, 1:].T / points[:, 0], strict=True))
    noise = curve.pop("variance") / np.maximum(curve.pop("signal"), 1e-30)
    return Outcome(metrics, {k: x.tolist() for k, x in (curve | {"noise": noise}).items()})
