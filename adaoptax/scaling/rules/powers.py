"""Rules by a power of the batch: linear, its square root, and the root with a longer warm-up."""

import jax
import jax.numpy as jnp

from adaoptax import _validate
from adaoptax.scaling.rules.arguments import float_dtype, sizes
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


def legw(
    batch_size: Scalar,
    base_batch_size: Scalar,
    examples_seen: Scalar,
    *,
    base_warmup_examples: Scalar,
) -> jax.Array:
    r"""LEGW, linear-epoch gradual warm-up: peak by the square root, warm-up in epochs linearly.

    The base run warms up linearly over :math:`W` examples, the run with :math:`\kappa = B / B_0`
    over :math:`\kappa W` to a peak that is :math:`\sqrt\kappa` times as high. The factor is the
    quotient of the two at the same number of examples :math:`e`:

    .. math:: \sqrt\kappa \,\frac{\min(1, e / (\kappa W))}{\min(1, e / W)}

    It multiplies a schedule **over examples that has the warm-up of the base run in it**: that
    warm-up becomes the longer one. At :math:`e = 0` it is :math:`1 / \sqrt\kappa`, the limit.

    Args:
        batch_size: :math:`B`, in examples.
        base_batch_size: :math:`B_0`, the size at which schedule and warm-up were tuned.
        examples_seen: :math:`e`, examples before this step.
        base_warmup_examples: :math:`W`, examples of the warm-up at the base batch.

    Returns:
        A scalar factor, 1 at the base batch, :math:`\sqrt\kappa` after the warm-up. A batch that
        grows late enters the rest of its longer warm-up.

    Raises:
        ValueError: If a size or `base_warmup_examples` is not positive.

    Examples:
        >>> from adaoptax.scaling import rules
        >>> [float(rules.legw(1024, 256, e, base_warmup_examples=10_000))
        ...  for e in (0, 10_000, 20_000, 40_000)]
        [0.5, 0.5, 1.0, 2.0]

    References:
        You et al., `Large-Batch Training for LSTM and Beyond <https://arxiv.org/abs/1901.08256>`_,
        2019. The quotient is derived here; the paper states peak and warm-up.
    """
    _validate.positive(
        "base_warmup_examples", base_warmup_examples, "it is the warm-up tuned at the base batch."
    )
    batch, base = sizes(batch_size, base_batch_size)
    ratio = batch / base
    done = jnp.asarray(examples_seen, float_dtype(examples_seen, batch)) / base_warmup_examples
    # Below min(1, κ) the quotient is constant, and at the first example 0/0.
    done = jnp.maximum(done, jnp.minimum(1, ratio))
    return jnp.sqrt(ratio) * jnp.minimum(1, done / ratio) / jnp.minimum(1, done)
