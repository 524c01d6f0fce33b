"""The step size and the rate of gradient descent whose gradient has a known relative error."""

from typing import Any

from adaoptax import _validate
from adaoptax.typing import Scalar


def optimal_step_size(
    epsilon: Scalar, *, smoothness: Scalar, strong_convexity: Scalar = 0.0
) -> Scalar:
    r"""The step size for a gradient of relative error :math:`\epsilon`.

    .. math:: \alpha = \frac{2}{(\mu + L)(1 + \epsilon^2)}

    Without noise it is the best fixed step of gradient descent; the more error a test tolerates,
    the smaller the step has to be. The only rule that ties the step to the tolerance of the test.

    Args:
        epsilon: :math:`\epsilon`, the tolerance of `optimal_split`, or `eta` of `norm_test`:
            :math:`\mathbb{E} \lVert g - \nabla F \rVert^2 = \epsilon^2 \lVert \nabla F \rVert^2`.
        smoothness: :math:`L`, the largest curvature, in units of the loss per squared parameter.
        strong_convexity: :math:`\mu`, the smallest curvature; 0 where there is none.

    Returns:
        A number: a Python float of Python numbers, else an array.

    Raises:
        ValueError: If `epsilon` is negative, `smoothness` not positive, or `strong_convexity` not
            between 0 and `smoothness`.

    Examples:
        >>> from adaoptax.scaling import optimal_step_size
        >>> optimal_step_size(1.0, smoothness=9.0, strong_convexity=1.0)
        0.1

    References:
        Espath et al., `On the equivalence of different adaptive batch size selection strategies
        <https://arxiv.org/abs/2109.10933>`_, 2021 (as in the authors' code).
    """
    _check(epsilon, smoothness, strong_convexity)
    return 2 / ((strong_convexity + smoothness) * (1 + epsilon**2))


def optimal_rate(epsilon: Scalar, *, smoothness: Scalar, strong_convexity: Scalar) -> Scalar:
    r"""What a step of `optimal_step_size` leaves of the squared distance to the solution.

    .. math:: \mathbb{E} \lVert x_{t+1} - x^* \rVert^2 \le \rho \lVert x_t - x^* \rVert^2, \qquad
        \rho = \frac{\left( \frac{L - \mu}{L + \mu} \right)^2 + \epsilon^2}{1 + \epsilon^2}

    Args:
        epsilon: As in `optimal_step_size`.
        smoothness: As in `optimal_step_size`.
        strong_convexity: As in `optimal_step_size`.

    Returns:
        A number, at most 1.

    Raises:
        ValueError: As `optimal_step_size` does.

    Examples:
        >>> from adaoptax.scaling import optimal_rate
        >>> optimal_rate(1.0, smoothness=3.0, strong_convexity=1.0)
        0.625

    References:
        Espath et al., `On the equivalence of different adaptive batch size selection strategies
        <https://arxiv.org/abs/2109.10933>`_, 2021 (as in the authors' code).
    """
    _check(epsilon, smoothness, strong_convexity)
    noiseless = ((smoothness - strong_convexity) / (smoothness + strong_convexity)) ** 2
    return (noiseless + epsilon**2) / (1 + epsilon**2)


def _check(epsilon: Any, smoothness: Any, strong_convexity: Any) -> None:
    _validate.at_least("epsilon", epsilon, 0, "it is a relative error.")
    _validate.positive("smoothness", smoothness, "it is the largest curvature of the loss.")
    _validate.at_least("strong_convexity", strong_convexity, 0, "it is the smallest curvature.")
    both = _validate.is_number(strong_convexity) and _validate.is_number(smoothness)
    if both and strong_convexity > smoothness:
        raise ValueError(
            f"Expected strong_convexity <= smoothness, got strong_convexity={strong_convexity!r}"
            f" and smoothness={smoothness!r}: the smallest curvature is not above the largest;"
            " swap them."
        )
