"""How Adam's hyperparameters move with the batch: three rules, and half-lives in examples."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from adaoptax import _validate
from adaoptax.typing import Scalar


class AdamRule(NamedTuple):
    """What one rule moves.

    Attributes:
        b1: How the first decay moves: "power", "linear" or "kept".
        b2: How the second decay moves.
        eps: Whether epsilon shrinks with the noise of the gradient.
        learning_rate: Whether the learning rate follows the square root of the batch.
    """

    b1: str
    b2: str
    eps: bool
    learning_rate: bool


ADAM_RULES = {
    "half-life": AdamRule("power", "power", eps=True, learning_rate=False),
    "marek": AdamRule("kept", "power", eps=False, learning_rate=False),
    "malladi": AdamRule("linear", "linear", eps=True, learning_rate=True),
}


class AdamHyperparams(NamedTuple):
    """Hyperparameters of Adam at one batch size.

    Attributes:
        b1: Decay of the first moment.
        b2: Decay of the second moment.
        eps: Term beside the root.
        eps_root: Term inside the root.
        learning_rate_factor: What multiplies the learning rate of the base batch.
        weight_decay_factor: What multiplies a weight decay that the learning rate multiplies, as
            in `optax.adamw`.
    """

    b1: Any
    b2: Any
    eps: Any
    eps_root: Any
    learning_rate_factor: Any
    weight_decay_factor: Any


def adam_hyperparams(
    batch_size: Scalar,
    base_batch_size: Scalar,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    *,
    rule: str = "half-life",
) -> AdamHyperparams:
    r"""Moves the hyperparameters of Adam from the base batch to another.

    With :math:`\kappa = B / B_0`:

    ================== ===================== ===================== ========= =============
    rule               beta1                 beta2                 epsilon   learning rate
    ================== ===================== ===================== ========= =============
    ``"half-life"``    b1^κ                  b2^κ                  / √κ      as it is
    ``"marek"``        as it is              b2^κ                  as it is  as it is
    ``"malladi"``      1 − κ(1 − b1)         1 − κ(1 − b2)         / √κ      · √κ
    ================== ===================== ===================== ========= =============

    ``"half-life"`` forgets after the same number of *examples* at every batch size; its epsilon is
    derived here: the root of the second moment shrinks like :math:`1/\sqrt B` where the gradient is
    mostly noise, and epsilon keeps its share. ``"marek"`` is the recipe of that paper.
    ``"malladi"`` is the square-root scaling rule, to first order the same decays; it wants noise to
    dominate and :math:`\kappa (1 - \beta) < 1`. A decay of 0 stays 0, and `eps_root` moves like
    epsilon squared. Weight decay moves by κ over the factor of the learning rate under all three:
    the timescale :math:`B / (\eta \lambda D)` of AdamW, D the examples of the data set, stays.

    Args:
        batch_size: :math:`B`, in examples.
        base_batch_size: :math:`B_0`, the size at which they were tuned, in examples.
        b1: Decay of the first moment, at the base batch.
        b2: Decay of the second moment, at the base batch.
        eps: Term beside the root, at the base batch.
        eps_root: Term inside the root, at the base batch.
        rule: One of the three above.

    Returns:
        `AdamHyperparams`, floats for numbers. For traced sizes a decay outside of the range of
        ``"malladi"`` is NaN.

    Raises:
        ValueError: If an argument is out of range, or the batch too large for ``"malladi"``.

    Examples:
        >>> from adaoptax.scaling import adam_hyperparams
        >>> moved = adam_hyperparams(1024, 256, 0.9, 0.999, 1e-8, rule="malladi")
        >>> [round(x, 12) for x in (moved.b1, moved.b2, moved.eps, moved.learning_rate_factor)]
        [0.6, 0.996, 5e-09, 2.0]
        >>> round(adam_hyperparams(1024, 256).b1, 4)  # 0.9^4
        0.6561

    References:
        Marek et al., `Small Batch Size Training for Language Models
        <https://arxiv.org/abs/2507.07101>`_, 2025 (formula from its code); Malladi et al., `On the
        SDEs and Scaling Rules for Adaptive Gradient Algorithms
        <https://arxiv.org/abs/2205.10287>`_, 2022 (formulas at second hand, not checked against
        the paper's text); Bergsma et al., `Power Lines <https://arxiv.org/abs/2505.13738>`_, 2025
        (the timescale).
    """
    check_adam_arguments(b1, b2, eps, eps_root, rule)
    _validate.positive("batch_size", batch_size, "it counts the examples of a gradient.")
    _validate.base_batch_size(base_batch_size, "Adam")
    kappa, moves = batch_size / base_batch_size, ADAM_RULES[rule]
    check_kappa(moves, {"b1": b1, "b2": b2}, kappa)
    factor = kappa**0.5 if moves.learning_rate else 1.0
    return AdamHyperparams(
        b1=_moved(moves.b1, b1, kappa),
        b2=_moved(moves.b2, b2, kappa),
        eps=eps / kappa**0.5 if moves.eps else eps,
        eps_root=eps_root / kappa if moves.eps else eps_root,
        learning_rate_factor=factor,
        weight_decay_factor=kappa / factor,
    )


def _moved(how: str, decay: Any, kappa: Any) -> Any:
    if how == "power":
        return decay**kappa
    if how == "kept" or (_validate.is_number(decay) and decay == 0):
        return decay
    moved = 1 - kappa * (1 - decay)
    if _validate.is_number(moved):
        return moved
    return jnp.where(moved > 0, moved, jnp.where(decay == 0, 0, jnp.nan))


def moved_decay(how: str, decay: Any, kappa: jax.Array) -> tuple[jax.Array, jax.Array]:
    """``(decay, 1 − decay)`` at `kappa` for a step of training: in the range, exact at kappa 1."""
    if how == "power":
        return _power(decay, kappa)
    base = jnp.asarray(1 - decay, kappa.dtype)
    if how == "kept":
        return jnp.asarray(decay, kappa.dtype), base
    kept = (kappa == 1) | (jnp.asarray(decay) == 0)
    share = jnp.where(kept, base, jnp.minimum(kappa * base, 1))
    return jnp.where(kept, jnp.asarray(decay, kappa.dtype), 1 - share), share


def _power(decay: Any, kappa: jax.Array) -> tuple[jax.Array, jax.Array]:
    """``decay ** kappa`` and one minus it, each to the last bits; exactly `decay` at kappa 1."""
    log: Any
    if _validate.is_number(decay):
        # In Python: float32 knows 1 − 0.999 to five digits only.
        log = math.log(decay) if decay > 0 else -math.inf
    else:
        log = jnp.log(decay)
    dtype, same = kappa.dtype, kappa == 1
    exponent = jnp.asarray(log, dtype) * kappa
    return (
        jnp.where(same, jnp.asarray(decay, dtype), jnp.exp(exponent)),
        jnp.where(same, jnp.asarray(1 - decay, dtype), -jnp.expm1(exponent)),
    )


def beyond_range(how: str, decay: Any, kappa: jax.Array) -> jax.Array:
    """Whether the linear form of a decay has left its range, where it is held at 0."""
    if how != "linear":
        return jnp.zeros([], jnp.bool_)
    return (jnp.asarray(decay) > 0) & (kappa * (1 - decay) >= 1)


def check_adam_arguments(b1: Any, b2: Any, eps: Any, eps_root: Any, rule: str) -> None:
    """Raises ValueError unless all are in range."""
    _validate.fraction("b1", b1, "it is the share of the first moment kept at each base batch.")
    _validate.fraction("b2", b2, "it is the share of the second moment kept at each base batch.")
    _validate.at_least("eps", eps, 0, "it is added to a root.")
    _validate.at_least("eps_root", eps_root, 0, "it is added to a sum of squares.")
    _validate.one_of("rule", rule, tuple(ADAM_RULES))


def check_kappa(moves: AdamRule, decays: dict[str, Any], kappa: Any) -> None:
    """Raises ValueError where the linear form of a decay cannot reach `kappa`."""
    for name, how in (("b1", moves.b1), ("b2", moves.b2)):
        decay = decays[name]
        if how != "linear" or not (_validate.is_number(decay) and _validate.is_number(kappa)):
            continue
        if decay > 0 and kappa * (1 - decay) >= 1:
            raise ValueError(
                f"Expected a batch below {1 / (1 - decay):.6g} base batches for {name}={decay!r}, "
                f"got {kappa:.6g}: rule='malladi' holds for κ(1 − {name}) < 1 only; use "
                "rule='half-life', or a larger base batch with its own decays."
            )


def half_life_of_decay(decay: Scalar, batch_size: Scalar) -> Scalar:
    r"""Examples after which an average has forgotten half.

    .. math:: t_{1/2} = B \, \frac{\ln 2}{\ln(1 / \beta)}

    Args:
        decay: :math:`\beta`, share of the old average kept at each step.
        batch_size: :math:`B`, examples of each step. Give it in tokens for a half-life in tokens.

    Returns:
        The half-life, a float for numbers.

    Raises:
        ValueError: If `decay` is not between 0 and 1, or `batch_size` is not positive.

    Examples:
        >>> from adaoptax.scaling import half_life_of_decay
        >>> round(half_life_of_decay(0.95, 512))  # the second moment of many language models
        6919

    References:
        Marek et al., `Small Batch Size Training for Language Models
        <https://arxiv.org/abs/2507.07101>`_, 2025 (formula from its code).
    """
    _validate.positive("decay", decay, "it is the share of the old average kept at each step.")
    _validate.fraction("decay", decay, "an average that keeps all of itself has no half-life.")
    _validate.positive("batch_size", batch_size, "it counts the examples of a step.")
    if _validate.is_number(decay):
        return batch_size * (math.log(2) / -math.log(decay))
    return batch_size * (math.log(2) / -jnp.log(decay))


def decay_of_half_life(half_life: Scalar, batch_size: Scalar) -> Scalar:
    r"""Decay per step of an average with a half-life in examples.

    .. math:: \beta = 2^{-B / t_{1/2}}

    Args:
        half_life: :math:`t_{1/2}`, in examples (or in tokens, with `batch_size`).
        batch_size: :math:`B`, examples of each step.

    Returns:
        The decay, a float for numbers.

    Raises:
        ValueError: If an argument is not positive.

    Examples:
        >>> from adaoptax.scaling import decay_of_half_life
        >>> [round(decay_of_half_life(10e6, 512 * size), 5) for size in (1, 64, 4096)]
        [0.99996, 0.99773, 0.86471]

    References:
        Marek et al., `Small Batch Size Training for Language Models
        <https://arxiv.org/abs/2507.07101>`_, 2025 (formula from its code).
    """
    check_half_life(half_life)
    _validate.positive("batch_size", batch_size, "it counts the examples of a step.")
    ratio = batch_size / half_life
    return 0.5**ratio if _validate.is_number(ratio) else jnp.exp2(-ratio)


def check_half_life(half_life: Any) -> None:
    """Raises ValueError unless the number `half_life` is above 0 and finite."""
    _validate.positive(
        "half_life",
        half_life,
        "it counts the examples after which half is forgotten; half_life_of_decay(decay, "
        "batch_size) gives it for a decay per step.",
    )
