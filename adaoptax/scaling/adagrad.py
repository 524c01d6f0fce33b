"""AdaGrad-Norm, and the pairs of an AdaGrad optimizer with the test that belongs to it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from adaoptax import _tree, _validate
from adaoptax._tree import ArrayTree
from adaoptax.batch_tests.coordinate import coordinate_test
from adaoptax.batch_tests.norm import norm_test
from adaoptax.scaling.skip import skip_nonfinite
from adaoptax.typing import Scalar


class ScaleByAdaGradNormState(NamedTuple):
    """State of AdaGrad-Norm.

    Attributes:
        sq_norm_sum: b², the initial value plus the squared norms of all gradients so far.
    """

    sq_norm_sum: jax.Array


def scale_by_adagrad_norm(
    initial_accumulator_value: Scalar = 0.1, eps: Scalar = 1e-7
) -> optax.GradientTransformationExtraArgs:
    r"""Divides the gradient by the root of the sum of all squared gradient norms.

    .. math:: b_{t+1}^2 = b_t^2 + \lVert g_t \rVert^2, \qquad
        u_t = g_t / \sqrt{b_{t+1}^2 + \epsilon}

    Args:
        initial_accumulator_value: :math:`b_0^2`, at least 0.
        eps: :math:`\epsilon`, added inside the root as in `optax.adagrad`.

    Returns:
        An `optax.GradientTransformationExtraArgs` with one scalar of state. A NaN or infinite
        gradient gives a zero update and leaves the sum as it was; a zero one, a zero update.

    Raises:
        ValueError: If `initial_accumulator_value` or `eps` is negative.

    Examples:
        >>> import adaoptax, jax.numpy as jnp
        >>> tx = adaoptax.scaling.scale_by_adagrad_norm(initial_accumulator_value=0.0, eps=0.0)
        >>> grads = jnp.array([3.0, 4.0])
        >>> updates, state = tx.update(grads, tx.init(grads))
        >>> [round(float(u), 3) for u in updates], float(state.sq_norm_sum)
        ([0.6, 0.8], 25.0)

    References:
        Ward, Wu and Bottou, `AdaGrad stepsizes <https://arxiv.org/abs/1806.01811>`_, 2019,
        Algorithm 1.
    """
    _validate.at_least(
        "initial_accumulator_value", initial_accumulator_value, 0, "it starts a sum of squares."
    )
    _validate.at_least("eps", eps, 0, "it is added to a sum of squares.")

    def init_fn(params: ArrayTree) -> ScaleByAdaGradNormState:
        dtype = _tree.scalar_dtype(params)
        return ScaleByAdaGradNormState(
            jnp.asarray(initial_accumulator_value, dtype) + jnp.zeros([], dtype)
        )

    def update_fn(
        updates: ArrayTree,
        state: ScaleByAdaGradNormState,
        params: ArrayTree | None = None,
        **extra_args: Any,
    ) -> tuple[ArrayTree, ScaleByAdaGradNormState]:
        del params, extra_args
        added = (state.sq_norm_sum + _tree.sq_norm(updates)).astype(state.sq_norm_sum.dtype)
        finite = jnp.isfinite(added)
        moves = finite & (added > 0)
        factor = jax.lax.rsqrt(jnp.where(moves, added, 1) + eps)
        total = jnp.where(finite, added, state.sq_norm_sum)
        return _tree.scale_where(moves, factor, updates), ScaleByAdaGradNormState(total)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def adagrad_norm(
    learning_rate: optax.ScalarOrSchedule,
    initial_accumulator_value: Scalar = 0.1,
    eps: Scalar = 1e-7,
) -> optax.GradientTransformationExtraArgs:
    r"""AdaGrad-Norm: one adaptive step size for all parameters.

    Args:
        learning_rate: :math:`\eta`, a number or an Optax schedule.
        initial_accumulator_value: As in `scale_by_adagrad_norm`.
        eps: As in `scale_by_adagrad_norm`.

    Returns:
        An `optax.GradientTransformationExtraArgs`; it needs no statistics.

    Raises:
        ValueError: If an argument is negative.

    Examples:
        >>> import adaoptax, jax, jax.numpy as jnp, optax
        >>> tx, w = adaoptax.adagrad_norm(1.0), jnp.array([2.0, -1.0])
        >>> state = tx.init(w)
        >>> for _ in range(100):
        ...     updates, state = tx.update(jax.grad(lambda w: jnp.sum(w**2))(w), state)
        ...     w = optax.apply_updates(w, updates)
        >>> bool(jnp.all(jnp.abs(w) < 1e-3))
        True

    References:
        Ward, Wu and Bottou, `AdaGrad stepsizes <https://arxiv.org/abs/1806.01811>`_, 2019.
    """
    return optax.chain(
        scale_by_adagrad_norm(initial_accumulator_value, eps),
        optax.scale_by_learning_rate(learning_rate),
    )


def adadagrad_norm(
    learning_rate: optax.ScalarOrSchedule,
    eta: Scalar = 0.5,
    initial_accumulator_value: Scalar = 0.1,
    eps: Scalar = 1e-7,
    *,
    signal: str = "debiased",
    dataset_size: Scalar | None = None,
    decay: Scalar | None = None,
    interval: Scalar = 1,
) -> optax.GradientTransformationExtraArgs:
    r"""AdAdaGrad-Norm: AdaGrad-Norm with the norm test in front.

    Args:
        learning_rate: A number or an Optax schedule.
        eta: Tolerance of `norm_test`.
        initial_accumulator_value: As in `scale_by_adagrad_norm`.
        eps: As in `scale_by_adagrad_norm`.
        signal: As in `norm_test`.
        dataset_size: As in `norm_test`.
        decay: As in `norm_test`.
        interval: As in `norm_test`.

    Returns:
        An `optax.GradientTransformationExtraArgs`; `update` requires ``stats=``, and
        `required_batch_size` reads the requirement from its state.

    Raises:
        ValueError: If an argument is out of range.

    Examples:
        >>> import adaoptax, jax.numpy as jnp
        >>> rows = jnp.array([[1., 0.], [3., 0.], [2., 2.], [2., -2.]])
        >>> grads, stats = adaoptax.stats_from_groups(rows, group_size=1)
        >>> tx = adaoptax.adadagrad_norm(0.1, eta=0.25)
        >>> updates, state = tx.update(grads, tx.init(grads), stats=stats)
        >>> round(float(adaoptax.required_batch_size(state)), 2)
        16.84

    References:
        Lau, Liu and Kolar, `AdAdaGrad: Adaptive Batch Size Schemes for Adaptive Gradient Methods
        <https://arxiv.org/abs/2402.11215>`_, 2024.
    """
    return optax.chain(
        norm_test(eta, signal=signal, dataset_size=dataset_size, decay=decay, interval=interval),
        adagrad_norm(learning_rate, initial_accumulator_value, eps),
    )


def adadagrad(
    learning_rate: optax.ScalarOrSchedule,
    eta: Scalar = 0.5,
    initial_accumulator_value: Scalar = 0.1,
    eps: Scalar = 1e-7,
    *,
    test: str = "coordinate",
    coverage: Scalar = 0.9,
    signal: str = "debiased",
    dataset_size: Scalar | None = None,
    decay: Scalar | None = None,
    interval: Scalar = 1,
) -> optax.GradientTransformationExtraArgs:
    r"""AdAdaGrad: AdaGrad with the coordinate-wise test in front.

    Args:
        learning_rate: A number or an Optax schedule.
        eta: Tolerance of the test.
        initial_accumulator_value: As in `optax.adagrad`.
        eps: As in `optax.adagrad`.
        test: ``"coordinate"`` is the test of the paper and needs statistics with
            `coordinate_variance`; ``"norm"`` is what the authors' released code runs, and works
            with any statistics.
        coverage: As in `coordinate_test`; the norm test has none.
        signal: As in `norm_test`.
        dataset_size: As in `norm_test`.
        decay: As in `norm_test`.
        interval: As in `norm_test`.

    Returns:
        An `optax.GradientTransformationExtraArgs`; `update` requires ``stats=``. A NaN or infinite
        gradient changes neither parameters nor accumulators.

    Raises:
        ValueError: If an argument is out of range.

    Examples:
        >>> import adaoptax, jax.numpy as jnp
        >>> rows = jnp.array([[1., 0.], [3., 0.], [2., 2.], [2., -2.]])
        >>> grads, stats = adaoptax.stats_from_groups(
        ...     rows, group_size=1, statistics=("norm", "coordinate"))
        >>> tx = adaoptax.adadagrad(0.1, eta=0.25, signal="plug-in")
        >>> updates, state = tx.update(grads, tx.init(grads), stats=stats)
        >>> round(float(adaoptax.required_batch_size(state)), 2)
        2.67

    References:
        Lau, Liu and Kolar, `AdAdaGrad: Adaptive Batch Size Schemes for Adaptive Gradient Methods
        <https://arxiv.org/abs/2402.11215>`_, 2024.
    """
    _validate.one_of("test", test, ("coordinate", "norm"))
    options: dict[str, Any] = {
        "signal": signal,
        "dataset_size": dataset_size,
        "decay": decay,
        "interval": interval,
    }
    in_front = (
        coordinate_test(eta, coverage=coverage, **options)
        if test == "coordinate"
        else norm_test(eta, **options)
    )
    return optax.chain(
        in_front,
        skip_nonfinite(optax.adagrad(learning_rate, initial_accumulator_value, eps)),
    )
