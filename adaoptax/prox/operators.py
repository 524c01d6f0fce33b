r"""Proximal operators: what keeps parameters sparse, or inside of a set.

The operator of a convex penalty :math:`h` and a step size :math:`\alpha` is

.. math:: \operatorname{prox}_{\alpha h}(x)
    = \operatorname*{argmin}_y \; h(y) + \frac{1}{2 \alpha} \lVert y - x \rVert^2 .

Of a constraint it is the projection on the feasible set, whatever the step size.
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from adaoptax import _validate
from adaoptax._tree import ArrayTree
from adaoptax.typing import Scalar


class Prox(NamedTuple):
    """A proximal operator.

    Attributes:
        name: As the user called it, for error messages.
        apply: ``apply(params, step_size)`` → parameters; on the whole tree as one vector.
        is_projection: Whether it projects on a set, which then is the feasible one.
    """

    name: str
    apply: Callable[[ArrayTree, Scalar], ArrayTree]
    is_projection: bool


def l1(strength: Scalar) -> Prox:
    r"""Soft thresholding: the operator of :math:`\lambda \lVert x \rVert_1`.

    .. math:: \operatorname{sign}(x) \max(|x| - \alpha \lambda, 0)

    Args:
        strength: :math:`\lambda \ge 0`, in units of the loss over those of a parameter.

    Returns:
        A `Prox` that sets small coordinates to exactly zero.

    Raises:
        ValueError: If `strength` is negative.

    Examples:
        >>> import jax.numpy as jnp
        >>> from adaoptax import prox
        >>> prox.l1(2.0).apply(jnp.array([3.0, -0.5, -2.0]), 0.5).tolist()
        [2.0, 0.0, -1.0]

    References:
        Parikh and Boyd, `Proximal Algorithms <https://doi.org/10.1561/2400000003>`_, 2014,
        section 6.5.2.
    """
    _validate.at_least("strength", strength, 0, "it multiplies a norm that is to become small.")

    def apply(params: ArrayTree, step_size: Any) -> ArrayTree:
        threshold = step_size * strength

        def shrink(x: jax.Array) -> jax.Array:
            shorter = x - jnp.sign(x) * threshold
            return jnp.where(jnp.abs(x) <= threshold, 0, shorter).astype(x.dtype)  # NaN stays NaN

        return jax.tree.map(shrink, params)

    return Prox("l1", apply, is_projection=False)


def box(lower: ArrayTree = None, upper: ArrayTree = None) -> Prox:
    """Projection on lower ≤ x ≤ upper, coordinate by coordinate (`optax.projections`).

    Args:
        lower: A number, or a pytree like the parameters; None for no bound.
        upper: A number, or a pytree like the parameters; None for no bound.

    Returns:
        A `Prox`.

    Raises:
        ValueError: If the numbers leave nothing between them.

    Examples:
        >>> import jax.numpy as jnp
        >>> from adaoptax import prox
        >>> prox.box(lower=0.0, upper=1.0).apply(jnp.array([-1.0, 0.5, 2.0]), 0.1).tolist()
        [0.0, 0.5, 1.0]
    """
    if _validate.is_number(lower) and _validate.is_number(upper) and not lower <= upper:
        raise ValueError(
            f"Expected lower <= upper, got lower={lower!r} and upper={upper!r}: no point lies"
            " between them; swap them."
        )
    lower = -jnp.inf if lower is None else lower
    upper = jnp.inf if upper is None else upper

    def project(params: ArrayTree) -> ArrayTree:
        bounds = (_like(params, lower), _like(params, upper))
        clipped = optax.projections.projection_box(params, *bounds)
        return jax.tree.map(lambda c, p: c.astype(p.dtype), clipped, params)

    return projection(project, "box")


def simplex(scale: Scalar = 1.0) -> Prox:
    r"""Projection on :math:`x \ge 0, \sum x = \text{scale}` over all tensors together.

    Args:
        scale: The sum.

    Returns:
        A `Prox`. It sorts all coordinates as one vector, which a sharded tree is gathered for.

    Raises:
        ValueError: If `scale` is not positive.

    Examples:
        >>> import jax.numpy as jnp
        >>> from adaoptax import prox
        >>> prox.simplex().apply(jnp.array([1.0, 0.5, -1.0]), 0.1).tolist()
        [0.75, 0.25, 0.0]
    """
    _validate.positive("scale", scale, "it is what the coordinates add up to.")
    return projection(lambda p: optax.projections.projection_simplex(p, scale), "simplex")


def l2_ball(radius: Scalar = 1.0) -> Prox:
    r"""Projection on :math:`\lVert x \rVert_2 \le \text{radius}` over all tensors together.

    Args:
        radius: The largest norm.

    Returns:
        A `Prox`.

    Raises:
        ValueError: If `radius` is not positive.

    Examples:
        >>> import jax.numpy as jnp
        >>> from adaoptax import prox
        >>> [round(float(x), 3) for x in prox.l2_ball(1.0).apply(jnp.array([3.0, 4.0]), 0.1)]
        [0.6, 0.8]
    """
    _validate.positive("radius", radius, "it is the largest norm of the parameters.")
    return projection(lambda p: optax.projections.projection_l2_ball(p, radius), "l2_ball")


def l1_ball(radius: Scalar = 1.0) -> Prox:
    r"""Projection on :math:`\lVert x \rVert_1 \le \text{radius}` over all tensors together.

    Args:
        radius: The largest sum of absolute values.

    Returns:
        A `Prox`. It sorts all coordinates as one vector, as `simplex` does.

    Raises:
        ValueError: If `radius` is not positive.

    Examples:
        >>> import jax.numpy as jnp
        >>> from adaoptax import prox
        >>> prox.l1_ball(1.0).apply(jnp.array([2.0, -1.5]), 0.1).tolist()
        [0.75, -0.25]
    """
    _validate.positive("radius", radius, "it is the largest sum of absolute values.")
    return projection(lambda p: optax.projections.projection_l1_ball(p, radius), "l1_ball")


def projection(fn: Callable[[ArrayTree], ArrayTree], name: str = "projection") -> Prox:
    """Any projection of Optax, or one of your own, as a proximal operator.

    Args:
        fn: ``fn(params)`` → the nearest feasible parameters.
        name: What error messages call it.

    Returns:
        A `Prox`.

    Examples:
        >>> import jax.numpy as jnp, optax
        >>> from adaoptax import prox
        >>> positive = prox.projection(optax.projections.projection_non_negative)
        >>> positive.apply(jnp.array([-1.0, 2.0]), 0.1).tolist()
        [0.0, 2.0]
    """
    return Prox(name, lambda params, step_size: fn(params), is_projection=True)


def as_prox(prox: Any) -> Prox:
    """A `Prox` of what the user passed: one, a projection ``f(params)``, or ``f(params, step)``.

    A projection is told by its one argument without default, as those of Optax are: their second
    one is the size of the set, which must never receive a step size.
    """
    if isinstance(prox, Prox):
        return prox
    if callable(prox):
        name = getattr(prox, "__name__", type(prox).__name__)
        parameters = inspect.signature(prox).parameters.values()
        positional = [
            p
            for p in parameters
            if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is p.empty
        ]
        if len(positional) == 1:
            return projection(prox, name)
        if len(positional) == 2:
            return Prox(name, prox, is_projection=False)
    raise TypeError(
        f"Expected prox to be a Prox, a projection of the parameters, or a function of parameters"
        f" and step size, got prox={prox!r}: use one of adaoptax.prox, as in"
        " adaoptax.prox.box(lower=0.0), or bind the other arguments with functools.partial."
    )


def _like(params: ArrayTree, bound: Any) -> ArrayTree:
    """`bound` for every leaf, where it is not a tree of its own."""
    structure: Any = jax.tree.structure
    if structure(bound) == structure(params):
        return bound
    return jax.tree.map(lambda _: bound, params)
