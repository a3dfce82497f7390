"""Administration of jobs, unfinished and finished."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar, Literal, LiteralString
from uuid import UUID

from app.kernel.actions.columns import Column, Columns
from app.kernel.db import Queries, Transaction, where

JobState = Literal["scheduled", "ready", "waiting", "leased", "done", "cancelled"]

_UNFINISHED = """
    SELECT id, queue, task, state, attempt, max_attempts, run_at, schedule, event_id, created_at,
        NULL::timestamptz AS finished_at
    FROM kernel.jobs
"""
_FINISHED = """
    SELECT id, queue, task, outcome, attempt, NULL, NULL, schedule, event_id, created_at, finished_at
    FROM kernel.finished_jobs
"""
_ONE_BY_ONE = "schedule IS NULL OR outcome <> 'done'"
# as literals: indexes are partial by state
_STATES: dict[JobState, LiteralString] = {
    "scheduled": "state = 'scheduled'",
    "ready": "state = 'ready'",
    "waiting": "state = 'waiting'",
    "leased": "state = 'leased'",
}
_OUTCOMES: dict[JobState, LiteralString] = {"done": "outcome = 'done'", "cancelled": "outcome = 'cancelled'"}

_GET = """
    SELECT id, queue, task, state, attempt, max_attempts, run_at, schedule, event_id, created_at, NULL::timestamptz,
        payload, priority, timeout_s, rescues, unique_key, turn_key, event_version, trace_context, errors,
        cancel_requested_at, leased_until, leased_by
    FROM kernel.jobs WHERE id = %(id)s
    UNION ALL
    SELECT id, queue, task, outcome, attempt, NULL, NULL, schedule, event_id, created_at, finished_at,
        payload, NULL, NULL, NULL, unique_key, NULL, NULL, trace_context, errors, NULL, NULL, NULL
    FROM kernel.finished_jobs WHERE id = %(id)s
"""

_ENDED = """
    SELECT outcome FROM kernel.finished_jobs WHERE id = %(id)s
    UNION ALL
    SELECT 'dead' FROM kernel.dead_letters WHERE id = %(id)s
"""

_TASKS = """
    SELECT task FROM kernel.jobs UNION SELECT task FROM kernel.finished_jobs UNION SELECT task FROM kernel.dead_letters
    UNION SELECT task FROM kernel.schedules UNION SELECT subscriber FROM kernel.subscriptions
"""

_HASTEN = """
    WITH due AS (
        UPDATE kernel.jobs
        SET state = 'ready', run_at = now(), rank = kernel.job_rank(now(), priority), cancel_requested_at = NULL
        WHERE id = %(id)s AND state = 'scheduled'
        RETURNING queue
    )
    SELECT pg_notify('kernel_jobs', 'q' || queue) FROM due
"""

_REMOVE = """
    WITH gone AS (
        DELETE FROM kernel.jobs WHERE id = %(id)s AND state <> 'leased'
        RETURNING id, queue, task, payload, attempt, schedule, event_id, unique_key, trace_context, errors, created_at
    )
    INSERT INTO kernel.finished_jobs
        (id, queue, task, payload, outcome, attempt, schedule, event_id, unique_key, trace_context, errors, created_at,
         finished_at)
    SELECT id, queue, task, payload, 'cancelled', attempt, schedule, event_id, unique_key, trace_context, errors,
        created_at, clock_timestamp()
    FROM gone
"""

_ASK_TO_CANCEL = """
    WITH asked AS (
        UPDATE kernel.jobs SET cancel_requested_at = coalesce(cancel_requested_at, now())
        WHERE id = %(id)s AND state = 'leased'
        RETURNING id, cancel_requested_at
    )
    SELECT cancel_requested_at, pg_notify('kernel_jobs', 'c' || id)::text FROM asked
