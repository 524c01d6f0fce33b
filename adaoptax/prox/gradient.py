"""The proximal gradient step as an Optax optimizer."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from adaoptax import _tree, _validate
from adaoptax._tree import ArrayTree
from adaoptax.batch_tests.complete_step import proximal_test
from adaoptax.prox.operators import Prox, as_prox
from adaoptax.typing import Scalar


class ProximalGradientState(NamedTuple):
    """State of `proximal_gradient`.

    Attributes:
        proximal_steps: Updates so far; the schedule of the learning rate is evaluated there.
    """

    proximal_steps: jax.Array


def proximal_gradient(
    prox: Prox | Callable[..., ArrayTree],
    learning_rate: optax.ScalarOrSchedule,
    *,
    theta: Scalar | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Proximal gradient descent: a gradient step, then the proximal operator.

    .. math:: x^+ = \operatorname{prox}_{\alpha h}(x - \alpha g), \qquad u = x^+ - x

    for :math:`\min_x F(x) + h(x)`. After it in a chain only what leaves updates as they are is safe
    (a batch test): scaling an update leads off the constraint.

    Args:
        prox: One of `adaoptax.prox`; or a projection ``f(params)``, as those of
            `optax.projections`; or ``f(params, step_size)``. Under `optax.inject_hyperparams` a
            plain function belongs to its ``static_args``.
        learning_rate: :math:`\alpha`, a number or an Optax schedule in steps.
        theta: If given, the complete-step test ``proximal_test(theta)`` follows, with this very
            learning rate; `update` then requires ``stats=``.

    Returns:
        An `optax.GradientTransformationExtraArgs`; `update` requires `params`. The new parameters
        are feasible up to the one rounding of adding the update. An infeasible start is refused at
        `init` where it can be told (concrete parameters); under `jax.jit` or `jax.vmap` the first
        step leads into the set. NaN in a gradient is NaN in the update, as with `optax.sgd`: wrap
        it in `skip_nonfinite`.

    Raises:
        TypeError: If `prox` is none of these.
        ValueError: If `learning_rate` or `theta` is not positive; at `init`, if the parameters
            lie outside of the set on which `prox` projects.

    Examples:
        >>> import adaoptax, jax.numpy as jnp, optax
        >>> from adaoptax.prox import box, proximal_gradient
        >>> tx, x = proximal_gradient(box(lower=0.0), 0.5), jnp.array([1.0, 1.0])
        >>> updates, state = tx.update(jnp.array([1.0, 4.0]), tx.init(x), x)
        >>> optax.apply_updates(x, updates).tolist()  # (0.5, -1) before the projection
        [0.5, 0.0]

    References:
        Parikh and Boyd, `Proximal Algorithms <https://doi.org/10.1561/2400000003>`_, 2014,
        section 4.2.
    """
    operator = as_prox(prox)
    _validate.positive("learning_rate", learning_rate, "it is the step size.")

    def init_fn(params: ArrayTree) -> ProximalGradientState:
        if operator.is_projection:
            check_feasible(operator, params)
        return ProximalGradientState(jnp.zeros([], jnp.int32))

    def update_fn(
        updates: ArrayTree,
        state: ProximalGradientState,
        params: ArrayTree | None = None,
        **extra_args: Any,
    ) -> tuple[ArrayTree, ProximalGradientState]:
        del extra_args
        if params is None:
            raise ValueError(
                "Expected params, got params=None: a proximal step depends on where it starts;"
                " call tx.update(grads, state, params)."
            )
        count = state.proximal_steps
        step_size = learning_rate(count) if callable(learning_rate) else learning_rate
        start = jax.tree.map(_tree.widen, params)
        descend = lambda x, g: (x - step_size * _tree.widen(g)).astype(x.dtype)
        moved = jax.tree.map(descend, start, updates)
        end = operator.apply(moved, step_size)
        # As precise as the parameters: rounded to a coarser gradient's dtype it leaves the set.
        kind = lambda g, p: jnp.promote_types(jnp.result_type(g), jnp.result_type(p))
        complete = jax.tree.map(
            lambda y, x, g, p: (y - x).astype(kind(g, p)), end, start, updates, params
        )
        return complete, ProximalGradientState(optax.safe_increment(count))

    step = optax.GradientTransformationExtraArgs(init_fn, update_fn)
    if theta is None:
        return step
    return optax.chain(step, proximal_test(theta, learning_rate=learning_rate))


def check_feasible(prox: Prox, params: ArrayTree) -> None:
    """Raises ValueError for concrete parameters outside of the set on which `prox` projects."""
    leaves = jax.tree.leaves(params)
    if not leaves or any(
        isinstance(x, (jax.core.Tracer, jax.ShapeDtypeStruct)) or not hasattr(x, "dtype")
        for x in leaves
    ):
        return

    @jax.jit  # one program, so that it runs under a transfer guard
    def measure(params: ArrayTree) -> tuple[jax.Array, jax.Array]:
        wide = jax.tree.map(_tree.widen, params)
        nearest = prox.apply(wide, 1.0)
        distance = _tree.sq_norm(jax.tree.map(jnp.subtract, nearest, wide))
        # The rounding of parameters and of the projection, relative to both.
        eps = max(float(jnp.finfo(x.dtype).eps) for x in leaves)
        count = sum(x.size for x in leaves)
        tolerated = (16 * eps) ** 2 * count * (_tree.sq_norm(wide) + _tree.sq_norm(nearest))
        return jnp.sqrt(distance), ~(distance <= tolerated)

    with jax.ensure_compile_time_eval():  # `init` may stand in a function that is being traced
        distance, outside = jax.device_get(measure(params))
    if outside:
        raise ValueError(
            f"Expected params in the feasible set of prox={prox.name}, got params at distance"
            f" {float(distance):.3g} from it: a constrained problem starts inside; start from"
            " prox.apply(params, 1.0), the nearest feasible point."
        )
