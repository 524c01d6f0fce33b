"""The state of a batch test, and how the required batch size is read out of it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from adaoptax import _tree
from adaoptax._tree import ArrayTree
from adaoptax.averages import Averages


class BatchTestState(NamedTuple):
    """State of a batch test. A step that was not `measured` leaves all of it as it was.

    Attributes:
        required_batch_size: Real number of examples that the test asks for, not rounded and not
            capped; inf if the gradient cannot be told from noise. Until something was measured,
            the size of the batch at hand.
        test_passed: Whether the batch was at least as large as required, at the last test.
        noise_dominated: Whether the signal was not positive at the last test.
        undefined: Whether the last test had nothing to decide by: the requirement was kept.
        tested: Whether the test ran at the last update with statistics, see `steps_seen`.
        steps_seen: Updates with statistics so far; the test runs at every `interval`-th of them.
        tests_run: Tests that could decide.
        tests_failed: How many of them asked for more examples than the batch had.
        tests_noise_dominated: How many of them found no signal.
        tests_undefined: Tests that had nothing to decide by.
        test_averages: Averages of noise and signal over steps, or None.
    """

    required_batch_size: jax.Array
    test_passed: jax.Array
    noise_dominated: jax.Array
    undefined: jax.Array
    tested: jax.Array
    steps_seen: jax.Array
    tests_run: jax.Array
    tests_failed: jax.Array
    tests_noise_dominated: jax.Array
    tests_undefined: jax.Array
    test_averages: Averages | None


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
    tests = _tree.nodes(opt_state, BatchTestState)
    if not tests:
        raise ValueError(
            f"Expected a batch test in opt_state, got none in {type(opt_state).__name__}: put one"
            " in the chain, as in optax.chain(adaoptax.norm_test(eta=0.5), optimizer), and pass the"
            " state that its update returned."
        )
    return jnp.max(jnp.stack([jnp.asarray(test.required_batch_size) for test in tests]), axis=0)
