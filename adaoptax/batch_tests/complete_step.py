"""The complete-step tests: is the step known, with all that the optimizer did to the gradient?"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from adaoptax import _tree, _validate
from adaoptax._tree import ArrayTree
from adaoptax.batch_tests.batch_test import Terms, batch_test, debias, tolerated
from adaoptax.batch_tests.inner_product import required_along
from adaoptax.batch_tests.state import BatchTestState
from adaoptax.stats import GradientStats
from adaoptax.typing import Scalar


class ProximalTestState(NamedTuple):
    """State of a complete-step test whose learning rate is a schedule.

    Attributes:
        complete_steps: Updates so far, measured or not; the schedule is evaluated there.
        test: State of the test.
    """

    complete_steps: jax.Array
    test: BatchTestState


def proximal_test(
    theta: Scalar,
    *,
    learning_rate: optax.ScalarOrSchedule = 1.0,
    signal: str = "debiased",
    dataset_size: Scalar | None = None,
    decay: Scalar | None = None,
    interval: Scalar = 1,
) -> optax.GradientTransformationExtraArgs:
    r"""States the batch size at which the gradient is known as well as the *complete step* needs.

    .. math:: \frac{S^2}{B} \le \theta^2 \left\lVert \frac{x^+ - x}{\alpha} \right\rVert^2
        \quad\Longleftrightarrow\quad
        B \ge b = \frac{S^2}{\theta^2 \lVert u / \alpha \rVert^2}, \qquad u = x^+ - x

    At the solution of a constrained or composite problem the gradient does not vanish but the step
    does, so a test of the gradient asks for too little there. Place this test **last** in a chain:
    it sees the update that is applied, after proximal operator, projection or clipping, and takes
    :math:`u / \alpha` for the gradient. Updates pass through unchanged. Without any of these
    :math:`u = -\alpha g`, and it is the norm test with :math:`\eta = \theta`.

    The formula is from notes on the paper, not from its text, and therefore **unverified**.

    Args:
        theta: :math:`\theta`, relative accuracy of the complete step (it enters squared).
        learning_rate: :math:`\alpha`, what the chain before multiplied the gradient by: the same
            number or schedule. At 1, the update is taken in the units of a gradient.
            ``proximal_gradient(prox, learning_rate, theta=...)`` writes it once for both.
        signal: ``"debiased"`` puts :math:`\lVert u / \alpha \rVert^2 - S^2/B`. No proximal operator
            adds noise (it is nonexpansive), so on active constraints this is too small rather than
            too large, and errs towards growth. ``"plug-in"`` is the form that the paper prints.
        dataset_size: As in `norm_test`.
        decay: As in `norm_test`.
        interval: As in `norm_test`.

    Returns:
        An `optax.GradientTransformationExtraArgs` with `BatchTestState` (inside of a
        `ProximalTestState` if the learning rate is a schedule); `update` requires ``stats=``, those
        of the raw gradient. A step of exactly zero length asks for an infinite batch: it could not
        be told from noise. One of a learning rate of zero tells nothing, and keeps the requirement.

    Raises:
        ValueError: If an argument is out of range.

    Examples:
        >>> import adaoptax, jax.numpy as jnp, optax
        >>> from adaoptax.batch_tests import proximal_test
        >>> rows = jnp.array([[1., 0.], [3., 0.], [2., 2.], [2., -2.]])  # per-example gradients
        >>> grads, stats = adaoptax.stats_from_groups(rows, group_size=1)
        >>> tx = optax.chain(  # half of the gradient's length is left: four times the batch
        ...     optax.clip_by_global_norm(1.0), optax.sgd(0.1),
        ...     proximal_test(0.25, learning_rate=0.1, signal="plug-in"))
        >>> updates, state = tx.update(grads, tx.init(grads), stats=stats)
        >>> round(float(adaoptax.required_batch_size(state)), 2)
        53.33

    References:
        Xie, Bollapragada, Byrd and Nocedal, `Constrained and Composite Optimization via Adaptive
        Sampling Methods <https://arxiv.org/abs/2012.15411>`_, 2020.
    """
    _check_step(theta, learning_rate)

    def terms(
        updates: ArrayTree, stats: GradientStats, complete_step_size: Any = learning_rate, **_: Any
    ) -> Terms:
        return Terms(
            stats.variance,
            _sq_signal(_in_gradient_units(updates, complete_step_size), stats, signal),
        )

    def required(variance: jax.Array, sq_signal: jax.Array) -> jax.Array:
        return tolerated(variance, theta, sq_signal)

    name = "proximal_test"
    test = batch_test(name, terms, required, signal, dataset_size, decay, interval, _zeros)
    return _on_schedule(test, learning_rate, name)


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
        >>> rows = jnp.array([[1., 0.], [3., 0.], [2., 2.], [2., -2.]])  # per-example gradients
        >>> moments_of = adaoptax.measure.per_example_moments(loss_fn, ("inner",))
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
    _check_step(theta, learning_rate)

    def terms(
        updates: ArrayTree,
        stats: GradientStats,
        *,
        variance_fn: Callable[[ArrayTree], jax.Array],
        complete_step_size: Any = learning_rate,
        **_: Any,
    ) -> Terms:
        step = _in_gradient_units(updates, complete_step_size)
        # Directions are in the convention of gradients: conjugate to updates.
        variance = variance_fn(jax.tree.map(jnp.conj, step))
        sq_signal = _sq_signal(step, stats, signal)
        nothing = (sq_signal == 0) & (stats.variance == 0)  # undefined, as in every test
        variance = jnp.where(nothing, jnp.nan, variance)
        return Terms(jnp.asarray(variance, sq_signal.dtype), sq_signal)

    def required(along: jax.Array, sq_signal: jax.Array) -> jax.Array:
        # Along a step of no length no noise is seen: no evidence that there is none.
        size = required_along(along, theta, sq_signal)
        return jnp.where(sq_signal == 0, jnp.inf, size)

    name = "proximal_inner_product_test"
    test = batch_test(name, terms, required, signal, dataset_size, decay, interval, _zeros)
    return _on_schedule(test, learning_rate, name)


def _check_step(theta: Any, learning_rate: Any) -> None:
    _validate.positive("theta", theta, "it is the tolerated relative error of the step.")
    _validate.positive("learning_rate", learning_rate, "the update is divided by it.")


def _in_gradient_units(updates: ArrayTree, step_size: Any) -> ArrayTree:
    """u/α, at least in float32; divided before it is squared, against underflow."""
    return jax.tree.map(lambda u: _tree.widen(u) / step_size, updates)


def _sq_signal(step: ArrayTree, stats: GradientStats, kind: str) -> jax.Array:
    return debias(_tree.sq_norm(step), stats.variance / stats.num_examples, kind)


def _zeros(params: ArrayTree) -> Terms:
    zero = jnp.zeros([], _tree.scalar_dtype(params))
    return Terms(zero, zero)


def _on_schedule(
    test: optax.GradientTransformationExtraArgs,
    learning_rate: optax.ScalarOrSchedule,
    name: str,
) -> optax.GradientTransformationExtraArgs:
    """The test with a count of steps, where the learning rate is a schedule."""
    if not callable(learning_rate):
        return test

    def init_fn(params: ArrayTree) -> ProximalTestState:
        return ProximalTestState(jnp.zeros([], jnp.int32), test.init(params))

    def update_fn(
        updates: ArrayTree,
        state: ProximalTestState,
        params: ArrayTree | None = None,
        *,
        stats: GradientStats,
        **extra_args: Any,
    ) -> tuple[ArrayTree, ProximalTestState]:
        extra_args["complete_step_size"] = learning_rate(state.complete_steps)
        updates, tested = test.update(updates, state.test, params, stats=stats, **extra_args)
        return updates, ProximalTestState(optax.safe_increment(state.complete_steps), tested)

    update_fn.__qualname__ = f"{name}.update"
    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
