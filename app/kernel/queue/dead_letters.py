"""Administration of dead letters."""

from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, ClassVar, LiteralString
from uuid import UUID

from app.kernel.actions.columns import Column, Columns
from app.kernel.db import Queries, Transaction, where
from app.kernel.queue.enqueue import KEEP_UNFINISHED, insert_jobs
from app.kernel.queue.jobs import Failure, failures, redacted_payload, trace_id

CAUSE: LiteralString = "coalesce(cause, kernel.cause_of(reason))"  # as in the index

_PAGE: LiteralString = (
    "SELECT id, queue, task, reason, attempt, schedule, event_id, created_at, died_at, "  # noqa: S608 - literals
    + CAUSE
    + " FROM kernel.dead_letters"
)

_COUNT = "SELECT count(*) FROM kernel.dead_letters"

_GET: LiteralString = (
    "SELECT id, queue, task, reason, attempt, schedule, event_id, created_at, died_at, "  # noqa: S608 - literals
    + CAUSE
    + """,
        payload, max_attempts, priority, timeout_s, unique_key, turn_key, event_version, trace_context, errors,
        origin_id
    FROM kernel.dead_letters WHERE id = %s
    """
)

_MOST_GROUPED = 20_000
# the newest letter of a cause, which is its sample, orders the list
_CAUSES: LiteralString = (
    "WITH letters AS (SELECT id, task, died_at, "  # noqa: S608 - literals
    + CAUSE
    + " AS cause FROM kernel.dead_letters"
)
_GROUPED = """
        ORDER BY id DESC LIMIT %(most)s
    ), causes AS (
        SELECT max(id::text COLLATE "C")::uuid AS id, task, cause, count(*) AS count, min(died_at) AS first_at,
            max(died_at) AS last_at
        FROM letters GROUP BY task, cause
    )
    SELECT c.id, c.task, c.cause, d.queue, c.count, c.first_at, c.last_at, d.reason,
        (SELECT e.id FROM kernel.errors e WHERE e.fingerprint = c.cause LIMIT 1)
    FROM causes c JOIN kernel.dead_letters d ON d.id = c.id
    WHERE %(after)s::uuid IS NULL OR c.id < %(after)s
    ORDER BY c.id DESC LIMIT %(limit)s
"""

ONE: LiteralString = " chosen AS (SELECT id FROM kernel.dead_letters WHERE id = %(id)s FOR UPDATE), "
_CHOSEN: LiteralString = " chosen AS (SELECT id FROM kernel.dead_letters"
CHUNK: LiteralString = """
    SELECT (SELECT count(*) FROM chosen), (SELECT count(*) FROM gone),
        (SELECT id FROM chosen ORDER BY id DESC LIMIT 1)
"""


def revive(chosen: LiteralString, attempt: LiteralString = "0", also: LiteralString = "") -> LiteralString:
    """Return a statement that turns the `chosen` dead letters into jobs; `also` are more tables of its WITH clause."""
    # in its group the job runs last; its errors stay
    return insert_jobs(
        given=chosen,
        rows="kernel.dead_letters WHERE id IN (SELECT id FROM chosen) ORDER BY id",
        id="id",
        payload="payload",
        priority="priority",
        unique_key="unique_key",
        turn_key="turn_key",
        turn_limit="turn_limit",
        in_order="in_order",
        schedule="schedule",
        event_id="event_id",
        event_version="event_version",
        trace_context="trace_context",
        errors="errors",
        attempt=attempt,
        created_at="created_at",
        origin_id="origin_id",
        on_conflict=KEEP_UNFINISHED,
        then=", gone AS (DELETE FROM kernel.dead_letters WHERE id IN (SELECT id FROM added) RETURNING id)"  # noqa: S608
        + also
        + CHUNK
        + ", (SELECT count(*) FROM notified)",
    )


def _matching(filters: "DeadLetterFilters", after: LiteralString = "") -> LiteralString:
    return where(
        after,
        "queue = %(queue)s" if filters.queue else "",
        "task = %(task)s" if filters.task else "",
        CAUSE + " = %(cause)s" if filters.cause else "",
        "died_at < %(died_before)s" if filters.died_before else "",
    )


def some(filters: "DeadLetterFilters", after: UUID | None) -> LiteralString:
    """Return `chosen` of up to `limit` matching dead letters by id, locked, without those that are locked already."""
    found = _matching(filters, "id > %(after)s" if after else "")
    return _CHOSEN + found + "ORDER BY id LIMIT %(limit)s FOR UPDATE SKIP LOCKED), "


_REVIVE_ONE = revive(ONE)


@dataclass(frozen=True, slots=True)
class DeadLetterFilters:
    """Filters of dead letters, combined with AND."""

    queue: str | None = None
    task: str | None = None
    cause: str | None = None
    died_before: datetime | None = None

    def given(self) -> dict[str, Any]:
        """Return the parameters of statements."""
        return {"queue": self.queue, "task": self.task, "cause": self.cause, "died_before": self.died_before}


