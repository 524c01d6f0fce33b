"""Schedules that count examples instead of steps."""

from adaoptax.schedules.over_examples import (
    ScaleByScheduleOverExamplesState,
    scale_by_schedule_over_examples,
)

__all__ = ["ScaleByScheduleOverExamplesState", "scale_by_schedule_over_examples"]
