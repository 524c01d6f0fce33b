"""Scaling rules at work: in a chain, and as a hyperparameter of any Optax optimizer."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from adaoptax import _tree
from adaoptax._tree import ArrayTree
from adaoptax.clock import Clock, init_clock
from adaoptax.scaling.evidence import (
    Rule,
    RuleEvidence,
    add_step,
    init_evidence,
    rule_in_force,
)
from adaoptax.scaling.skip import is_usable, next_count
from adaoptax.stats import GradientStats, check_stats
from adaoptax.typing import Scalar


class ScaleByBatchState(NamedTuple):
    """State of `scale_by_batch`.

    Attributes:
        evidence: What the rule decides by, and `batch_factor`, the factor of the last step.
        updates_zeroed: Steps with a NaN or infinite gradient, or no example: zero update.
    """

    evidence: RuleEvidence
    updates_zeroed: jax.Array


def scale_by_batch(
    rule: Rule,
    base_batch_size: Scalar,
    *,
    noise_scale: Scalar | None = None,
    decay: Scalar | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Multiplies updates by the factor of a scaling rule at the batch size of every step.

    **Place it where the learning rate is**: after momentum and preconditioning, before or after
    the learning rate itself.

    Args:
        rule: A function of `adaoptax.scaling.rules`, as it is or with options bound by
            `functools.partial`; or your own ``rule(batch_size, base_batch_size) -> factor``. A rule
            that names them gets ``noise_scale``, ``stats`` (variance and signal averaged over
            steps; `num_examples` is inf, since the averaged signal holds no noise) and
            ``examples_seen`` (before this step).
        base_batch_size: :math:`B_0`, the size at which the learning rate was tuned, in examples.
            The batch may be smaller, and may change at every step.
        noise_scale: In examples, for the rules that need one. To move it while training, use
            ``optax.inject_hyperparams(scale_by_batch, static_args="rule")`` and write to
            ``state.hyperparams["noise_scale"]``.
        decay: Share of the old averages kept per *base batch*, 0 ≤ decay < 1; None is 0.999. A step
            keeps ``decay ** (B / B_0)``: a horizon in examples.

    Returns:
        An `optax.GradientTransformationExtraArgs` with `ScaleByBatchState`; `update` requires
        ``stats=``. A rule that has nothing to decide by (NaN) gives 1, flagged and counted. A NaN
        or infinite gradient, or a batch without examples, gives a zero update; a step that was not
        `measured` keeps the averages.

    Raises:
        TypeError: If `rule` is not a function.
        ValueError: If the rule lacks its noise scale or an option, or an argument is out of range.

    Examples:
        >>> import adaoptax, jax.numpy as jnp, optax
        >>> from adaoptax.scaling import rules, scale_by_batch
        >>> tx = optax.chain(scale_by_batch(rules.sqrt, 32), optax.sgd(0.1))
        >>> grads, stats = adaoptax.stats_from_groups(jnp.ones((4, 1)), group_size=32)
        >>> updates, state = tx.update(grads, tx.init(grads), stats=stats)
        >>> round(float(updates[0]), 4)  # 128 examples: twice the step
        -0.2
    """
    force = rule_in_force(rule, base_batch_size, noise_scale, decay)

    def init_fn(params: ArrayTree) -> ScaleByBatchState:
        return ScaleByBatchState(
            init_evidence(_tree.scalar_dtype(params)), jnp.zeros([], jnp.int32)
        )

    def update_fn(
        updates: ArrayTree,
        state: ScaleByBatchState,
        params: ArrayTree | None = None,
        *,
        stats: GradientStats,
        **extra_args: Any,
    ) -> tuple[ArrayTree, ScaleByBatchState]:
        del params, extra_args
        check_stats(stats, "scale_by_batch")
        evidence = add_step(state.evidence, force, stats)
        usable = is_usable(stats)
        scaled = _tree.scale_where(usable, evidence.batch_factor, updates)
        return scaled, ScaleByBatchState(evidence, next_count(state.updates_zeroed, ~usable))

    update_fn.__qualname__ = "scale_by_batch.update"  # what a missing `stats` is reported under
    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


