"""Adam whose moments remember the same number of examples at every batch size."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike

from adaoptax import _tree, _validate
from adaoptax._tree import ArrayTree
from adaoptax.scaling.adam_hyperparams import (
    ADAM_RULES,
    beyond_range,
    check_adam_arguments,
    check_kappa,
    moved_decay,
)
from adaoptax.scaling.skip import is_usable, next_count
from adaoptax.stats import GradientStats, check_stats
from adaoptax.typing import Scalar


class ScaleByAdamWithBatchState(NamedTuple):
    """State of `scale_by_adam_with_batch`. A step that is skipped leaves all but its count.

    Attributes:
        mu: First moment, like the parameters.
        nu: Second moment, like the parameters.
        mu_weight: 1 − ∏ β1 over all steps: what the first moment is divided by.
        nu_weight: 1 − ∏ β2 over all steps.
        adam_steps: Steps taken.
        only_base_batches: Whether every batch so far had the base size, and the decays are no
            injected hyperparameters: then the weights are those of `optax.adam`, to the bit.
        decays_held: Steps at which a decay of rule "malladi" was held at 0, out of its range.
        adam_steps_skipped: Steps with a NaN or infinite gradient, or without examples.
    """

    mu: ArrayTree
    nu: ArrayTree
    mu_weight: jax.Array
    nu_weight: jax.Array
    adam_steps: jax.Array
    only_base_batches: jax.Array
    decays_held: jax.Array
    adam_steps_skipped: jax.Array


def scale_by_adam_with_batch(
    base_batch_size: Scalar,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    mu_dtype: DTypeLike | None = None,
    *,
    nesterov: bool = False,
    rule: str = "half-life",
    max_batch_size: Scalar | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Adam whose decays and epsilon follow the batch.

    .. math:: \mu_t = \beta_{1,t} \mu_{t-1} + (1 - \beta_{1,t}) g_t, \qquad
        \hat\mu_t = \mu_t / (1 - \textstyle\prod_{s \le t} \beta_{1,s})

    and :math:`\nu` with :math:`g^2` likewise; the update is
    :math:`\hat\mu / (\sqrt{\hat\nu + \bar\epsilon_t} + \epsilon_t)`. The batch size of each step
    comes from its statistics, and `adam_hyperparams` says how each rule moves the numbers.

    **Bias correction is by the running product of the decays that were in force.** That of
    `optax.adam`, :math:`1 - \beta^t`, is wrong for about :math:`1 / (1 - \beta)` steps after a
    decay changes. As long as every batch has the base size the two agree, and the results are those
    of `optax.scale_by_adam` to the bit in float32 and float64. Moments stored in bfloat16 or
    float16 are computed in float32, where Optax rounds the decays (0.999 to 1).

    Args:
        base_batch_size: :math:`B_0`, the size at which the numbers were tuned, in examples.
        b1: Decay of the first moment, at the base batch. `decay_of_half_life` makes one of a
            half-life.
        b2: Decay of the second moment, at the base batch.
        eps: Term beside the root, at the base batch.
        eps_root: Term inside the root, at the base batch.
        mu_dtype: Dtype in which the first moment is stored; None is that of the parameters.
        nesterov: Whether the momentum is Nesterov's, with the current decay for the next one.
        rule: ``"half-life"``, ``"marek"`` or ``"malladi"``, see `adam_hyperparams`. The learning
            rate does not move here: put `scale_by_batch` behind, or use `adamw_with_batch`.
        max_batch_size: The largest batch that will come, in examples, or None. It lets
            ``"malladi"`` refuse now what it cannot follow: κ(1 − β) ≥ 1.

    Returns:
        An `optax.GradientTransformationExtraArgs` with `ScaleByAdamWithBatchState`; `update`
        requires ``stats=``. Beyond the range of ``"malladi"`` the decay is 0, and counted. A NaN or
        infinite gradient, or a batch without examples, gives a zero update and changes nothing but
        a count.

    Raises:
        ValueError: If an argument is out of range.

    Examples:
        >>> import adaoptax, jax.numpy as jnp, optax
        >>> from adaoptax.scaling import scale_by_adam_with_batch
        >>> tx = optax.chain(scale_by_adam_with_batch(32), optax.scale_by_learning_rate(1e-3))
        >>> grads, stats = adaoptax.stats_from_groups(jnp.ones((4, 1)), group_size=32)
        >>> updates, state = tx.update(grads, tx.init(grads), stats=stats)
        >>> round(float(optax.tree.get(state, "mu_weight")), 4)  # 1 - 0.9^4
        0.3439

    References:
        Kingma and Ba, `Adam <https://arxiv.org/abs/1412.6980>`_, 2014; for the rules see
        `adam_hyperparams`. The running product is derived here.
    """
    _validate.base_batch_size(base_batch_size, "Adam")
    check_adam_arguments(b1, b2, eps, eps_root, rule)
    moves = ADAM_RULES[rule]
    # An injected decay may change while training, and then a power of it is no product.
    constant = _validate.is_number(b1) and _validate.is_number(b2)
    if max_batch_size is not None:
        _validate.positive("max_batch_size", max_batch_size, "it counts examples.")
        check_kappa(moves, {"b1": b1, "b2": b2}, max_batch_size / base_batch_size)

    def init_fn(params: ArrayTree) -> ScaleByAdamWithBatchState:
        dtype = _tree.scalar_dtype(params)
        zero = lambda: jnp.zeros([], jnp.int32)
        return ScaleByAdamWithBatchState(
            mu=optax.tree.zeros_like(params, dtype=mu_dtype),
            nu=optax.tree.zeros_like(params),
            mu_weight=jnp.zeros([], dtype),
            nu_weight=jnp.zeros([], dtype),
            adam_steps=zero(),
            only_base_batches=jnp.ones([], jnp.bool_),
            decays_held=zero(),
            adam_steps_skipped=zero(),
        )

    def update_fn(
        updates: ArrayTree,
        state: ScaleByAdamWithBatchState,
        params: ArrayTree | None = None,
        *,
        stats: GradientStats,
        **extra_args: Any,
    ) -> tuple[ArrayTree, ScaleByAdamWithBatchState]:
        del params, extra_args
        check_stats(stats, "scale_by_adam_with_batch")
        usable = is_usable(stats)
        size = jnp.where(usable, stats.num_examples, base_batch_size)
        kappa = (size / base_batch_size).astype(state.mu_weight.dtype)

        decay_1, share_1 = moved_decay(moves.b1, b1, kappa)
        decay_2, share_2 = moved_decay(moves.b2, b2, kappa)
        first = lambda x, m: share_1 * x + decay_1 * m
        second = lambda x, v: share_2 * x + decay_2 * v
        wide = jax.tree.map(_tree.widen, updates)
        mu = jax.tree.map(first, wide, state.mu)
        nu = jax.tree.map(lambda g, v: second(_tree.squared_modulus(g), v), wide, state.nu)
        mu_weight, nu_weight = first(1, state.mu_weight), second(1, state.nu_weight)

        steps = optax.safe_increment(state.adam_steps)
        base = state.only_base_batches & (kappa == 1) & constant
        mu_hat = _corrected(wide if nesterov else mu, mu_weight, base, b1, steps)
        nu_hat = _corrected(nu, nu_weight, base, b2, steps)
        if nesterov:
            next_weight = first(1, mu_weight)
            ahead = _corrected(mu, next_weight, base, b1, optax.safe_increment(steps))
            mu_hat = jax.tree.map(first, mu_hat, ahead)

        beside, inside = eps, eps_root
        if moves.eps:
            beside, inside = eps / jnp.sqrt(kappa), eps_root / kappa
        scale = lambda g, m, v: (m / (jnp.sqrt(v + inside) + beside)).astype(g.dtype)
        scaled = jax.tree.map(scale, updates, mu_hat, nu_hat)

        held = beyond_range(moves.b1, b1, kappa) | beyond_range(moves.b2, b2, kappa)
        stepped = ScaleByAdamWithBatchState(
            mu=_cast_like(mu, state.mu),
            nu=_cast_like(nu, state.nu),
            mu_weight=mu_weight.astype(state.mu_weight.dtype),
            nu_weight=nu_weight.astype(state.nu_weight.dtype),
            adam_steps=steps,
            only_base_batches=base,
            decays_held=next_count(state.decays_held, held),
            adam_steps_skipped=state.adam_steps_skipped,
        )
        skipped = state._replace(adam_steps_skipped=optax.safe_increment(state.adam_steps_skipped))
        zeros = jax.tree.map(jnp.zeros_like, scaled)
        return _tree.select(usable, scaled, zeros), _tree.select(usable, stepped, skipped)

    update_fn.__qualname__ = "scale_by_adam_with_batch.update"  # named where `stats` is missing
    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


@functools.partial(jax.jit, inline=True)  # as in Optax: without, power and quotient round otherwise
def _corrected(
    moments: ArrayTree, weight: jax.Array, base: jax.Array, decay: Any, count: jax.Array
) -> ArrayTree:
    """Moments over the weight; where `base` holds over 1 − decay^count, the rounding of Optax."""
    weight = jnp.where(base, 1 - decay**count, weight)
    return jax.tree.map(lambda m: m / weight.astype(m.dtype), moments)


def _cast_like(tree: ArrayTree, like: ArrayTree) -> ArrayTree:
    return jax.tree.map(lambda new, old: new.astype(old.dtype), tree, like)
