"""LEGW: the square-root rule with a warm-up that lasts longer with the batch."""

import jax
import jax.numpy as jnp

from adaoptax import _validate
from adaoptax.scaling.rules.arguments import float_dtype, sizes
from adaoptax.typing import Scalar


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