class BatchScaledScheduleState(NamedTuple):
    """State of `BatchScaledSchedule`.

    Attributes:
        evidence: What the rule decides by, and `batch_factor`, the factor of the last step.
        base_steps: Examples seen, in base batches: what the schedule counts.
    """

    evidence: RuleEvidence
    base_steps: Clock


class BatchScaledSchedule(optax.schedules.StatefulSchedule):
    r"""A hyperparameter that follows the batch, for `optax.inject_hyperparams`.

    .. math:: \mathrm{value}(\tau) \cdot \mathrm{rule}(B, B_0), \qquad
        \tau = \textstyle\sum B / B_0

    It reaches optimizers that take their learning rate themselves, and Optax then keeps the
    rate in force in ``state.hyperparams["learning_rate"]``.

    Args:
        value: A number, or an Optax schedule **in steps of the base batch**: it is evaluated at
            :math:`\tau`, so that it ends with the data however large the batch is.
        rule: As in `scale_by_batch`.
        base_batch_size: As in `scale_by_batch`.
        noise_scale: As in `scale_by_batch`.
        decay: As in `scale_by_batch`.

    Raises:
        TypeError: If `rule` is not a function, or `update` gets no ``stats=``.
        ValueError: As in `scale_by_batch`.

    Examples:
        >>> import adaoptax, jax.numpy as jnp, optax
        >>> from adaoptax.scaling import BatchScaledSchedule, rules
        >>> rate = BatchScaledSchedule(1e-3, rules.sqrt, 32)
        >>> tx = optax.inject_hyperparams(optax.adam)(learning_rate=rate)
        >>> grads, stats = adaoptax.stats_from_groups(jnp.ones((4, 1)), group_size=32)
        >>> updates, state = tx.update(grads, tx.init(grads), grads, stats=stats)
        >>> round(float(state.hyperparams["learning_rate"]), 6)
        0.002
    """

    def __init__(
        self,
        value: optax.ScalarOrSchedule,
        rule: Rule,
        base_batch_size: Scalar,
        *,
        noise_scale: Scalar | None = None,
        decay: Scalar | None = None,
    ) -> None:
        self._value = value
        self._force = rule_in_force(rule, base_batch_size, noise_scale, decay)

    def init(self) -> BatchScaledScheduleState:
        """State before the first step."""
        dtype = jnp.result_type(float)
        return BatchScaledScheduleState(init_evidence(dtype), init_clock(dtype))

    def update(
        self, state: BatchScaledScheduleState, *, stats: GradientStats, **extra_args: Any
    ) -> BatchScaledScheduleState:
        """State after a step with these statistics."""
        del extra_args
        evidence = self._evidence(state, stats)
        examples = jnp.where(stats.num_examples > 0, stats.num_examples, 0)
        amount = examples / self._force.base_batch_size
        return BatchScaledScheduleState(
            evidence, state.base_steps.advance(amount.astype(state.base_steps.fraction.dtype))
        )

    def __call__(
        self,
        state: BatchScaledScheduleState,
        *,
        stats: GradientStats | None = None,
        **extra_args: Any,
    ) -> jax.Array:
        """Value at this step; without statistics, as Optax asks before the first, the base's."""
        del extra_args
        factor = state.evidence.batch_factor
        if stats is not None:
            factor = self._evidence(state, stats).batch_factor
        value = self._value
        return (value(state.base_steps.value()) if callable(value) else value) * factor

    def _evidence(self, state: BatchScaledScheduleState, stats: GradientStats) -> RuleEvidence:
        check_stats(stats, "BatchScaledSchedule")
        return add_step(state.evidence, self._force, stats)
