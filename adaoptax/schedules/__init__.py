"""Schedules that count examples instead of steps, of the batch size and of anything else."""

from adaoptax.schedules.batch_size import BatchSizeSchedule, batch_size_schedule
from adaoptax.schedules.over_examples import (
    ScaleByScheduleOverExamplesState,
    over_examples,
    scale_by_schedule_over_examples,
)
from adaoptax.schedules.plan import Plan, PlanStage, plan

__all__ = [
    "BatchSizeSchedule",
    "Plan",
    "PlanStage",
    "ScaleByScheduleOverExamplesState",
    "batch_size_schedule",
    "over_examples",
    "plan",
    "scale_by_schedule_over_examples",
]
