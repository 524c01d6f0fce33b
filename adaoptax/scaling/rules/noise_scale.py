"""The rule of the gradient noise scale, as a number that is given or as measured statistics."""

import jax
import jax.numpy as jnp

from adaoptax.scaling.gain import adascale_gain
from adaoptax.scaling.rules.arguments import float_dtype, required_noise_scale, sizes
from adaoptax.stats import GradientStats, check_stats, signal
from adaoptax.typing import Scalar


def mccandlish(
    batch_size: Scalar,
    base_batch_size: Scalar,
    noise_scale: Scalar | None = None,
    *,
    exponent: Scalar = 1.0,
) -> jax.Array:
    r"""The rule of McCandlish et al.: linear below the noise scale, constant above it.

    .. math:: \mathrm{lr}(B) = \frac{\mathrm{lr}_{max}}{(1 + B_{noise} / B)^\alpha}
        \quad\Rightarrow\quad \frac{\mathrm{lr}(B)}{\mathrm{lr}(B_0)} =
        \left( \frac{1 + B_{noise} / B_0}{1 + B_{noise} / B} \right)^\alpha

    With :math:`\alpha = 1` this is the AdaScale gain at the noise scale of the gradient.

    Args:
        batch_size: :math:`B`, in examples.
        base_batch_size: :math:`B_0`, the size at which the learning rate was tuned, in examples;
            inf if it is :math:`\mathrm{lr}_{max}` itself.
        noise_scale: :math:`B_{noise}`, in examples; 0 gives 1, inf the linear rule. Averages over
            steps give it (ratio of means), see `noise_scale`.
        exponent: :math:`\alpha`; 1 for SGD. For Adam-type optimizers 0.5 to 1 are used as
            baselines by Li et al.; that McCandlish et al. state them is not verified here.

    Returns:
        A scalar factor, 1 at the base batch; NaN for a negative or NaN noise scale.

    Raises:
        ValueError: If there is no noise scale, it is negative, or a size is not positive.

    Examples:
        >>> from adaoptax.scaling import rules
        >>> float(rules.mccandlish(1024, 256, noise_scale=1024))  # (1 + 4)/(1 + 1)
        2.5

    References:
        McCandlish et al., `An Empirical Model of Large-Batch Training
        <https://arxiv.org/abs/1812.06162>`_, 2018, section 2.2, as restated in Li et al., `Surge
        Phenomenon <https://arxiv.org/abs/2405.14578>`_, 2024, equations 1 and 24.
    """
    required_noise_scale(
        noise_scale,
        "mccandlish",
        "an average of adaoptax.noise_scale in examples, or use rules.adascale, the same rule with "
        "the noise scale measured.",
    )
    batch, base = sizes(batch_size, base_batch_size)
    noise = jnp.asarray(noise_scale, float_dtype(noise_scale, batch))
    noisy = jnp.isinf(noise)
    finite = jnp.where(noisy, 0, noise)
    factor = jnp.where(noisy, batch / base, (1 + finite / base) / (1 + finite / batch))
    return jnp.where(noise >= 0, factor, jnp.nan) ** exponent


def adascale(batch_size: Scalar, base_batch_size: Scalar, stats: GradientStats) -> jax.Array:
    r"""The AdaScale gain, from measured noise and signal.

    .. math:: \frac{\mathrm{lr}(B)}{\mathrm{lr}(B_0)} =
        \frac{S^2 / B_0 + \mu^2}{S^2 / B + \mu^2}, \qquad \mu^2 = \lVert g \rVert^2 - S^2 / B'

    where :math:`B'` is the batch on which the statistics were measured. It is `mccandlish` at the
    measured noise scale :math:`S^2 / \mu^2`. `scale_by_batch` averages noise and signal over steps
    before it asks. `scale_by_adascale` is the complete algorithm, with its own clock for schedules.

    Args:
        batch_size: :math:`B`, in examples.
        base_batch_size: :math:`B_0`, the size at which the learning rate was tuned, in examples.
        stats: A `GradientStats`. One step gives a rough value.

    Returns:
        A scalar factor between 1 and :math:`B / B_0`, 1 at the base batch; NaN where neither noise
        nor signal was found, or nothing was measured.

    Raises:
        ValueError: If a size is not positive.
        TypeError: If `stats` is not a `GradientStats`.

    Examples:
        >>> import adaoptax, jax.numpy as jnp
        >>> from adaoptax.scaling import rules
        >>> rows = jnp.array([[1., 0.], [3., 0.], [2., 2.], [2., -2.]])
        >>> _, stats = adaoptax.stats_from_groups(rows, group_size=32)
        >>> round(float(rules.adascale(128, 32, stats)), 4)
        1.625

    References:
        Johnson et al., `AdaScale SGD: A User-Friendly Algorithm for Distributed Training
        <https://arxiv.org/abs/2007.05105>`_, 2020, section 3.
    """
    check_stats(stats, "rules.adascale")
    batch, base = sizes(batch_size, base_batch_size)
    return adascale_gain(stats.variance / base, signal(stats), batch / base)
