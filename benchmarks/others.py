"""What the pages on other projects say was run: pieces of Optax, a gain while the batch changes.

    python -m benchmarks.others

prints whether each finding of docs/upstream.md still holds for the Optax at hand, and the gains of
docs/others.md: of adaoptax, and of fairscale where `fairscale` is installed.
"""

import importlib.metadata
import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax.experimental import aggregating

import adaoptax

DIMENSION, NOISE, SIGNAL = 50, 4.0, 1.0  # σ² and μ² of one base batch
STEPS_BEFORE, BEFORE, AFTER = 600, 4, 16  # gradients a step
LOOK_AT = (0, 10, 50, 200)  # steps after the change


def _needs_stats() -> optax.GradientTransformationExtraArgs:
    def update_fn(updates: Any, state: Any, params: Any = None, *, stats: Any, **extra: Any) -> Any:
        del params, stats, extra
        return updates, state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update_fn)


def _refuses(call: Callable[[], Any]) -> bool:
    try:
        call()
    except TypeError:
        return True
    return False


def drops_extra_args() -> bool:
    """`MultiSteps.gradient_transformation()` in a chain does not pass them on."""
    steps = optax.MultiSteps(_needs_stats(), 2).gradient_transformation()
    tx, grads = optax.chain(steps, optax.identity()), jnp.ones(2)
    return _refuses(lambda: tx.update(grads, tx.init(grads), grads, stats=jnp.ones([])))


def loses_gradients() -> bool:
    """Three of four gradients are there, then two are enough: `MultiSteps` emits no update."""
    grads = jnp.ones(2)
    four, two = (optax.MultiSteps(optax.sgd(1.0), k) for k in (4, 2))
    state = four.init(grads)
    for _ in range(3):
        _, state = four.update(grads, state, grads)
    updates, state = two.update(grads, state, grads)
    return not jnp.any(updates) and int(state.mini_step) == 0


def keeps_nan() -> bool:
    """One NaN gives NaN updates at once, on a step that emits none, and for ever."""
    steps, grads = optax.MultiSteps(optax.sgd(1.0), 2), jnp.ones(2)
    state, seen = steps.init(grads), []
    for factor in (jnp.nan, 1.0, 1.0, 1.0):
        updates, state = steps.update(factor * grads, state, grads)
        seen.append(bool(jnp.all(jnp.isnan(updates))))
    return all(seen)


def _accumulated(fun: Callable[..., Any], kind: str, count: int) -> np.ndarray:
    kinds = optax.microbatching.AccumulationType
    over = optax.microbatching.microbatch(
        fun, 0, 4, kinds[kind], num_real_microbatches=jnp.int32(count)
    )
    return np.asarray(jax.jit(over)(jnp.arange(16.0)))


def divides_by_padding() -> bool:
    """MEAN over 2 real micro-batches of 4 divides by 4, where RUNNING_MEAN is right."""
    mean, running = (_accumulated(jnp.mean, kind, 2) for kind in ("MEAN", "RUNNING_MEAN"))
    return bool(np.isclose(mean, running / 2))


def strides_rows() -> bool:
    """The first micro-batch of four of 16 rows holds rows 0, 4, 8 and 12."""
    rows = _accumulated(lambda x: x, "CONCAT", 1)
    return set(rows[rows > 0]) == {4, 8, 12}


def refuse_extra_args() -> bool:
    """`lookahead`, `contrib.sam` and the parts of `aggregating` do."""
    grads = jnp.ones(2)
    ahead, average = (
        optax.lookahead(optax.sgd(0.1), 2, 0.5),
        aggregating.average_per_element_updates(),
    )
    sam = optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.1))
    pair = optax.LookaheadParams.init_synced(grads)
    calls: tuple[Callable[[], Any], ...] = (
        lambda: ahead.update(grads, ahead.init(pair), pair, stats=0),
        lambda: sam.update(grads, sam.init(grads), grads, stats=0),
        lambda: average.update(jnp.ones((3, 2)), average.init(grads), grads, stats=0),
    )
    return all(map(_refuses, calls))


