"""The coordinate-wise test of AdAdaGrad, in a form that survives coordinates without gradient."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from adaoptax import _tree, _validate
from adaoptax._tree import ArrayTree
from adaoptax.batch_tests.batch_test import Terms, batch_test, debias
from adaoptax.stats import GradientStats, ratio, require_coordinate_variance
from adaoptax.typing import Scalar


def coordinate_test(
    eta: Scalar,
    *,
    coverage: Scalar = 0.9,
    signal: str = "debiased",
    dataset_size: Scalar | None = None,
    decay: Scalar | None = None,
    interval: Scalar = 1,
) -> optax.GradientTransformationExtraArgs:
    r"""States the batch size at which single coordinates are known to a relative accuracy `eta`.

    As printed, every coordinate has to pass,

    .. math:: \frac{v_j}{B} \le \eta^2 g_j^2 \quad\text{for all } j,
        \qquad b_j = \frac{v_j}{\eta^2 g_j^2}, \qquad b = \max_j b_j ,

    which is unusable: one coordinate without gradient (a dead unit, an absent token) asks for an
    infinite batch. **The rule here**: coordinates count by the squared gradient that they hold, and
    those that hold the share `coverage` of it have to pass,

    .. math:: b = \min \{ b : \textstyle\sum_{j : b_j \le b} g_j^2 \ge
        \text{coverage} \cdot \sum_j g_j^2 \} .

    Why this rule: a coordinate of no gradient weighs nothing by itself, without an absolute floor
    that would depend on the units of the loss; ``coverage=1`` is the printed maximum over
    coordinates that have a gradient; and the mean in place of the quantile, with the same weights,
    is exactly the requirement of the norm test, so the two agree when all coordinates are alike.

    The quantile is found by bisection over the bits of the answer: about 32 reductions over the
    parameters, no sorting, any sharding. Place it before anything that changes the gradient.

    Args:
        eta: :math:`\eta`, relative accuracy of a coordinate (it enters squared).
        coverage: Share of the squared gradient whose coordinates have to pass, in (0, 1].
        signal: ``"debiased"`` puts :math:`g_j^2 - v_j/B` for :math:`g_j^2` (not positive: the
            coordinate holds no measurable gradient); ``"plug-in"`` is as printed.
        dataset_size: As in `norm_test`.
        decay: As in `norm_test`; averages :math:`v_j` and :math:`g_j^2`, two more buffers of the
            size of the parameters.
        interval: As in `norm_test`.

    Returns:
        An `optax.GradientTransformationExtraArgs` with `BatchTestState`; `update` requires
        ``stats=`` with `coordinate_variance`, and raises ValueError if it was not measured.

    Raises:
        ValueError: If an argument is out of range.

    Examples:
        >>> import adaoptax, jax.numpy as jnp
        >>> rows = jnp.array([[1., 0.], [3., 0.], [2., 2.], [2., -2.]])  # no gradient in the second
        >>> grads, stats = adaoptax.stats_from_groups(
        ...     rows, group_size=1, statistics=("norm", "coordinate"))
        >>> tx = adaoptax.coordinate_test(eta=0.25, signal="plug-in")
        >>> _, state = tx.update(grads, tx.init(grads), stats=stats)
        >>> round(float(adaoptax.required_batch_size(state)), 2)  # (2/3) / (0.25² · 4)
        2.67

    References:
        Lau, Liu and Kolar, `AdAdaGrad: Adaptive Batch Size Schemes for Adaptive Gradient Methods
        <https://arxiv.org/abs/2402.11215>`_, 2024 (the coordinate-wise test; the rule for
        coordinates without gradient is ours).
    """
    _validate.positive("eta", eta, "it is the tolerated relative error of a coordinate.")
    if _validate.is_number(coverage) and not 0 < coverage <= 1:
        raise ValueError(
            f"Expected 0 < coverage <= 1, got coverage={coverage!r}: it is the share of the squared"
            " gradient whose coordinates have to pass."
        )

    def terms(grads: ArrayTree, stats: GradientStats, **extra_args: Any) -> Terms:
        is_masked = lambda x: isinstance(x, optax.MaskedNode)  # under optax.masked: not ours
        variance = require_coordinate_variance(stats)
        sq_signal = jax.tree.map(
            lambda g, v: (
                g
                if is_masked(g)
                else debias(_tree.squared_modulus(g), v / stats.num_examples, signal)
            ),
            grads,
            variance,
            is_leaf=is_masked,
        )
        keep = lambda s, v: s if is_masked(s) else v
        return Terms(jax.tree.map(keep, sq_signal, variance, is_leaf=is_masked), sq_signal)

    def required(variance: ArrayTree, sq_signal: ArrayTree) -> jax.Array:
        return energy_quantile(variance, sq_signal, coverage) / eta**2

    def zeros(params: ArrayTree) -> Terms:
        real = lambda p: jnp.zeros_like(p, dtype=_tree.scalar_dtype(p))  # sharded like p
        return Terms(jax.tree.map(real, params), jax.tree.map(real, params))

    name = "coordinate_test"
    return batch_test(name, terms, required, signal, dataset_size, decay, interval, zeros)


def energy_quantile(variance: ArrayTree, signal: ArrayTree, coverage: Any) -> jax.Array:
    """Quantile of v_j/s_j over coordinates weighted by s_j⁺; inf without signal, NaN for 0/0."""
    energy = jax.tree.map(lambda s: jnp.maximum(s, 0), signal)
    share = lambda v, s: jnp.where(s > 0, v / jnp.where(s > 0, s, 1), 0)
    ratios = jax.tree.map(share, variance, energy)
    total = _tree.total(lambda s: s, energy)
    left_out = lambda bound: _tree.total(lambda r, s: jnp.where(r > bound, s, 0), ratios, energy)
    enough = lambda bound: left_out(bound) <= (1 - coverage) * total

    # Floats that are not negative are ordered as their bits are, so bisection on the bits is exact.
    dtype = total.dtype
    bits = jnp.int64 if dtype == jnp.float64 else jnp.int32
    as_float = lambda i: jax.lax.bitcast_convert_type(i, dtype)
    top = jax.lax.bitcast_convert_type(jnp.array(jnp.inf, dtype), bits)

    def halve(_: Any, interval: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = interval
        middle = low + (high - low) // 2
        good = enough(as_float(middle))
        return jnp.where(good, low, middle + 1), jnp.where(good, middle, high)

    steps = jnp.finfo(dtype).bits
    quantile = as_float(jax.lax.fori_loop(0, steps, halve, (jnp.zeros_like(top), top))[1])

    noise = _tree.total(lambda v: v, variance)
    sq_signal = _tree.total(lambda s: s, signal)
    # Σs ≤ 0: no signal at all, whatever single coordinates say by luck.
    return jnp.where(sq_signal > 0, quantile, ratio(noise, sq_signal))
