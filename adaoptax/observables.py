"""What is worth looking at after a step: a few scalars for decisions, records and pictures."""

import jax
import jax.numpy as jnp

from adaoptax import _tree
from adaoptax._tree import ArrayTree
from adaoptax.batch_tests import BatchTestState, required_batch_size
from adaoptax.noise_tracker import TrackNoiseScaleState, noise_scale_estimate
from adaoptax.scaling import ScaleByAdaScaleState
from adaoptax.stats import GradientStats, is_measured, noise_scale, signal


def observables(
    loss: jax.Array, stats: GradientStats, opt_state: ArrayTree | None = None
) -> dict[str, jax.Array]:
    """Collects the scalars of one step that `AdaptiveLoop` decides by and records.

    Call it at the end of the jitted train step and return what it returns: scalars that stay on
    the device until the loop reads them. Add numbers of your own to the dict as you like.

    Args:
        loss: Mean loss of the batch.
        stats: Statistics of the step.
        opt_state: State of the optimizer **after** the step, with batch tests and AdaScale
            anywhere in it; None if there is none.

    Returns:
        A dict of scalars. Always ``loss``, ``num_groups`` and ``measured`` (bool; also false where
        every test waits for its `interval`), and in the units
        of squared gradients ``sq_norm``, ``variance`` (unbiased, of one example) and ``signal``
        (debiased, may be negative), and their quotient ``noise_scale`` (examples; of one step,
        hence rough: average `variance` and `signal` before you divide). With a batch test in
        `opt_state` ``required`` (examples; NaN where the test had nothing to decide by, though its
        state keeps the last requirement). With AdaScale ``gain`` and ``scale_invariant_steps``.
        With `track_noise_scale` ``noise_scale_tracked``, ``noise_scale_low`` and
        ``noise_scale_high``.

    Examples:
        >>> import adaoptax, jax.numpy as jnp, optax
        >>> tx = optax.chain(adaoptax.norm_test(eta=0.5), adaoptax.adascale(0.1, 32))
        >>> grads, stats = adaoptax.stats_from_groups(jnp.eye(4) + 1, group_size=16)
        >>> _, opt_state = tx.update(grads, tx.init(grads), grads, stats=stats)
        >>> seen = adaoptax.observables(jnp.float32(2.5), stats, opt_state)
        >>> sorted(seen)  # doctest: +NORMALIZE_WHITESPACE
        ['gain', 'loss', 'measured', 'noise_scale', 'num_groups', 'required',
         'scale_invariant_steps', 'signal', 'sq_norm', 'variance']
        >>> float(seen["loss"]), float(seen["num_groups"])
        (2.5, 4.0)
    """
    seen = {
        "loss": loss,
        "num_groups": stats.num_groups,
        "measured": is_measured(stats),
        "sq_norm": stats.sq_norm,
        "variance": stats.variance,
        "signal": signal(stats),
        "noise_scale": noise_scale(stats),
    }
    if tests := _tree.nodes(opt_state, BatchTestState):
        # A requirement that was kept, for want of evidence or of a test, is no new one.
        tested = jnp.stack([test.tested for test in tests])
        decided = jnp.stack([test.tested & ~test.undefined for test in tests])
        seen["measured"] &= jnp.any(tested, axis=0)
        required = required_batch_size(opt_state)
        seen["required"] = jnp.where(jnp.any(decided, axis=0), required, jnp.nan)
    for adascale in _tree.nodes(opt_state, ScaleByAdaScaleState)[:1]:
        count, fraction = adascale.scale_invariant_count, adascale.scale_invariant_fraction
        seen["gain"] = adascale.gain
        seen["scale_invariant_steps"] = count.astype(fraction.dtype) + fraction
    for tracker in _tree.nodes(opt_state, TrackNoiseScaleState)[:1]:
        tracked = noise_scale_estimate(tracker)
        seen["noise_scale_tracked"] = tracked.noise_scale
        seen["noise_scale_low"], seen["noise_scale_high"] = tracked.low, tracked.high
    return seen
