r"""The preconditioner of Adam, for statistics that see what its update sees.

An optimizer that multiplies gradients by a diagonal :math:`P > 0`, :math:`w \leftarrow w - \alpha P
g`, is plain gradient descent in the coordinates :math:`z = P^{-1/2} w`: there the gradient is
:math:`P^{1/2} g`, and

.. math:: z \leftarrow z - \alpha P^{1/2} g
    \quad\Longleftrightarrow\quad w = P^{1/2} z \leftarrow w - \alpha P g .

Whatever holds for gradient descent (batch tests, noise scale, AdaScale's gain) therefore holds for
the preconditioned optimizer if it is fed with the statistics of :math:`P^{1/2} g_i`: squared norms
:math:`\lVert g \rVert_P^2 = g^\top P g`, the variance :math:`\operatorname{tr} P \Sigma`, inner
products :math:`g_i^\top P g`. No square root is taken to measure them, and the gradient that the
optimizer gets stays as it is.

Tests that decide by statistics alone work unchanged, `coordinate_test` too (the ratio of noise and
signal of one coordinate has no units; `coordinate_variance` is that of the gradient as it is). What
takes norms of a gradient or an update by itself, such as `proximal_test`, `averaged_gradient` and
`lipschitz_descent`, would compare lengths in two metrics: measure for these without one.

With the diagonal of the Hessian for P the noise scale is McCandlish's
:math:`\operatorname{tr}(H \Sigma) / G^\top H G` instead of its simple form.
"""

import jax
import jax.numpy as jnp
import optax

from adaoptax import _validate
from adaoptax._tree import ArrayTree, widen
from adaoptax.scaling.adam import ScaleByAdamWithBatchState
from adaoptax.typing import Scalar


def adam_preconditioner(
    opt_state: ArrayTree, *, b2: Scalar = 0.999, eps: Scalar = 1e-8, eps_root: Scalar = 0.0
) -> ArrayTree:
    r"""The factor by which Adam multiplies each entry of the gradient, from its second moment.

    .. math:: P_j = \frac{1}{\sqrt{\hat\nu_j + \epsilon_{root}} + \epsilon}, \qquad
        \hat\nu_j = \nu_j / (1 - \beta_2^t)

    It is that of the steps before, hence independent of the batch that is measured in it, which
    keeps the statistics unbiased. Momentum is left out: it averages gradients that are
    preconditioned alike.

    An entry that has never had a gradient, :math:`\nu_j = 0`, has no metric yet and counts as zero.
    Before the first step this is all of them: noise and signal are zero, tests count the step as
    undefined and keep their size (but for `coordinate_test`, which has no metric), and averages
    over steps take no notice.

    Statistics of :math:`P g` itself (the preconditioned noise scale of Pollux, in the units of the
    update) are those of the preconditioner :math:`P^2`: pass ``jax.tree.map(jnp.square, p)``.

    Args:
        opt_state: State of an optimizer with one Adam in it, in any chain or wrapper: of
            `optax.adam`, `adamw`, `nadam`, or of `scale_by_adam_with_batch`, whose own running
            product corrects :math:`\nu`. Not of `optax.adamax`, `adamaxw`, whose state looks alike
            while its :math:`\nu` is no second moment; nor of `lamb`, which scales by layer, too.
        b2: :math:`\beta_2` of one of Optax's. Where :math:`\epsilon` is negligible it scales the
            statistics as a whole, and no test and no gain depends on that.
        eps: :math:`\epsilon` of that optimizer.
        eps_root: :math:`\epsilon_{root}` of that optimizer.

    Returns:
        Pytree like the parameters, float32 or wider, for the argument `preconditioner` of what
        `value_grad_and_stats` returns.

    Raises:
        ValueError: If there is no such state in `opt_state`, several of them, or one that holds
            only part of the parameters; if an argument is out of range.

    Examples:
        >>> import adaoptax, jax, jax.numpy as jnp, optax
        >>> tx = optax.chain(adaoptax.norm_test(eta=0.5), optax.adam(1e-2))
        >>> grad_fn = adaoptax.value_grad_and_stats(
        ...     lambda w, x: (x @ w).mean(), adaoptax.measure.per_example())
        >>> @jax.jit
        ... def train_step(w, opt_state, x):
        ...     preconditioner = adaoptax.measure.adam_preconditioner(opt_state)
        ...     loss, grads, stats = grad_fn(w, x, preconditioner=preconditioner)
        ...     updates, opt_state = tx.update(grads, opt_state, w, stats=stats)
        ...     return optax.apply_updates(w, updates), opt_state, stats
        >>> rows = jnp.array([[1., 1.], [3., 1.], [2., 3.], [2., -1.]])  # per-example gradients
        >>> w, opt_state = jnp.ones(2), tx.init(jnp.ones(2))
        >>> for _ in range(2):
        ...     w, opt_state, stats = train_step(w, opt_state, rows)
        >>> round(float(stats.sq_norm), 4)  # g = (2, 1) of the first step: P = (1/2, 1/1)
        3.0
        >>> round(float(stats.variance), 4)  # (2/3) / 2 + (8/3) / 1
        3.0

    References:
        Kingma and Ba, `Adam <https://arxiv.org/abs/1412.6980>`_, 2015; Qiao et al., `Pollux
        <https://arxiv.org/abs/2008.12260>`_, 2021, section 3 (the preconditioned noise scale).
    """
    _validate.fraction("b2", b2, "it is Adam's decay of the second moment.")
    _validate.at_least("eps", eps, 0, "it is added to a root of squares.")
    _validate.at_least("eps_root", eps_root, 0, "it is added to a square.")
    is_adam = lambda node: isinstance(node, optax.ScaleByAdamState | ScaleByAdamWithBatchState)
    found = [node for node in jax.tree.leaves(opt_state, is_leaf=is_adam) if is_adam(node)]
    is_masked = lambda node: isinstance(node, optax.MaskedNode)
    partial = [x for s in found for x in jax.tree.leaves(s.nu, is_leaf=is_masked) if is_masked(x)]
    if len(found) != 1 or partial:
        what = "one that holds part of the parameters" if len(found) == 1 else str(len(found))
        raise ValueError(
            f"Expected one state of Adam for all parameters in opt_state, got {what} in"
            f" {type(opt_state).__name__}: pass the state of an Adam that all parameters share, or"
            " build the pytree of factors yourself, leaf by leaf."
        )
    (adam,) = found
    if isinstance(adam, ScaleByAdamWithBatchState):
        correction = jnp.where(adam.adam_steps > 0, adam.nu_weight, 1)
    else:
        correction = 1 - jnp.asarray(b2) ** jnp.maximum(adam.count, 1)

    def factor(nu: jax.Array) -> jax.Array:
        nu = widen(nu)
        seen = nu > 0
        corrected = jnp.where(seen, nu, 1) / correction.astype(nu.dtype)
        return jnp.where(seen, 1 / (jnp.sqrt(corrected + eps_root) + eps), 0)

    return jax.tree.map(factor, adam.nu)
