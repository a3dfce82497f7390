"""Jobs."""

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, NoReturn
from uuid import UUID

from annotated_types import Len

from app.kernel.actions import Database, Doc, Note, Transaction, change, read
from app.kernel.fields import IdOf, NameOf, Option
from app.kernel.paging import Cursor, Limit, Page, after, next_cursor
from app.kernel.product import NAME
from app.kernel.queue.jobs import JobAdmin, JobDetails, JobFilters, JobState, ListedJob, TaskNames
from app.kernel.queue.queues import QueueAdmin
from app.modules.platform.domain.queue import JobEnded, JobNotFound, JobRunning, JobWaiting

OfQueue = Annotated[
    Annotated[str, Len(1, 128)] | None, Doc("Filter by queue.", "default"), NameOf("queue", QueueAdmin, "queues list")
]
OfTask = Annotated[
    Annotated[str, Len(1, 128)] | None,
    Doc("Filter by task or subscriber.", "platform.prune"),
    NameOf("task or subscriber", TaskNames),
]
_TABLES = ("kernel.jobs", "kernel.finished_jobs", "kernel.dead_letters")


@dataclass(frozen=True, slots=True)
class JobsWanted:
    """Filters and page of a list of jobs."""

    queue: OfQueue = None
    task: OfTask = None
    state: Annotated[JobState | None, Doc("Filter by state.")] = None
    recurring: Annotated[
        bool,
        Doc("Include done jobs of schedules. They are always included with a task."),
        Option("all", default=False, note="done jobs of schedules are not listed without --all or --task"),
    ] = True
    limit: Limit = 20
    cursor: Cursor | None = None


@dataclass(frozen=True, slots=True)
class JobRef:
    """A job."""

    id: Annotated[UUID, Doc("Id of the job."), IdOf("job", _TABLES, "jobs list")]


@dataclass(frozen=True, slots=True)
class JobChanged:
    """The state of a job after a change. A job stays leased until its worker cancels it."""

    id: UUID
    state: JobState
    cancel_requested_at: datetime | None = None

    def __str__(self) -> str:
        if self.state == "leased":
            return f"{self.id} is running; its cancellation was requested"
        return f"{self.id} is {self.state}"


@dataclass(frozen=True, slots=True)
class Jobs:
    """List, show, retry and cancel jobs."""

    admin: JobAdmin

    @read(
        "platform.list_jobs",
        GET="/platform/v1/jobs",
        permission="platform:jobs:read",
        replica=True,
        command="jobs list",
        empty=f"enqueue one with {NAME} schedules trigger NAME",
        examples=("--queue default --state ready", "--task platform.heartbeat --limit 100 --json"),
    )
    async def list(self, db: Database, wanted: JobsWanted) -> Page[ListedJob]:
        """List unfinished jobs, and finished jobs within their retention, newest first.

        States: scheduled (due later, or before its next attempt), ready (due), waiting (due, behind other jobs of its
        group or concurrency key), leased (running), done, cancelled.
        """
        filters = JobFilters(wanted.queue, wanted.task, wanted.state, wanted.recurring or wanted.task is not None)
        found = await self.admin.page(db, filters, wanted.limit, after(wanted.cursor))
        return Page(found, next_cursor(found, wanted.limit))

    @read(
        "platform.get_job",
        GET="/platform/v1/jobs/{id}",
        permission="platform:jobs:read",
        raises=(JobNotFound,),
        command="jobs show",
        examples=("0193505f-1c00-7000-8000-000000000001",),
    )
    async def get(self, db: Database, job: JobRef) -> JobDetails:
        """Show a job with its payload, errors and worker. Payloads may contain personal data."""
        found = await self.admin.get(db, job.id)
        if found is None:
            if await self.admin.ended(db, job.id) == "dead":
                raise JobNotFound(f"{job.id} is a dead letter; see the dead letters")
            raise JobNotFound(f"there is no job {job.id}")
        return found

    @change(
        "platform.retry_job",
        POST="/platform/v1/jobs/{id}/retry",
        permission="platform:jobs:write",
        raises=(JobNotFound, JobEnded, JobRunning, JobWaiting),
        command="jobs retry",
        examples=("0193505f-1c00-7000-8000-000000000001",),
    )
    async def retry(self, tx: Transaction, job: JobRef, note: Note) -> JobChanged:
        """Run a scheduled job now, for example before its next attempt is due. Safe to repeat."""
        state = await self._locked(tx, job.id)
        note.recorded = state == "scheduled"
        if state == "leased":
            raise JobRunning(f"{job.id} is running")
        if state == "waiting":
            raise JobWaiting(f"{job.id} is due; it waits for other jobs of its group or concurrency key")
        if state == "scheduled":
            await self.admin.hasten(tx, job.id)
        return JobChanged(job.id, "ready")

    @change(
        "platform.cancel_job",
        POST="/platform/v1/jobs/{id}/cancel",
        permission="platform:jobs:write",
        raises=(JobNotFound, JobEnded),
        command="jobs cancel",
        examples=("0193505f-1c00-7000-8000-000000000001",),
    )
    async def cancel(self, tx: Transaction, job: JobRef, note: Note) -> JobChanged:
        """Cancel a job. A running job stays leased until its worker cancels it, and may finish first."""
        state = note.details["was"] = await self._locked(tx, job.id)
        if state == "leased":
            return JobChanged(job.id, "leased", await self.admin.ask_to_cancel(tx, job.id))
        await self.admin.remove(tx, job.id)
        return JobChanged(job.id, "cancelled")

    async def _locked(self, tx: Transaction, job_id: UUID) -> JobState:
        state = await self.admin.lock(tx, job_id)
        if state is None:
            await self._refuse_ended(tx, job_id)
        return state

    async def _refuse_ended(self, tx: Transaction, job_id: UUID) -> NoReturn:
        ended = await self.admin.ended(tx, job_id)
        if ended == "dead":
            raise JobEnded(f"{job_id} is a dead letter; retry or purge the dead letter")
        if ended is not None:
            raise JobEnded(f"{job_id} is {ended}; an ended job cannot be changed")
        raise JobNotFound(f"there is no job {job_id}")
