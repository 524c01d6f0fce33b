"""The safeguard of a batch test against noisy small batches: a mean of the last gradients."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from adaoptax import _tree, _validate
from adaoptax._tree import ArrayTree
from adaoptax.batch_tests.batch_test import GradientTest
from adaoptax.batch_tests.state import BatchTestState
from adaoptax.stats import GradientStats, check_stats, is_measured
from adaoptax.typing import Scalar


class AveragedGradientState(NamedTuple):
    """State of `averaged_gradient`.

    Attributes:
        gradient_sum: Pytree like the parameters, at least float32: the gradients of a block.
        gradients_summed: How many batches it holds.
        block_batch_size: Their size; another size starts a new block.
        decided_by_average: Tests that took the mean of a block for the gradient.
        test: State of the test.
    """

    gradient_sum: ArrayTree
    gradients_summed: jax.Array
    block_batch_size: jax.Array
    decided_by_average: jax.Array
    test: BatchTestState


def averaged_gradient(
    test: optax.GradientTransformationExtraArgs, window: Scalar = 10, gamma: Scalar = 0.38
) -> optax.GradientTransformationExtraArgs:
    r"""Lets a batch test look at a mean of the last gradients where one batch is too noisy.

    The norm of a small noisy batch is mostly noise, and a plug-in test that has it on the right
    side passes for ever. When the batch size has not changed for :math:`r` batches,

    .. math:: g_{avg} = \frac{1}{r} \sum_{j=k-r+1}^{k} g_j, \qquad
        \lVert g_{avg} \rVert < \gamma \lVert g_k \rVert
        \;\Longrightarrow\; \text{the test takes } \lVert g_{avg} \rVert \text{ for }
        \lVert g_k \rVert

    on its right side; noise, on the left side, is measured as ever. On independent noise this
    raises the ceiling of a plug-in test by :math:`r`; along a run that has stalled by more, since
    there the gradients add up to the way made (see "The optimal split" in the docs). A debiased
    test subtracts :math:`S^2/(rB)` from the mean's square, as it should; with `decay` it averages
    the two scalars over steps, which is a safeguard too and costs no memory.

    Constants and rule are from notes on the paper, and **unverified**. Ours is the choice of
    blocks: gradients are summed, and looked at once `window` of them are there, which then are the
    last; so it costs one buffer of the size of the parameters instead of `window` of them, and
    decides once in `window` steps. Place it first in a chain, where updates are gradients.

    Args:
        test: `norm_test`, `inner_product_test`, `augmented_inner_product_test` or `optimal_split`.
        window: :math:`r`, batches of one size in the mean, at least 2.
        gamma: :math:`\gamma` in (0, 1): a mean that is shorter by it than the gradient says that
            the gradient is mostly noise (on pure noise the ratio is :math:`1/\sqrt{r}`).

    Returns:
        An `optax.GradientTransformationExtraArgs` with `AveragedGradientState`; `update` requires
        ``stats=``; updates pass through unchanged. A step that was not measured adds its gradient
        and decides nothing; a NaN or infinite gradient is not added; a batch of another size (the
        padded last one of an epoch, too) starts a new block.

    Raises:
        ValueError: If `window` is not a whole number ≥ 2 or `gamma` not in (0, 1).
        TypeError: If `test` is not one of these.

    Examples:
        >>> import adaoptax, jax.numpy as jnp
        >>> from adaoptax.batch_tests import averaged_gradient
        >>> tx = averaged_gradient(adaoptax.norm_test(0.9, signal="plug-in"), window=2, gamma=0.8)
        >>> state = tx.init(jnp.zeros(2))
        >>> for mean in ([1.0, 0.2], [-1.0, 0.2]):  # of two batches of two examples
        ...     rows = jnp.array([[0.0, 1.0], [0.0, -1.0]]) + jnp.array(mean)
        ...     grads, stats = adaoptax.stats_from_groups(rows, group_size=1)
        ...     _, state = tx.update(grads, state, stats=stats)
        ...     print(round(float(adaoptax.required_batch_size(state)), 1))
        2.4
        61.7

    References:
        Bollapragada et al., `Adaptive Sampling Strategies for Stochastic Optimization
        <https://arxiv.org/abs/1710.11258>`_, 2018, section 4.
    """
    _validate.count("window", window, 2, "it counts the gradients of a mean.")
    if _validate.is_number(gamma) and not 0 < gamma < 1:
        raise ValueError(
            f"Expected 0 < gamma < 1, got gamma={gamma!r}: it is how much shorter than one gradient"
            " their mean is on noise; 0.38 is usual."
        )
    if not isinstance(test, GradientTest):
        name = getattr(test.update, "__qualname__", test.update)
        raise TypeError(
            "Expected test to be one batch test of the norm of a gradient (norm_test,"
            " inner_product_test, augmented_inner_product_test or optimal_split), got one with the"
            f" update {name}: a mean of gradients cannot stand for another signal. Wrap the test"
            " alone, as in optax.chain(averaged_gradient(norm_test(0.9)), optimizer)."
        )

    def init_fn(params: ArrayTree) -> AveragedGradientState:
        tested = test.init(params)
        wide = lambda p: jnp.promote_types(jnp.result_type(p), jnp.float32)
        return AveragedGradientState(
            gradient_sum=jax.tree.map(lambda p: jnp.zeros_like(p, dtype=wide(p)), params),
            gradients_summed=jnp.zeros([], jnp.int32),
            block_batch_size=jnp.zeros([], tested.required_batch_size.dtype),
            decided_by_average=jnp.zeros([], jnp.int32),
            test=tested,
        )

    def update_fn(
        updates: ArrayTree,
        state: AveragedGradientState,
        params: ArrayTree | None = None,
        *,
        stats: GradientStats,
        **extra_args: Any,
    ) -> tuple[ArrayTree, AveragedGradientState]:
        check_stats(stats, "averaged_gradient")
        total, count = add_gradient(updates, state, stats)
        mean_sq_norm = _tree.sq_norm(total) / jnp.maximum(count, 1) ** 2
        noisy = mean_sq_norm < gamma**2 * stats.sq_norm
        full = (count >= window) & is_measured(stats)
        instead = lambda mean, one: jnp.where(full & noisy, mean, one)
        averaged = stats._replace(
            sq_norm=instead(mean_sq_norm, stats.sq_norm),
            num_examples=instead(count * stats.num_examples, stats.num_examples),
        )
        updates, tested = test.update(
            updates, state.test, params, stats=stats, averaged=averaged, **extra_args
        )
        # A test that ran has looked at the block; one between two intervals has not.
        tests = lambda s: s.tests_run + s.tests_undefined
        looked = full & (tests(tested) > tests(state.test))
        used = looked & noisy & (tested.tests_run > state.test.tests_run)
        return updates, AveragedGradientState(
            gradient_sum=jax.tree.map(lambda x: jnp.where(looked, 0, x).astype(x.dtype), total),
            gradients_summed=jnp.where(looked, 0, count),
            block_batch_size=stats.num_examples.astype(state.block_batch_size.dtype),
            decided_by_average=state.decided_by_average + used.astype(jnp.int32),
            test=tested,
        )

    update_fn.__qualname__ = "averaged_gradient.update"  # what a missing `stats` is reported under
    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def add_gradient(
    grads: ArrayTree, state: AveragedGradientState, stats: GradientStats
) -> tuple[ArrayTree, jax.Array]:
    """Sum and count of the block with this gradient, or of a new one if the size has changed."""
    finite = jnp.isfinite(stats.sq_norm)
    same = stats.num_examples == state.block_batch_size

    def add(total: jax.Array, g: jax.Array) -> jax.Array:
        kept = jnp.where(same, total, 0)
        return (kept + jnp.where(finite, g.astype(total.dtype), 0)).astype(total.dtype)

    count = jnp.where(same, state.gradients_summed, 0) + finite.astype(jnp.int32)
    return jax.tree.map(add, state.gradient_sum, grads), count
