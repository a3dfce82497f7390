"""Dead letters: jobs that were given up, with why; they go back into their queue or are thrown away."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar
from uuid import UUID

from app.kernel.actions.columns import Column, Columns
from app.kernel.db import Queries, Transaction
from app.kernel.queue.jobs import Failure, failures, trace_id

_PAGE = """
    SELECT id, queue, task, reason, attempt, schedule, event_id, created_at, died_at
    FROM kernel.dead_letters
    WHERE (%(after)s::uuid IS NULL OR id < %(after)s)
      AND (%(queue)s::text IS NULL OR queue = %(queue)s)
      AND (%(task)s::text IS NULL OR task = %(task)s)
      AND (%(died_before)s::timestamptz IS NULL OR died_at < %(died_before)s)
    ORDER BY id DESC LIMIT %(limit)s
"""

_COUNT = """
    SELECT count(*) FROM kernel.dead_letters
    WHERE (%(queue)s::text IS NULL OR queue = %(queue)s)
      AND (%(task)s::text IS NULL OR task = %(task)s)
      AND (%(died_before)s::timestamptz IS NULL OR died_at < %(died_before)s)
"""

_GET = """
    SELECT id, queue, task, reason, attempt, schedule, event_id, created_at, died_at, payload, max_attempts, priority,
        timeout_s, unique_key, turn_key, event_version, trace_context, errors
    FROM kernel.dead_letters WHERE id = %s
"""

_ONE = """
    WITH chosen AS (SELECT id FROM kernel.dead_letters WHERE id = %(id)s FOR UPDATE)
"""
_SOME = """
    WITH chosen AS (
        SELECT id FROM kernel.dead_letters
        WHERE (%(after)s::uuid IS NULL OR id > %(after)s)
          AND (%(queue)s::text IS NULL OR queue = %(queue)s)
          AND (%(task)s::text IS NULL OR task = %(task)s)
          AND (%(died_before)s::timestamptz IS NULL OR died_at < %(died_before)s)
        ORDER BY id LIMIT %(limit)s FOR UPDATE SKIP LOCKED
    )
"""
# the last one of its turn now, as it was given up; errors stay for whoever looks at it again
_REVIVE = """
    , revived AS (
        INSERT INTO kernel.jobs
            (id, queue, task, payload, priority, rank, max_attempts, timeout_s, unique_key, turn_key, turn_limit,
             in_order, schedule, event_id, event_version, trace_context, errors, created_at)
        SELECT id, queue, task, payload, priority, kernel.job_rank(now(), priority), max_attempts, timeout_s,
            unique_key, turn_key, turn_limit, in_order, schedule, event_id, event_version, trace_context, errors,
            created_at
        FROM kernel.dead_letters WHERE id IN (SELECT id FROM chosen)
        ORDER BY id
        ON CONFLICT (task, unique_key) WHERE unique_key IS NOT NULL DO NOTHING
        RETURNING id, queue
    ), gone AS (
        DELETE FROM kernel.dead_letters WHERE id IN (SELECT id FROM revived) RETURNING id
    ), told AS (
        SELECT pg_notify('kernel_jobs', 'q' || queue) FROM (SELECT DISTINCT queue FROM revived) q
    )
"""
_PURGE = """
    , gone AS (
        DELETE FROM kernel.dead_letters WHERE id IN (SELECT id FROM chosen) RETURNING id
    ), told AS (
        SELECT
    )
"""
_DONE = """
    SELECT (SELECT count(*) FROM chosen), (SELECT count(*) FROM gone),
        (SELECT id FROM chosen ORDER BY id DESC LIMIT 1), (SELECT count(*) FROM told)
"""


@dataclass(frozen=True, slots=True)
class DeadLetterFilters:
    """Which dead letters: all that are given must fit."""

    queue: str | None = None
    task: str | None = None
    died_before: datetime | None = None


@dataclass(frozen=True, slots=True)
class ListedDeadLetter:
    """A job that was given up after so many attempts, and why."""

    id: UUID
    queue: str
    task: str
    reason: str
    attempt: int
    schedule: str | None
    event_id: UUID | None
    created_at: datetime
    died_at: datetime

    columns: ClassVar[Columns] = (
        Column("dead letter", "id"),
        Column("task"),
        Column("queue"),
        Column("attempts", "attempt"),
        Column("died at"),
        Column("reason"),
    )


@dataclass(frozen=True, slots=True)
class DeadLetterDetails(ListedDeadLetter):
    """A dead letter with everything that is known of it; `errors` are newest first."""

    payload: Any
    max_attempts: int
    priority: int
    timeout_s: float
    unique_key: str | None
    turn_key: str | None
    event_version: int | None
    trace_context: str | None
    trace_id: str | None
    errors: list[Failure]


@dataclass(frozen=True, slots=True)
class Chunk:
    """What was done in one go: how many were looked at, how many changed, and the last one; None at the end."""

    seen: int
    changed: int
    last: UUID | None


@dataclass(frozen=True, slots=True)
class DeadLetterAdmin:
    """Dead letters in `kernel.dead_letters`."""

    async def page(
        self, db: Queries, filters: DeadLetterFilters, limit: int, after: UUID | None
    ) -> list[ListedDeadLetter]:
        """Return dead letters that fit, those of the newest jobs first, those after one."""
        rows = await db.all(_PAGE, {**_given(filters), "limit": limit, "after": after})
        return [ListedDeadLetter(*row) for row in rows]

    async def count(self, db: Queries, filters: DeadLetterFilters) -> int:
        """Return how many fit."""
        row = await db.one(_COUNT, _given(filters))
        return row[0] if row else 0

    async def get(self, db: Queries, letter_id: UUID) -> DeadLetterDetails | None:
        """Return a dead letter."""
        row = await db.one(_GET, (letter_id,))
        if row is None:
            return None
        *known, context, errors = row
        return DeadLetterDetails(*known, trace_context=context, trace_id=trace_id(context), errors=failures(errors))

    async def revive(self, tx: Transaction, letter_id: UUID) -> Chunk:
        """Make it a ready job again, with all attempts before it, unless an unfinished job has its unique key."""
        return _chunk(await tx.one(_ONE + _REVIVE + _DONE, {"id": letter_id}), 1)

    async def revive_some(self, tx: Transaction, filters: DeadLetterFilters, limit: int, after: UUID | None) -> Chunk:
        """Revive those that fit, by id, those after one. What somebody else is changing is left out."""
        given = {**_given(filters), "limit": limit, "after": after}
        return _chunk(await tx.one(_SOME + _REVIVE + _DONE, given), limit)

    async def purge(self, tx: Transaction, letter_id: UUID) -> Chunk:
        """Remove it for good."""
        return _chunk(await tx.one(_ONE + _PURGE + _DONE, {"id": letter_id}), 1)

    async def purge_some(self, tx: Transaction, filters: DeadLetterFilters, limit: int, after: UUID | None) -> Chunk:
        """Remove those that fit for good, by id, those after one. What somebody else is changing is left out."""
        given = {**_given(filters), "limit": limit, "after": after}
        return _chunk(await tx.one(_SOME + _PURGE + _DONE, given), limit)


def _given(filters: DeadLetterFilters) -> dict[str, Any]:
    return {"queue": filters.queue, "task": filters.task, "died_before": filters.died_before}


def _chunk(row: tuple[Any, ...] | None, limit: int) -> Chunk:
    seen, changed, last, _ = row or (0, 0, None, 0)
    return Chunk(seen, changed, last if seen == limit else None)
