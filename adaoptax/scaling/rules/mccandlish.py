"""The rule of the gradient noise scale."""

import jax
import jax.numpy as jnp

from adaoptax.scaling.rules.arguments import float_dtype, required_noise_scale, sizes
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
