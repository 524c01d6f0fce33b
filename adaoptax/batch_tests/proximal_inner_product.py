"""The complete-step test in its inner-product form: noise along the step alone counts."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from adaoptax._tree import ArrayTree
from adaoptax.batch_tests.framework import Formula, Terms, batch_test
from adaoptax.batch_tests.inner_product import required_along
from adaoptax.batch_tests.proximal import (
    check_complete_step,
    in_gradient_units,
    scalar_terms,
    signal_of_step,
    with_step_size,
)
from adaoptax.stats import GradientStats
from adaoptax.typing import Scalar


def proximal_inner_product_test(
    theta: Scalar,
    *,
    learning_rate: optax.ScalarOrSchedule = 1.0,
    signal: str = "debiased",
    dataset_size: Scalar | None = None,
    decay: Scalar | None = None,
    interval: Scalar = 1,
) -> optax.GradientTransformationExtraArgs:
    r"""States the batch size at which per-example gradients agree along the complete step.

    .. math:: \frac{\operatorname{Var}_i \langle g_i, v \rangle}{B} \le
        \theta^2 \lVert v \rVert^4
        \quad\Longleftrightarrow\quad
        B \ge b = \frac{\operatorname{Var}_i \langle g_i, v \rangle}{\theta^2 \lVert v \rVert^4},
        \qquad v = \frac{x^+ - x}{\alpha}

    which is :math:`\mathbb{E}[\langle g - \nabla F, x^+ - x \rangle^2] \le
    \theta^2 \lVert x^+ - x \rVert^4 / \alpha^2`. Weaker than `proximal_test`, as the inner-product
    test is weaker than the norm test: noise across the step is ignored. Place it **last**.

    The formula is from notes on the paper, not from its text, and therefore **unverified**.

    Args:
        theta: :math:`\theta`, relative accuracy along the complete step (it enters squared).
        learning_rate: As in `proximal_test`.
        signal: As in `proximal_test`; the signal enters squared here.
        dataset_size: As in `norm_test`.
        decay: As in `norm_test`.
        interval: As in `norm_test`; between tests no inner product is computed.

    Returns:
        An `optax.GradientTransformationExtraArgs` with states as in `proximal_test`; `update`
        requires ``stats=`` and ``variance_fn=``, a function of a direction that returns the
        variance of the per-example inner products with it: the step is known only when the chain
        has formed it. `measure.per_example_moments` with a direction has it (one jvp).

    Raises:
        ValueError: If an argument is out of range.

    Examples:
        >>> import adaoptax, jax, jax.numpy as jnp, optax
        >>> from adaoptax.batch_tests import proximal_inner_product_test
        >>> loss_fn, w = lambda w, x: (x @ w).mean(), jnp.zeros(2)
        >>> moments_of = adaoptax.measure.per_example_moments(loss_fn, ("inner",))
        >>> rows = jnp.array([[1., 0.], [3., 0.], [2., 2.], [2., -2.]])  # per-example gradients
        >>> def variance_fn(direction):
        ...     return moments_of(w, rows, direction=direction)[2].inner_product_variance
        >>> grads, stats = adaoptax.stats_from_groups(rows, group_size=1)
        >>> tx = optax.chain(optax.sgd(0.5), proximal_inner_product_test(
        ...     0.1, learning_rate=0.5, signal="plug-in"))
        >>> updates, state = tx.update(
        ...     grads, tx.init(w), w, stats=stats, variance_fn=variance_fn)
        >>> round(float(adaoptax.required_batch_size(state)), 2)
        16.67

    References:
        Xie, Bollapragada, Byrd and Nocedal, `Constrained and Composite Optimization via Adaptive
        Sampling Methods <https://arxiv.org/abs/2012.15411>`_, 2020.
    """
    check_complete_step(theta, learning_rate, signal)

    def test(step_size: Any) -> optax.GradientTransformationExtraArgs:
        def of(variance_fn: Callable[[ArrayTree], jax.Array]) -> Any:
            def terms(updates: ArrayTree, stats: GradientStats) -> Terms:
                step = in_gradient_units(updates, step_size)
                # Directions are in the convention of gradients: conjugate to updates.
                variance = variance_fn(jax.tree.map(jnp.conj, step))
                sq_signal = signal_of_step(step, stats, signal)
                nothing = (sq_signal == 0) & (stats.variance == 0)  # undefined, as in every test
                variance = jnp.where(nothing, jnp.nan, variance)
                return Terms(jnp.asarray(variance, sq_signal.dtype), sq_signal)

            formula = Formula(
                name="proximal_inner_product_test",
                terms=terms,
                # Along a step of no length no noise is seen: no evidence that there is none.
                required=lambda terms: jnp.where(
                    terms.signal == 0,
                    jnp.inf,
                    required_along(terms.noise, theta, terms.signal),
                ),
                signal_of=lambda terms: terms.signal,
                like=scalar_terms,
            )
            return batch_test(formula, decay=decay, dataset_size=dataset_size, interval=interval)

        def update_fn(
            updates: ArrayTree,
            state: Any,
            params: ArrayTree | None = None,
            *,
            stats: GradientStats,
            variance_fn: Callable[[ArrayTree], jax.Array],
            **extra_args: Any,
        ) -> tuple[ArrayTree, Any]:
            del extra_args
            return of(variance_fn).update(updates, state, params, stats=stats)

        update_fn.__qualname__ = "proximal_inner_product_test.update"
        return optax.GradientTransformationExtraArgs(of(lambda _: jnp.zeros([])).init, update_fn)

    return with_step_size(test, learning_rate, "proximal_inner_product_test")
