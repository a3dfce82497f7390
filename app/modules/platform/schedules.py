"""Schedules."""

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated
from uuid import UUID

from annotated_types import Len

from app.kernel.actions import Database, Doc, Note, Transaction, change, read
from app.kernel.db import Queries
from app.kernel.paging import Limit, Page, PageByName, TimeCursor, mark, marked, page_of
from app.kernel.product import NAME
from app.kernel.queue.queues import pause_text
from app.kernel.queue.schedules import ListedSchedule, ScheduleAdmin, ScheduleDetails, ScheduleRun
from app.kernel.text import suggestion
from app.modules.platform.domain.pauses import Reason, Seconds, Until, pause_of
from app.modules.platform.domain.queue import ScheduleBusy, ScheduleNotFound

ScheduleName = Annotated[str, Len(1, 128), Doc("Name of the schedule.", "platform.prune")]


@dataclass(frozen=True, slots=True)
class ScheduleRef:
    """A schedule."""

    name: ScheduleName


@dataclass(frozen=True, slots=True)
class RunsWanted:
    """A schedule, and a page of its jobs."""

    name: ScheduleName
    limit: Limit = 20
    cursor: TimeCursor | None = None


@dataclass(frozen=True, slots=True)
class SchedulePause:
    """A schedule, and for how long and why it is paused."""

    name: ScheduleName
    reason: Reason = None
    seconds: Seconds = None
    until: Until = None


@dataclass(frozen=True, slots=True)
class ScheduleChanged:
    """When and why a schedule was paused, and until when; null if it is not paused."""

    name: str
    paused_at: datetime | None
    paused_until: datetime | None = None
    pause_reason: str | None = None

    def __str__(self) -> str:
        return f"{self.name} {pause_text(self.paused_at, self.paused_until)}"


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
    async def list(self, db: Database, wanted: PageByName) -> Page[ListedSchedule]:
        """List schedules, also paused ones, and the outcomes of their last jobs."""
        return page_of(await self.admin.all(db), lambda schedule: schedule.name, wanted.limit, wanted.cursor)

    @read(
        "platform.get_schedule",
        GET="/platform/v1/schedules/{name}",
        permission="platform:schedules:read",
        raises=(ScheduleNotFound,),
        command="schedules show",
        examples=("platform.heartbeat",),
    )
    async def get(self, db: Database, schedule: ScheduleRef) -> ScheduleDetails:
        """Show a schedule with its next ten ticks, in its time zone too, and its last ten jobs."""
        found = await self.admin.get(db, schedule.name)
        if found is None:
            raise await self._not_found(db, schedule.name)
        return found

    @read(
        "platform.list_schedule_runs",
        GET="/platform/v1/schedules/{name}/runs",
        permission="platform:schedules:read",
        raises=(ScheduleNotFound,),
        command="schedules runs",
        examples=("platform.heartbeat --limit 100",),
        empty="its jobs are listed when they have ended, within their retention",
    )
    async def runs(self, db: Database, wanted: RunsWanted) -> Page[ScheduleRun]:
        """List the ended jobs of a schedule with their ticks, latest first, within their retention."""
        last, (before,) = (None, (None,)) if wanted.cursor is None else marked(wanted.cursor, 1)
        found = await self.admin.runs(db, wanted.name, wanted.limit, before, last)
        if not found and await self.admin.get(db, wanted.name) is None:
            raise await self._not_found(db, wanted.name)
        ended_at = found[-1].ended_at if len(found) == wanted.limit else None
        return Page(found, ended_at and mark(found[-1].id, ended_at))

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
        overlap = await self._locked(tx, schedule.name)
        if overlap == "skip" and (running := await self.admin.unfinished(tx, schedule.name)):
            raise ScheduleBusy(f"its job {running} is unfinished, and its jobs must not overlap")
        job_id = await self.admin.enqueue(tx, schedule.name)
        note.details["job_id"] = str(job_id)
        return Triggered(schedule.name, job_id)

    @change(
        "platform.pause_schedule",
        POST="/platform/v1/schedules/{name}/pause",
        permission="platform:schedules:write",
        notable=True,
        raises=(ScheduleNotFound,),
        command="schedules pause",
        examples=("platform.heartbeat", "platform.prune --for 2h", "platform.prune --until 2026-11-30T06:00:00Z"),
    )
    async def pause(self, tx: Transaction, schedule: SchedulePause, note: Note) -> ScheduleChanged:
        """Pause a schedule: stop enqueueing its jobs, until it is resumed or the pause expires.

        Jobs that are already enqueued still run. When a pause expires, the misfire policy of the schedule decides on
        the ticks during the pause. Pausing again replaces the reason and the expiry. Safe to repeat.
        """
        await self._locked(tx, schedule.name)
        pause = await pause_of(tx, schedule.seconds, schedule.until, schedule.reason)
        note.details |= pause.details()
        paused_at = await self.admin.pause(tx, schedule.name, pause.until, pause.reason)
        return ScheduleChanged(schedule.name, paused_at, pause.until, pause.reason)

    @change(
        "platform.resume_schedule",
        POST="/platform/v1/schedules/{name}/resume",
        permission="platform:schedules:write",
        notable=True,
        raises=(ScheduleNotFound,),
        command="schedules resume",
        examples=("platform.heartbeat",),
    )
    async def resume(self, tx: Transaction, schedule: ScheduleRef) -> ScheduleChanged:
        """Resume a paused schedule. Ticks during the pause are skipped. Safe to repeat."""
        await self._locked(tx, schedule.name)
        await self.admin.resume(tx, schedule.name)
        return ScheduleChanged(schedule.name, None)

    async def _locked(self, tx: Transaction, name: str) -> str:
        overlap = await self.admin.lock(tx, name)
        if overlap is None:
            raise await self._not_found(tx, name)
        return overlap

    async def _not_found(self, db: Queries, name: str) -> ScheduleNotFound:
        known = [schedule.name for schedule in await self.admin.all(db)]
        return ScheduleNotFound(f"there is no schedule {name}{suggestion(name, known)}")
