"""Trigger a schedule."""

from dataclasses import dataclass
from uuid import UUID

from app.kernel.audit import Audit
from app.kernel.db import Database
from app.kernel.operations import Caller, Kind, operation
from app.kernel.queue.schedules import Schedules
from app.modules.platform.domain.queue import ScheduleBusy, ScheduleNotFound, ScheduleRef


@dataclass(frozen=True, slots=True)
class Triggered:
    """The job that was enqueued."""

    name: str
    job_id: UUID


@operation("platform.trigger_schedule", Kind.USER_ACTION)
@dataclass(frozen=True, slots=True)
class TriggerSchedule:
    """Enqueue a job of a schedule now, besides its ticks; also when it is paused."""

    db: Database
    schedules: Schedules
    audit: Audit

    async def __call__(self, caller: Caller, schedule: ScheduleRef) -> Triggered:
        """Return the job. Raises ScheduleNotFound, ScheduleBusy. Not safe to repeat: each enqueues one.

        What the schedule says about overlapping jobs holds here too: one that skips is busy, one that waits, waits.
        """
        async with self.db.begin() as tx:
            found = await self.schedules.lock(tx, schedule.name)
            if found is None:
                raise ScheduleNotFound(f"there is no schedule {schedule.name}")
            if found.overlap == "skip" and (running := await self.schedules.unfinished(tx, schedule.name)):
                raise ScheduleBusy(f"its job {running} has not ended, and its jobs must not overlap")
            job_id = await self.schedules.enqueue(tx, schedule.name)
            await self.audit.record(tx, caller, "platform.trigger_schedule", target=schedule.name, job_id=str(job_id))
        return Triggered(schedule.name, job_id)
