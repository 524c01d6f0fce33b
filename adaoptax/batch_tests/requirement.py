"""Reading the required batch size out of any optimizer state."""

import jax
import jax.numpy as jnp

from adaoptax._tree import ArrayTree
from adaoptax.batch_tests.framework import BatchTestState


def required_batch_size(opt_state: ArrayTree) -> jax.Array:
    """The largest batch size that any batch test in `opt_state` requires.

    Args:
        opt_state: State of an optimizer, with tests anywhere in it: `optax.chain`, `named_chain`,
            `masked`, `partition`, `inject_hyperparams`, `apply_if_finite`, `MultiSteps`, the
            `opt_state` of an `nnx.Optimizer`.

    Returns:
        A float32 scalar (float64 under float64 gradients): a real number of examples, not rounded
        and not capped; inf if a gradient could not be told from noise. Works inside `jax.jit`; of
        a state that is vmapped (over seeds, say), one requirement for each.

    Raises:
        ValueError: If there is no batch test in `opt_state`.

    Examples:
        >>> import adaoptax, jax.numpy as jnp, optax
        >>> tx = optax.chain(adaoptax.norm_test(eta=0.5), optax.adam(1e-3))
        >>> float(adaoptax.required_batch_size(tx.init(jnp.ones(3))))  # nothing measured yet
        0.0
    """
    is_test = lambda node: isinstance(node, BatchTestState)
    tests = [node for node in jax.tree.leaves(opt_state, is_leaf=is_test) if is_test(node)]
    if not tests:
        raise ValueError(
            f"Expected a batch test in opt_state, got none in {type(opt_state).__name__}: put one"
            " in the chain, as in optax.chain(adaoptax.norm_test(eta=0.5), optimizer), and pass the"
            " state that its update returned."
        )
    return jnp.max(jnp.stack([jnp.asarray(test.required_batch_size) for test in tests]), axis=0)
