"""The augmented inner-product test: agreement along the gradient, and little noise across it."""

import jax
import jax.numpy as jnp
import optax

from adaoptax import _validate
from adaoptax.batch_tests.batch_test import gradient_test, tolerated
from adaoptax.batch_tests.inner_product import required_along, unless_underflow
from adaoptax.stats import (
    GradientStats,
    orthogonal_variance,
    require_inner_product_variance,
    require_leave_one_out_variance,
)
from adaoptax.typing import Scalar


def augmented_inner_product_test(
    theta: Scalar,
    nu: Scalar,
    *,
    leave_one_out: bool = False,
    signal: str = "debiased",
    dataset_size: Scalar | None = None,
    decay: Scalar | None = None,
    interval: Scalar = 1,
) -> optax.GradientTransformationExtraArgs:
    r"""States the batch size that passes the inner-product **and** the orthogonality test.

    .. math:: b = \max\left(\frac{V_{ip}}{\theta^2 \lVert g \rVert^4},
        \frac{V_{or}}{\nu^2 \lVert g \rVert^2}\right), \qquad
        V_{or} = S^2 - \frac{V_{ip}}{\lVert g \rVert^2}

    It asks for as much accuracy as a norm test with :math:`\eta^2 = \theta^2 + \nu^2`. The pair
    (0.9, 5.84) of the paper is therefore a norm test with :math:`\eta = 5.9`, which in high
    dimension hardly ever fires: choose tolerances for the accuracy that you want.

    Args:
        theta: :math:`\theta`, relative accuracy along the gradient (it enters squared).
        nu: :math:`\nu`, relative accuracy across the gradient (it enters squared).
        leave_one_out: As in `inner_product_test`; the orthogonality test is as ever.
        signal: As in `norm_test`.
        dataset_size: As in `norm_test`.
        decay: As in `norm_test`; averages :math:`V_{ip}`, :math:`V_{or}` and the signal.
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
        >>> tx = adaoptax.augmented_inner_product_test(theta=10, nu=0.25, signal="plug-in")
        >>> _, state = tx.update(grads, tx.init(grads), stats=stats)
        >>> round(float(adaoptax.required_batch_size(state)), 2)
        10.67

    References:
        Bollapragada et al., `Adaptive Sampling Strategies for Stochastic Optimization
        <https://arxiv.org/abs/1710.11258>`_, 2018, equations 2.6 and 3.3; Espath et al.,
        `On the equivalence of different adaptive batch size selection strategies
        <https://arxiv.org/abs/2109.10933>`_, 2021.
    """
    _validate.positive("theta", theta, "it is the tolerated relative error along the gradient.")
    _validate.positive("nu", nu, "it is the tolerated relative error across the gradient.")
    measured = require_leave_one_out_variance if leave_one_out else require_inner_product_variance

    def noise(stats: GradientStats) -> tuple[jax.Array, jax.Array]:
        return unless_underflow(measured(stats), stats), orthogonal_variance(stats)

    def required(noises: tuple[jax.Array, jax.Array], sq_signal: jax.Array) -> jax.Array:
        along, across = noises
        # fmax: one part may be 0/0 while the other decides.
        return jnp.fmax(required_along(along, theta, sq_signal), tolerated(across, nu, sq_signal))

    name = "augmented_inner_product_test"
    return gradient_test(name, noise, required, signal, dataset_size, decay, interval)
