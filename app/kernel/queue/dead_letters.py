"""Administration of dead letters."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar, LiteralString
from uuid import UUID

from app.kernel.actions.columns import Column, Columns
from app.kernel.db import Queries, Transaction, where
from app.kernel.queue.enqueue import KEEP_UNFINISHED, insert_jobs
from app.kernel.queue.jobs import Failure, failures, trace_id

_PAGE = """
    SELECT id, queue, task, reason, attempt, schedule, event_id, created_at, died_at
    FROM kernel.dead_letters
"""

_COUNT = "SELECT count(*) FROM kernel.dead_letters"

_GET = """
    SELECT id, queue, task, reason, attempt, schedule, event_id, created_at, died_at, payload, max_attempts, priority,
        timeout_s, unique_key, turn_key, event_version, trace_context, errors
    FROM kernel.dead_letters WHERE id = %s
"""

_ONE = """
    chosen AS (SELECT id FROM kernel.dead_letters WHERE id = %(id)s FOR UPDATE),
"""
_CHOSEN = " chosen AS (SELECT id FROM kernel.dead_letters"
_PURGE = """
    gone AS (DELETE FROM kernel.dead_letters WHERE id IN (SELECT id FROM chosen) RETURNING id)
    SELECT (SELECT count(*) FROM chosen), (SELECT count(*) FROM gone),
        (SELECT id FROM chosen ORDER BY id DESC LIMIT 1)
"""


def _revive(chosen: LiteralString) -> LiteralString:
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
        created_at="created_at",
        on_conflict=KEEP_UNFINISHED,
        then="""
        , gone AS (DELETE FROM kernel.dead_letters WHERE id IN (SELECT id FROM added) RETURNING id)
        SELECT (SELECT count(*) FROM chosen), (SELECT count(*) FROM gone),
            (SELECT id FROM chosen ORDER BY id DESC LIMIT 1), (SELECT count(*) FROM notified)
        """,
    )


def _matching(filters: "DeadLetterFilters", after: LiteralString = "") -> LiteralString:
    return where(
        after,
        "queue = %(queue)s" if filters.queue else "",
        "task = %(task)s" if filters.task else "",
        "died_at < %(died_before)s" if filters.died_before else "",
    )


def _some(filters: "DeadLetterFilters", after: UUID | None) -> LiteralString:
    found = _matching(filters, "id > %(after)s" if after else "")
    return _CHOSEN + found + "ORDER BY id LIMIT %(limit)s FOR UPDATE SKIP LOCKED), "


_REVIVE_ONE, _PURGE_ONE = _revive(_ONE), "WITH" + _ONE + _PURGE


@dataclass(frozen=True, slots=True)
class DeadLetterFilters:
    """Filters of dead letters, combined with AND."""

    queue: str | None = None
    task: str | None = None
    died_before: datetime | None = None


@dataclass(frozen=True, slots=True)
class ListedDeadLetter:
    """A job that failed permanently, with its attempts and the reason."""

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
        Column("queue", extra=True),
        Column("attempts", "attempt", extra=True),
        Column("died at"),
        Column("reason"),
    )


@dataclass(frozen=True, slots=True)
class DeadLetterDetails(ListedDeadLetter):
    """All data of a dead letter; `errors` are newest first."""

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
    """The result of a batch: rows seen, rows changed, and the last id, which is None at the end."""

    seen: int
    changed: int
    last: UUID | None


@dataclass(frozen=True, slots=True)
class DeadLetterAdmin:
    """Dead letters in `kernel.dead_letters`."""

    async def page(
        self, db: Queries, filters: DeadLetterFilters, limit: int, after: UUID | None
    ) -> list[ListedDeadLetter]:
        """Return a page of dead letters, newest jobs first."""
        sql = _PAGE + _matching(filters, "id < %(after)s" if after else "") + "ORDER BY id DESC LIMIT %(limit)s"
        rows = await db.all(sql, {**_given(filters), "limit": limit, "after": after})
        return [ListedDeadLetter(*row) for row in rows]

    async def count(self, db: Queries, filters: DeadLetterFilters) -> int:
        """Return the number of dead letters."""
        row = await db.one(_COUNT + _matching(filters), _given(filters))
        return row[0] if row else 0

    async def get(self, db: Queries, letter_id: UUID) -> DeadLetterDetails | None:
        """Return a dead letter."""
        row = await db.one(_GET, (letter_id,))
        if row is None:
            return None
        *known, context, errors = row
        return DeadLetterDetails(*known, trace_context=context, trace_id=trace_id(context), errors=failures(errors))

    async def revive(self, tx: Transaction, letter_id: UUID) -> Chunk:
        """Turn a dead letter into a ready job with all attempts left, unless an unfinished job has its unique key."""
        return _chunk(await tx.one(_REVIVE_ONE, {"id": letter_id}), 1)

    async def revive_some(self, tx: Transaction, filters: DeadLetterFilters, limit: int, after: UUID | None) -> Chunk:
        """Revive a batch of dead letters by id. Skips rows that are locked."""
        given = {**_given(filters), "limit": limit, "after": after}
        return _chunk(await tx.one(_revive(_some(filters, after)), given), limit)

    async def purge(self, tx: Transaction, letter_id: UUID) -> Chunk:
        """Delete a dead letter."""
        return _chunk(await tx.one(_PURGE_ONE, {"id": letter_id}), 1)

    async def purge_some(self, tx: Transaction, filters: DeadLetterFilters, limit: int, after: UUID | None) -> Chunk:
        """Delete a batch of dead letters by id. Skips rows that are locked."""
        given = {**_given(filters), "limit": limit, "after": after}
        return _chunk(await tx.one("WITH" + _some(filters, after) + _PURGE, given), limit)


def _given(filters: DeadLetterFilters) -> dict[str, Any]:
    return {"queue": filters.queue, "task": filters.task, "died_before": filters.died_before}


def _chunk(row: tuple[Any, ...] | None, limit: int) -> Chunk:
    seen, changed, last = row[:3] if row else (0, 0, None)
    return Chunk(seen, changed, last if seen == limit else None)
