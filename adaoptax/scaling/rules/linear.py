"""The linear rule: learning rate proportional to the batch."""

import jax

from adaoptax.scaling.rules.arguments import sizes
from adaoptax.typing import Scalar


def linear(batch_size: Scalar, base_batch_size: Scalar) -> jax.Array:
    r"""The linear rule, for SGD far below the noise scale.

    .. math:: \mathrm{lr}(B) / \mathrm{lr}(B_0) = B / B_0

    Args:
        batch_size: :math:`B`, in examples.
        base_batch_size: :math:`B_0`, the size at which the learning rate was tuned, in examples.

    Returns:
        A scalar factor, 1 at the base batch.

    Raises:
        ValueError: If a size is not positive.

    Examples:
        >>> from adaoptax.scaling import rules
        >>> float(rules.linear(1024, 256))
        4.0

    References:
        Goyal et al., `Accurate, Large Minibatch SGD <https://arxiv.org/abs/1706.02677>`_, 2017,
        section 2.1.
    """
    batch, base = sizes(batch_size, base_batch_size)
    return batch / base
