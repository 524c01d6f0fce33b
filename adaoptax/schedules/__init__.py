"""Schedules that count examples instead of steps, of the batch size and of anything else."""

from adaoptax.schedules.batch_size import BatchSizeSchedule, batch_size_schedule
from adaoptax.schedules.dry_run import Plan, PlanStage, plan
from adaoptax.schedules.over_examples import (
    ScaleByScheduleOverExamplesState,
    SizesAndRate,
    over_examples,
    scale_by_schedule_over_examples,
)
from adaoptax.schedules.sebs import sebs
from adaoptax.schedules.seesaw import seesaw
from adaoptax.schedules.stage_penalty import (
    StagePenaltyState,
    add_stage_penalty,
    apply_stage_prox,
)

__all__ = [
    "BatchSizeSchedule",
    "Plan",
    "PlanStage",
    "ScaleByScheduleOverExamplesState",
    "SizesAndRate",
    "StagePenaltyState",
    "add_stage_penalty",
    "apply_stage_prox",
    "batch_size_schedule",
    "over_examples",
    "plan",
    "scale_by_schedule_over_examples",
    "sebs",
    "seesaw",
]