@dataclass(frozen=True, slots=True)
class ListedDeadLetter:
    """A job that failed permanently, with its attempts, the reason, and the cause that groups it with others."""

    id: UUID
    queue: str
    task: str
    reason: str
    attempt: int
    schedule: str | None
    event_id: UUID | None
    created_at: datetime
    died_at: datetime
    cause: str

    columns: ClassVar[Columns] = (
        Column("dead letter", "id"),
        Column("task"),
        Column("queue", extra=True),
        Column("attempts", "attempt", extra=True),
        Column("died at"),
        Column("reason"),
    )


@dataclass(frozen=True, slots=True)
class Cause:
    """Dead letters of a task that died of the same cause. `id` and `reason` are those of the newest one.

    `error_id` is the group of captured errors with the stack trace, if there is one.
    """

    id: UUID
    task: str
    cause: str
    queue: str
    count: int
    first_at: datetime
    last_at: datetime
    reason: str
    error_id: UUID | None

    columns: ClassVar[Columns] = (
        Column("count"),
        Column("task"),
        Column("reason"),
        Column("first", "first_at", extra=True),
        Column("last", "last_at"),
        Column("cause"),
    )


@dataclass(frozen=True, slots=True)
class DeadLetterDetails(ListedDeadLetter):
    """All data of a dead letter; `errors` are newest first.

    The values of `payload` are redacted unless they were revealed. `origin_id` is the job that was run again as this
    one.
    """

    payload: Any = field(repr=False)
    max_attempts: int
    priority: int
    timeout_s: float
    unique_key: str | None
    turn_key: str | None
    event_version: int | None
    trace_context: str | None
    trace_id: str | None
    errors: list[Failure]
    origin_id: UUID | None


@dataclass(frozen=True, slots=True)
class Chunk:
    """The result of a batch: rows seen, rows changed, and the last id, which is None at the end."""

    seen: int
    changed: int
    last: UUID | None

    @classmethod
    def of(cls, row: tuple[Any, ...] | None, limit: int) -> "Chunk":
        """Return the result of a statement that ends with CHUNK."""
        seen, changed, last = row[:3] if row else (0, 0, None)
        return cls(seen, changed, last if seen == limit else None)


@dataclass(frozen=True, slots=True)
class DeadLetterAdmin:
    """Dead letters in `kernel.dead_letters`."""

    async def page(
        self, db: Queries, filters: DeadLetterFilters, limit: int, after: UUID | None
    ) -> list[ListedDeadLetter]:
        """Return a page of dead letters, newest jobs first."""
        sql = _PAGE + _matching(filters, "id < %(after)s" if after else "") + "ORDER BY id DESC LIMIT %(limit)s"
        rows = await db.all(sql, {**filters.given(), "limit": limit, "after": after})
        return [ListedDeadLetter(*row) for row in rows]

    async def causes(self, db: Queries, filters: DeadLetterFilters, limit: int, after: UUID | None) -> list[Cause]:
        """Return a page of causes, those with the newest jobs first, of the newest 20,000 matching dead letters."""
        sql = _CAUSES + _matching(filters) + _GROUPED
        given = {**filters.given(), "limit": limit, "after": after, "most": _MOST_GROUPED}
        return [Cause(*row) for row in await db.all(sql, given)]

    async def count(self, db: Queries, filters: DeadLetterFilters) -> int:
        """Return the number of dead letters."""
        row = await db.one(_COUNT + _matching(filters), filters.given())
        return row[0] if row else 0

    async def get(self, db: Queries, letter_id: UUID, *, reveal: bool = False) -> DeadLetterDetails | None:
        """Return a dead letter; `reveal` its payload."""
        row = await db.one(_GET, (letter_id,))
        if row is None:
            return None
        *known, context, errors, origin_id = row
        found = DeadLetterDetails(
            *known,
            trace_context=context,
            trace_id=trace_id(context),
            errors=failures(errors),
            origin_id=origin_id,
        )
        return found if reveal else replace(found, payload=redacted_payload(found.payload))

    async def revive(self, tx: Transaction, letter_id: UUID) -> Chunk:
        """Turn a dead letter into a ready job with all attempts left, unless an unfinished job has its unique key."""
        return Chunk.of(await tx.one(_REVIVE_ONE, {"id": letter_id}), 1)

    async def revive_some(self, tx: Transaction, filters: DeadLetterFilters, limit: int, after: UUID | None) -> Chunk:
        """Revive a batch of dead letters by id. Skips rows that are locked."""
        given = {**filters.given(), "limit": limit, "after": after}
        return Chunk.of(await tx.one(revive(some(filters, after)), given), limit)
