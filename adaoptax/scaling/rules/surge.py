"""The surge rule: for optimizers of signs the best learning rate rises, peaks and settles."""

from typing import Any

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