"""


@dataclass(frozen=True, slots=True)
class JobFilters:
    """Filters of jobs, combined with AND."""

    queue: str | None = None
    task: str | None = None
    state: JobState | None = None
    recurring: bool = True
    """Whether to include done jobs of schedules."""


def _page(filters: JobFilters, *, is_first: bool) -> LiteralString:
    """Return the statement of a page: each part is answered from an index, and has at most the rows of a page."""
    named: tuple[LiteralString, ...] = (
        "queue = %(queue)s" if filters.queue else "",
        "task = %(task)s" if filters.task else "",
    )
    asked = (*named, "" if is_first else "id < %(after)s")
    parts: list[LiteralString] = []
    if filters.state in _STATES:
        parts.append(_UNFINISHED + where(*asked, _STATES[filters.state]))
    elif filters.state is None and any(named):  # the indexes of names are without leased jobs, which are few
        parts.append(_UNFINISHED + where(*asked, "state <> 'leased'"))
        parts.append(_UNFINISHED + where(*asked, "state = 'leased'"))
    elif filters.state is None:
        parts.append(_UNFINISHED + where(*asked))
    if filters.state is None or filters.state in _OUTCOMES:
        outcome: LiteralString = _OUTCOMES[filters.state] if filters.state else ""
        parts.append(_FINISHED + where(*asked, outcome, "" if filters.recurring else f"({_ONE_BY_ONE})"))
    end: LiteralString = " ORDER BY id DESC LIMIT %(limit)s"
    joined, *others = parts
    if others:
        joined = "(" + joined + end + ")"
        for part in others:
            joined += " UNION ALL (" + part + end + ")"
    return joined + end


@dataclass(frozen=True, slots=True)
class ListedJob:
    """A job without its payload. An ended job has neither `max_attempts` nor `run_at`."""

    id: UUID
    queue: str
    task: str
    state: JobState
    attempt: int
    max_attempts: int | None
    run_at: datetime | None
    schedule: str | None
    event_id: UUID | None
    created_at: datetime
    finished_at: datetime | None

    columns: ClassVar[Columns] = (
        Column("job", "id"),
        Column("task"),
        Column("queue", extra=True),
        Column("state", is_state=True),
        Column(
            "attempts",
            lambda job: job.attempt if job.max_attempts is None else f"{job.attempt}/{job.max_attempts}",
            extra=True,
        ),
        Column("due or ended", lambda job: job.finished_at or job.run_at),
    )


@dataclass(frozen=True, slots=True)
class Failure:
    """The error of a failed attempt."""

    attempt: int
    at: datetime
    error: str


@dataclass(frozen=True, slots=True)
class Lease:
    """The worker that holds a job, and the end of its lease unless it is renewed."""

    until: datetime
    by: str


@dataclass(frozen=True, slots=True)
class JobDetails(ListedJob):
    """All data of a job; `errors` are newest first."""

    payload: Any
    priority: int | None
    timeout_s: float | None
    rescues: int | None
    unique_key: str | None
    turn_key: str | None
    event_version: int | None
    trace_context: str | None
    trace_id: str | None
    errors: list[Failure]
    cancel_requested_at: datetime | None
    lease: Lease | None


@dataclass(frozen=True, slots=True)
class JobAdmin:
    """Jobs in `kernel.jobs` and `kernel.finished_jobs`."""

    async def page(self, db: Queries, filters: JobFilters, limit: int, after: UUID | None) -> list[ListedJob]:
        """Return a page of jobs, newest first."""
        given = {"queue": filters.queue, "task": filters.task, "limit": limit, "after": after}
        return [ListedJob(*row) for row in await db.all(_page(filters, is_first=after is None), given)]

    async def get(self, db: Queries, job_id: UUID) -> JobDetails | None:
        """Return a job."""
        row = await db.one(_GET, {"id": job_id})
        if row is None:
            return None
        *known, context, errors, cancel_requested_at, leased_until, leased_by = row
        return JobDetails(
            *known,
            trace_context=context,
            trace_id=trace_id(context),
            errors=failures(errors),
            cancel_requested_at=cancel_requested_at,
            lease=Lease(leased_until, leased_by) if leased_until is not None else None,
        )

    async def lock(self, tx: Transaction, job_id: UUID) -> JobState | None:
        """Lock an unfinished job until the transaction ends; return its state."""
        row = await tx.one("SELECT state FROM kernel.jobs WHERE id = %s FOR UPDATE", (job_id,))
        return row[0] if row else None

    async def ended(self, db: Queries, job_id: UUID) -> Literal["done", "cancelled", "dead"] | None:
        """Return the outcome of an ended job."""
        row = await db.one(_ENDED, {"id": job_id})
        return row[0] if row else None

    async def hasten(self, tx: Transaction, job_id: UUID) -> None:
        """Make a scheduled job ready, and withdraw a request to cancel it."""
        await tx.run(_HASTEN, {"id": job_id})

    async def remove(self, tx: Transaction, job_id: UUID) -> None:
        """End a job that is not running as cancelled. The triggers of the table start the next one of its turn."""
        await tx.run(_REMOVE, {"id": job_id})

    async def ask_to_cancel(self, tx: Transaction, job_id: UUID) -> datetime | None:
        """Request the cancellation of a running job; return the time of the request."""
        row = await tx.one(_ASK_TO_CANCEL, {"id": job_id})
        return row[0] if row else None


@dataclass(frozen=True, slots=True)
class DeclaredTasks:
    """The tasks, subscribers and schedules that this release declares."""

    names: frozenset[str]
    schedules: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class TaskNames:
    """The names of all known tasks: of this release, schedules, subscriptions and stored jobs."""

    declared: DeclaredTasks

    async def names(self, db: Queries) -> list[str]:
        """Return the names."""
        return sorted(self.declared.names.union(name for (name,) in await db.all(_TASKS)))


def failures(errors: list[dict[str, Any]] | None) -> list[Failure]:
    """Return the stored errors of a job."""
    return [Failure(e["attempt"], datetime.fromisoformat(e["at"]), e["error"]) for e in errors or []]


def trace_id(trace_context: str | None) -> str | None:
    """Return the id of the trace that a stored context belongs to."""
    parts = (trace_context or "").split("-", 3)
    return parts[1] if len(parts) >= 4 else None
