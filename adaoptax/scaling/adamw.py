"""AdamW that follows the batch: moments, epsilon, learning rate and weight decay together."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike

from adaoptax import _validate
from adaoptax._tree import ArrayTree
from adaoptax.scaling.adam import scale_by_adam_with_batch
from adaoptax.scaling.adam_hyperparams import ADAM_RULES
from adaoptax.scaling.by_batch import scale_by_batch
from adaoptax.scaling.evidence import Rule
from adaoptax.scaling.rules import sqrt
from adaoptax.scaling.skip import is_usable, next_count
from adaoptax.schedules.over_examples import scale_by_schedule_over_examples
from adaoptax.stats import GradientStats, check_stats
from adaoptax.typing import Scalar


class AddDecayedWeightsWithBatchState(NamedTuple):
    """State of `add_decayed_weights_with_batch`.

    Attributes:
        decays_skipped: Steps with a NaN or infinite gradient, or without examples: no decay.
    """

    decays_skipped: jax.Array


def add_decayed_weights_with_batch(
    weight_decay: Scalar,
    base_batch_size: Scalar,
    mask: ArrayTree | Callable[[ArrayTree], ArrayTree] | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Adds weight decay in proportion to the batch: constant decay per example.

    .. math:: u + \kappa \lambda w, \qquad \kappa = B / B_0

    **Place it behind the factor of the learning rate** (`scale_by_batch`) and before the learning
    rate itself. A step then shrinks the parameters by :math:`\eta \lambda \kappa`, whatever the
    factor is, and AdamW's timescale :math:`B / (\eta \lambda D)` stays the same in examples.

    Args:
        weight_decay: :math:`\lambda` at the base batch.
        base_batch_size: :math:`B_0`, in examples.
        mask: Which parameters decay, as in `optax.add_decayed_weights`.

    Returns:
        An `optax.GradientTransformationExtraArgs`; `update` requires ``stats=`` and the parameters.
        A NaN or infinite gradient, or a batch without examples, adds nothing.

    Raises:
        ValueError: If an argument is out of range, or the parameters are missing.

    Examples:
        >>> import adaoptax, jax.numpy as jnp
        >>> from adaoptax.scaling import add_decayed_weights_with_batch
        >>> tx = add_decayed_weights_with_batch(0.1, base_batch_size=32)
        >>> grads, stats = adaoptax.stats_from_groups(jnp.ones((4, 1)), group_size=32)
        >>> updates, _ = tx.update(jnp.zeros(1), tx.init(grads), jnp.ones(1), stats=stats)
        >>> round(float(updates[0]), 6)
        0.4

    References:
        Bergsma et al., `Power Lines: Scaling Laws for Weight Decay and Batch Size in LLM
        Pre-training <https://arxiv.org/abs/2505.13738>`_, 2025.
    """
    _validate.at_least("weight_decay", weight_decay, 0, "it shrinks parameters.")
    _validate.base_batch_size(base_batch_size, "weight decay")

    def init_fn(params: ArrayTree) -> AddDecayedWeightsWithBatchState:
        del params
        return AddDecayedWeightsWithBatchState(jnp.zeros([], jnp.int32))

    def update_fn(
        updates: ArrayTree,
        state: AddDecayedWeightsWithBatchState,
        params: ArrayTree | None = None,
        *,
        stats: GradientStats,
        **extra_args: Any,
    ) -> tuple[ArrayTree, AddDecayedWeightsWithBatchState]:
        del extra_args
        check_stats(stats, "add_decayed_weights_with_batch")
        _validate.has_params(params, "weight decay shrinks them")
        usable = is_usable(stats)
        kappa = jnp.where(usable, stats.num_examples / base_batch_size, 0)
        decay = weight_decay * kappa
        decayed = jax.tree.map(lambda u, p: (u + decay * p).astype(u.dtype), updates, params)
        skipped = next_count(state.decays_skipped, ~usable)
        return decayed, AddDecayedWeightsWithBatchState(skipped)

    update_fn.__qualname__ = "add_decayed_weights_with_batch.update"
    tx = optax.GradientTransformationExtraArgs(init_fn, update_fn)
    return tx if mask is None else optax.masked(tx, mask)


