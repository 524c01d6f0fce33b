"""Steps at a fixed batch that stay on the device, and the truth that they sample from."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

import adaoptax
from adaoptax import measure
from benchmarks.experiments.problems import Problem


class Measured(NamedTuple):
    """What every step measured, one entry a step.

    Attributes:
        variance: S².
        sq_norm: ‖g‖².
    """

    variance: jax.Array
    sq_norm: jax.Array


class Truth(NamedTuple):
    """Moments of the per-example gradients of all data.

    Attributes:
        variance: Trace of their covariance.
        sq_norm: Squared norm of their mean.
    """

    variance: jax.Array
    sq_norm: jax.Array


def random_rows(data: Any, key: jax.Array, step: Any, batch_size: int) -> Any:
    """The batch of a step: rows drawn with replacement, so that they are independent."""
    count = len(jax.tree.leaves(data)[0])
    rows = jax.random.randint(jax.random.fold_in(key, step), (batch_size,), 0, count)
    return jax.tree.map(lambda x: x[rows], data)


def take_steps(
    problem: Problem,
    data: Any,
    tx: optax.GradientTransformation,
    batch_size: int,
    steps: jax.Array,
    state: Any,
    key: jax.Array,
    *,
    metric: Callable[[Any], Any] = lambda opt_state: None,
) -> tuple[Any, Measured]:
    """The steps of these numbers, from ``state = (params, opt_state)`` on; to be jitted.

    ``metric(opt_state)`` is the preconditioner that statistics are measured with.
    """
    value_grad_and_stats = adaoptax.value_grad_and_stats(problem.loss_fn, measure.exact())

    def step(state: Any, number: jax.Array) -> tuple[Any, Measured]:
        params, opt_state = state
        batch = random_rows(data, key, number, batch_size)
        _, grads, stats = value_grad_and_stats(params, batch, preconditioner=metric(opt_state))
        updates, opt_state = optax.with_extra_args_support(tx).update(
            grads, opt_state, params, stats=stats
        )
        state = optax.apply_updates(params, updates), opt_state
        return state, Measured(stats.variance, stats.sq_norm)

    return jax.lax.scan(step, state, steps)


def one_of(
    which: jax.Array, transformations: Sequence[optax.GradientTransformation]
) -> optax.GradientTransformationExtraArgs:
    """The transformation number `which`, so that one program serves them all."""
    each = [optax.with_extra_args_support(tx) for tx in transformations]

    def update_fn(updates: Any, states: Any, params: Any = None, **extra_args: Any) -> Any:
        def branch(i: int) -> Callable[[], Any]:
            def take() -> Any:
                found, state = each[i].update(updates, states[i], params, **extra_args)
                return found, (*states[:i], state, *states[i + 1 :])

            return take

        return jax.lax.switch(which, [branch(i) for i in range(len(each))])

    return optax.GradientTransformationExtraArgs(
        lambda params: tuple(tx.init(params) for tx in each), update_fn
    )


def gradient_rows(problem: Problem, data: Any, params: Any, chunk: int = 240) -> jax.Array:
    """The gradient of every example as a row: [examples, parameters]. Nothing of adaoptax."""

    def of_example(example: Any) -> jax.Array:
        one = jax.tree.map(lambda x: x[None], example)
        return ravel_pytree(jax.grad(problem.loss_fn)(params, one))[0]

    return jax.lax.map(of_example, data, batch_size=chunk)


def truth(problem: Problem, data: Any, params: Any) -> Truth:
    """Moments of all data: what an infinite number of batches would show."""
    rows = gradient_rows(problem, data, params)
    mean = rows.mean(0)
    return Truth(jnp.sum((rows - mean) ** 2) / len(rows), jnp.sum(mean**2))
