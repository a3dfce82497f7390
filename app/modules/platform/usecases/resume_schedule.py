"""Resume a schedule."""

from dataclasses import dataclass

from app.kernel.audit import Audit
from app.kernel.db import Database
from app.kernel.operations import Caller, Kind, operation
from app.kernel.queue.schedules import Schedules
from app.modules.platform.domain.queue import ScheduleNotFound, ScheduleRef
from app.modules.platform.usecases.pause_schedule import ScheduleChanged


@operation("platform.resume_schedule", Kind.USER_ACTION)
@dataclass(frozen=True, slots=True)
class ResumeSchedule:
    """Let a paused schedule fire again. Ticks that passed meanwhile are not made up for."""

    db: Database
    schedules: Schedules
    audit: Audit

    async def __call__(self, caller: Caller, schedule: ScheduleRef) -> ScheduleChanged:
        """Return that it is not paused. Raises ScheduleNotFound. Safe to repeat."""
        async with self.db.begin() as tx:
            if await self.schedules.lock(tx, schedule.name) is None:
                raise ScheduleNotFound(f"there is no schedule {schedule.name}")
            await self.schedules.resume(tx, schedule.name)
            await self.audit.record(tx, caller, "platform.resume_schedule", target=schedule.name)
        return ScheduleChanged(schedule.name, None)
