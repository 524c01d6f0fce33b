"""Averages of the parameters with a half-life in examples."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from adaoptax import _tree, _validate
from adaoptax._tree import ArrayTree
from adaoptax.averages import Averages, debiased, update_averages
from adaoptax.scaling.adam_hyperparams import check_half_life
from adaoptax.scaling.skip import is_usable, next_count
from adaoptax.stats import GradientStats, check_stats
from adaoptax.typing import Scalar


class AverageParamsState(NamedTuple):
    """State of `average_params`.

    Attributes:
        params_average: Weighted sum of the parameters after each step (at least float32), and the
            sum of weights, 1 minus the running product of all decays.
        averaged_steps_skipped: Steps with a NaN or infinite gradient, or without examples.
    """

    params_average: Averages
    averaged_steps_skipped: jax.Array


def average_params(half_life: Scalar) -> optax.GradientTransformationExtraArgs:
    r"""Averages the parameters over the steps, with a half-life in examples.

    .. math:: \bar w_t = \frac{\beta_t W_{t-1} \bar w_{t-1} + (1 - \beta_t) w_t}{W_t}, \qquad
        \beta_t = 2^{-B_t / t_{1/2}}, \qquad W_t = 1 - \textstyle\prod_{s \le t} \beta_s

    An average with a fixed decay per step covers more examples when the batch grows; this one
    covers the same. **Place it last in a chain**: it adds the updates that reach it to the
    parameters. `averaged_params` reads the average, in which the initial parameters have no share.

    Args:
        half_life: :math:`t_{1/2}`, in examples; `half_life_of_decay` gives it for a decay per step.

    Returns:
        An `optax.GradientTransformationExtraArgs` with `AverageParamsState`; updates pass through
        unchanged. `update` requires ``stats=`` and the parameters. A NaN or infinite gradient, or
        a batch without examples, leaves the average as it was.

    Raises:
        ValueError: If `half_life` is not positive, or the parameters are missing.

    Examples:
        >>> import adaoptax, jax.numpy as jnp, optax
        >>> from adaoptax.scaling import average_params, averaged_params
        >>> tx = optax.chain(optax.sgd(1.0), average_params(half_life=128))
        >>> grads, stats = adaoptax.stats_from_groups(jnp.ones((4, 1)), group_size=32)
        >>> params, state = jnp.zeros(1), tx.init(jnp.zeros(1))
        >>> for _ in range(2):  # parameters -1 and -2, and one half-life a step
        ...     updates, state = tx.update(grads, state, params, stats=stats)
        ...     params = optax.apply_updates(params, updates)
        >>> round(float(averaged_params(state)[0]), 4)  # (1/4 · -1 + 1/2 · -2) / (3/4)
        -1.6667

    References:
        Polyak and Juditsky, Acceleration of Stochastic Approximation by Averaging, 1992. The
        half-life in examples is derived: :math:`\beta^\kappa` at :math:`\kappa` base batches.
    """
    check_half_life(half_life)

    def init_fn(params: ArrayTree) -> AverageParamsState:
        wide = lambda p: jnp.zeros_like(p, dtype=jnp.promote_types(p.dtype, jnp.float32))
        total = jax.tree.map(wide, params)
        weight = jnp.zeros([], _tree.scalar_dtype(params))
        return AverageParamsState(Averages(total, weight), jnp.zeros([], jnp.int32))

    def update_fn(
        updates: ArrayTree,
        state: AverageParamsState,
        params: ArrayTree | None = None,
        *,
        stats: GradientStats,
        **extra_args: Any,
    ) -> tuple[ArrayTree, AverageParamsState]:
        del extra_args
        check_stats(stats, "average_params")
        _validate.has_params(params, "they are what is averaged")
        usable = is_usable(stats)
        size = jnp.where(usable, stats.num_examples, 0)
        share = -jnp.expm1(-math.log(2) * (size / half_life))
        moved = optax.apply_updates(params, updates)
        average = state.params_average
        added = update_averages(average, jax.tree.map(_tree.widen, moved), share)
        return updates, AverageParamsState(
            _tree.select(usable, added, average),
            next_count(state.averaged_steps_skipped, ~usable),
        )

    update_fn.__qualname__ = "average_params.update"  # what a missing `stats` is reported under
    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def averaged_params(opt_state: ArrayTree) -> ArrayTree:
    """The average that an `average_params` in a chain holds.

    Args:
        opt_state: State of an optimizer with one `average_params` anywhere in it.

    Returns:
        A pytree like the parameters, float32 at least; zeros before the first step.

    Raises:
        ValueError: If the state holds no `average_params`, or several.

    Examples:
        >>> import jax.numpy as jnp, optax
        >>> from adaoptax.scaling import average_params, averaged_params
        >>> tx = optax.chain(optax.sgd(0.1), average_params(half_life=10_000))
        >>> averaged_params(tx.init(jnp.ones(2))).shape
        (2,)
    """
    is_state = lambda node: isinstance(node, AverageParamsState)
    found = [x for x in jax.tree.leaves(opt_state, is_leaf=is_state) if is_state(x)]
    if len(found) != 1:
        raise ValueError(
            f"Expected opt_state with one average_params, got {len(found)}: put "
            "average_params(half_life) last in the chain, once, and pass the state of that chain."
        )
    return debiased(found[0].params_average)
