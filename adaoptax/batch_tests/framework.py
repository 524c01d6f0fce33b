"""What all batch tests share: signal, averaging, interval, flags and counts.

A test is a formula: what it averages (`Terms` of one step), and the batch size that averaged
terms require. Everything that happens around the formula happens here, once.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from adaoptax import _tree, _validate
from adaoptax._tree import ArrayTree
from adaoptax.averages import Averages, debiased, init_averages, update_averages
from adaoptax.stats import GradientStats, check_stats, is_measured, ratio, signal

SIGNALS = ("debiased", "plug-in")


class BatchTestState(NamedTuple):
    """State of a batch test. A step that was not `measured` leaves all of it as it was.

    Attributes:
        required_batch_size: Real number of examples that the test asks for, not rounded and not
            capped; inf if the gradient cannot be told from noise. Until something was measured,
            the size of the batch at hand.
        test_passed: Whether the batch was at least as large as required, at the last test.
        noise_dominated: Whether the signal was not positive at the last test.
        undefined: Whether the last test had nothing to decide by (one group, NaN or inf, no
            gradient and no noise at all): the requirement was kept.
        tested: Whether the test ran at the last update with statistics, see `steps_seen`.
        steps_seen: Updates with statistics so far; the test runs at every `interval`-th of them.
        tests_run: Tests that could decide.
        tests_failed: How many of them asked for more examples than the batch had.
        tests_noise_dominated: How many of them found no signal.
        tests_undefined: Tests that had nothing to decide by.
        test_averages: Averages of the formula's terms over steps, or None.
    """

    required_batch_size: jax.Array
    test_passed: jax.Array
    noise_dominated: jax.Array
    undefined: jax.Array
    tested: jax.Array
    steps_seen: jax.Array
    tests_run: jax.Array
    tests_failed: jax.Array
    tests_noise_dominated: jax.Array
    tests_undefined: jax.Array
    test_averages: Averages | None


class Terms(NamedTuple):
    """What a test averages over steps before it divides.

    Attributes:
        noise: Pytree of numerators.
        signal: Pytree of denominators: squared gradient norms.
    """

    noise: ArrayTree
    signal: ArrayTree


class AveragedGradient(NamedTuple):
    """A mean of the gradients of several batches of one size, for the signal side of a test.

    Attributes:
        in_use: Whether the test is to put it for the gradient at hand.
        sq_norm: Its squared norm.
        num_gradients: How many batches it averages.
    """

    in_use: jax.Array
    sq_norm: jax.Array
    num_gradients: jax.Array


class Formula(NamedTuple):
    """One batch test.

    Attributes:
        name: As the user called it, for error messages.
        terms: ``terms(grads, stats)`` → `Terms` of this step.
        required: ``required(terms)`` → the required batch size, inf without signal, NaN if there
            is neither noise nor signal.
        signal_of: ``signal_of(terms)`` → the scalar whose sign tells whether there is any signal.
        like: ``like(params, dtype)`` → `Terms` of the right shapes.
        averaged: ``averaged(average, stats)`` → the signal of an `AveragedGradient`; None for a
            test whose signal is not that of a gradient.
    """

    name: str
    terms: Callable[[ArrayTree, GradientStats], Terms]
    required: Callable[[Terms], jax.Array]
    signal_of: Callable[[Terms], jax.Array]
    like: Callable[[ArrayTree, Any], Terms]
    averaged: Callable[[AveragedGradient, GradientStats], jax.Array] | None = None


def batch_test(
    formula: Formula, *, decay: Any, dataset_size: Any, interval: Any
) -> optax.GradientTransformationExtraArgs:
    """The transformation that runs `formula`; updates pass through unchanged."""
    if decay is not None:
        _validate.fraction("decay", decay, "it is the share of the old average kept at each test.")
    if dataset_size is not None:
        _validate.positive("dataset_size", dataset_size, "it counts the examples of the data set.")
    _validate.count("interval", interval, 1, "the test runs at every interval-th update.")

    def init_fn(params: ArrayTree) -> BatchTestState:
        dtype = _tree.scalar_dtype(params)
        zero = lambda: jnp.zeros([], jnp.int32)
        false = lambda: jnp.zeros([], jnp.bool_)
        return BatchTestState(
            required_batch_size=jnp.zeros([], dtype),
            test_passed=false(),
            noise_dominated=false(),
            undefined=false(),
            tested=false(),
            steps_seen=zero(),
            tests_run=zero(),
            tests_failed=zero(),
            tests_noise_dominated=zero(),
            tests_undefined=zero(),
            test_averages=None
            if decay is None
            else init_averages(formula.like(params, dtype), dtype),
        )

    def update_fn(
        updates: ArrayTree,
        state: BatchTestState,
        params: ArrayTree | None = None,
        *,
        stats: GradientStats,
        averaged: AveragedGradient | None = None,
        **extra_args: Any,
    ) -> tuple[ArrayTree, BatchTestState]:
        del params, extra_args
        check_stats(stats, formula.name)
        run = lambda: run_test(formula, updates, stats, state, decay, dataset_size, averaged)
        if _validate.is_number(interval) and interval == 1:
            state_after = run()
        else:
            wait = lambda: state._replace(tested=jnp.zeros_like(state.tested))
            state_after = jax.lax.cond(state.steps_seen % interval == 0, run, wait)
        state_after = state_after._replace(steps_seen=optax.safe_increment(state.steps_seen))
        return updates, _tree.select(is_measured(stats), state_after, state)

    update_fn.__qualname__ = f"{formula.name}.update"  # what a missing `stats` is reported under
    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def run_test(
    formula: Formula,
    grads: ArrayTree,
    stats: GradientStats,
    state: BatchTestState,
    decay: Any,
    dataset_size: Any,
    averaged: AveragedGradient | None = None,
) -> BatchTestState:
    """The state after one test."""
    terms = formula.terms(grads, stats)
    if averaged is not None:
        if formula.averaged is None:
            raise TypeError(
                f"Expected a test of the norm of a gradient, got test={formula.name}: a mean of"
                " gradients cannot stand for its signal; average norm_test, inner_product_test,"
                " augmented_inner_product_test or optimal_split."
            )
        instead = formula.averaged(averaged, stats)
        terms = terms._replace(signal=jnp.where(averaged.in_use, instead, terms.signal))
    evident = (stats.num_groups > 1) & jnp.isfinite(stats.sq_norm) & all_finite(terms)
    averages = state.test_averages
    if averages is not None:
        averages = _tree.select(evident, update_averages(averages, terms, 1 - decay), averages)
        terms = debiased(averages)

    required = formula.required(terms)
    if dataset_size is not None:
        required = finite_population(required, dataset_size)
    defined = evident & ~jnp.isnan(required)
    noise_dominated = defined & (formula.signal_of(terms) <= 0)
    passed = defined & (required <= stats.num_examples)

    dtype = state.required_batch_size.dtype
    kept = jnp.where(state.tests_run > 0, state.required_batch_size, stats.num_examples)
    count = lambda counter, event: counter + event.astype(counter.dtype)
    return BatchTestState(
        required_batch_size=jnp.where(defined, required, kept).astype(dtype),
        test_passed=passed,
        noise_dominated=noise_dominated,
        undefined=~defined,
        tested=jnp.ones_like(state.tested),
        steps_seen=state.steps_seen,
        tests_run=count(state.tests_run, defined),
        tests_failed=count(state.tests_failed, defined & ~passed),
        tests_noise_dominated=count(state.tests_noise_dominated, noise_dominated),
        tests_undefined=count(state.tests_undefined, ~defined),
        test_averages=averages,
    )


def all_finite(tree: ArrayTree) -> jax.Array:
    """Whether no leaf holds NaN or inf."""
    finite = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]
    return jnp.all(jnp.stack(finite)) if finite else jnp.ones([], jnp.bool_)


def chosen_signal(stats: GradientStats, kind: str) -> jax.Array:
    """‖g‖², debiased or as measured."""
    return signal(stats) if kind == "debiased" else stats.sq_norm


def averaged_signal(average: AveragedGradient, stats: GradientStats, kind: str) -> jax.Array:
    """The same of the mean of r batches, whose noise is S²/(rB)."""
    examples = average.num_gradients * stats.num_examples
    noise = stats.variance / jnp.where(examples > 0, examples, 1)
    return average.sq_norm - noise if kind == "debiased" else average.sq_norm


def finite_population(required: jax.Array, dataset_size: Any) -> jax.Array:
    """b·N/(b + N): without replacement the mean of all N examples has no noise left."""
    shrunk = dataset_size * (required / (required + dataset_size))
    return jnp.where(jnp.isinf(required), dataset_size, shrunk)


def scalar_formula(
    name: str,
    noises: tuple[Callable[[GradientStats], jax.Array], ...],
    required: Callable[[tuple[jax.Array, ...], jax.Array], jax.Array],
    signal_kind: str,
) -> Formula:
    """A test that averages scalars: each of ``noises(stats)``, and the signal."""
    _validate.one_of("signal", signal_kind, SIGNALS)

    def like(params: ArrayTree, dtype: Any) -> Terms:
        del params
        return Terms(tuple(jnp.zeros([], dtype) for _ in noises), jnp.zeros([], dtype))

    def terms(grads: ArrayTree, stats: GradientStats) -> Terms:
        del grads
        return Terms(tuple(noise(stats) for noise in noises), chosen_signal(stats, signal_kind))

    return Formula(
        name=name,
        terms=terms,
        required=lambda terms: required(terms.noise, terms.signal),
        signal_of=lambda terms: terms.signal,
        like=like,
        averaged=lambda average, stats: averaged_signal(average, stats, signal_kind),
    )


def tolerated(noise: jax.Array, tolerance: Any, sq_signal: jax.Array) -> jax.Array:
    """The size at which noise/size is tolerance² · signal; the ratio first, against underflow."""
    return ratio(noise, sq_signal) / tolerance**2