def rounds_hyperparameters() -> bool:
    """A decay of 0.999 becomes 1 beside bfloat16 parameters."""
    state = optax.inject_hyperparams(optax.adam)(1e-3, b2=0.999).init(jnp.ones(2, jnp.bfloat16))
    return float(state.hyperparams["b2"]) == 1.0


def sums_in_bfloat16() -> bool:
    """The squared norm of bfloat16 is bfloat16."""
    return bool(optax.tree.norm(jnp.ones(2, jnp.bfloat16), squared=True).dtype == jnp.bfloat16)


FINDINGS = (
    drops_extra_args,
    loses_gradients,
    keeps_nan,
    divides_by_padding,
    strides_rows,
    refuse_extra_args,
    rounds_hyperparameters,
    sums_in_bfloat16,
)


def gradients(rng: np.random.Generator, count: int) -> np.ndarray:
    """Gradients of `count` base batches."""
    mean = np.sqrt(SIGNAL / DIMENSION)
    return mean + rng.standard_normal((count, DIMENSION)) * np.sqrt(NOISE / DIMENSION)


def truth(scale: int) -> float:
    """The gain at `scale`."""
    return (NOISE + SIGNAL) / (NOISE / scale + SIGNAL)


def adaoptax_gains(seed: int = 0) -> list[float]:
    """Gain before the change, and at `LOOK_AT` after it."""
    tx = adaoptax.scale_by_adascale(base_batch_size=1)

    @jax.jit
    def step(state: Any, rows: jax.Array) -> Any:
        grads, stats = adaoptax.stats_from_groups(rows, group_size=1)
        return tx.update(grads, state, stats=stats)[1]

    rng, state, gains = np.random.default_rng(seed), tx.init(jnp.zeros(DIMENSION)), []
    for at in range(-STEPS_BEFORE, max(LOOK_AT) + 1):
        rows = gradients(rng, BEFORE if at < 0 else AFTER)
        state = step(state, jnp.asarray(rows, jnp.float32))
        if at in (-1, *LOOK_AT):
            gains.append(float(state.gain))
    return gains


def fairscale_gains(update_estimate: bool, seed: int = 0) -> list[float]:
    """The same of fairscale's AdaScale; its gain right after the change is read before a step."""
    import torch
    from fairscale.optim import AdaScale

    rng = np.random.default_rng(seed)
    weights = torch.nn.Parameter(torch.zeros(DIMENSION, dtype=torch.float64))
    inner = torch.optim.SGD([weights], lr=0.0)
    tx = AdaScale(inner, world_size=1, num_gradients_to_accumulate=BEFORE, is_scaled_loss=False)
    gains = []
    for at in range(-STEPS_BEFORE, max(LOOK_AT) + 1):
        if at == 0:
            gains.append(tx.gain())
            tx.set_num_gradients_to_accumulate(AFTER)
            tx.set_scale(AFTER, update_estimate=update_estimate)
        if at in LOOK_AT:
            gains.append(tx.gain())
        tx.zero_grad()
        for row in gradients(rng, BEFORE if at < 0 else AFTER):
            (weights @ torch.from_numpy(row)).backward()
        tx.scale_grad_by_num_grads_to_accum()
        tx.step()
    return gains


def main() -> None:
    """Prints all of it."""
    print(f"optax {optax.__version__}")
    for finding in FINDINGS:
        print(f"  {'still so' if finding() else 'repaired':<10} {finding.__doc__}")
    places = ", ".join(map(str, LOOK_AT))
    print(f"gain before the change (truth {truth(BEFORE):.2f}), and {places} steps after it"
          f" (truth {truth(AFTER):.2f})")  # fmt: skip
    rows: dict[str, Callable[[], list[float]]] = {"adaoptax": adaoptax_gains}
    if importlib.util.find_spec("fairscale") is None:
        print("  fairscale is not installed")
    else:
        name = f"fairscale {importlib.metadata.version('fairscale')}"
        rows[name] = lambda: fairscale_gains(True)
        rows[f"{name}, update_estimate=False"] = lambda: fairscale_gains(False)
    for name, gains in rows.items():
        print(f"  {name}: {' '.join(f'{gain:.2f}' for gain in gains())}")


if __name__ == "__main__":
    main()
