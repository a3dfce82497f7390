"""Jobs."""

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, NoReturn
from uuid import UUID

from annotated_types import Interval, Len

from app.kernel.actions import Caller, Database, Doc, Note, Transaction, change, read
from app.kernel.db import Queries
from app.kernel.errors import Denied
from app.kernel.fields import IdOf, NameOf, Option, Pattern
from app.kernel.identifiers import uuid7
from app.kernel.paging import Cursor, Limit, Page, after, mark
from app.kernel.product import NAME
from app.kernel.queue import JobExists
from app.kernel.queue.jobs import JobAdmin, JobDetails, JobFilters, JobState, ListedJob, TaskNames
from app.kernel.queue.purges import PurgeAdmin
from app.kernel.queue.queues import QueueAdmin
from app.kernel.queue.rerun import Rerun
from app.modules.platform.domain.queue import (
    JobEnded,
    JobNotFound,
    JobRunning,
    JobUnfinished,
    JobWaiting,
    check_zone,
)

OfQueue = Annotated[
    Annotated[str, Len(1, 128)] | None, Doc("Filter by queue.", "default"), NameOf("queue", QueueAdmin, "queues list")
]
OfTask = Annotated[
    Annotated[str, Len(1, 128)] | None,
    Doc("Filter by task or subscriber.", "platform.prune"),
    NameOf("task or subscriber", TaskNames),
]
SearchedText = Annotated[str, Len(1, 200)] | None
_REVEAL = "platform:jobs:reveal"
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
    created_from: Annotated[datetime | None, Doc("Filter by creation: at this time or later.")] = None
    created_to: Annotated[datetime | None, Doc("Filter by creation: before this time.")] = None
    min_attempts: Annotated[
        Annotated[int, Interval(ge=1, le=1000)] | None, Doc("Filter by attempts: at least this many.")
    ] = None
    error: Annotated[SearchedText, Doc("Filter by a text in the errors of attempts, in any case.")] = None
    text: Annotated[
        SearchedText, Doc(f"Filter by a text in the arguments, in any case. Needs the permission {_REVEAL}.")
    ] = None
    trace_id: Annotated[
        Annotated[str, Pattern("^[0-9a-f]{32}$")] | None,
        Doc("Filter by the trace of whoever enqueued the job.", "0af7651916cd43dd8448eb211c80319c"),
    ] = None
    limit: Limit = 20
    cursor: Cursor | None = None


@dataclass(frozen=True, slots=True)
class JobRef:
    """A job."""

    id: Annotated[UUID, Doc("Id of the job."), IdOf("job", _TABLES, "jobs list")]


@dataclass(frozen=True, slots=True)
class JobToRunAgain:
    """An ended job, and other arguments for it."""

    id: Annotated[UUID, Doc("Id of the job."), IdOf("job", _TABLES, "jobs list")]
    payload: Annotated[
        dict[str, Any] | None, Doc("All arguments, in place of those of the job."), Option(form="json")
    ] = None


