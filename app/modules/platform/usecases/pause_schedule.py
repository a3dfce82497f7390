"""Pause a schedule."""

from dataclasses import dataclass
from datetime import datetime

from app.kernel.audit import Audit
from app.kernel.db import Database
from app.kernel.operations import Caller, Kind, operation
from app.kernel.queue.schedules import Schedules
from app.modules.platform.domain.queue import ScheduleNotFound, ScheduleRef


@dataclass(frozen=True, slots=True)
class ScheduleChanged:
    """Since when a schedule is paused; None when it is not."""

    name: str
    paused_at: datetime | None


@operation("platform.pause_schedule", Kind.USER_ACTION)
@dataclass(frozen=True, slots=True)
class PauseSchedule:
    """Let the ticks of a schedule pass without a job. What it has enqueued stays."""

    db: Database
    schedules: Schedules
    audit: Audit

    async def __call__(self, caller: Caller, schedule: ScheduleRef) -> ScheduleChanged:
        """Return since when it is paused. Raises ScheduleNotFound. Safe to repeat."""
        async with self.db.begin() as tx:
            if await self.schedules.lock(tx, schedule.name) is None:
                raise ScheduleNotFound(f"there is no schedule {schedule.name}")
            paused_at = await self.schedules.pause(tx, schedule.name)
            await self.audit.record(tx, caller, "platform.pause_schedule", target=schedule.name)
        return ScheduleChanged(schedule.name, paused_at)
