"""Administration of jobs, unfinished and finished."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, ClassVar, Literal, LiteralString, cast
from uuid import UUID

from app.kernel.actions.columns import Column, Columns
from app.kernel.db import Queries, Transaction, where

JobState = Literal["scheduled", "ready", "waiting", "leased", "done", "cancelled"]

REDACTED = "redacted"
_LARGEST_SEARCHED = 20_000  # bytes as stored
_SKEW = timedelta(hours=1)
_SEARCHED = 10_000
"""Maximum number of rows that a page with a filter without an index reads."""

_UNFINISHED = """
    SELECT id, queue, task, state, attempt, max_attempts, run_at, schedule, event_id, created_at,
        NULL::timestamptz AS finished_at, payload, errors, trace_context
    FROM kernel.jobs
"""
_FINISHED = """
    SELECT id, queue, task, outcome AS state, attempt, NULL::integer AS max_attempts, NULL::timestamptz AS run_at,
        schedule, event_id, created_at, finished_at, payload, errors, trace_context
    FROM kernel.finished_jobs
"""
_FOUND: LiteralString = """
    SELECT id, queue, task, state, attempt, max_attempts, run_at, schedule, event_id, created_at, finished_at,
        (SELECT count(*) FROM searched), (SELECT min(id::text COLLATE "C")::uuid FROM searched)
    FROM (VALUES (1)) one LEFT JOIN LATERAL (SELECT * FROM searched
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
        payload, priority, timeout_s, rescues, unique_key, turn_key, event_version, origin_id, trace_context, errors,
        cancel_requested_at, leased_until, leased_by
    FROM kernel.jobs WHERE id = %(id)s
    UNION ALL
    SELECT id, queue, task, outcome, attempt, NULL, NULL, schedule, event_id, created_at, finished_at,
        payload, NULL, NULL, NULL, unique_key, turn_key, event_version, origin_id, trace_context, errors,
        NULL, NULL, NULL
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
        RETURNING id, queue, task, payload, attempt, schedule, event_id, event_version, unique_key, turn_key,
            trace_context, errors, created_at, origin_id
    )
    INSERT INTO kernel.finished_jobs
        (id, queue, task, payload, outcome, attempt, schedule, event_id, event_version, unique_key, turn_key,
         trace_context, errors, created_at, origin_id, finished_at)
    SELECT id, queue, task, payload, 'cancelled', attempt, schedule, event_id, event_version, unique_key, turn_key,
        trace_context, errors, created_at, origin_id, clock_timestamp()
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
    """Filters of jobs, combined with AND. The last four have no index."""

    queue: str | None = None
    task: str | None = None
    state: JobState | None = None
    recurring: bool = True
    """Whether to include done jobs of schedules."""
    created_from: datetime | None = None
    created_to: datetime | None = None
    min_attempts: int | None = None
    """Failed attempts; a finished job has one more attempt."""
    error: str | None = None
    text: str | None = None
    trace_id: str | None = None

    @property
    def is_search(self) -> bool:
        """Whether rows must be read one by one."""
        return any(given is not None for given in (self.min_attempts, self.error, self.text, self.trace_id))


def _bounds(filters: JobFilters) -> tuple[LiteralString, ...]:
    """Return the conditions of the period. An id begins with the time of its creation, by the clock of a client."""
    return (
        "id >= %(first)s AND created_at >= %(created_from)s" if filters.created_from else "",
        "id < %(last)s AND created_at < %(created_to)s" if filters.created_to else "",
    )


