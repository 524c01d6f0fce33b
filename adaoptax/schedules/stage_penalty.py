"""The pull of SEBS to where its stage began, before an optimizer or after it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adaoptax import _tree
from adaoptax._tree import ArrayTree, widen
from adaoptax._validate import is_number, positive
from adaoptax.clock import Clock, init_clock
from adaoptax.schedules.batch_size import BatchSizes, batch_size_schedule
from adaoptax.schedules.over_examples import MAX_EXAMPLES, UNIT
from adaoptax.stats import GradientStats, check_stats
from adaoptax.typing import Scalar

# (update, parameter, stage start, clock) -> new update, leaf by leaf
_Pull = Callable[[jax.Array, jax.Array, jax.Array, Clock], jax.Array]


class StagePenaltyState(NamedTuple):
    """State of `add_stage_penalty` and `apply_stage_prox`.

    Attributes:
        examples_clock: Examples seen so far, in units of 65536.
        stage_index: Stage of the last step, from 0; -1 before the first step.
        stage_start: The parameters at the start of that stage; zeros before the first step.
    """

    examples_clock: Clock
    stage_index: jax.Array
    stage_start: ArrayTree


def add_stage_penalty(
    batch_sizes: BatchSizes, gamma: Scalar
) -> optax.GradientTransformationExtraArgs:
    r"""Adds the gradient of :math:`\lVert w - \tilde w \rVert^2 / (2\gamma)` to the gradient.

    :math:`\tilde w` are the parameters at the start of the stage of `sebs`: they are held while
    the stage lasts, and taken anew at the first step of the next one,

    .. math:: g_t' = g_t + (w_t - \tilde w) / \gamma

    Put it **first** in a chain: SGD, momentum and AdaGrad then see the gradient of the penalised
    loss. (Behind a batch test, so that the test judges the loss alone.)

    The paper is known here from its abstract and introduction; that its inner routine minimises
    the penalised loss by such steps, and not by the proximal ones of `apply_stage_prox`, is not
    verified. Without either, `sebs` alone is :math:`\gamma = \infty`.

    Args:
        batch_sizes: The stages: `SizesAndRate.batch_sizes` of `sebs`, or whatever
            `batch_size_schedule` makes stages of.
        gamma: :math:`\gamma` above 0; inf adds nothing.

    Returns:
        An `optax.GradientTransformationExtraArgs`; `update` requires ``stats=`` and `params`. It
        holds one copy of the parameters. A step with a NaN or infinite gradient counts its
        examples; keep this outside of `skip_nonfinite`, which would stop the clock.

    Raises:
        ValueError: If `gamma` is not above 0, or `batch_sizes` is a function without stages.

    Examples:
        >>> import adaoptax, jax.numpy as jnp, optax
        >>> from adaoptax.schedules import add_stage_penalty, sebs
        >>> batch_sizes, rate = sebs(16, 0.1, rho=2, first_stage=32, num_stages=2)
        >>> tx = optax.chain(add_stage_penalty(batch_sizes, gamma=1.0), optax.sgd(rate(0)))
        >>> grads, stats = adaoptax.stats_from_groups(jnp.ones((2, 1)), group_size=8)
        >>> w = jnp.zeros(1)
        >>> state = tx.init(w)
        >>> for _ in range(4):  # 16 examples each: the second stage begins at the third step
        ...     updates, state = tx.update(grads, state, w, stats=stats)
        ...     w = optax.apply_updates(w, updates)
        ...     print(round(float(updates[0]), 3), round(float(state[0].stage_start[0]), 3))
        -0.1 0.0
        -0.09 0.0
        -0.1 -0.19
        -0.09 -0.19

    References:
        Zhao, Xie and Li, `Stagewise Enlargement of Batch Size for SGD-based Learning
        <https://arxiv.org/abs/2002.11601>`_, 2020.
    """
    _check_gamma(gamma)

    def pull(update: jax.Array, param: jax.Array, start: jax.Array, clock: Clock) -> jax.Array:
        del clock
        return update + (widen(param) - widen(start)) / gamma

    return _penalty("add_stage_penalty", batch_sizes, pull)


def apply_stage_prox(
    batch_sizes: BatchSizes, gamma: Scalar, learning_rate: optax.ScalarOrSchedule
) -> optax.GradientTransformationExtraArgs:
    r"""Makes a step proximal to the start of the stage.

    As `add_stage_penalty`, solved exactly instead of by its gradient (derived): for an update
    :math:`u_t` such as :math:`-\eta g_t`,

    .. math:: w_{t+1} = \arg\min_w \lVert w - (w_t + u_t) \rVert^2 / (2\eta)
        + \lVert w - \tilde w \rVert^2 / (2\gamma)
        = w_t + \frac{\gamma u_t + \eta (\tilde w - w_t)}{\gamma + \eta}

    It is stable for every :math:`\gamma`. Put it **last** in a chain, behind SGD with or without
    momentum. Behind AdaGrad, whose step size differs between coordinates, this is the proximal
    step in the Euclidean metric; `add_stage_penalty` is the one that AdaGrad scales.

    Args:
        batch_sizes: The stages, as in `add_stage_penalty`.
        gamma: :math:`\gamma` above 0; inf leaves updates as they are.
        learning_rate: :math:`\eta` of the steps before: a number, or an Optax schedule over
            examples.

    Returns:
        An `optax.GradientTransformationExtraArgs`, as of `add_stage_penalty`.

    Raises:
        ValueError: If `gamma` or `learning_rate` is not above 0, or `batch_sizes` is a function
            without stages.

    Examples:
        >>> import adaoptax, jax.numpy as jnp, optax
        >>> from adaoptax.schedules import apply_stage_prox, sebs
        >>> batch_sizes, rate = sebs(16, 0.1, rho=2, first_stage=32, num_stages=2)
        >>> tx = optax.chain(optax.sgd(0.1), apply_stage_prox(batch_sizes, 0.1, rate))
        >>> grads, stats = adaoptax.stats_from_groups(jnp.ones((2, 1)), group_size=8)
        >>> w = jnp.zeros(1)
        >>> updates, state = tx.update(grads, tx.init(w), w, stats=stats)
        >>> round(float(updates[0]), 3)
        -0.05
    """
    _check_gamma(gamma)
    positive("learning_rate", learning_rate, "it is that of the steps before, without its sign.")

    def pull(update: jax.Array, param: jax.Array, start: jax.Array, clock: Clock) -> jax.Array:
        rate = learning_rate(UNIT * clock.value()) if callable(learning_rate) else learning_rate
        ratio = rate / gamma
        return (widen(update) + ratio * (widen(start) - widen(param))) / (1 + ratio)

    return _penalty("apply_stage_prox", batch_sizes, pull)


def _penalty(name: str, batch_sizes: Any, pull: _Pull) -> optax.GradientTransformationExtraArgs:
    begins = _begins(batch_sizes)

    def init_fn(params: ArrayTree) -> StagePenaltyState:
        clock = init_clock(_tree.scalar_dtype(params))
        stage_start = jax.tree.map(jnp.zeros_like, params)
        return StagePenaltyState(clock, jnp.full([], -1, jnp.int32), stage_start)

    def update_fn(
        updates: ArrayTree,
        state: StagePenaltyState,
        params: ArrayTree | None = None,
        *,
        stats: GradientStats,
        **extra_args: Any,
    ) -> tuple[ArrayTree, StagePenaltyState]:
        del extra_args
        check_stats(stats, name)
        if params is None:
            raise ValueError(
                f"Expected {name} to be given params, got params=None: it pulls parameters to "
                "where their stage began; call tx.update(grads, state, params, stats=stats)."
            )
        clock = state.examples_clock
        stage = _stage_at(clock, begins)
        start = _tree.select(stage != state.stage_index, params, state.stage_start)
        pulled = jax.tree.map(
            lambda u, p, s: pull(u, p, s, clock).astype(jnp.result_type(u)), updates, params, start
        )
        seen = stats.num_examples.astype(clock.fraction.dtype) / UNIT
        return pulled, StagePenaltyState(clock.advance(seen), stage, start)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _begins(batch_sizes: Any) -> np.ndarray:
    stages = batch_size_schedule(batch_sizes).stages
    if stages is None:
        raise ValueError(
            f"Expected batch_sizes of stages, got {batch_sizes!r}: a function of examples has "
            "none; pass the batch_sizes of sebs(...), or pairs (examples, batch size)."
        )
    return np.array([begin for begin, _ in stages if begin <= MAX_EXAMPLES], np.int64)


def _stage_at(clock: Clock, begins: np.ndarray) -> jax.Array:
    """Number of the stage, compared in whole numbers: exact however far the run is."""
    units, rests = np.divmod(begins, UNIT)
    whole = jnp.asarray(units.astype(np.int32))
    fraction = jnp.asarray((rests / UNIT).astype(clock.fraction.dtype))
    reached = (clock.whole > whole) | ((clock.whole == whole) & (clock.fraction >= fraction))
    return jnp.sum(reached, dtype=jnp.int32) - 1


def _check_gamma(gamma: Any) -> None:
    if is_number(gamma) and not gamma > 0:
        raise ValueError(
            f"Expected gamma > 0, got gamma={gamma!r}: the penalty is divided by it; pass inf for "
            "no penalty."
        )
