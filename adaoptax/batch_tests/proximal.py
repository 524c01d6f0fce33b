"""The complete-step test: is the step known, with all that the optimizer did to the gradient?"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from adaoptax import _tree, _validate
from adaoptax._tree import ArrayTree
from adaoptax.batch_tests.framework import (
    SIGNALS,
    BatchTestState,
    Formula,
    Terms,
    batch_test,
    tolerated,
)
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
    check_complete_step(theta, learning_rate, signal)

    def test(step_size: Any) -> optax.GradientTransformationExtraArgs:
        formula = Formula(
            name="proximal_test",
            terms=lambda updates, stats: Terms(
                stats.variance, signal_of_step(in_gradient_units(updates, step_size), stats, signal)
            ),
            required=lambda terms: tolerated(terms.noise, theta, terms.signal),
            signal_of=lambda terms: terms.signal,
            like=scalar_terms,
        )
        return batch_test(formula, decay=decay, dataset_size=dataset_size, interval=interval)

    return with_step_size(test, learning_rate, "proximal_test")


def check_complete_step(theta: Any, learning_rate: Any, signal: str) -> None:
    """Raises ValueError where an argument that both forms share is out of range."""
    _validate.positive("theta", theta, "it is the tolerated relative error of the step.")
    _validate.positive("learning_rate", learning_rate, "the update is divided by it.")
    _validate.one_of("signal", signal, SIGNALS)


def in_gradient_units(updates: ArrayTree, step_size: Any) -> ArrayTree:
    """u/α, at least in float32; divided before it is squared, against underflow."""
    return jax.tree.map(lambda u: _tree.widen(u) / step_size, updates)


def signal_of_step(step: ArrayTree, stats: GradientStats, kind: str) -> jax.Array:
    """‖u/α‖², debiased or as measured."""
    square = _tree.sq_norm(step)
    return square - stats.variance / stats.num_examples if kind == "debiased" else square


def scalar_terms(params: ArrayTree, dtype: Any) -> Terms:
    """Terms of one scalar each."""
    del params
    return Terms(jnp.zeros([], dtype), jnp.zeros([], dtype))


def with_step_size(
    test: Callable[[Any], optax.GradientTransformationExtraArgs],
    learning_rate: optax.ScalarOrSchedule,
    name: str,
) -> optax.GradientTransformationExtraArgs:
    """``test(step_size)``, with a count of steps where the learning rate is a schedule."""
    if not callable(learning_rate):
        return test(learning_rate)
    first = test(1.0)

    def init_fn(params: ArrayTree) -> ProximalTestState:
        return ProximalTestState(jnp.zeros([], jnp.int32), first.init(params))

    def update_fn(
        updates: ArrayTree,
        state: ProximalTestState,
        params: ArrayTree | None = None,
        *,
        stats: GradientStats,
        **extra_args: Any,
    ) -> tuple[ArrayTree, ProximalTestState]:
        now = test(learning_rate(state.complete_steps))
        updates, tested = now.update(updates, state.test, params, stats=stats, **extra_args)
        return updates, ProximalTestState(optax.safe_increment(state.complete_steps), tested)

    update_fn.__qualname__ = f"{name}.update"
    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
