"""The surge rule: for optimizers of signs the best learning rate rises, peaks and settles.

`surge` is the approximation for use, `surge_exact` the optimum where mean, spread and curvature are
known.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from adaoptax import _validate
from adaoptax.scaling.rules.arguments import float_dtype, required_noise_scale, sizes
from adaoptax.typing import Scalar

FORMS = ("mean-field", "hold", "raw")


def surge(
    batch_size: Scalar,
    base_batch_size: Scalar,
    noise_scale: Scalar | None = None,
    *,
    saturation: Scalar = 0.5,
    form: str = "mean-field",
) -> jax.Array:
    r"""The rule of the surge phenomenon, for Adam and other sign-like optimizers.

    .. math:: \frac{\mathrm{lr}(B)}{\mathrm{lr}(B_0)} = \frac{h(B)}{h(B_0)}, \qquad
        h(B) = \frac{2}{1/\sqrt x + \sqrt x}

    The learning rate grows like :math:`\sqrt B`, has its peak :math:`h = 1` at the noise scale
    :math:`B_n`, and falls after it. How far it falls is the form:

    - ``"mean-field"``: :math:`1/x = \beta_n^2 + (1 - \beta_n^2) B_n / B` with
      :math:`\beta_n = \rho / (1 + \sqrt{1 - \rho^2})`. It settles at
      :math:`h(\infty) = \rho`, as the exact optimum does (`surge_exact`). The parametrisation by
      :math:`B_n` and :math:`\rho` is derived here from the mean-field form of Su.
    - ``"hold"``: :math:`x = \min(B, B_n) / B_n`, equation 2 of the paper up to the peak, 1 after.
    - ``"raw"``: :math:`x = B / B_n`, equation 2 as printed. It tends to 0 for large batches, where
      the exact optimum does not: do not run it far above the noise scale.

    **The noise scale is that of the sign of the gradient**, another number than
    :math:`\operatorname{tr}\Sigma / \lVert G \rVert^2`: 379 against 9539 on the toy of the tests.
    Fit it from runs (best learning rate at several batch sizes, or steps against examples to one
    loss), or take it from `surge_constants` where the curvature is known. It grows as the loss
    falls.

    Args:
        batch_size: :math:`B`, in examples.
        base_batch_size: :math:`B_0`, the size at which the learning rate was tuned, in examples.
        noise_scale: :math:`B_n`, in examples; inf says that there is no peak, and gives the
            square-root rule.
        saturation: :math:`\rho`, share of the peak's learning rate that is left at an infinite
            batch, between 0 and 1. The default is a guess between the few values that are known
            (0.37 on the toy, about 0.5 in the learning rates tuned by Marek et al.). For
            ``"mean-field"`` only.
        form: One of the three above.

    Returns:
        A scalar factor, 1 at the base batch; NaN for a NaN or not positive noise scale.

    Raises:
        ValueError: If there is no noise scale, or an argument is out of range.

    Examples:
        >>> from adaoptax.scaling import rules
        >>> [round(float(rules.surge(b, 256, noise_scale=1024)), 3) for b in (64, 256, 1024, 4096)]
        [0.597, 1.0, 1.23, 1.04]

    References:
        Li et al., `Surge Phenomenon in Optimal Learning Rate and Batch Size Scaling
        <https://arxiv.org/abs/2405.14578>`_, 2024, equation 2; Su, `How should the learning rate
        change as the batch size increases? <https://kexue.fm/archives/10542>`_, 2024 (read in
        translation; algebra checked).
    """
    required_noise_scale(
        noise_scale,
        "surge",
        "the batch size of the best learning rate, fitted from runs; the noise scale of the "
        "gradient is another quantity.",
    )
    _validate.positive("noise_scale", _finite(noise_scale), "it counts examples.")
    _validate.one_of("form", form, FORMS)
    if _validate.is_number(saturation) and not 0 < saturation < 1:
        raise ValueError(
            f"Expected 0 < saturation < 1, got saturation={saturation!r}: it is the share of the "
            "best learning rate that is left at an infinite batch; form='raw' tends to 0, "
            "form='hold' stays at 1."
        )
    batch, base = sizes(batch_size, base_batch_size)
    noise = jnp.asarray(noise_scale, float_dtype(noise_scale, batch))
    if form == "hold":
        batch, base = jnp.minimum(batch, noise), jnp.minimum(base, noise)
    # Written in 1/B_n, so that an infinite noise scale is no special case.
    inverse = 1 / jnp.where(noise > 0, noise, 1)
    settled: Scalar = 0.0
    if form == "mean-field":
        settled = (saturation / (1 + jnp.sqrt(1 - jnp.square(saturation)))) ** 2
    after, before = inverse * batch, inverse * base
    rest = 1 - settled
    quotient = batch / base * (settled * before + rest) / (settled * after + rest)  # x(B)/x(B_0)
    turn = lambda size: (size + settled * size + rest) / (settled * size + rest)  # 1 + x
    factor = jnp.sqrt(quotient) * turn(before) / turn(after)
    return jnp.where(noise > 0, factor, jnp.nan)


def _finite(noise_scale: Any) -> Any:
    """The noise scale; 1 for inf, which is allowed here."""
    return 1 if _validate.is_number(noise_scale) and noise_scale == float("inf") else noise_scale


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
