"""The public face of the exact method: a way of measuring, and its per-example numbers."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from adaoptax import _tree, _validate
from adaoptax._tree import ArrayTree
from adaoptax.measure.devices import Devices
from adaoptax.measure.exact.arguments import check_group_size, check_probe_size
from adaoptax.measure.exact.factors import Want
from adaoptax.measure.exact.row_moments import RowMoments, measure_rows
from adaoptax.measure.loss import Loss, Measured, describe_loss
from adaoptax.measure.moments import (
    STATISTICS,
    Totals,
    check_statistics,
    inner_scatter,
    totals_of,
)
from adaoptax.measure.row_products import like, variance_of_rows
from adaoptax.measure.rows import check_two, checked_mask, count_rows
from adaoptax.measure.shards import AXIS, add_up, measure_shards, shards_of
from adaoptax.stats import GradientStats


@dataclasses.dataclass(frozen=True)
class Exact:
    """See `exact`."""

    statistics: tuple[str, ...]
    group_size: int
    probe_size: int | None
    shards: int | None

    def __call__(self, loss: Loss) -> Callable[..., Measured]:
        loss.check_has_examples("adaoptax.measure.exact")

        def measure(params: ArrayTree, batch: ArrayTree, args: tuple, mask: Any) -> Measured:
            num_rows = count_rows(batch)
            check_two(num_rows)
            check_group_size(self.group_size, num_rows)
            if self.probe_size is not None:
                check_probe_size(self.probe_size, num_rows, self.group_size)
            if (shards := self.shards_of(params, batch)) > 1:
                each = dataclasses.replace(self, shards=1)
                pooled = tuple(name for name in self.statistics if name != "inner")
                side_by_side = Devices(AXIS, each, pooled, False, add_up)
                return measure_shards(side_by_side(loss), loss, params, batch, args, mask, shards)
            probe = None if self.probe_size is None else self.probe_size // self.group_size
            want = Want.of(self.statistics)
            if loss.metric is not None:
                # Σ P_j |g_ij|² has no rule; the sums of squares of coordinates have one.
                want = want._replace(norm=False, coordinate=want.norm or want.coordinate)
            value, grads, moments = measure_rows(
                loss,
                params,
                batch,
                args,
                mask,
                want=want,
                group_size=self.group_size,
                num_measured=probe,
            )
            stats = _stats(grads, moments, probe, loss.metric)
            if "coordinate" not in self.statistics:
                stats = stats._replace(coordinate_variance=None)
            return value, grads, stats

        return measure

    def shards_of(self, params: ArrayTree, batch: ArrayTree) -> int:
        """Parts of the batch that are measured side by side, each on its own devices."""
        num_groups = count_rows(batch) // self.group_size
        if self.shards is not None or "inner" in self.statistics or self.probe_size:
            return self.shards or 1
        shards = shards_of(batch, params, num_groups)
        return shards if num_groups >= 2 * shards else 1


def _stats(
    grads: ArrayTree, moments: RowMoments, probe: int | None, metric: ArrayTree | None
) -> GradientStats:
    """Statistics of the batch; with E‖h_j‖² = ‖∇F‖² + S²/W_j and E‖g‖² = ‖∇F‖² + S²/W."""
    weight = moments.weight[:probe]
    whole, measured = totals_of(moments.weight), totals_of(weight)
    sq_norm = _tree.sq_norm(grads, metric)

    def unbiased(sum_of_squares: jax.Array, square: jax.Array) -> jax.Array:
        """S² from Σ W_j |h_j|² and |g|²."""
        scatter = sum_of_squares - measured.weight.astype(square.dtype) * square
        if probe is None:  # a sum of squares: what falls below zero is rounding
            return whole.unbiased(jnp.maximum(scatter, 0)).astype(square.dtype)
        return _of_probe(scatter, measured, whole).astype(square.dtype)

    variance, inner, coordinate = None, None, None
    if moments.square_sums is not None:
        squares = jax.tree.map(_tree.squared_modulus, grads)
        coordinate = jax.tree.map(unbiased, moments.square_sums, squares)
        variance = _tree.weighed_total(coordinate, metric)
    if moments.sq_norms is not None:
        variance = unbiased(jnp.sum(weight * moments.sq_norms), sq_norm)
    if moments.inner_products is not None:
        products = moments.inner_products - sq_norm
        inner = measured.unbiased(inner_scatter(products, weight)).astype(sq_norm.dtype)
    return GradientStats(
        num_examples=whole.weight.astype(sq_norm.dtype),
        num_groups=measured.num_groups.astype(sq_norm.dtype),
        sq_norm=sq_norm,
        variance=(jnp.full([], jnp.nan) if variance is None else variance).astype(sq_norm.dtype),
        inner_product_variance=inner,
        coordinate_variance=coordinate,
    )


def _of_probe(scatter: jax.Array, measured: Totals, whole: Totals) -> jax.Array:
    """Unbiased for some of the groups, though the mean gradient holds them all; may be negative."""
    freedom = measured.num_groups - measured.weight / jnp.where(whole.weight > 0, whole.weight, 1)
    enough = (measured.num_groups > 1) & (freedom > 0)
    return jnp.where(enough, scatter / jnp.where(enough, freedom, 1), jnp.nan)


def exact(
    statistics: tuple[str, ...] = ("norm",),
    *,
    group_size: int = 1,
    probe_size: int | None = None,
    shards: int | None = None,
) -> Exact:
    r"""Measures every example's own gradient at about the price of the mean gradient.

    The same numbers as `per_example`, without forming per-example gradients: the loss of the batch
    is traced as it is written and its equations are evaluated, with those that consume a parameter
    tapped, so that their backward pass emits statistics beside the gradient. Any JAX loss will do
    of which it can be proved that it is

    .. math:: L = \frac{1}{c} \sum_b s_b(\theta, x_b)

    with c a constant or a number that depends on data alone: a mean, a sum, a mean over the tokens
    of the batch; Flax, Equinox or plain functions, `scan` over layers, time or examples,
    `jax.checkpoint`, custom derivatives. Example b then has the gradient
    :math:`g_b = B \nabla s_b / c`, whose mean is the gradient. Where c is a sum over the data its
    own noise is not part of the statistics. Random draws are those of one plain call. `explain`
    prints what is done with every parameter, and what that costs.

    The variance is :math:`(\sum_i \lVert g_i \rVert^2 - B \lVert g \rVert^2) / (B - 1)`: its
    relative error in float32 is about :math:`10^{-7} \kappa`, :math:`\kappa = B \lVert g \rVert^2 /
    ((B - 1) S^2)`, which matters only where examples hardly differ; that of the variance of one
    coordinate likewise, and that of `inner_product_variance` about :math:`10^{-7} \lVert g \rVert^2
    / \sqrt{V_{ip}}`. `per_example` centres first, and does not lose these digits.

    **With a preconditioner** the variance is that of single coordinates, times the preconditioner,
    and inner products take one jvp: it costs what ``statistics=("coordinate",)`` costs (`explain`
    tells), which is little for dense layers on single rows, and about the gradient once more where
    the gradients of a sequence have to be formed. `groups` and `per_example` pay nothing for it.

    Args:
        statistics: What to compute: any of ``"norm"`` (`variance`), ``"inner"``
            (`inner_product_variance`), ``"coordinate"`` (`coordinate_variance`); with none of them
            only the gradient, and the variance is NaN.
        group_size: Measures the mean gradients of so many examples in a row instead; must divide
            the batch.
        probe_size: Measures only the first so many examples; the gradient is that of all. The
            variance stays unbiased, with ``probe_size − 1`` degrees of freedom, and may come out
            negative. Gradients of a classifier have heavy tails late in training: a small probe is
            then off by more than 100 %.
        shards: As for `groups`: how many parts of the batch are measured side by side on a mesh
            under plain `jax.jit`. None asks the batch. Inner products need the mean gradient of the
            whole batch: with them it is 1, and rows may travel between devices.

    Returns:
        A method for `value_grad_and_stats`. It raises ValueError for a batch of one example, one
        that `group_size` does not divide, and a loss of which the above is not proved: examples
        that meet through parameters (BatchNorm in training mode, contrastive losses) are measured
        with ``groups(n)`` and ``loss_kind="ghost"``.

    Raises:
        ValueError: If a name in `statistics` is unknown or a size is out of range.

    Examples:
        >>> import adaoptax, jax.numpy as jnp
        >>> measure = adaoptax.value_grad_and_stats(
        ...     lambda w, x: (x @ w).mean(), adaoptax.measure.exact(("norm", "inner")))
        >>> rows = jnp.array([[1., 0.], [3., 0.], [2., 2.], [2., -2.]])
        >>> loss, grads, stats = measure(jnp.ones(2), rows)
        >>> round(float(stats.variance), 4), round(float(stats.inner_product_variance), 4)
        (3.3333, 2.6667)

    References:
        Goodfellow, `Efficient Per-Example Gradient Computations
        <https://arxiv.org/abs/1510.01799>`_, 2015, for dense layers without a sequence; Li et al.,
        `Large Language Models Can Be Strong Differentially Private Learners
        <https://arxiv.org/abs/2110.05679>`_, 2022, section 4, for Gram matrices over a sequence.
    """
    check_statistics(statistics, STATISTICS, "exact")
    _validate.count("group_size", group_size, 1, "it counts the examples of a group.")
    if probe_size is not None:
        _validate.count(
            "probe_size", probe_size, 2 * group_size, "fewer than two groups have no variance."
        )
    if shards is not None:
        _validate.count("shards", shards, 1, "it counts the parts of the batch.")
        if shards > 1 and ("inner" in statistics or probe_size):
            raise ValueError(
                f"Expected shards=1 with inner products or a probe, got shards={shards}: both need"
                " the whole batch at once."
            )
    return Exact(tuple(statistics), int(group_size), probe_size and int(probe_size), shards)


class PerExampleMoments(NamedTuple):
    r"""What every example's gradient :math:`g_i` is like, beside the mean gradient :math:`g`.

    Attributes:
        sq_norms: [B], :math:`\lVert g_i \rVert^2`; None unless asked for.
        inner_products: [B], :math:`\operatorname{Re} \langle g_i, v \rangle`, with :math:`v` the
            direction or else :math:`g`; None unless asked for.
        square_sums: Pytree like the parameters, :math:`\sum_i |g_i|^2` per coordinate over real
            examples; None unless asked for.
        inner_product_variance: Unbiased variance of `inner_products` over real examples; NaN for
            fewer than two, None unless asked for.
    """

    sq_norms: jax.Array | None
    inner_products: jax.Array | None
    square_sums: ArrayTree | None
    inner_product_variance: jax.Array | None


def per_example_moments(
    loss_fn: Callable[..., Any],
    statistics: tuple[str, ...] = ("norm",),
    *,
    loss_kind: str = "separable",
    batch_argnums: int | Sequence[int] = 1,
    weights_of: Callable[..., Any] | None = None,
    has_aux: bool = False,
    key_argnums: int | Sequence[int] = (),
) -> Callable[..., tuple[Any, ArrayTree, PerExampleMoments]]:
    r"""Norms and inner products of every example's gradient, by the algorithm of `exact`.

    For all that needs the examples one by one: importance sampling, finding outliers and wrong
    labels, leave-one-out tests, histograms of gradient norms.

    With a direction :math:`v` the inner products are those with it, by one forward-mode pass: the
    update that an optimizer has formed (does the complete step descend for every example?), its
    momentum, the gradient of held-out data.

    Args:
        loss_fn: ``loss_fn(params, batch, *args)``, the mean loss over the leading axis of `batch`.
        statistics: Any of ``"norm"``, ``"inner"``, ``"coordinate"``.
        loss_kind: ``"separable"`` or ``"assumed"``, as for `value_grad_and_stats`.
        batch_argnums: As for `value_grad_and_stats`.
        weights_of: As for `value_grad_and_stats`.
        has_aux: As for `value_grad_and_stats`.
        key_argnums: As for `value_grad_and_stats`. The products with a direction are of the draws
            that `per_example` takes.

    Returns:
        ``f(params, batch, *args, mask=None, direction=None)`` → ``(loss, grads, moments)`` or
        ``((loss, aux), grads, moments)``, with `PerExampleMoments`. Rows that are masked have
        moments of zero. `direction` is a pytree like `params`, in the convention of `jax.grad`: for
        complex parameters that is the conjugate of what is added to them. It raises ValueError for
        a direction of another shape, or without ``"inner"``.

    Raises:
        ValueError: If a name in `statistics` is unknown, or the loss is described wrongly.
        NotImplementedError: If there is `weights_of`.

    Examples:
        >>> import adaoptax, jax.numpy as jnp
        >>> moments_of = adaoptax.measure.per_example_moments(
        ...     lambda w, x: (x @ w).mean(), ("norm", "inner"))
        >>> rows = jnp.array([[1., 0.], [3., 0.], [2., 2.], [2., -2.]])  # per-example gradients
        >>> loss, grads, moments = moments_of(jnp.ones(2), rows)
        >>> moments.sq_norms.tolist(), moments.inner_products.tolist()
        ([1.0, 9.0, 8.0, 8.0], [2.0, 6.0, 4.0, 4.0])
        >>> loss, grads, moments = moments_of(jnp.ones(2), rows, direction=jnp.array([0., 1.]))
        >>> moments.inner_products.tolist(), round(float(moments.inner_product_variance), 3)
        ([0.0, 0.0, 2.0, -2.0], 2.667)
    """
    check_statistics(statistics, STATISTICS, "per_example_moments")
    loss = describe_loss(
        loss_fn,
        loss_kind=loss_kind,
        batch_argnums=batch_argnums,
        weights_of=weights_of,
        has_aux=has_aux,
        key_argnums=key_argnums,
    )
    loss.check_has_examples("adaoptax.measure.per_example_moments")
    want = Want.of(statistics)

    def measured(
        params: ArrayTree, *inputs: Any, mask: Any = None, direction: ArrayTree | None = None
    ) -> tuple[Any, ArrayTree, PerExampleMoments]:
        batch, args = loss.split(params, inputs)
        mask = checked_mask(mask, count_rows(batch))
        if direction is not None and not want.inner:
            raise ValueError(
                f'Expected statistics with "inner" for a direction, got {statistics=}: inner'
                " products are what a direction is for."
            )
        if direction is not None:
            direction = like(params, direction)
        (value, aux), grads, moments = measure_rows(
            loss, params, batch, args, mask, want=want, direction=direction
        )
        products, variance = moments.inner_products, None
        if products is not None:
            variance = variance_of_rows(products, mask)
        found = PerExampleMoments(moments.sq_norms, products, moments.square_sums, variance)
        return ((value, aux) if has_aux else value), grads, found

    return jax.named_call(measured, name="per_example_moments")
