"""Three conventions for averaging noise and signal before the AdaScale gain is formed.

They differ in when a sample counts, how it is clipped and how old samples fade:

| convention  | gain of step t uses | samples              | averaging                          |
| ----------- | ------------------- | -------------------- | ---------------------------------- |
| "adaoptax"  | steps ≤ t           | raw, clamped on use  | debiased, θ = d^S                  |
| "paper"     | steps < t, first 1  | σ² ≥ 1e-6, μ² ≥ 0    | mean, then θ = max(1 − (1−d)S, 0)  |
| "fairscale" | steps ≤ t           | σ² ≥ 1e-6, μ² ≥ 0    | debiased, θ = max(1 − (1−d)S, 0)   |

with d = 0.999 and S the scale. σ² is the variance of one base batch and μ² the squared norm of the
true gradient. Neither depends on the batch size, so nothing is rescaled when it changes.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from adaoptax import _validate
from adaoptax.averages import Averages, debiased, init_averages, update_averages


class NoiseAndSignal(NamedTuple):
    """What the gain is formed from.

    Attributes:
        base_variance: σ², trace of the covariance of the gradient of one base batch.
        signal: μ², squared norm of the true gradient.
    """

    base_variance: jax.Array
    signal: jax.Array


def init_gain_averages(dtype: Any) -> Averages:
    """Averages of no sample yet."""
    return init_averages(NoiseAndSignal(jnp.zeros([], dtype), jnp.zeros([], dtype)), dtype)


def checked_decay(decay: Any) -> Any:
    """The share of the average kept for each base batch, 0.999 for None; ValueError beyond."""
    decay = 0.999 if decay is None else decay
    _validate.fraction("decay", decay, "it is the share of the average kept for each base batch.")
    return decay


class Convention(NamedTuple):
    """How samples become averages.

    Attributes:
        clip: What becomes of one sample before it is averaged.
        share: ``share(scale, decay, samples)`` → 1 − θ, the share of the new sample.
        includes_current: Whether the gain of a step sees the sample of that step.
        plain_mean: Whether the average starts as a plain mean (its weight stays 1).
    """

    clip: Callable[[NoiseAndSignal], NoiseAndSignal]
    share: Callable[[jax.Array, Any], jax.Array]
    includes_current: bool
    plain_mean: bool


def _clip_sample(sample: NoiseAndSignal) -> NoiseAndSignal:
    return NoiseAndSignal(jnp.maximum(sample.base_variance, 1e-6), jnp.maximum(sample.signal, 0))


def _linear_share(scale: jax.Array, decay: Any) -> jax.Array:
    return jnp.minimum(scale * (1 - decay), 1)


def _power_share(scale: jax.Array, decay: Any) -> jax.Array:
    # In Python where it can be: float32 knows 1 − 0.999 to five digits only.
    log = math.log(decay) if _validate.is_number(decay) and decay > 0 else jnp.log(decay)
    return -jnp.expm1(scale * log)


CONVENTIONS = {
    "adaoptax": Convention(lambda sample: sample, _power_share, True, False),
    "paper": Convention(_clip_sample, _linear_share, False, True),
    "fairscale": Convention(_clip_sample, _linear_share, True, False),
}


def add_sample(
    convention: Convention,
    averages: Averages,
    sample: NoiseAndSignal,
    scale: jax.Array,
    decay: Any,
    num_samples: jax.Array,
) -> Averages:
    """Averages with one more sample; `num_samples` counts it."""
    share = convention.share(scale, decay)
    if convention.plain_mean:
        # 1/t exceeds 1 − θ exactly while t < 1/(1 − θ).
        share = jnp.maximum(share, 1 / num_samples.astype(averages.weight.dtype))
    return update_averages(averages, convention.clip(sample), share)


def adascale_gain(base_variance: ArrayLike, signal: ArrayLike, scale: ArrayLike) -> jax.Array:
    r"""The AdaScale gain of a batch that is `scale` times the base batch.

    .. math:: r = \frac{\sigma^2 + \mu^2}{\sigma^2 / S + \mu^2}

    Args:
        base_variance: :math:`\sigma^2`, trace of the covariance of the gradient of one base batch
            (the per-example variance divided by the base batch size); negative counts as zero.
        signal: :math:`\mu^2`, squared norm of the true gradient; negative counts as zero.
        scale: :math:`S = B / B_0`; may be below one.

    Returns:
        A scalar between 1 and S: 1 where noise is absent, S where signal is; NaN where neither
        is there.

    Examples:
        >>> import adaoptax
        >>> float(adaoptax.scaling.adascale_gain(base_variance=4.0, signal=1.0, scale=16.0))
        4.0

    References:
        Johnson et al., `AdaScale SGD <https://arxiv.org/abs/2007.05105>`_, 2020, section 3.
    """
    variance, signal = jnp.maximum(base_variance, 0), jnp.maximum(signal, 0)
    return (variance + signal) / (variance / scale + signal)


def gain_of(averages: Averages, scale: jax.Array) -> tuple[jax.Array, jax.Array]:
    """``(gain, known)`` at `scale`; the gain is 1 where nothing is known."""
    mean = debiased(averages)
    gain = adascale_gain(mean.base_variance, mean.signal, scale)
    known = jnp.isfinite(gain) & (averages.weight > 0)
    return jnp.where(known, gain, 1), known
