"""Purges of dead letters, which can be undone for a day."""

from dataclasses import dataclass
from datetime import datetime
from typing import ClassVar, LiteralString
from uuid import UUID

from app.kernel.actions.columns import Column, Columns
from app.kernel.db import Queries, Transaction
from app.kernel.queue.dead_letters import CHUNK, ONE, Chunk, DeadLetterFilters, some

_COLUMNS: LiteralString = """
    id, queue, task, payload, reason, priority, attempt, max_attempts, timeout_s, unique_key, turn_key, turn_limit,
    in_order, schedule, event_id, event_version, trace_context, errors, created_at, died_at, cause, origin_id
"""
_PURGE: LiteralString = (
    """
    gone AS (DELETE FROM kernel.dead_letters WHERE id IN (SELECT id FROM chosen) RETURNING *),
    kept AS (INSERT INTO kernel.purged_dead_letters (purge_id,"""  # noqa: S608 - literals
    + _COLUMNS
    + ") SELECT %(purge_id)s,"
    + _COLUMNS
    + "FROM gone)"
    + CHUNK
)
_PURGE_ONE = "WITH" + ONE + _PURGE

_RECENT: LiteralString = "purged_at > now() - interval '1 day' "
_OF: LiteralString = " kernel.purged_dead_letters WHERE (purge_id = %(id)s OR id = %(id)s) AND " + _RECENT
_COUNT: LiteralString = "SELECT count(*) FROM" + _OF

_RESTORE: LiteralString = (
    "WITH chosen AS (SELECT id FROM"  # noqa: S608 - literals
    + _OF
    + """AND (%(after)s::uuid IS NULL OR id > %(after)s) ORDER BY id LIMIT %(limit)s FOR UPDATE SKIP LOCKED
    ), back AS (
        INSERT INTO kernel.dead_letters ("""
    + _COLUMNS
    + ") SELECT"
    + _COLUMNS
    + """FROM kernel.purged_dead_letters WHERE id IN (SELECT id FROM chosen)
        ON CONFLICT (id) DO NOTHING RETURNING id, task, unique_key
    ), gone AS (
        DELETE FROM kernel.purged_dead_letters WHERE id IN (SELECT id FROM back) RETURNING id
    )
    """
    + CHUNK
    + """,
        (SELECT count(*) FROM back b JOIN kernel.jobs j ON j.task = b.task AND j.unique_key = b.unique_key)
    """
)

_PAGE: LiteralString = (
    """
    SELECT purge_id, min(purged_at), min(purged_at) + interval '1 day', count(*),
        CASE WHEN min(queue) = max(queue) THEN min(queue) END, CASE WHEN min(task) = max(task) THEN min(task) END,
        min(reason)
    FROM kernel.purged_dead_letters WHERE (%(after)s::uuid IS NULL OR purge_id < %(after)s) AND """  # noqa: S608
    + _RECENT
    + "GROUP BY purge_id ORDER BY purge_id DESC LIMIT %(limit)s"
)


@dataclass(frozen=True, slots=True)
class Purge:
    """Dead letters that were purged together and can be restored; `queue` and `task` are null if they have several."""

    id: UUID
    purged_at: datetime
    restorable_until: datetime
    count: int
    queue: str | None
    task: str | None
    reason: str

    columns: ClassVar[Columns] = (
        Column("purge", "id"),
        Column("purged at"),
        Column("until", "restorable_until", extra=True),
        Column("count"),
        Column("task", lambda purge: purge.task or "several"),
        Column("queue", lambda purge: purge.queue or "several", extra=True),
        Column("reason", extra=True),
    )


@dataclass(frozen=True, slots=True)
class PurgeAdmin:
    """Purged dead letters in `kernel.purged_dead_letters`."""

    async def page(self, db: Queries, limit: int, after: UUID | None) -> list[Purge]:
        """Return a page of purges of the last day, newest first."""
        return [Purge(*row) for row in await db.all(_PAGE, {"limit": limit, "after": after})]

    async def purge(self, tx: Transaction, letter_id: UUID, purge_id: UUID) -> Chunk:
        """Purge a dead letter."""
        return Chunk.of(await tx.one(_PURGE_ONE, {"id": letter_id, "purge_id": purge_id}), 1)

    async def purge_some(
        self, tx: Transaction, filters: DeadLetterFilters, limit: int, after: UUID | None, purge_id: UUID
    ) -> Chunk:
        """Purge a batch of dead letters by id. Skips rows that are locked."""
        given = {**filters.given(), "limit": limit, "after": after, "purge_id": purge_id}
        return Chunk.of(await tx.one("WITH" + some(filters, after) + _PURGE, given), limit)

    async def count(self, db: Queries, purge_id: UUID) -> int:
        """Return the number of dead letters that can be restored, of a purge or of a letter."""
        row = await db.one(_COUNT, {"id": purge_id})
        return row[0] if row else 0

    async def restore(self, tx: Transaction, purge_id: UUID, limit: int, after: UUID | None) -> tuple[Chunk, int]:
        """Restore a batch of dead letters, of a purge or one letter; return how many unique keys are taken."""
        row = await tx.one(_RESTORE, {"id": purge_id, "limit": limit, "after": after})
        return Chunk.of(row, limit), row[3] if row else 0
