"""The exact optimum behind the surge rule, where mean, spread and curvature are known."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from adaoptax.scaling.rules.arguments import float_dtype, sizes
from adaoptax.typing import Scalar


class SurgeConstants(NamedTuple):
    """What describes the curve of best learning rates of sign descent.

    Attributes:
        noise_scale: B_noise of equation 14, where the curve has its peak, in examples; inf where
            there is none.
        largest_learning_rate: Learning rate at the peak, equation 16; inf where there is none.
        limit: Learning rate at an infinite batch, equation 17.
        saturation: limit / largest_learning_rate.
    """

    noise_scale: jax.Array
    largest_learning_rate: jax.Array
    limit: jax.Array
    saturation: jax.Array


def surge_exact(
    batch_size: Scalar,
    base_batch_size: Scalar,
    *,
    mean: Scalar,
    deviation: Scalar,
    hessian: Scalar,
) -> jax.Array:
    r"""The exact rule for descent along the sign of the mean gradient.

    With per-example gradients :math:`\mathcal N(\mu_i, \sigma_i^2)`, independent between
    coordinates, on a quadratic with Hessian H, the best learning rate is

    .. math:: \epsilon(B) = \frac{\sum_i E_i \mu_i}
        {\sum_i (1 - E_i^2) H_{ii} + \sum_{ij} E_i E_j H_{ij}}, \qquad
        E_i = \operatorname{erf}\!\left( \sqrt{B/2} \, \mu_i / \sigma_i \right)

    and the factor is :math:`\epsilon(B) / \epsilon(B_0)`. It needs the whole Hessian: for studies,
    and to judge approximations (`surge`) by.

    Args:
        batch_size: :math:`B`, in examples.
        base_batch_size: :math:`B_0`, in examples.
        mean: :math:`\mu`, array of shape (n,): the true gradient.
        deviation: :math:`\sigma`, array of shape (n,), above 0, of one example.
        hessian: :math:`H`, array of shape (n, n).

    Returns:
        A scalar factor, 1 at the base batch.

    Raises:
        ValueError: If the shapes do not fit, or a size is not positive.

    Examples:
        >>> import jax.numpy as jnp
        >>> from adaoptax.scaling import rules
        >>> curved = {"mean": jnp.full(4, 0.1), "deviation": jnp.ones(4),
        ...           "hessian": jnp.eye(4) + 5}
        >>> [round(float(rules.surge_exact(b, 16, **curved)), 2) for b in (1, 16, 64, 1e6)]
        [0.31, 1.0, 1.26, 1.14]

    References:
        Li et al., `Surge Phenomenon <https://arxiv.org/abs/2405.14578>`_, 2024, equation 9.
    """
    mean, deviation, hessian = _problem(mean, deviation, hessian)
    batch, base = sizes(batch_size, base_batch_size)
    diagonal = jnp.diagonal(hessian)

    def best(size: jax.Array) -> jax.Array:
        scaled = jnp.sqrt(size / 2) * mean / deviation
        sign, rest = jax.lax.erf(scaled), jax.lax.erfc(jnp.abs(scaled))
        variance = rest * (2 - rest)  # 1 − E², without the cancellation at large batches
        return sign @ mean / (variance @ diagonal + sign @ hessian @ sign)

    return best(batch) / best(base)


def surge_constants(mean: Scalar, deviation: Scalar, hessian: Scalar) -> SurgeConstants:
    r"""Noise scale, peak and limit of the curve of `surge_exact`.

    With :math:`z_i = \mu_i / \sigma_i`,

    .. math:: B_{noise} = \frac{\pi \sum_i H_{ii}}{2 \sum_{i \ne j} z_i z_j H_{ij}}, \qquad
        \epsilon_{max} = \sqrt{\frac{B_{noise}}{2 \pi}}
            \frac{\sum_i \mu_i^2 / \sigma_i}{\sum_i H_{ii}}, \qquad
        \epsilon(\infty) = \frac{\sum_i |\mu_i|}
            {\sum_{ij} \operatorname{sign}(\mu_i) \operatorname{sign}(\mu_j) H_{ij}}

    The first two hold for :math:`B \ll \pi \sigma_i^2 / (2 \mu_i^2)`. Equation 14 is used as in
    appendix D of the paper; its print in the text drops :math:`H_{ij}`.

    Args:
        mean: :math:`\mu`, array of shape (n,): the true gradient.
        deviation: :math:`\sigma`, array of shape (n,), above 0, of one example.
        hessian: :math:`H`, array of shape (n, n).

    Returns:
        `SurgeConstants`. Its first and last fields are what `surge` takes. Where the sum over
        :math:`i \ne j` is not positive, as for a diagonal Hessian, there is no peak: noise scale
        and largest learning rate are inf, and the saturation 0.

    Raises:
        ValueError: If the shapes do not fit.

    Examples:
        >>> import jax.numpy as jnp
        >>> from adaoptax.scaling import rules
        >>> curved = rules.surge_constants(jnp.full(4, 0.1), jnp.ones(4), jnp.eye(4) + 5)
        >>> round(float(curved.noise_scale), 2)  # π 24 / (2 · 0.6)
        62.83
        >>> float(rules.surge_constants(jnp.ones(4), jnp.ones(4), jnp.eye(4)).noise_scale)
        inf

    References:
        Li et al., `Surge Phenomenon <https://arxiv.org/abs/2405.14578>`_, 2024, equations 14, 16
        and 17.
    """
    mean, deviation, hessian = _problem(mean, deviation, hessian)
    ratio, trace, sign = mean / deviation, jnp.trace(hessian), jnp.sign(mean)
    outside = hessian - jnp.diag(jnp.diagonal(hessian))
    coupling = ratio @ outside @ ratio
    peaks = coupling > 0
    noise = jnp.where(peaks, jnp.pi * trace / (2 * jnp.where(peaks, coupling, 1)), jnp.inf)
    largest = jnp.sqrt(noise / (2 * jnp.pi)) * (mean @ ratio) / trace
    limit = jnp.sum(jnp.abs(mean)) / (sign @ hessian @ sign)
    return SurgeConstants(noise, largest, limit, limit / largest)


def _problem(mean: Any, deviation: Any, hessian: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    dtype = float_dtype(mean, deviation, hessian)
    mean, deviation, hessian = (jnp.asarray(x, dtype) for x in (mean, deviation, hessian))
    size = mean.size
    if mean.shape != (size,) or deviation.shape != (size,) or hessian.shape != (size, size):
        raise ValueError(
            "Expected mean and deviation of shape (n,) and hessian of shape (n, n), got "
            f"{mean.shape}, {deviation.shape} and {hessian.shape}: this usually means a tree of "
            "parameters; flatten it with jax.flatten_util.ravel_pytree."
        )
    return mean, deviation, hessian
