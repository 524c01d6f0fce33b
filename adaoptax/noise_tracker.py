r"""The noise scale of the last examples, with an interval, carried in the optimizer's state.

A step tells its own noise scale badly: at a batch of a tenth of it the measured signal is negative
in two steps of five. What is known is a ratio of means over many steps. The state here holds those
sums in a fixed number of blocks, one after another in time, and the scatter between the blocks says
how well their ratio is known:

    examples   ....[ block ][ block ][ block ] ... [ block ][ bl    <- now
                \__ dropped  \__________ the last `horizon` ________/

Early in a run blocks are short: the first ones hold a single step each. Whenever all are full
neighbours are merged, until a block holds its share of the horizon; from then on the oldest block
is dropped for each new one.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from adaoptax import _tree, _validate
from adaoptax._tree import ArrayTree
from adaoptax.ratio_interval import check_level, ratio_interval
from adaoptax.stats import GradientStats, check_stats, is_measured, require_coordinate_variance
from adaoptax.typing import Scalar

__all__ = [
    "NoiseScaleEstimate",
    "TrackNoiseScaleState",
    "noise_scale_by_layer",
    "noise_scale_estimate",
    "track_noise_scale",
]

NUM_BLOCKS = 32
MIN_BLOCKS = 8  # a standard error from fewer is worth little


class TrackNoiseScaleState(NamedTuple):
    """State of `track_noise_scale`. A step that was not `measured` leaves all of it as it was.

    Attributes:
        noise_sums: [blocks, 1 + leaves], Σ B·S² over the steps of each block, oldest block first;
            column 0 is of all parameters together, the others are of single arrays.
        signal_sums: The same of B·(‖g‖² − S²/B).
        block_examples: [blocks], Σ B.
        blocks_used: How many of the blocks hold something; the last of them is being filled.
        block_length: Examples of a block; grows up to its share of the horizon.
        block_room: Examples that the last block has room for; where a step overfills it, the next
            one has as much less.
        noise_steps: Steps with evidence so far, in the blocks or dropped since.
        noise_steps_undefined: Steps without evidence.
    """

    noise_sums: jax.Array
    signal_sums: jax.Array
    block_examples: jax.Array
    blocks_used: jax.Array
    block_length: jax.Array
    block_room: jax.Array
    noise_steps: jax.Array
    noise_steps_undefined: jax.Array


class NoiseScaleEstimate(NamedTuple):
    """What is known of a noise scale.

    Attributes:
        noise_scale: In examples; NaN where it is not known yet.
        low: Lower end of its interval; NaN where it is not known yet.
        high: Upper end of its interval; NaN where it is not known yet.
        known: Whether the signal is significantly positive, so that the interval has two ends.
        num_examples: Examples that the estimate rests on.
    """

    noise_scale: jax.Array
    low: jax.Array
    high: jax.Array
    known: jax.Array
    num_examples: jax.Array


def track_noise_scale(
    horizon: Scalar, *, per_layer: bool = False
) -> optax.GradientTransformationExtraArgs:
    r"""Tracks the gradient noise scale over the last `horizon` examples.

    .. math:: \hat{\mathcal{B}} = \frac{\sum_t B_t S^2_t}{\sum_t B_t (\lVert g_t \rVert^2 -
        S^2_t / B_t)}

    A ratio of means, in which every example weighs the same, and debiased by the noise of each
    batch. A passive transformation: updates pass through unchanged. Read it with
    `noise_scale_estimate`, which gives an interval, and no number where there is none to give.

    Memory is 32 blocks of sums, however long the horizon: the estimate spans the last `horizon`
    examples to within one block and one batch, and at least 31 steps (a batch larger than a block
    has one of its own). When blocks first reach their share, merged ones are longer: until they are
    dropped it spans up to half as much again.

    Args:
        horizon: Examples that the estimate spans, of measured steps. With d the effective dimension
            of the noise, :math:`(\operatorname{tr} \Sigma)^2 / \operatorname{tr} \Sigma^2`, and
            :math:`B \ll \mathcal{B}` a relative error :math:`\epsilon` takes about :math:`2
            \mathcal{B}^2 / (d B \epsilon^2)` examples. Over a longer one the noise scale drifts.
        per_layer: Whether to track every array of the parameters by itself too: see
            `noise_scale_by_layer`. Place it before anything that changes the gradient.

    Returns:
        An `optax.GradientTransformationExtraArgs` with `TrackNoiseScaleState`; `update` requires
        ``stats=``, with `coordinate_variance` if `per_layer`. A step without evidence is counted
        and changes nothing else: "Undefined statistics" in the guide lists the cases.

    Raises:
        ValueError: If `horizon` is not positive.

    Examples:
        >>> import adaoptax, jax.numpy as jnp, optax
        >>> from adaoptax.noise_tracker import noise_scale_estimate, track_noise_scale
        >>> tx = optax.chain(track_noise_scale(horizon=10_000), optax.sgd(0.1))
        >>> rows = jnp.array([[1., 0.], [3., 0.], [2., 2.], [2., -2.]])  # per-example gradients
        >>> grads, stats = adaoptax.stats_from_groups(rows, group_size=1)
        >>> state = tx.init(grads)
        >>> for step in range(8):
        ...     updates, state = tx.update(grads, state, stats=stats)
        ...     if step == 6: print(bool(noise_scale_estimate(state).known))
        False
        >>> round(float(noise_scale_estimate(state).noise_scale), 4)  # (10/3)/(19/6)
        1.0526

    References:
        McCandlish et al., `An Empirical Model of Large-Batch Training
        <https://arxiv.org/abs/1812.06162>`_, 2018, appendix A.
    """
    _validate.positive("horizon", horizon, "it counts the examples that the estimate spans.")

    def init_fn(params: ArrayTree) -> TrackNoiseScaleState:
        dtype = _tree.scalar_dtype(params)
        columns = 1 + (len(jax.tree.leaves(params)) if per_layer else 0)
        zero = lambda: jnp.zeros([], jnp.int32)
        return TrackNoiseScaleState(
            noise_sums=jnp.zeros([NUM_BLOCKS, columns], dtype),
            signal_sums=jnp.zeros([NUM_BLOCKS, columns], dtype),
            block_examples=jnp.zeros([NUM_BLOCKS], dtype),
            blocks_used=zero(),
            block_length=jnp.zeros([], dtype),
            block_room=jnp.zeros([], dtype),
            noise_steps=zero(),
            noise_steps_undefined=zero(),
        )

    def update_fn(
        updates: ArrayTree,
        state: TrackNoiseScaleState,
        params: ArrayTree | None = None,
        *,
        stats: GradientStats,
        **extra_args: Any,
    ) -> tuple[ArrayTree, TrackNoiseScaleState]:
        del params, extra_args
        check_stats(stats, "track_noise_scale")
        noise, sq_norms = _columns(updates, stats, per_layer)
        signals = sq_norms - noise / stats.num_examples
        evident = (
            (stats.num_groups > 1)
            & (stats.num_examples > 0)
            & jnp.all(jnp.isfinite(noise) & jnp.isfinite(signals))
            & ((stats.variance != 0) | (stats.sq_norm != 0))
        )
        added = _add(state, noise, signals, stats.num_examples, horizon / NUM_BLOCKS)
        count = state.noise_steps_undefined
        undefined = state._replace(noise_steps_undefined=optax.safe_increment(count))
        after = _tree.select(evident, added, undefined)
        return updates, _tree.select(is_measured(stats), after, state)

    update_fn.__qualname__ = "track_noise_scale.update"  # what a missing `stats` is reported under
    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _columns(
    grads: ArrayTree, stats: GradientStats, per_layer: bool
) -> tuple[jax.Array, jax.Array]:
    """Variance and squared norm, of all parameters and then of each array."""
    noise, sq_norms = [stats.variance], [stats.sq_norm]
    if per_layer:

        def of_array(g: Any, v: jax.Array) -> Any:
            if isinstance(g, optax.MaskedNode):  # under optax.masked the rest is not ours
                return g
            noise.append(jnp.sum(v))
            sq_norms.append(_tree.sq_norm(g))
            return None

        is_masked = lambda x: isinstance(x, optax.MaskedNode)
        jax.tree.map(of_array, grads, require_coordinate_variance(stats), is_leaf=is_masked)
    dtype = jnp.promote_types(_tree.scalar_dtype(noise), jnp.float32)
    stack = lambda scalars: jnp.stack([x.astype(dtype) for x in scalars])
    return stack(noise), stack(sq_norms)


def _add(
    state: TrackNoiseScaleState, noise: jax.Array, signals: jax.Array, size: Any, share: Any
) -> TrackNoiseScaleState:
    """The state with one more step; blocks grow up to `share` examples."""
    used, length = state.blocks_used, state.block_length
    sums = (state.noise_sums, state.signal_sums, state.block_examples)
    begins = state.block_room <= 0
    full = begins & (used == NUM_BLOCKS)
    half = NUM_BLOCKS // 2

    def merged(x: jax.Array) -> jax.Array:
        pairs = x.reshape(half, 2, *x.shape[1:]).sum(axis=1)
        return jnp.concatenate([pairs, jnp.zeros_like(pairs)])

    merges = full & (length < share)
    shifts = full & ~merges
    shifted = lambda x: jnp.concatenate([x[1:], jnp.zeros_like(x[:1])])
    sums = jax.tree.map(
        lambda x: jnp.where(merges, merged(x), jnp.where(shifts, shifted(x), x)), sums
    )
    used = jnp.where(merges, half, jnp.where(shifts, NUM_BLOCKS - 1, used))
    length = jnp.where(merges, jnp.minimum(jnp.max(sums[2]), share), length)
    used = used + begins.astype(used.dtype)
    begun = jnp.where(merges, length, jnp.maximum(state.block_room + length, 0))
    room = jnp.where(begins, begun, state.block_room) - size

    into = jnp.arange(NUM_BLOCKS) == used - 1
    put = lambda x, new: (
        x + jnp.where(into.reshape(-1, *(1,) * (x.ndim - 1)), size * new, 0).astype(x.dtype)
    )
    return TrackNoiseScaleState(
        noise_sums=put(sums[0], noise),
        signal_sums=put(sums[1], signals),
        block_examples=put(sums[2], jnp.ones_like(size)),
        blocks_used=used,
        block_length=length.astype(state.block_length.dtype),
        block_room=room.astype(state.block_room.dtype),
        noise_steps=optax.safe_increment(state.noise_steps),
        noise_steps_undefined=state.noise_steps_undefined,
    )


def noise_scale_estimate(opt_state: ArrayTree, *, level: Scalar = 0.95) -> NoiseScaleEstimate:
    r"""The noise scale that `track_noise_scale` has seen, and how well it is known.

    The interval is Fieller's, with the standard errors of a jackknife over time: the ratio with one
    block of steps left out at a time. It needs no model of the noise, counts the correlation
    between steps of a block, and has Student's t for as many degrees of freedom as there are blocks
    to spare. The gate: unless the mean signal is t standard errors above zero, and 8 blocks hold
    something, the noise scale is *not yet known*, and no number is given.

    At a given moment the gate opens on pure noise with probability ``(1 - level) / 2``; who asks at
    every step meets that share of wrong openings. Near the threshold it opens on the lucky draws,
    whose noise scale is too low.

    Args:
        opt_state: State of an optimizer with `track_noise_scale` anywhere in it.
        level: Probability that the interval holds the noise scale, if this does not drift within
            the horizon; where it does, the interval is wider.

    Returns:
        A `NoiseScaleEstimate` of scalars. Works inside `jax.jit`; of a state that is vmapped (over
        seeds, say) under `jax.vmap`.

    Raises:
        ValueError: If there is no tracker in `opt_state`, or more than one; if `level` is not
            between 0 and 1.

    Examples:
        >>> import jax.numpy as jnp
        >>> from adaoptax.noise_tracker import noise_scale_estimate, track_noise_scale
        >>> tx = track_noise_scale(horizon=10_000)
        >>> estimate = noise_scale_estimate(tx.init(jnp.ones(3)))
        >>> bool(estimate.known), float(estimate.noise_scale), float(estimate.num_examples)
        (False, nan, 0.0)

    References:
        Fieller, Some Problems in Interval Estimation, 1954.
    """
    return jax.tree.map(lambda x: x[0], _estimates(_tracker(opt_state), level))


def noise_scale_by_layer(
    opt_state: ArrayTree, params: ArrayTree, *, level: Scalar = 0.95
) -> ArrayTree:
    """The noise scale of every single array of the parameters.

    Args:
        opt_state: State of an optimizer with ``track_noise_scale(..., per_layer=True)`` in it.
        params: The parameters that it was initialised with, or anything of their structure.
        level: As in `noise_scale_estimate`.

    Returns:
        A pytree like `params` with a `NoiseScaleEstimate` for every array. Where the statistics
        were measured with a preconditioner, these remain those of the gradient as it is.

    Raises:
        ValueError: If there is no tracker in `opt_state`, it was made without ``per_layer=True``,
            or `params` have another number of arrays.

    Examples:
        >>> import adaoptax, jax.numpy as jnp
        >>> from adaoptax.noise_tracker import noise_scale_by_layer, track_noise_scale
        >>> rows = {"w": jnp.array([[1., 0.], [3., 0.]]), "b": jnp.array([[2.], [2.]])}
        >>> grads, stats = adaoptax.stats_from_groups(
        ...     rows, group_size=1, statistics=("norm", "coordinate"))
        >>> tx = track_noise_scale(horizon=1000, per_layer=True)
        >>> state = tx.init(grads)
        >>> for _ in range(8):
        ...     _, state = tx.update(grads, state, stats=stats)
        >>> layers = noise_scale_by_layer(state, grads)
        >>> round(float(layers["w"].noise_scale), 4), float(layers["b"].noise_scale)  # 2/(4 - 2/2)
        (0.6667, 0.0)
    """
    tracker = _tracker(opt_state)
    columns = tracker.noise_sums.shape[-1]
    leaves, structure = jax.tree.flatten(params)
    if columns != 1 + len(leaves):
        raise ValueError(
            f"Expected a tracker of the {len(leaves)} arrays of params, got one of"
            f" {columns - 1}: make it with track_noise_scale(horizon, per_layer=True), and pass"
            " the parameters that it was initialised with."
        )
    found = _estimates(tracker, level)
    each = [jax.tree.map(lambda x, i=i: x[i], found) for i in range(1, columns)]
    return jax.tree.unflatten(structure, each)


def _tracker(opt_state: Any) -> TrackNoiseScaleState:
    found = _tree.nodes(opt_state, TrackNoiseScaleState)
    if len(found) != 1:
        raise ValueError(
            f"Expected one noise-scale tracker in opt_state, got {len(found)} in"
            f" {type(opt_state).__name__}: put one in the chain, as in"
            " optax.chain(adaoptax.track_noise_scale(horizon), optimizer), and pass the state that"
            " its update returned."
        )
    return found[0]


def _estimates(tracker: TrackNoiseScaleState, level: Any) -> NoiseScaleEstimate:
    """One estimate a column."""
    check_level(level)
    examples = tracker.block_examples
    divisor = jnp.where(examples > 0, examples, 1)[:, None]
    interval = ratio_interval(
        examples, tracker.noise_sums / divisor, tracker.signal_sums / divisor, level, jnp
    )
    enough = tracker.blocks_used >= MIN_BLOCKS
    dtype = tracker.noise_sums.dtype
    ratio, low, high = (jnp.where(enough, x, jnp.nan).astype(dtype) for x in interval)
    total = jnp.broadcast_to(jnp.sum(examples), ratio.shape)
    return NoiseScaleEstimate(ratio, low, high, ~jnp.isnan(ratio), total)
