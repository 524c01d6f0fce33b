"""The inner-product test: is the mean gradient a descent direction, most of the time?"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from adaoptax import _validate
from adaoptax.batch_tests.batch_test import gradient_test, tolerated
from adaoptax.stats import (
    GradientStats,
    ratio,
    require_inner_product_variance,
    require_leave_one_out_variance,
)
from adaoptax.typing import Scalar


def inner_product_test(
    theta: Scalar,
    *,
    leave_one_out: bool = False,
    signal: str = "debiased",
    dataset_size: Scalar | None = None,
    decay: Scalar | None = None,
    interval: Scalar = 1,
) -> optax.GradientTransformationExtraArgs:
    r"""States the batch size at which per-example gradients agree with the mean along it.

    .. math:: \frac{V_{ip}}{B} \le \theta^2 \lVert g \rVert^4
        \quad\Longleftrightarrow\quad
        B \ge b = \frac{V_{ip}}{\theta^2 \lVert g \rVert^4}

    Weaker than the norm test: noise across the gradient is ignored. Note that the inner product of
    an example with a mean that contains it is positive even without any signal, so that on pure
    noise the plug-in form passes. Two remedies: `leave_one_out` takes the inner product with the
    mean of the **others**, :math:`p_i' = \langle g_i, g_{-i} \rangle`, and puts its variance for
    :math:`V_{ip}`; the augmented test bounds the noise across, too.

    Args:
        theta: :math:`\theta`, relative accuracy along the gradient (it enters squared).
        leave_one_out: Whether to decide by :math:`\operatorname{Var}(p_i')`, which needs
            statistics with `leave_one_out_variance`. Up to a noise of a tenth of the signal it is
            within 15 % of the truth, beyond that it errs towards growth.
        signal: As in `norm_test`; the signal enters squared here.
        dataset_size: As in `norm_test`.
        decay: As in `norm_test`; averages :math:`V_{ip}` and the signal.
        interval: As in `norm_test`.

    Returns:
        An `optax.GradientTransformationExtraArgs` with `BatchTestState`; `update` requires
        ``stats=`` with inner products, and raises ValueError if they were not measured.

    Raises:
        ValueError: If an argument is out of range.

    Examples:
        >>> import adaoptax, jax.numpy as jnp
        >>> rows = jnp.array([[1., 0.], [3., 0.], [2., 2.], [2., -2.]])  # per-example gradients
        >>> grads, stats = adaoptax.stats_from_groups(rows, group_size=1)
        >>> tx = adaoptax.inner_product_test(theta=0.1, signal="plug-in")
        >>> _, state = tx.update(grads, tx.init(grads), stats=stats)
        >>> round(float(adaoptax.required_batch_size(state)), 2)
        16.67

    References:
        Bollapragada et al., `Adaptive Sampling Strategies for Stochastic Optimization
        <https://arxiv.org/abs/1710.11258>`_, 2018, equation 2.6.
    """
    _validate.positive("theta", theta, "it is the tolerated relative error along the gradient.")
    measured = require_leave_one_out_variance if leave_one_out else require_inner_product_variance

    def noise(stats: GradientStats) -> jax.Array:
        return unless_underflow(measured(stats), stats)

    def required(along: jax.Array, sq_signal: jax.Array) -> jax.Array:
        return required_along(along, theta, sq_signal)

    name = "inner_product_test"
    return gradient_test(name, noise, required, signal, dataset_size, decay, interval)


def unless_underflow(variance: jax.Array, stats: GradientStats) -> jax.Array:
    """V_ip, or NaN where ‖g‖⁴ underflows: a zero would pass for a small variance."""
    underflow = (stats.sq_norm > 0) & (stats.sq_norm**2 < jnp.finfo(variance.dtype).tiny)
    return jnp.where(underflow, jnp.nan, variance)


def required_along(variance: jax.Array, theta: Any, sq_signal: jax.Array) -> jax.Array:
    """V_ip / (θ² signal²), divided one factor at a time against overflow."""
    return tolerated(ratio(variance, sq_signal), theta, sq_signal)
