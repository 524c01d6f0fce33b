"""The square-root rule: learning rate proportional to the root of the batch."""

import jax
import jax.numpy as jnp

from adaoptax.scaling.rules.arguments import sizes
from adaoptax.typing import Scalar


def sqrt(batch_size: Scalar, base_batch_size: Scalar) -> jax.Array:
    r"""The square-root rule, for Adam-type optimizers whose gradient is mostly noise.

    .. math:: \mathrm{lr}(B) / \mathrm{lr}(B_0) = \sqrt{B / B_0}

    It keeps the variance of an update per example constant. The betas, epsilon and weight decay of
    Adam move with it in `scale_by_adam_with_batch`.

    Args:
        batch_size: :math:`B`, in examples.
        base_batch_size: :math:`B_0`, the size at which the learning rate was tuned, in examples.

    Returns:
        A scalar factor, 1 at the base batch.

    Raises:
        ValueError: If a size is not positive.

    Examples:
        >>> from adaoptax.scaling import rules
        >>> float(rules.sqrt(1024, 256))
        2.0

    References:
        Krizhevsky, `One weird trick for parallelizing convolutional neural networks
        <https://arxiv.org/abs/1404.5997>`_, 2014, section 5; Malladi et al., `On the SDEs and
        Scaling Rules for Adaptive Gradient Algorithms <https://arxiv.org/abs/2205.10287>`_, 2022.
    """
    batch, base = sizes(batch_size, base_batch_size)
    return jnp.sqrt(batch / base)
