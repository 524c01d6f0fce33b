"""The transformation around a batch test: options, averages, interval, flags and counts.

A test is two functions, which its file holds one after the other (`norm.py` is the shortest):

- ``noise(stats)``: the noise of one step, beside which the signal of the gradient is put; or, for
  a test of another signal, ``terms(updates, stats, **extra_args)``: `Terms` with both;
- ``required(noise, signal)``: the batch size at which such noise is tolerable beside such signal;
  inf without signal, NaN without noise and signal.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from adaoptax import _tree, _validate
from adaoptax._tree import ArrayTree
from adaoptax.averages import debiased, init_averages, update_averages
from adaoptax.batch_tests.state import BatchTestState
from adaoptax.stats import GradientStats, check_stats, is_measured, ratio

SIGNALS = ("debiased", "plug-in")


class Terms(NamedTuple):
    """What a test averages over steps before it divides.

    Attributes:
        noise: Pytree of numerators.
        signal: Pytree of denominators: squared lengths.
    """

    noise: ArrayTree
    signal: ArrayTree


class GradientTest(optax.GradientTransformationExtraArgs):
    """A test whose signal is the gradient's; `averaged_gradient` may put another mean for it."""

    __slots__ = ()


def gradient_test(
    name: str,
    noise: Callable[[GradientStats], Any],
    required: Callable[[Any, jax.Array], jax.Array],
    signal: str,
    dataset_size: Any,
    decay: Any,
    interval: Any,
) -> GradientTest:
    """The transformation of a test that compares ``noise(stats)``, of scalars, with ‖g‖²."""

    def terms(
        grads: ArrayTree, stats: GradientStats, averaged: GradientStats | None = None, **_: Any
    ) -> Terms:
        of = stats if averaged is None else averaged
        return Terms(noise(stats), debias(of.sq_norm, of.variance / of.num_examples, signal))

    def zeros(params: ArrayTree) -> Terms:
        zero = jnp.zeros([], _tree.scalar_dtype(params))
        shapes = jax.eval_shape(noise, GradientStats(*[zero] * len(GradientStats._fields)))
        return Terms(jax.tree.map(lambda _: zero, shapes), zero)

    return GradientTest(
        *batch_test(name, terms, required, signal, dataset_size, decay, interval, zeros)
    )


def batch_test(
    name: str,
    terms: Callable[..., Terms],
    required: Callable[[Any, Any], jax.Array],
    signal: str,
    dataset_size: Any,
    decay: Any,
    interval: Any,
    zeros: Callable[[ArrayTree], Terms],
) -> optax.GradientTransformationExtraArgs:
    """The transformation that tests every `interval`-th update and passes all of them through.

    The options are those of `norm_test` and are checked here; `terms` puts `signal` into effect.
    ``zeros(params)`` are `Terms` of the shapes that `terms` returns.
    """
    _validate.one_of("signal", signal, SIGNALS)
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
            test_averages=None if decay is None else init_averages(zeros(params), dtype),
        )

    def update_fn(
        updates: ArrayTree,
        state: BatchTestState,
        params: ArrayTree | None = None,
        *,
        stats: GradientStats,
        **extra_args: Any,
    ) -> tuple[ArrayTree, BatchTestState]:
        del params
        check_stats(stats, name)

        def test() -> BatchTestState:
            now = terms(updates, stats, **extra_args)
            evident = (stats.num_groups > 1) & jnp.isfinite(stats.sq_norm) & all_finite(now)
            averages = state.test_averages
            if averages is not None:
                moved = update_averages(averages, now, 1 - decay)
                averages = _tree.select(evident, moved, averages)
                now = debiased(averages)
            size = required(*now)
            if dataset_size is not None:
                size = finite_population(size, dataset_size)
            noise_only = _tree.total(lambda s: s, now.signal) <= 0
            tested = decided(state, size, evident, noise_only, stats.num_examples)
            return tested._replace(test_averages=averages)

        if _validate.is_number(interval) and interval == 1:
            state_after = test()
        else:
            wait = lambda: state._replace(tested=jnp.zeros_like(state.tested))
            state_after = jax.lax.cond(state.steps_seen % interval == 0, test, wait)
        state_after = state_after._replace(steps_seen=optax.safe_increment(state.steps_seen))
        return updates, _tree.select(is_measured(stats), state_after, state)

    update_fn.__qualname__ = f"{name}.update"  # what a missing `stats` is reported under
    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def decided(
    state: BatchTestState,
    required: jax.Array,
    evident: jax.Array,
    noise_only: jax.Array,
    num_examples: jax.Array,
) -> BatchTestState:
    """The state after a test; without evidence, or with NaN required, it keeps its requirement."""
    defined = evident & ~jnp.isnan(required)
    noise_dominated = defined & noise_only
    passed = defined & (required <= num_examples)
    kept = jnp.where(state.tests_run > 0, state.required_batch_size, num_examples)
    size = jnp.where(defined, required, kept)
    count = lambda counter, event: counter + event.astype(counter.dtype)
    return state._replace(
        required_batch_size=size.astype(state.required_batch_size.dtype),
        test_passed=passed,
        noise_dominated=noise_dominated,
        undefined=~defined,
        tested=jnp.ones_like(state.tested),
        tests_run=count(state.tests_run, defined),
        tests_failed=count(state.tests_failed, defined & ~passed),
        tests_noise_dominated=count(state.tests_noise_dominated, noise_dominated),
        tests_undefined=count(state.tests_undefined, ~defined),
    )


def all_finite(tree: ArrayTree) -> jax.Array:
    """Whether no leaf holds NaN or inf."""
    finite = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]
    return jnp.all(jnp.stack(finite)) if finite else jnp.ones([], jnp.bool_)


def debias(square: jax.Array, noise: jax.Array, kind: str) -> jax.Array:
    """A squared length, less the noise that it contains unless `kind` is ``"plug-in"``."""
    return square - noise if kind == "debiased" else square


def finite_population(required: jax.Array, dataset_size: Any) -> jax.Array:
    """b·N/(b + N): without replacement the mean of all N examples has no noise left."""
    shrunk = dataset_size * (required / (required + dataset_size))
    return jnp.where(jnp.isinf(required), dataset_size, shrunk)


def tolerated(noise: jax.Array, tolerance: Any, sq_signal: jax.Array) -> jax.Array:
    """The size at which noise/size is tolerance² · signal; the ratio first, against underflow."""
    return ratio(noise, sq_signal) / tolerance**2
