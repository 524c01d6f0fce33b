"""AdaScale: the learning rate follows the batch by the measured gain."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from adaoptax import _tree, _validate
from adaoptax._tree import ArrayTree
from adaoptax.averages import Averages
from adaoptax.clock import Clock
from adaoptax.scaling.gain import (
    CONVENTIONS,
    NoiseAndSignal,
    add_sample,
    checked_decay,
    gain_of,
    init_gain_averages,
)
from adaoptax.scaling.skip import is_usable, next_count, skip_nonfinite
from adaoptax.stats import GradientStats, check_stats, signal
from adaoptax.typing import Scalar


class ScaleByAdaScaleState(NamedTuple):
    """State of AdaScale.

    Attributes:
        gain: Gain of the last step, between 1 and S.
        scale_invariant_count: int32, whole part of τ, the sum of all gains: how many steps of the
            base batch this run is worth so far.
        scale_invariant_fraction: The rest of τ, in [0, 1).
        gain_averages: Averages of σ² (of a base batch) and μ².
        gain_samples: Samples in them.
        gain_undefined: Whether the last gain is 1 because nothing is known yet.
        steps_undefined: Steps of which this held.
        steps_skipped: Steps with a NaN or infinite gradient: zero update, nothing else changed.
    """

    gain: jax.Array
    scale_invariant_count: jax.Array
    scale_invariant_fraction: jax.Array
    gain_averages: Averages
    gain_samples: jax.Array
    gain_undefined: jax.Array
    steps_undefined: jax.Array
    steps_skipped: jax.Array


def scale_by_adascale(
    base_batch_size: Scalar,
    *,
    learning_rate: optax.ScalarOrSchedule | None = None,
    convention: str = "adaoptax",
    decay: Scalar | None = None,
    exponent: Scalar = 1.0,
) -> optax.GradientTransformationExtraArgs:
    r"""Multiplies updates by the AdaScale gain.

    With the scale :math:`S = B / B_0`, taken from the statistics of every step,

    .. math:: r_t = \frac{\sigma^2 + \mu^2}{\sigma^2 / S + \mu^2}, \qquad
        \tau_{t+1} = \tau_t + r_t, \qquad \Delta w = -r_t \, \mathrm{lr}(\tau_t) \, u_t

    where :math:`\sigma^2` (noise of one base batch) and :math:`\mu^2` (debiased squared norm of
    the gradient) are averaged over steps before they are divided. A run of gains r is worth the
    sum of them in steps of the base batch: that is the clock :math:`\tau`.

    **Place it where the learning rate is**: after momentum, preconditioning and weight decay. In
    front of momentum it would be another algorithm. `adascale` places it right.

    Args:
        base_batch_size: :math:`B_0`, the batch size for which learning rate and schedule were
            tuned, in examples. The batch may be smaller (S < 1) and may change at every step.
        learning_rate: A number or an Optax schedule. If given, updates are multiplied by
            ``-learning_rate(τ)`` too: schedules then run on the scale-invariant clock instead of
            counting steps. None multiplies by the gain alone. Under `optax.inject_hyperparams` pass
            ``static_args=("learning_rate",)``: it would run the schedule on steps.
        convention: How samples are averaged. ``"adaoptax"``: the current step included, raw
            samples, debiased average with decay 0.999^S (a horizon in examples, not steps), clamped
            after averaging. ``"paper"``: prior steps only, the first gain 1, each sample
            clipped (σ² ≥ 1e-6, μ² ≥ 0), a plain mean for t < 1/(1−θ), then exponential with
            θ = max(1 − S/1000, 0); the schedule is evaluated at ⌊τ⌋. ``"fairscale"``: as
            ``"paper"`` but the current step included and debiased exponential averages. The
            absolute floor 1e-6 makes the last two depend on the units of the loss.
        decay: Share of the old average kept per *base batch*, 0 ≤ decay < 1; None is 0.999. A step
            of scale S keeps decay^S (``"adaoptax"``) or max(1 − S·(1 − decay), 0).
        exponent: Power of the gain in the update; 0.5 is the square-root form for Adam-type
            optimizers. The clock always advances by the gain itself.

    Returns:
        An `optax.GradientTransformationExtraArgs` with `ScaleByAdaScaleState`; `update` requires
        ``stats=``, a `GradientStats`. A step without evidence (one group, or not `measured`) keeps
        the averages and evaluates the gain at its own scale; before any evidence the gain is 1,
        flagged and counted. A NaN or infinite gradient gives a zero update and changes nothing
        else.

    Raises:
        ValueError: If `base_batch_size` or `exponent` is not positive, `decay` not in [0, 1), or
            `convention` unknown.

    Examples:
        >>> import adaoptax, jax.numpy as jnp, optax
        >>> tx = optax.chain(optax.scale_by_adam(),
        ...     adaoptax.scale_by_adascale(32, exponent=0.5, learning_rate=1e-3))
        >>> four = jnp.array([[1., 0.], [0., 1.], [-1., 0.], [0., -1.]])  # nothing but noise
        >>> grads, stats = adaoptax.stats_from_groups(four, group_size=32)  # 128 examples: S = 4
        >>> _, state = tx.update(grads, tx.init(grads), stats=stats)
        >>> float(optax.tree.get(state, "gain"))
        4.0

    References:
        Johnson et al., `AdaScale SGD: A User-Friendly Algorithm for Distributed Training
        <https://arxiv.org/abs/2007.05105>`_, 2020, Algorithm 1.
    """
    _validate.base_batch_size(base_batch_size, "the learning rate")
    _validate.positive("exponent", exponent, "1 is AdaScale, 0.5 its square-root form.")
    _validate.one_of("convention", convention, tuple(CONVENTIONS))
    decay = checked_decay(decay)
    rule = CONVENTIONS[convention]

    def init_fn(params: ArrayTree) -> ScaleByAdaScaleState:
        dtype = _tree.scalar_dtype(params)
        return ScaleByAdaScaleState(
            gain=jnp.ones([], dtype),
            scale_invariant_count=jnp.zeros([], jnp.int32),
            scale_invariant_fraction=jnp.zeros([], dtype),
            gain_averages=init_gain_averages(dtype),
            gain_samples=jnp.zeros([], jnp.int32),
            gain_undefined=jnp.ones([], jnp.bool_),
            steps_undefined=jnp.zeros([], jnp.int32),
            steps_skipped=jnp.zeros([], jnp.int32),
        )

    def update_fn(
        updates: ArrayTree,
        state: ScaleByAdaScaleState,
        params: ArrayTree | None = None,
        *,
        stats: GradientStats,
        **extra_args: Any,
    ) -> tuple[ArrayTree, ScaleByAdaScaleState]:
        del params, extra_args
        check_stats(stats, "scale_by_adascale")
        dtype = state.gain.dtype
        scale = (stats.num_examples / base_batch_size).astype(dtype)
        sample = NoiseAndSignal(stats.variance / base_batch_size, signal(stats))
        usable = is_usable(stats)
        measured = usable & (stats.num_groups > 1) & jnp.isfinite(stats.variance)

        samples = state.gain_samples + measured.astype(jnp.int32)
        added = add_sample(rule, state.gain_averages, sample, scale, decay, jnp.maximum(samples, 1))
        averages = _tree.select(measured, added, state.gain_averages)
        gain, known = gain_of(averages if rule.includes_current else state.gain_averages, scale)

        factor = gain if _validate.is_number(exponent) and exponent == 1 else gain**exponent
        clock = Clock(state.scale_invariant_count, state.scale_invariant_fraction)
        if learning_rate is not None:
            factor = -factor * _learning_rate_at(learning_rate, clock, convention)
        after = clock.advance(gain)
        stepped = state._replace(
            gain=gain.astype(dtype),
            scale_invariant_count=after.whole,
            scale_invariant_fraction=after.fraction,
            gain_averages=averages,
            gain_samples=samples,
            gain_undefined=~known,
            steps_undefined=next_count(state.steps_undefined, ~known),
        )
        skipped = state._replace(steps_skipped=optax.safe_increment(state.steps_skipped))
        scaled = _tree.scale_where(usable, factor, updates)
        return scaled, _tree.select(usable, stepped, skipped)

    update_fn.__qualname__ = "scale_by_adascale.update"  # what a missing `stats` is reported under
    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _learning_rate_at(learning_rate: optax.ScalarOrSchedule, clock: Clock, convention: str) -> Any:
    if not callable(learning_rate):
        return learning_rate
    return learning_rate(clock.whole if convention == "paper" else clock.value())


def adascale(
    learning_rate: optax.ScalarOrSchedule,
    base_batch_size: Scalar,
    *,
    momentum: Scalar | None = None,
    nesterov: bool = False,
    weight_decay: Scalar | None = None,
    mask: ArrayTree | Callable[[ArrayTree], ArrayTree] | None = None,
    convention: str = "adaoptax",
    decay: Scalar | None = None,
    exponent: Scalar = 1.0,
) -> optax.GradientTransformationExtraArgs:
    r"""SGD whose learning rate follows the batch: momentum, weight decay, then gain · lr(τ).

    Args:
        learning_rate: A number, or an Optax schedule in steps of the base batch, evaluated at the
            scale-invariant step count. Under `optax.inject_hyperparams` as in `scale_by_adascale`.
        base_batch_size: The batch size for which `learning_rate` was tuned, in examples.
        momentum: Decay of the momentum trace, or None.
        nesterov: Whether the momentum is Nesterov's.
        weight_decay: Decoupled weight decay, or None. It is multiplied by learning rate and gain,
            like the rest of the update.
        mask: Which parameters decay, as in `optax.add_decayed_weights`.
        convention: As in `scale_by_adascale`.
        decay: As in `scale_by_adascale`.
        exponent: As in `scale_by_adascale`.

    Returns:
        An `optax.GradientTransformationExtraArgs`; `update` requires ``stats=``. A NaN or infinite
        gradient changes neither parameters nor momentum.

    Raises:
        ValueError: As `scale_by_adascale` does.

    Examples:
        >>> import adaoptax, jax.numpy as jnp, optax
        >>> tx = adaoptax.adascale(optax.cosine_decay_schedule(0.1, 1000), 32, momentum=0.9)
        >>> rows = jnp.array([[1., 0.], [3., 0.], [2., 2.], [2., -2.]])
        >>> grads, stats = adaoptax.stats_from_groups(rows, group_size=32)  # 128 examples: S = 4
        >>> updates, state = tx.update(grads, tx.init(grads), stats=stats)
        >>> round(float(optax.tree.get(state, "gain")), 4)
        1.625

    References:
        Johnson et al., `AdaScale SGD: A User-Friendly Algorithm for Distributed Training
        <https://arxiv.org/abs/2007.05105>`_, 2020.
    """
    parts: list[optax.GradientTransformation] = []
    if momentum is not None:
        parts.append(optax.trace(decay=momentum, nesterov=nesterov))
    if weight_decay is not None:
        parts.append(optax.add_decayed_weights(weight_decay, mask))
    step = scale_by_adascale(
        base_batch_size,
        learning_rate=learning_rate,
        convention=convention,
        decay=decay,
        exponent=exponent,
    )
    return optax.chain(skip_nonfinite(optax.chain(*parts)), step) if parts else step
