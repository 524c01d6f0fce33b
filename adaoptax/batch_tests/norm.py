"""The norm test: is the mean gradient known to a relative accuracy of η?"""

import jax
import optax

from adaoptax import _validate
from adaoptax.batch_tests.batch_test import gradient_test, tolerated
from adaoptax.stats import GradientStats
from adaoptax.typing import Scalar


def norm_test(
    eta: Scalar,
    *,
    signal: str = "debiased",
    dataset_size: Scalar | None = None,
    decay: Scalar | None = None,
    interval: Scalar = 1,
) -> optax.GradientTransformationExtraArgs:
    r"""States the batch size at which the standard error of the gradient is `eta` times its norm.

    .. math:: \frac{S^2}{B} \le \eta^2 \lVert g \rVert^2
        \quad\Longleftrightarrow\quad
        B \ge b = \frac{S^2}{\eta^2 \lVert g \rVert^2}

    A passive transformation: updates pass through unchanged. Put it first in a chain and read the
    requirement with `required_batch_size`. On statistics of `measure.devices` or `measure.fsdp`
    it is the *norm test on per-device gradients* of distributed training (DDP-Norm and FSDP-Norm),
    with the unbiased normalisation: :math:`S^2` from J devices is divided by J − 1.

    Args:
        eta: :math:`\eta`, relative accuracy (it enters squared).
        signal: ``"debiased"`` puts :math:`\lVert g \rVert^2 - S^2/B` for
            :math:`\lVert g \rVert^2`; ``"plug-in"`` is the form that papers print. The plug-in
            statistic saturates below 1 however noisy the gradient is, since the measured norm
            contains the noise: with ``eta >= 1`` it practically never asks for growth.
        dataset_size: N for sampling without replacement: the requirement becomes b·N/(b + N).
        decay: Averages :math:`S^2` and signal over tests before dividing (share of the old
            average kept, 0 ≤ decay < 1); None decides by each test alone.
        interval: The test runs at every `interval`-th update and holds its state between.

    Returns:
        An `optax.GradientTransformationExtraArgs` with `BatchTestState`; `update` requires
        ``stats=``, a `GradientStats`.

    Raises:
        ValueError: If `eta`, `decay`, `dataset_size` or `interval` is out of range, or `signal`
            is unknown.

    Examples:
        >>> import adaoptax, jax.numpy as jnp, optax
        >>> rows = jnp.array([[1., 0.], [3., 0.], [2., 2.], [2., -2.]])  # per-example gradients
        >>> grads, stats = adaoptax.stats_from_groups(rows, group_size=1)
        >>> tx = optax.chain(adaoptax.norm_test(eta=0.25), optax.sgd(0.1))
        >>> updates, state = tx.update(grads, tx.init(grads), stats=stats)
        >>> round(float(adaoptax.required_batch_size(state)), 2)
        16.84

    References:
        Byrd et al., `Sample size selection in optimization methods for machine learning
        <https://doi.org/10.1007/s10107-012-0572-5>`_, 2012, equation 3.9; Lau et al., `AdAdaGrad
        <https://arxiv.org/abs/2402.11215>`_, 2024; Lau et al., `Adaptive Batch Size Schedules for
        Distributed Training of Language Models with Data and Model Parallelism
        <https://arxiv.org/abs/2412.21124>`_, 2024.
    """
    _validate.positive("eta", eta, "it is the tolerated relative error; 0.1 to 1 is usual.")

    def noise(stats: GradientStats) -> jax.Array:
        return stats.variance

    def required(variance: jax.Array, sq_signal: jax.Array) -> jax.Array:
        return tolerated(variance, eta, sq_signal)

    return gradient_test("norm_test", noise, required, signal, dataset_size, decay, interval)