def adamw_with_batch(
    learning_rate: optax.ScalarOrSchedule,
    base_batch_size: Scalar,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    mu_dtype: DTypeLike | None = None,
    weight_decay: Scalar = 1e-4,
    mask: ArrayTree | Callable[[ArrayTree], ArrayTree] | None = None,
    *,
    nesterov: bool = False,
    rule: str = "half-life",
    learning_rate_rule: Rule | None = None,
    noise_scale: Scalar | None = None,
    max_batch_size: Scalar | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""AdamW tuned at one batch size, run at any other.

    `scale_by_adam_with_batch`, the factor of the learning rate, weight decay with the same
    timescale in examples, and the learning rate. With ``weight_decay=0`` it is Adam. As long as
    every batch has the base size it gives the updates of `optax.adamw` to the bit (with a
    schedule, to the rounding of the schedule at a float count).

    Args:
        learning_rate: A number, or an Optax schedule **in steps of the base batch**: it is
            evaluated at the examples seen over `base_batch_size`, so that it ends with the data.
            Under `optax.inject_hyperparams` a schedule needs ``static_args="learning_rate"``.
        base_batch_size: The batch size for which all these numbers were tuned, in examples.
        b1: As in `scale_by_adam_with_batch`.
        b2: As in `scale_by_adam_with_batch`.
        eps: As in `scale_by_adam_with_batch`.
        eps_root: As in `scale_by_adam_with_batch`.
        mu_dtype: As in `scale_by_adam_with_batch`.
        weight_decay: A number, multiplied by the learning rate as in `optax.adamw`.
        mask: Which parameters decay, as in `optax.add_decayed_weights`.
        nesterov: As in `scale_by_adam_with_batch`.
        rule: As in `scale_by_adam_with_batch`.
        learning_rate_rule: A rule of `scale_by_batch` for the learning rate. None is that of
            `rule`: the square root for ``"malladi"``, else the learning rate stays (Marek et al.
            retune it).
        noise_scale: For a `learning_rate_rule` that needs one, in examples.
        max_batch_size: As in `scale_by_adam_with_batch`.

    Returns:
        An `optax.GradientTransformationExtraArgs`; `update` requires ``stats=`` and the parameters.
        A NaN or infinite gradient changes neither parameters nor moments.

    Raises:
        ValueError: If an argument is out of range, or a rule lacks what it needs.

    Examples:
        >>> import adaoptax, jax.numpy as jnp, optax
        >>> from adaoptax.scaling import adamw_with_batch, rules
        >>> decay = optax.cosine_decay_schedule(3e-4, 10_000)  # steps of 256 examples
        >>> tx = adamw_with_batch(decay, 256, weight_decay=0.1, learning_rate_rule=rules.sqrt)
        >>> grads, stats = adaoptax.stats_from_groups(jnp.ones((4, 1)), group_size=256)
        >>> updates, state = tx.update(grads, tx.init(grads), grads, stats=stats)
        >>> round(float(updates[0]), 6)  # -3e-4 * (2 * 1 + 4 * 0.1 * 1)
        -0.00072

    References:
        As in `scale_by_adam_with_batch` and `add_decayed_weights_with_batch`.
    """
    scale_by_adam = scale_by_adam_with_batch(
        base_batch_size,
        b1,
        b2,
        eps,
        eps_root,
        mu_dtype,
        nesterov=nesterov,
        rule=rule,
        max_batch_size=max_batch_size,
    )
    if learning_rate_rule is None:
        learning_rate_rule = sqrt if ADAM_RULES[rule].learning_rate else _as_it_is
    if callable(learning_rate):
        schedule = learning_rate
        rate = scale_by_schedule_over_examples(lambda seen: schedule(seen / base_batch_size))
    else:
        rate = optax.scale_by_learning_rate(learning_rate)
    return optax.chain(
        scale_by_adam,
        scale_by_batch(learning_rate_rule, base_batch_size, noise_scale=noise_scale),
        add_decayed_weights_with_batch(weight_decay, base_batch_size, mask),
        rate,
    )


def _as_it_is(batch_size: Any, base_batch_size: Any) -> float:
    """The rule that leaves the learning rate alone."""
    del batch_size, base_batch_size
    return 1.0
