"""Trains a method on a problem through `AdaptiveLoop`: what comparisons of methods share."""

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
import optax

import adaoptax


class Trainable(Protocol):
    """What a problem has to have.

    Attributes:
        data: Arrays with one entry an example.
        init: ``init(key)`` → parameters.
        loss_fn: ``loss_fn(params, batch)`` → mean loss.
    """

    @property
    def data(self) -> Any: ...  # noqa: D102
    @property
    def init(self) -> Callable[[jax.Array], Any]: ...  # noqa: D102
    @property
    def loss_fn(self) -> Callable[[Any, Any], jax.Array]: ...  # noqa: D102


class Contender(NamedTuple):
    """One method in use.

    Attributes:
        tx: The chain.
        sizes: A policy's bounds (smallest, largest), a fixed size, or a schedule.
        statistics: What is measured, exactly, from every example; () takes the plain gradient.
    """

    tx: optax.GradientTransformation
    sizes: Any
    statistics: tuple[str, ...] = ("norm",)


class Trained(NamedTuple):
    """What one run did.

    Attributes:
        params: At the end.
        updates: Steps.
        examples: Examples seen.
        largest: Largest batch.
        seconds: Of all steps, with data and decisions; without compilation, and without `look`.
    """

    params: Any
    updates: int
    examples: int
    largest: int
    seconds: float


Look = Callable[[int, int, Any], None]


class Trainer:
    """Trains one contender after another on one problem; the gradient's programs are kept.

    Args:
        problem: What is trained.
        method: ``method(statistics)`` → how they are measured.
        micro_batch_size: Step of the grid of sizes.
        capacities: Rows that batches are padded to, each a compilation.
        padded: Whether sizes may lie between them; otherwise they are the only sizes.
    """

    def __init__(
        self,
        problem: Trainable,
        method: Callable[[tuple[str, ...]], Any],
        *,
        micro_batch_size: int,
        capacities: tuple[int, ...],
        padded: bool,
    ) -> None:
        self._problem, self._method = problem, method
        self._micro, self._capacities, self._padded = micro_batch_size, capacities, padded
        self._measures: dict[tuple[str, ...], Any] = {}

    def prepare(self, contender: Contender) -> Callable[..., Trained]:
        """Compiles all that a run needs; returns ``run(seed, examples, look, points)``."""
        measure = self._measure(contender.statistics)

        @jax.jit
        def update(state: Any, loss: Any, grads: Any, stats: Any) -> Any:
            params, opt_state = state
            updates, opt_state = contender.tx.update(grads, opt_state, params, stats=stats)
            state = optax.apply_updates(params, updates), opt_state
            return state, adaoptax.observables(loss, stats, opt_state)

        state = self._start(contender, 0)
        for rows in self._capacities:
            rows_of = functools.partial(_resized, rows)
            batch = jax.tree.map(rows_of, self._problem.data), np.ones(rows, bool)
            jax.block_until_ready(update(state, *measure(state[0], *batch)))
        return functools.partial(self._run, contender, measure, update)

    def _measure(self, statistics: tuple[str, ...]) -> Any:
        """``f(params, batch, mask)`` → loss, gradient and statistics; one for all contenders."""
        if statistics not in self._measures:
            method = adaoptax.measure.every(1, self._method(statistics or ("norm",)))
            grad_fn = adaoptax.value_grad_and_stats(self._problem.loss_fn, method)
            due = bool(statistics)

            def measure(params: Any, batch: Any, mask: Any) -> Any:
                return grad_fn(params, batch, mask=mask if self._padded else None, due=due)

            self._measures[statistics] = jax.jit(measure)
        return self._measures[statistics]

    def _start(self, contender: Contender, seed: int) -> Any:
        params = self._problem.init(jax.random.key(seed))
        return params, contender.tx.init(params)

    def _run(
        self,
        contender: Contender,
        measure: Any,
        update: Any,
        seed: int,
        examples: int,
        look: Look = lambda updates, examples, params: None,
        points: int = 0,
    ) -> Trained:
        """One run from the start; `look` sees it at the start and at `points` places."""
        loader = adaoptax.BatchLoader(
            self._problem.data,
            self._micro,
            max_batch_size=self._capacities[-1],
            pad_to=self._capacities,
            seed=seed,
        )
        bounds = contender.sizes
        low, high = bounds if isinstance(bounds, tuple) else (bounds, bounds)
        policy = adaoptax.GrowthPolicy(
            low,
            high,
            multiple_of=self._micro,
            sizes=None if self._padded else self._capacities,
            patience=2,
        )
        loop = adaoptax.AdaptiveLoop(loader, policy)
        state = self._start(contender, seed)
        largest, looked, looking = 0, -1, 0.0
        started = time.perf_counter()
        while True:
            place = loop.examples_seen * points // examples
            if points and place > looked:
                jax.block_until_ready(state)
                paused, looked = time.perf_counter(), place
                look(loop.step, loop.examples_seen, state[0])
                looking += time.perf_counter() - paused
            if loop.examples_seen >= examples:
                break
            batch = next(loop)
            largest = max(largest, batch.num_examples)
            state, output = update(state, *measure(state[0], *batch))
            loop.observe(output)
        jax.block_until_ready(state)
        seconds = time.perf_counter() - started - looking
        return Trained(state[0], loop.step, loop.examples_seen, largest, seconds)


def _resized(rows: int, x: np.ndarray) -> np.ndarray:
    return np.resize(x[:rows], (rows, *x.shape[1:]))
