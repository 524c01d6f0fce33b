"""Seesaw: half of each learning-rate cut becomes growth of the batch."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import optax

from adaoptax._validate import is_number, positive, whole_number
from adaoptax.schedules.batch_size import BatchSizeSchedule
from adaoptax.schedules.cuts import Decay, Sizes, look_at, rates_of, stages_of
from adaoptax.schedules.over_examples import SizesAndRate, factor_of_stage

_SIZE = "a batch holds examples."
_ROUNDING = 1e-5  # of the cut between two float32 rates, generously


def seesaw(
    schedule: optax.Schedule,
    batch_size: int,
    num_examples: int,
    *,
    exponent: float = 0.5,
    multiple_of: int = 1,
    sizes: Sequence[int] | None = None,
    max_batch_size: int | None = None,
    tokens_per_example: float = 1,
) -> SizesAndRate:
    r"""Turns cuts of any learning-rate schedule into growth of the batch.

    Where the schedule cuts the learning rate by :math:`\alpha`, Seesaw cuts it by
    :math:`\sqrt\alpha` and multiplies the batch by :math:`\alpha`. With c the learning rate over
    its peak so far, at any number of examples,

    .. math:: B = B_0 / c, \qquad \eta' = \eta \, (B / B_0)^{1/2} = \eta_{\text{peak}} \sqrt{c}

    For a piecewise constant schedule these are steps; a smooth one is followed continuously. A
    warm-up is left as it is, and a warm restart brings the first batch back. The steps of the run
    shrink to the fraction :math:`\int c(u)\,du` over the decay (derived): :math:`2/\pi` for a
    quarter of a cosine, 1/2 for half a cosine and for a line to 0.

    Sizes are rounded **down** to what is allowed, and the learning rate always belongs to the size
    in force: :math:`\eta'/\sqrt B = \eta/\sqrt{B_0}` holds at every example, also above
    `max_batch_size`, where the learning rate takes the rest of each cut. (Between two of a few
    `sizes` it therefore falls with the schedule, and steps up when the batch grows. The paper's
    experiments are known here from its abstract only; to hold it there, pass a piecewise constant
    schedule.)

    The rule is one for Adam and for other normalised steps, below the critical batch size. For SGD
    pass ``exponent=1``: then :math:`\eta'/B` stays, a cut becomes growth of the batch alone.

    Args:
        schedule: Any Optax schedule over examples. It is looked at in 65,536 places of the run,
            and taken to rise or to fall only between two of them.
        batch_size: :math:`B_0`, the batch size for which the schedule was made.
        num_examples: Examples of the whole run.
        exponent: Of the batch in the learning rate, in (0, 1]: 0.5 for Adam, 1 for SGD.
        multiple_of: Sizes are multiples of it; pass the micro-batch size of the loader.
        sizes: The only sizes that there may be, in increasing order, such as the capacities for
            which steps are compiled; `batch_size` is one of them. None allows all multiples.
        max_batch_size: Largest size: what memory holds, or the critical batch size.
        tokens_per_example: Where this is given, the counts of `schedule` and of the learning rate
            that is returned are in tokens.

    Returns:
        `SizesAndRate`: a `BatchSizeSchedule` of stages, and an Optax schedule.

    Raises:
        TypeError: If `schedule` is not a function.
        ValueError: If the schedule never cuts far enough for a larger batch, becomes negative,
            NaN, or 0 without a `max_batch_size`; if it would need more than 100,000 sizes; or if
            an argument is outside its range.

    Examples:
        >>> import optax
        >>> from adaoptax.schedules import plan, seesaw
        >>> steps = optax.piecewise_constant_schedule(0.1, {10_000: 0.25, 20_000: 0.25})
        >>> batch_sizes, rate = seesaw(steps, 32, 30_000)
        >>> str(batch_sizes), [round(float(rate(n)), 4) for n in (0, 10_000, 20_000)]
        ('0:32 10K:128 20K:512', [0.1, 0.05, 0.025])
        >>> cosine = optax.cosine_decay_schedule(3e-4, 100_000)
        >>> batch_sizes, rate = seesaw(cosine, 32, 100_000, sizes=(32, 64, 128, 256))
        >>> str(batch_sizes)
        '0:32 50K:64 66667:128 76995:256'
        >>> plan(batch_sizes, 100_000).num_steps, plan(32, 100_000).num_steps
        (1995, 3125)

    References:
        Meterez et al., `Seesaw: Accelerating Training by Balancing Learning Rate and Batch Size
        Scheduling <https://arxiv.org/abs/2510.14717>`_, 2025 (the rule); Smith et al., `Don't
        Decay the Learning Rate, Increase the Batch Size <https://arxiv.org/abs/1711.00489>`_,
        2018 (`exponent` 1).
    """
    if not callable(schedule):
        raise TypeError(
            f"Expected schedule to be a function of examples, got {schedule!r}: a constant is "
            "never cut, seesaw has nothing to do; train with it and a fixed batch."
        )
    first = whole_number("batch_size", batch_size, 1, _SIZE)
    total = whole_number("num_examples", num_examples, 1, "it counts the examples of the run.")
    positive("tokens_per_example", tokens_per_example, "it is the length of an example in tokens.")
    if not (is_number(exponent) and 0 < exponent <= 1):
        raise ValueError(
            f"Expected 0 < exponent <= 1, got exponent={exponent!r}: the learning rate goes with "
            "that power of the batch; pass 0.5 for Adam, 1 for SGD."
        )
    sized = _allowed(first, multiple_of, sizes, max_batch_size)
    rates = rates_of(schedule, tokens_per_example)
    decay = look_at(rates, total)
    _check_decay(decay, first, sized, max_batch_size is not None or sizes is not None)
    stages = stages_of(decay, rates, sized)
    factors = [(size / first) ** exponent for _, size in stages]
    begins = [examples for examples, _ in stages]
    return SizesAndRate(
        BatchSizeSchedule(stages),
        factor_of_stage(schedule, begins, factors, tokens_per_example),
    )


def _allowed(
    first: int, multiple_of: Any, sizes: Sequence[int] | None, max_batch_size: Any
) -> Sizes:
    """The function from cuts to sizes."""
    step = whole_number("multiple_of", multiple_of, 1, "sizes are multiples of it.")
    if first % step:
        raise ValueError(
            f"Expected batch_size to be a multiple of multiple_of={step}, got batch_size={first}: "
            f"all sizes are; pass {-(-first // step) * step} for both the schedule and the batch."
        )
    high = np.inf
    if max_batch_size is not None:
        high = whole_number("max_batch_size", max_batch_size, first, f"the first is {first}.")
        high = high // step * step
    if sizes is None:
        return lambda cuts: _down(np.minimum(first * cuts, high), step)
    rungs = [whole_number("each of sizes", size, 1, _SIZE) for size in sizes]
    if first not in rungs or rungs != sorted(set(rungs)) or any(size % step for size in rungs):
        raise ValueError(
            f"Expected sizes to be increasing multiples of multiple_of={step} with "
            f"batch_size={first} among them, got sizes={sizes!r}: they are the only sizes that "
            "there may be; pass for example (32, 64, 128)."
        )
    ladder = np.array([size for size in rungs if first <= size <= high], np.int64)
    return lambda cuts: ladder[
        np.searchsorted(ladder, first * (1 + _ROUNDING) * cuts, side="right") - 1
    ]


def _down(wanted: np.ndarray, step: int) -> np.ndarray:
    """Multiples at or below; the nearest, where no float32 could tell it from what is wanted."""
    multiples = np.minimum(wanted, 2.0**62) / step  # inf where a rate is 0
    nearest = np.round(multiples)
    same = np.abs(multiples - nearest) <= _ROUNDING * multiples
    return np.where(same, nearest, np.floor(multiples)).astype(np.int64) * step


def _check_decay(decay: Decay, first: int, sizes: Sizes, bounded: bool) -> None:
    cuts, total = decay.cuts(), int(decay.places[-1]) + 1
    zero = int(np.argmax(np.isinf(cuts)))
    # A cosine rounds to 0 just before its end, where the batch before takes all that is left.
    last_batch = min(sizes(cuts)[zero - 1], total // 10)
    if not bounded and zero and total - decay.places[zero] > last_batch:
        raise ValueError(
            f"Expected learning rates > 0, got {max(decay.rates[zero], 0):.3g} after "
            f"{decay.places[zero]} of {total} examples: that asks for a batch without end; pass "
            "max_batch_size, or num_examples up to there."
        )
    if (sizes(cuts) == first).all():
        raise ValueError(
            f"Expected a schedule that cuts the learning rate far enough for a larger batch than "
            f"{first}, got one that falls to {1 / cuts.max():.3g} of its peak within "
            f"{total} examples: seesaw has nothing to do; train with the schedule "
            "as it is, or check num_examples, multiple_of and the largest size."
        )
