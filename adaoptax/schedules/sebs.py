"""SEBS: the batch grows geometrically by stage, where others divide the learning rate."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import optax

from adaoptax._validate import is_number, positive, whole_number
from adaoptax.schedules.batch_size import BatchSizeSchedule, Stage
from adaoptax.schedules.over_examples import SizesAndRate, factor_of_stage


def sebs(
    batch_size: int,
    learning_rate: optax.ScalarOrSchedule,
    *,
    rho: float,
    milestones: Sequence[int] | None = None,
    first_stage: int | None = None,
    num_stages: int | None = None,
    max_batch_size: int | None = None,
) -> SizesAndRate:
    r"""Stagewise enlargement of the batch size, for SGD, momentum SGD and AdaGrad.

    Classical stagewise SGD divides the learning rate by :math:`\rho` from stage to stage. SEBS
    keeps it and multiplies the batch by :math:`\rho`: only :math:`b/\eta` matters for the error of
    a stage, and a smaller distance to the optimum at its start wants a larger batch. There are two
    ways to cut a run in stages:

    - **in practice**: `milestones`, the examples at which the learning rate would be divided;
    - **in theory**: `first_stage` examples in the first stage and :math:`\rho` times as many in
      each next one, so that every stage has the same number of updates and divides the error by
      :math:`\rho`.

    .. math:: b_s = \rho^{s-1} b_1, \qquad \eta_s = \eta, \qquad C_s = \rho^{s-1} C_1

    The stages' penalty is a transformation of its own, `add_stage_penalty` or `apply_stage_prox`.

    The rule is that of the paper's abstract. The theory budget is derived from its setting (for
    weak quasi-convexity :math:`\alpha`, growth :math:`\mu`, variance :math:`\sigma^2` and an error
    of :math:`\epsilon_s` at the start of a stage, :math:`C_s = 2 \sigma^2 \rho^2 / (\alpha^2 \mu
    \epsilon_s)` and :math:`b_s = 2 \eta \sigma^2 \rho / (\alpha \epsilon_s)`), and not compared
    with the printed algorithm, nor are the names of its parts.

    Args:
        batch_size: :math:`b_1`, that of the first stage.
        learning_rate: :math:`\eta` of all stages: a number, or an Optax schedule over examples
            that the stages leave as it is.
        rho: :math:`\rho`, above 1; sizes are rounded to whole examples.
        milestones: Examples seen at which the second and each later stage begins.
        first_stage: :math:`C_1`, examples of the first stage; needs `num_stages`.
        num_stages: Number of stages under the theory budget; the last one lasts for ever.
        max_batch_size: Largest size. Above it the learning rate is divided instead, so that
            :math:`b_s/\eta_s` still grows by :math:`\rho`.

    Returns:
        `SizesAndRate`: a `BatchSizeSchedule` of stages, and an Optax schedule over examples.

    Raises:
        ValueError: If neither or both budgets are given, `rho` is not above 1, the learning rate
            is not above 0, or a stage would not hold one batch.

    Examples:
        >>> from adaoptax.schedules import sebs
        >>> batch_sizes, rate = sebs(128, 0.1, rho=10, milestones=[4_000_000, 6_000_000])
        >>> str(batch_sizes), round(float(rate(5_000_000)), 3)
        ('0:128 4M:1280 6M:12800', 0.1)
        >>> str(sebs(32, 0.1, rho=4, first_stage=1000, num_stages=4).batch_sizes)
        '0:32 1K:128 5K:512 21K:2048'
        >>> capped, rate = sebs(128, 0.1, rho=10, milestones=[4_000_000], max_batch_size=640)
        >>> str(capped), round(float(rate(5_000_000)), 3)
        ('0:128 4M:640', 0.05)

    References:
        Zhao, Xie and Li, `Stagewise Enlargement of Batch Size for SGD-based Learning
        <https://arxiv.org/abs/2002.11601>`_, 2020.
    """
    first = whole_number("batch_size", batch_size, 1, "a batch holds examples.")
    positive("learning_rate", learning_rate, "it is that of every stage, before any sign.")
    if not (is_number(rho) and 1 < rho < math.inf):
        raise ValueError(
            f"Expected rho > 1 and finite, got rho={rho!r}: it is the factor by which the batch "
            "grows from stage to stage; pass the number by which you would divide the learning "
            "rate, such as 10."
        )
    high = math.inf
    if max_batch_size is not None:
        high = whole_number("max_batch_size", max_batch_size, first, f"the first is {first}.")
    begins = _begins(rho, milestones, first_stage, num_stages)
    wanted = [first * rho**stage for stage in range(len(begins))]
    stages = [(begin, round(min(size, high))) for begin, size in zip(begins, wanted, strict=True)]
    _check_budgets(stages)
    schedule: Any = learning_rate
    if not callable(learning_rate):
        schedule = optax.constant_schedule(learning_rate)
    if wanted[-1] > high:
        schedule = factor_of_stage(schedule, begins, [min(1.0, high / size) for size in wanted])
    return SizesAndRate(BatchSizeSchedule(stages), schedule)


def _begins(
    rho: float, milestones: Sequence[int] | None, first_stage: Any, num_stages: Any
) -> list[int]:
    """Examples seen at the begin of each stage."""
    if (milestones is None) == (first_stage is None):
        raise ValueError(
            f"Expected a budget for the stages, either milestones or first_stage, got "
            f"{milestones=} and {first_stage=}: they say how many examples each stage has; pass "
            "milestones=[...] in examples, or first_stage and num_stages."
        )
    if (first_stage is None) != (num_stages is None):
        raise ValueError(
            f"Expected first_stage and num_stages together, got {first_stage=} and {num_stages=}: "
            "stages grow from the first by rho; milestones alone say how many there are."
        )
    if milestones is None:
        budget = whole_number("first_stage", first_stage, 1, "it counts examples.")
        count = whole_number("num_stages", num_stages, 2, "with one stage nothing grows.")
        lengths = [budget * rho**stage for stage in range(count - 1)]
        return [0, *(math.ceil(total) for total in itertools.accumulate(lengths))]
    begins = [0, *(whole_number("each milestone", m, 1, "it counts examples.") for m in milestones)]
    if len(begins) == 1 or any(a >= b for a, b in itertools.pairwise(begins)):
        raise ValueError(
            f"Expected milestones that increase, got {milestones=}: they are the examples seen at "
            "which stages begin; pass at least one, in order."
        )
    return begins


def _check_budgets(stages: list[Stage]) -> None:
    for (begin, size), (end, _) in itertools.pairwise(stages):
        if end - begin < size:
            raise ValueError(
                f"Expected stages of at least one batch, got {end - begin} examples from {begin} "
                f"on with a batch of {size}: the stage would be skipped; pass a larger budget, a "
                "smaller rho, or a max_batch_size."
            )
