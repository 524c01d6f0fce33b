"""The optimal split of one tolerance between noise along the gradient and noise across it."""

import jax
import jax.numpy as jnp
import optax

from adaoptax import _validate
from adaoptax.batch_tests.batch_test import SIGNALS, debias, gradient_test, tolerated
from adaoptax.batch_tests.inner_product import unless_underflow
from adaoptax.stats import (
    GradientStats,
    orthogonal_variance,
    ratio,
    require_inner_product_variance,
)
from adaoptax.typing import Scalar

_MEANING = "it is the tolerated relative error of the gradient; 0.1 to 1 is usual."


def optimal_split(
    epsilon: Scalar,
    *,
    signal: str = "debiased",
    dataset_size: Scalar | None = None,
    decay: Scalar | None = None,
    interval: Scalar = 1,
) -> optax.GradientTransformationExtraArgs:
    r"""The augmented inner-product test whose two tolerances come from one, as the noise lies.

    Of all pairs with :math:`\theta^2 + \nu^2 = \epsilon^2`, which all bound the same relative error
    of the gradient, it takes at each test the one that asks for the fewest examples. There both
    requirements agree:

    .. math:: \theta^2 = \epsilon^2 \frac{\sigma_\parallel}{\sigma_\parallel + \sigma_\perp}, \quad
        \nu^2 = \epsilon^2 \frac{\sigma_\perp}{\sigma_\parallel + \sigma_\perp}, \qquad
        b = \frac{\sigma_\parallel + \sigma_\perp}{\epsilon^2 \lVert g \rVert^2}, \qquad
        \sigma_\parallel = \frac{V_{ip}}{\lVert g \rVert^2}, \quad \sigma_\perp = V_{or}

    In the plug-in form this is the norm test with :math:`\eta = \epsilon` exactly: for a given
    accuracy there is nothing to gain from two tolerances, and any other split asks for more. In the
    debiased form :math:`\sigma_\parallel` is over the debiased signal, as in
    `augmented_inner_product_test`, and :math:`b` a little above the norm test's.

    The equality of the two requirements is derived from the theorem, not printed in the paper.

    Args:
        epsilon: :math:`\epsilon`, relative accuracy of the gradient (it enters squared). See
            `optimal_step_size` for the step that belongs to it, `split_tolerances` for the split.
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
        >>> from adaoptax.batch_tests import optimal_split
        >>> rows = jnp.array([[1., 0.], [3., 0.], [2., 2.], [2., -2.]])  # per-example gradients
        >>> grads, stats = adaoptax.stats_from_groups(rows, group_size=1)
        >>> tx = optimal_split(epsilon=0.25, signal="plug-in")
        >>> _, state = tx.update(grads, tx.init(grads), stats=stats)
        >>> round(float(adaoptax.required_batch_size(state)), 2)
        13.33

    References:
        Espath et al., `On the equivalence of different adaptive batch size selection strategies
        <https://arxiv.org/abs/2109.10933>`_, 2021; Bollapragada et al., `Adaptive Sampling
        Strategies for Stochastic Optimization <https://arxiv.org/abs/1710.11258>`_, 2018.
    """
    _validate.positive("epsilon", epsilon, _MEANING)

    def noise(stats: GradientStats) -> tuple[jax.Array, jax.Array]:
        along = unless_underflow(require_inner_product_variance(stats), stats)
        return along, orthogonal_variance(stats)

    def required(noises: tuple[jax.Array, jax.Array], sq_signal: jax.Array) -> jax.Array:
        along, across = ratio(noises[0], sq_signal), noises[1]
        # 0/0 along a gradient of zero says nothing: the noise across decides.
        return tolerated(jnp.where(jnp.isnan(along), 0, along) + across, epsilon, sq_signal)

    return gradient_test("optimal_split", noise, required, signal, dataset_size, decay, interval)


def split_tolerances(
    stats: GradientStats, epsilon: Scalar, *, signal: str = "debiased"
) -> tuple[jax.Array, jax.Array]:
    r"""The pair :math:`(\theta, \nu)` that `optimal_split` takes on these statistics.

    To see where the noise lies, or to fix a pair for `augmented_inner_product_test`: average
    statistics over steps first.

    Args:
        stats: Statistics with inner products.
        epsilon: :math:`\epsilon`; :math:`\theta^2 + \nu^2 = \epsilon^2`.
        signal: As in `norm_test`.

    Returns:
        ``(theta, nu)``, two scalars; NaN if there is no signal or no noise.

    Raises:
        ValueError: If the inner products were not measured, or an argument is out of range.

    Examples:
        >>> import adaoptax, jax.numpy as jnp
        >>> from adaoptax.batch_tests import split_tolerances
        >>> rows = jnp.array([[1., 0.], [3., 0.], [2., 2.], [2., -2.]])  # per-example gradients
        >>> _, stats = adaoptax.stats_from_groups(rows, group_size=1)
        >>> [round(float(x), 4) for x in split_tolerances(stats, 0.5, signal="plug-in")]
        [0.2236, 0.4472]

    References:
        Espath et al., `On the equivalence of different adaptive batch size selection strategies
        <https://arxiv.org/abs/2109.10933>`_, 2021.
    """
    _validate.positive("epsilon", epsilon, _MEANING)
    _validate.one_of("signal", signal, SIGNALS)
    sq_signal = debias(stats.sq_norm, stats.variance / stats.num_examples, signal)
    known = sq_signal > 0
    along = require_inner_product_variance(stats) / jnp.where(known, sq_signal, jnp.nan)
    across = orthogonal_variance(stats)
    share = ratio(along, along + across)
    return jnp.sqrt(share) * epsilon, jnp.sqrt(1 - share) * epsilon