def _page(filters: JobFilters, *, is_first: bool) -> LiteralString:
    """Return the statement of a page: each part is answered from an index, and has at most the rows of a page."""
    named: tuple[LiteralString, ...] = (
        "queue = %(queue)s" if filters.queue else "",
        "task = %(task)s" if filters.task else "",
    )
    asked = (*named, *_bounds(filters), "" if is_first else "id < %(after)s")
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
    end: LiteralString = " ORDER BY id DESC LIMIT %(searched)s"
    joined, *others = parts
    if others:
        joined = "(" + joined + end + ")"
        for part in others:
            joined += " UNION ALL (" + part + end + ")"
    found: LiteralString = where(
        "attempt >= %(min_attempts)s" if filters.min_attempts is not None else "",
        "position(lower(%(error)s) IN lower(errors::text)) > 0" if filters.error is not None else "",
        "pg_column_size(payload) <= %(largest)s AND position(lower(%(text)s) IN lower(payload::text)) > 0"
        if filters.text is not None
        else "",
        "split_part(trace_context, '-', 2) = %(trace_id)s" if filters.trace_id is not None else "",
    )
    searched: LiteralString = "WITH searched AS (" + joined + end + ")"
    return searched + _FOUND + found + "ORDER BY id DESC LIMIT %(limit)s) found ON true ORDER BY id DESC"


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
    """All data of a job; `errors` are newest first.

    The values of `payload` are redacted unless they were revealed. `origin_id` is the job that was run again as this
    one.
    """

    payload: Any = field(repr=False)
    priority: int | None
    timeout_s: float | None
    rescues: int | None
    unique_key: str | None
    turn_key: str | None
    event_version: int | None
    origin_id: UUID | None
    trace_context: str | None
    trace_id: str | None
    errors: list[Failure]
    cancel_requested_at: datetime | None
    lease: Lease | None


@dataclass(frozen=True, slots=True)
class JobAdmin:
    """Jobs in `kernel.jobs` and `kernel.finished_jobs`."""

    async def page(
        self, db: Queries, filters: JobFilters, limit: int, after: UUID | None
    ) -> tuple[list[ListedJob], UUID | None]:
        """Return a page of jobs, newest first, and where the next one begins; None at the end.

        With a filter that has no index, a page is of the newest 10,000 jobs that match the other filters, and may be
        empty although there is a next one.
        """
        searched = _SEARCHED if filters.is_search else limit
        given = {name: getattr(filters, name) for name in JobFilters.__dataclass_fields__}
        given |= {"limit": limit, "searched": searched, "after": after, "largest": _LARGEST_SEARCHED}
        given |= {"first": _id_at(filters.created_from, -_SKEW), "last": _id_at(filters.created_to, _SKEW)}
        rows = await db.all(_page(filters, is_first=after is None), given)
        jobs = [ListedJob(*row[:11]) for row in rows if row[0] is not None]
        if len(jobs) == limit:
            return jobs, jobs[-1].id
        read, oldest = rows[0][11:]
        return jobs, oldest if read == searched else None

    async def get(self, db: Queries, job_id: UUID, *, reveal: bool = False) -> JobDetails | None:
        """Return a job; `reveal` its payload."""
        row = await db.one(_GET, {"id": job_id})
        if row is None:
            return None
        *known, context, errors, cancel_requested_at, leased_until, leased_by = row
        found = JobDetails(
            *known,
            trace_context=context,
            trace_id=trace_id(context),
            errors=failures(errors),
            cancel_requested_at=cancel_requested_at,
            lease=Lease(leased_until, leased_by) if leased_until is not None else None,
        )
        return found if reveal else replace(found, payload=redacted_payload(found.payload))

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
class DeclaredTask:
    """How this release runs the jobs of a task or a subscriber. `payload` is the class, of an event if `is_event`."""

    payload: type[Any] | None
    is_event: bool
    max_attempts: int
    timeout_s: float
    concurrency: int


@dataclass(frozen=True, slots=True)
class DeclaredTasks:
    """The tasks, subscribers and schedules that this release declares."""

    tasks: Mapping[str, DeclaredTask] = field(default_factory=dict[str, DeclaredTask])
    schedules: frozenset[str] = frozenset()

    @property
    def names(self) -> frozenset[str]:
        """The names of tasks and subscribers."""
        return frozenset(self.tasks)


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


def redacted_payload(payload: Any) -> Any:
    """Return a payload with the names of its fields, which the code declares, and without their values."""
    if not isinstance(payload, dict):
        return payload and REDACTED
    return dict.fromkeys(cast("dict[str, Any]", payload), REDACTED)


def _id_at(moment: datetime | None, skew: timedelta) -> UUID | None:
    """Return the lowest UUIDv7 of a moment."""
    if moment is None:
        return None
    milliseconds = max(0, min(int((moment.timestamp() + skew.total_seconds()) * 1000), 2**48 - 1))
    return UUID(int=milliseconds << 80)
