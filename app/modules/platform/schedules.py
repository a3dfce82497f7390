"""Schedules."""

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated
from uuid import UUID

from annotated_types import Len

from app.kernel.actions import Database, Doc, Note, Transaction, change, read
from app.kernel.paging import Page
from app.kernel.product import NAME
from app.kernel.queue.schedules import ListedSchedule, LockedSchedule, ScheduleAdmin
from app.kernel.text import suggestion
from app.modules.platform.domain.queue import ScheduleBusy, ScheduleNotFound


@dataclass(frozen=True, slots=True)
class ScheduleRef:
    """A schedule."""

    name: Annotated[str, Len(1, 128), Doc("Name of the schedule.", "platform.prune")]


@dataclass(frozen=True, slots=True)
class ScheduleChanged:
    """When a schedule was paused; null if it is not paused."""

    name: str
    paused_at: datetime | None

    def __str__(self) -> str:
        if self.paused_at is None:
            return f"{self.name} is not paused"
        return f"{self.name} has been paused since {self.paused_at:%Y-%m-%d %H:%M:%S}Z"


@dataclass(frozen=True, slots=True)
class Triggered:
    """The job that was enqueued."""

    name: str
    job_id: UUID

    def __str__(self) -> str:
        return f"enqueued the job {self.job_id}"


@dataclass(frozen=True, slots=True)
class Schedules:
    """List, trigger, pause and resume schedules."""

    admin: ScheduleAdmin

    @read(
        "platform.list_schedules",
        GET="/platform/v1/schedules",
        permission="platform:schedules:read",
        command="schedules list",
        empty=f"cron managers register schedules when they start: {NAME} run-cron-manager",
    )
    async def list(self, db: Database) -> Page[ListedSchedule]:
        """List schedules and the outcomes of their last jobs."""
        return Page(await self.admin.all(db))

    @change(
        "platform.trigger_schedule",
        POST="/platform/v1/schedules/{name}/trigger",
        permission="platform:schedules:write",
        raises=(ScheduleNotFound, ScheduleBusy),
        command="schedules trigger",
        examples=("platform.heartbeat",),
    )
    async def trigger(self, tx: Transaction, schedule: ScheduleRef, note: Note) -> Triggered:
        """Enqueue a job of a schedule now, even if the schedule is paused. Not safe to repeat.

        The overlap policy of the schedule applies: `skip` refuses while a job is unfinished, `wait` queues the job.
        """
        found = await self._locked(tx, schedule.name)
        if found.overlap == "skip" and (running := await self.admin.unfinished(tx, schedule.name)):
            raise ScheduleBusy(f"its job {running} is unfinished, and its jobs must not overlap")
        job_id = await self.admin.enqueue(tx, schedule.name)
        note.details["job_id"] = str(job_id)
        return Triggered(schedule.name, job_id)

    @change(
        "platform.pause_schedule",
        POST="/platform/v1/schedules/{name}/pause",
        permission="platform:schedules:write",
        raises=(ScheduleNotFound,),
        command="schedules pause",
        examples=("platform.heartbeat",),
    )
    async def pause(self, tx: Transaction, schedule: ScheduleRef) -> ScheduleChanged:
        """Pause a schedule: stop enqueueing its jobs. Jobs that are already enqueued still run. Safe to repeat."""
        await self._locked(tx, schedule.name)
        return ScheduleChanged(schedule.name, await self.admin.pause(tx, schedule.name))

    @change(
        "platform.resume_schedule",
        POST="/platform/v1/schedules/{name}/resume",
        permission="platform:schedules:write",
        raises=(ScheduleNotFound,),
        command="schedules resume",
        examples=("platform.heartbeat",),
    )
    async def resume(self, tx: Transaction, schedule: ScheduleRef) -> ScheduleChanged:
        """Resume a paused schedule. Ticks during the pause are skipped. Safe to repeat."""
        await self._locked(tx, schedule.name)
        await self.admin.resume(tx, schedule.name)
        return ScheduleChanged(schedule.name, None)

    async def _locked(self, tx: Transaction, name: str) -> LockedSchedule:
        found = await self.admin.lock(tx, name)
        if found is None:
            known = [schedule.name for schedule in await self.admin.all(tx)]
            raise ScheduleNotFound(f"there is no schedule {name}{suggestion(name, known)}")
        return found
