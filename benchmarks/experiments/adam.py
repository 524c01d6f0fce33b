"""Which rule keeps Adam at its best learning rate when the batch changes."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import adaoptax
from adaoptax import measure, rules
from benchmarks.experiments import adam_report
from benchmarks.experiments.experiment import Case, Experiment, Outcome, Size, main
from benchmarks.experiments.fixed_batch import one_of, take_steps
from benchmarks.experiments.problems import PROBLEMS

BASE, B1, B2 = 32, 0.9, 0.99
DECAY = 0.99  # of the averages behind gain and noise scale, per base batch

# Learning rate at the base batch, tuned on the grid of factors below for these examples.
TUNED = {
    ("byte_lm", "default"): (12_288, 2**-6),
    ("digits_cnn", "default"): (32_768, 2**-6),
    ("byte_lm", "full"): (1_048_576, 2**-7),
    ("digits_cnn", "full"): (262_144, 2**-7),
    ("digits_cnn", "tiny"): (256, 2**-7),
}
SIZES = {"tiny": (32, 128), "default": (8, 32, 128, 512), "full": (8, 32, 128, 512, 2048)}
RETUNED = "re-tuned"


def cases(size: Size) -> list[Case]:
    """Every factor of the grid at every batch size, then every rule."""
    found: list[Case] = []
    for (problem, of), (examples, rate) in TUNED.items():
        for batch_size in SIZES[size] if of == size else ():
            case: Case = {
                "problem": problem,
                "batch_size": batch_size,
                "base": BASE,
                "examples": examples,
                "rate": rate,
            }
            factors = grid(batch_size / BASE, size)
            found += [{**case, "rule": RETUNED, "factor": factor} for factor in factors]
            if batch_size != BASE:
                found += [{**case, "rule": rule, "factor": 1.0} for rule in _ORDER[1:]]
    return found


def grid(kappa: float, size: Size) -> list[float]:
    """Factors on the learning rate at κ base batches: from half of what any power rule says on."""
    low, high = min(1, kappa) / 2, max(1, kappa)
    if size == "tiny":
        return sorted({1.0, kappa**0.5, kappa})
    return [2.0**i for i in range(round(math.log2(low)), max(round(math.log2(high)), 1) + 1)]


def measured_surge(batch_size: Any, base: Any, stats: adaoptax.GradientStats) -> jax.Array:
    """The surge rule at the noise scale of the averaged statistics."""
    return rules.surge(batch_size, base, adaoptax.noise_scale(stats))


def _adam() -> optax.GradientTransformation:
    return optax.scale_by_adam(B1, B2)


def _gain() -> optax.GradientTransformation:
    return adaoptax.scale_by_adascale(BASE, exponent=0.5, decay=DECAY)


def _moments(rule: str) -> optax.GradientTransformation:
    return adaoptax.scale_by_adam_with_batch(BASE, B1, B2, rule=rule)


def _sqrt() -> optax.GradientTransformation:
    return adaoptax.scale_by_batch(rules.sqrt, BASE)


# What stands between the gradient and the learning rate. No change, and the powers of B/B₀, are
# factors of the grid and need no runs of their own.
OPTIMIZERS: dict[str, Callable[[], tuple[optax.GradientTransformation, ...]]] = {
    RETUNED: lambda: (_adam(),),
    "gain^0.5": lambda: (_adam(), _gain()),
    "gain^0.5, preconditioned": lambda: (_adam(), _gain()),
    "surge": lambda: (_adam(), adaoptax.scale_by_batch(measured_surge, BASE, decay=DECAY)),
    "Malladi": lambda: (_moments("malladi"), _sqrt()),
    "Marek": lambda: (_moments("marek"),),
    "half-lives": lambda: (_moments("half-life"),),
    "half-lives, sqrt": lambda: (_moments("half-life"), _sqrt()),
}
_ORDER = list(OPTIMIZERS)


@functools.cache
def _problem(name: str) -> tuple[Any, Any]:
    problem = PROBLEMS[name]()
    return problem, jax.device_put(problem.data)


@functools.cache
def _program(name: str, batch_size: int, examples: int) -> Callable[..., Any]:
    """One whole run for a seed, a rule and a learning rate, compiled once for all of these."""
    problem, data = _problem(name)
    shape = optax.warmup_cosine_decay_schedule(0.0, 1.0, examples // 10, examples)
    preconditioned = _ORDER.index("gain^0.5, preconditioned")

    @jax.jit
    def program(key: jax.Array, rule: jax.Array, rate: jax.Array) -> dict[str, jax.Array]:
        tx = optax.chain(
            adaoptax.track_noise_scale(examples),
            one_of(rule, [optax.chain(*make()) for make in OPTIMIZERS.values()]),
            adaoptax.scale_by_schedule_over_examples(lambda seen: rate * shape(seen)),
        )

        def metric(opt_state: Any) -> Any:
            own = measure.adam_preconditioner(opt_state[1][preconditioned])
            return jax.tree.map(lambda p: jnp.where(rule == preconditioned, p, 1), own)

        params = problem.init(key)
        (params, opt_state), _ = take_steps(
            problem,
            data,
            tx,
            batch_size,
            jnp.arange(examples // batch_size),
            (params, tx.init(params)),
            jax.random.fold_in(key, 1),
            metric=metric,
        )
        found = problem.metrics(params)
        loss = found["bits_per_byte"] if "bits_per_byte" in found else found["test_loss"]
        return {
            "loss": loss,
            "diverged": ~(loss < problem.guess),
            "noise_scale": adaoptax.noise_scale_estimate(opt_state).noise_scale,
            "factor_at_end": _factors_at_end(opt_state[1], batch_size / BASE)[rule],
        }

    return program


def _factors_at_end(opt_states: Any, kappa: float) -> jax.Array:
    """What each rule multiplied the last learning rate by."""

    def of(rule: str, opt_state: Any) -> Any:
        if rule.startswith("gain"):
            return optax.tree.get(opt_state, "gain") ** 0.5
        if rule == "surge":
            return optax.tree.get(opt_state, "batch_factor")
        return kappa**0.5 if rule in ("Malladi", "half-lives, sqrt") else 1.0

    return jnp.stack([jnp.float32(of(*x)) for x in zip(_ORDER, opt_states, strict=True)])


def run(case: Case, seeds: Sequence[int]) -> list[Outcome]:
    """Runs one case."""
    program = _program(str(case["problem"]), int(case["batch_size"]), int(case["examples"]))
    rule = np.int32(_ORDER.index(str(case["rule"])))
    rate = np.float32(float(case["rate"]) * float(case["factor"]))
    found: list[Mapping[str, Any]] = [program(jax.random.key(seed), rule, rate) for seed in seeds]
    return [Outcome({k: float(v) for k, v in metrics.items()}) for metrics in found]


EXPERIMENT = Experiment(
    name="adam",
    title="Adam at another batch size",
    claim="A rule for the batch keeps Adam as good as a learning rate that is tuned again.",
    cases=cases,
    run=run,
    report=adam_report.report,
)

if __name__ == "__main__":
    main(EXPERIMENT)
