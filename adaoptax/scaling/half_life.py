"""Decays of averages as half-lives in examples, which no batch size changes."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from adaoptax import _validate
from adaoptax.typing import Scalar


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


def power(decay: Any, kappa: jax.Array) -> tuple[jax.Array, jax.Array]:
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
