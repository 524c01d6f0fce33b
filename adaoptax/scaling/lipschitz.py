"""Gradient descent whose step comes from an estimate of the Lipschitz constant, damped by noise."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from adaoptax import _tree, _validate
from adaoptax._tree import ArrayTree
from adaoptax.scaling.skip import next_count
from adaoptax.stats import GradientStats, check_stats
from adaoptax.typing import Scalar


class LipschitzDescentState(NamedTuple):
    """State of `lipschitz_descent`.

    Attributes:
        lipschitz: L, the estimate; the last step was 1/L.
        backtracking_trials: How often L was raised at the last step.
        searches_failed: Steps that found no decrease, and were not taken.
        steps_skipped: Steps with NaN or infinity in gradient or value, which were not taken.
    """

    lipschitz: jax.Array
    backtracking_trials: jax.Array
    searches_failed: jax.Array
    steps_skipped: jax.Array


def lipschitz_descent(
    initial_lipschitz: Scalar = 1.0, *, growth: Scalar = 1.5, max_trials: Scalar = 40
) -> optax.GradientTransformationExtraArgs:
    r"""Gradient descent with step 1/L, where L is searched for on the sample at hand.

    .. math:: a = \frac{S^2}{B \lVert g \rVert^2} + 1, \qquad
        L \leftarrow L / \zeta, \quad \zeta = \max(1, 2/a)

    and then, as long as

    .. math:: F_S\left(x - \tfrac{1}{L} g\right) > F_S(x) - \frac{1}{2 L} \lVert g \rVert^2 ,

    :math:`L \leftarrow \text{growth} \cdot L`. The estimate falls by half where the gradient is
    clear, and not at all where noise exceeds signal: there, a decrease on the sample says little
    about the objective. Place it alone or last, on gradients as they are; tests go before it.

    The rule is as coded by others; that the paper's growth is 1.5 is **unverified**. Beyond it, a
    difference of values below their rounding counts as no increase, so that L does not explode at
    the solution.

    Args:
        initial_lipschitz: The first L, in units of the loss per squared parameter. A guess that is
            too small costs trials at the first step, one that is too large costs short steps.
        growth: What a trial multiplies L by.
        max_trials: Trials of a step, at most.

    Returns:
        An `optax.GradientTransformationExtraArgs`. `update` requires `params` and, by keyword as
        Optax's line searches do, ``value=`` (the loss of the batch) and ``value_fn=`` (the loss of
        **the same** batch as a function of parameters; it also receives those extra arguments that
        it names), and ``stats=``. No decrease within `max_trials` gives a zero update, is
        counted, and the next step goes on from the L reached; so do NaN and infinity in gradient or
        value, which leave L as it was. A gradient of exactly zero gives a zero update.
        Where noise was not measured or is undefined, L does not fall.

    Raises:
        ValueError: If an argument is out of range.

    Examples:
        >>> import adaoptax, jax, jax.numpy as jnp, optax
        >>> from adaoptax.scaling import lipschitz_descent
        >>> loss_fn = lambda w, x: jnp.mean(jnp.sum(3.0 * (w - x) ** 2, axis=1))  # L = 6
        >>> measure = adaoptax.value_grad_and_stats(loss_fn, adaoptax.measure.per_example())
        >>> tx, w = lipschitz_descent(initial_lipschitz=1.0), jnp.zeros(2)
        >>> state, x = tx.init(w), jnp.array([[1.0, 2.0], [1.0, 2.1], [1.1, 2.0]])
        >>> for _ in range(12):
        ...     value, grads, stats = measure(w, x)
        ...     updates, state = tx.update(
        ...         grads, state, w, stats=stats, value=value, value_fn=lambda w: loss_fn(w, x))
        ...     w = optax.apply_updates(w, updates)
        >>> [round(float(x), 2) for x in w], 3 < float(state.lipschitz) < 9
        ([1.03, 2.03], True)

    References:
        Bollapragada et al., `Adaptive Sampling Strategies for Stochastic Optimization
        <https://arxiv.org/abs/1710.11258>`_, 2018, section 4; Beck and Teboulle, `A Fast Iterative
        Shrinkage-Thresholding Algorithm <https://doi.org/10.1137/080716542>`_, 2009.
    """
    _validate.positive("initial_lipschitz", initial_lipschitz, "the first step is 1/L.")
    meaning = "it multiplies L until the loss falls; 1.5 is usual."
    _validate.positive("growth", growth, meaning, above=1)
    _validate.count("max_trials", max_trials, 1, "it counts evaluations of the loss.")

    def init_fn(params: ArrayTree) -> LipschitzDescentState:
        dtype = _tree.scalar_dtype(params)
        zero = lambda: jnp.zeros([], jnp.int32)
        first = jnp.asarray(initial_lipschitz, dtype) + jnp.zeros([], dtype)
        return LipschitzDescentState(first, zero(), zero(), zero())

    def update_fn(
        updates: ArrayTree,
        state: LipschitzDescentState,
        params: ArrayTree | None = None,
        *,
        stats: GradientStats,
        value: jax.Array,
        value_fn: Callable[..., jax.Array],
        **extra_args: Any,
    ) -> tuple[ArrayTree, LipschitzDescentState]:
        check_stats(stats, "lipschitz_descent")
        call = "stats=stats, value=value, value_fn=value_fn"
        _validate.has_params(params, "the search evaluates the loss near them", call)
        dtype = state.lipschitz.dtype
        value = jnp.asarray(value).astype(dtype)
        sq_norm = _tree.sq_norm(updates).astype(dtype)
        usable = jnp.isfinite(sq_norm) & jnp.isfinite(value)
        named = inspect.signature(value_fn).parameters
        of_batch = {name: extra_args[name] for name in named if name in extra_args}

        def step(lipschitz: jax.Array) -> ArrayTree:
            return jax.tree.map(lambda g: (-g / lipschitz).astype(g.dtype), updates)

        def too_long(lipschitz: jax.Array) -> jax.Array:
            reached = value_fn(optax.apply_updates(params, step(lipschitz)), **of_batch)
            rounding = 4 * jnp.finfo(dtype).eps * jnp.abs(value)
            enough = value - sq_norm / (2 * lipschitz) + rounding
            return ~(jnp.asarray(reached).astype(dtype) <= enough)

        def trial(search: tuple) -> tuple:
            lipschitz, trials, _ = search
            # Never infinity, from which no division leads back.
            raised = jnp.minimum(growth * lipschitz, jnp.finfo(dtype).max / 4).astype(dtype)
            return raised, trials + 1, too_long(raised)

        lowered = (state.lipschitz / fall(stats, sq_norm)).astype(dtype)
        start = (lowered, jnp.zeros([], jnp.int32), usable & too_long(lowered))
        again = lambda search: search[2] & (search[1] < max_trials)
        lipschitz, trials, failed = jax.lax.while_loop(again, trial, start)

        moves = usable & ~failed
        steps = jax.tree.map(lambda u: jnp.where(moves, u, 0).astype(u.dtype), step(lipschitz))
        return steps, LipschitzDescentState(
            lipschitz=jnp.where(usable & (sq_norm > 0), lipschitz, state.lipschitz),
            backtracking_trials=jnp.where(usable, trials, 0),
            searches_failed=next_count(state.searches_failed, usable & failed),
            steps_skipped=next_count(state.steps_skipped, ~usable),
        )

    update_fn.__qualname__ = "lipschitz_descent.update"
    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def fall(stats: GradientStats, sq_norm: jax.Array) -> jax.Array:
    """ζ = max(1, 2/a), between 1 (noise exceeds the measured gradient, or is unknown) and 2."""
    noise = stats.variance / stats.num_examples
    known = (stats.num_groups > 1) & jnp.isfinite(noise) & (sq_norm > 0)
    a = jnp.where(known, noise, 1) / jnp.where(known, sq_norm, 1) + 1
    return jnp.where(known, jnp.maximum(1, 2 / a), 1)