@dataclass(frozen=True, slots=True)
class JobRunAgain:
    """A new job that runs an ended one again."""

    id: UUID
    origin_id: UUID
    is_edited: bool

    def __str__(self) -> str:
        return f"{self.id} runs {self.origin_id} again{' with other arguments' if self.is_edited else ''}"


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
    rerun: Rerun
    purges: PurgeAdmin

    @read(
        "platform.list_jobs",
        GET="/platform/v1/jobs",
        permission="platform:jobs:read",
        replica=True,
        command="jobs list",
        empty=f"enqueue one with {NAME} schedules trigger NAME",
        examples=("--queue default --state ready", "--task platform.heartbeat --limit 100 --json"),
    )
    async def list(self, db: Database, wanted: JobsWanted, caller: Caller) -> Page[ListedJob]:
        """List unfinished jobs, and finished jobs within their retention, newest first.

        States: scheduled (due later, or before its next attempt), ready (due), waiting (due, behind other jobs of its
        group or concurrency key), leased (running), done, cancelled. With a filter by attempts, error, text or trace, a
        page searches the newest 10,000 jobs that match the other filters, and `next_cursor` goes on; arguments larger
        than 20 kB are not searched.
        """
        check_zone(created_from=wanted.created_from, created_to=wanted.created_to)
        if wanted.text is not None and caller.actor_id is not None and not caller.may(_REVEAL):
            raise Denied(f"to search in arguments needs the permission {_REVEAL}")
        filters = JobFilters(
            wanted.queue,
            wanted.task,
            wanted.state,
            wanted.recurring or wanted.task is not None,
            wanted.created_from,
            wanted.created_to,
            wanted.min_attempts,
            wanted.error,
            wanted.text,
            wanted.trace_id,
        )
        found, last = await self.admin.page(db, filters, wanted.limit, after(wanted.cursor))
        return Page(found, last and mark(last))

    @read(
        "platform.get_job",
        GET="/platform/v1/jobs/{id}",
        permission="platform:jobs:read",
        raises=(JobNotFound,),
        command="jobs show",
        examples=("0193505f-1c00-7000-8000-000000000001",),
    )
    async def get(self, db: Database, job: JobRef) -> JobDetails:
        """Show a job with its errors and worker. The values of its payload are redacted."""
        return await self._found(db, job.id, reveal=False)

    @change(
        "platform.reveal_job",
        POST="/platform/v1/jobs/{id}/reveal",
        permission=_REVEAL,
        raises=(JobNotFound,),
        command="jobs reveal",
        examples=("0193505f-1c00-7000-8000-000000000001",),
    )
    async def reveal(self, tx: Transaction, job: JobRef) -> JobDetails:
        """Show a job with its payload, which may contain personal data. It is recorded who has asked."""
        return await self._found(tx, job.id, reveal=True)

    @change(
        "platform.run_job_again",
        POST="/platform/v1/jobs/{id}/run-again",
        permission="platform:jobs:run",
        raises=(JobNotFound, JobUnfinished, JobExists),
        command="jobs run-again",
        examples=(
            "0193505f-1c00-7000-8000-000000000001",
            """0193505f --payload '{"report": "2026-11"}'""",
        ),
    )
    async def run_again(self, tx: Transaction, job: JobToRunAgain, note: Note) -> JobRunAgain:
        """Run a done, cancelled or dead job again, as a new job, with other arguments if they are given.

        The new job has the queue, the keys and the event of the former one, and `origin_id` names that. Arguments are
        validated if this release knows the task. A dead letter is purged, which can be undone for a day. It is
        recorded that arguments were given, without them. Not safe to repeat: each request enqueues a job, unless it
        has a unique key.
        """
        ended = await self.rerun.get(tx, job.id)
        if ended is None:
            if await self.admin.lock(tx, job.id) is not None:
                raise JobUnfinished(f"{job.id} has not ended; cancel it first, or wait")
            raise JobNotFound(f"there is no job {job.id}")
        if ended.outcome == "dead" and not (await self.purges.purge(tx, job.id, uuid7())).changed:
            raise JobNotFound(f"the dead letter {job.id} was retried or purged meanwhile")
        new_id = await self.rerun.run(tx, ended, job.payload)
        if new_id is None:
            raise JobExists("an unfinished job has its unique key; cancel that job first")
        is_edited = job.payload is not None
        note.details |= {"job_id": str(new_id), "edited": is_edited, "was": ended.outcome}
        return JobRunAgain(new_id, job.id, is_edited)

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

    async def _found(self, db: Queries, job_id: UUID, *, reveal: bool) -> JobDetails:
        found = await self.admin.get(db, job_id, reveal=reveal)
        if found is None:
            if await self.admin.ended(db, job_id) == "dead":
                raise JobNotFound(f"{job_id} is a dead letter; see the dead letters")
            raise JobNotFound(f"there is no job {job_id}")
        return found

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
