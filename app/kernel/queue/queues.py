"""Administration of queues."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import ClassVar

from app.kernel.actions.columns import Column, Columns
from app.kernel.db import Queries, Transaction
from app.kernel.errors import NotFound
from app.kernel.product import NAME
from app.kernel.text import lasting, suggestion

_ALL = """
    WITH j AS (
        SELECT queue AS name, count(*) FILTER (WHERE state = 'scheduled') AS scheduled,
            count(*) FILTER (WHERE state = 'ready') AS ready, count(*) FILTER (WHERE state = 'waiting') AS waiting,
            count(*) FILTER (WHERE state = 'leased') AS leased, min(run_at) FILTER (WHERE state = 'ready') AS oldest
        FROM kernel.jobs GROUP BY queue
    ), d AS (
        SELECT queue AS name, count(*) AS dead FROM kernel.dead_letters GROUP BY queue
    )
    SELECT known.name, p.paused_at, p.paused_until, p.pause_reason, q.concurrency, coalesce(j.scheduled, 0),
        coalesce(j.ready, 0), coalesce(j.waiting, 0), coalesce(j.leased, 0), coalesce(d.dead, 0),
        extract(epoch FROM now() - j.oldest)::float8
    FROM (
        SELECT name FROM kernel.queues
        UNION SELECT queue FROM kernel.subscriptions
        UNION SELECT queue FROM kernel.schedules
        UNION SELECT * FROM unnest(%s::text[])
        UNION SELECT name FROM j
        UNION SELECT name FROM d
    ) known (name)
    LEFT JOIN kernel.queues q USING (name)
    LEFT JOIN j USING (name)
    LEFT JOIN d USING (name)
    LEFT JOIN kernel.queues p ON p.name = known.name AND kernel.is_paused(p.paused_at, p.paused_until)
"""

_PAUSE = """
    INSERT INTO kernel.queues AS q (name, paused_at, paused_until, pause_reason)
    VALUES (%(name)s, now(), %(until)s, %(reason)s)
    ON CONFLICT (name) DO UPDATE
    SET paused_at = CASE WHEN kernel.is_paused(q.paused_at, q.paused_until) THEN q.paused_at ELSE now() END,
        paused_until = excluded.paused_until, pause_reason = excluded.pause_reason
"""

_RESUME = """
    INSERT INTO kernel.queues (name) VALUES (%s)
    ON CONFLICT (name) DO UPDATE SET paused_at = NULL, paused_until = NULL, pause_reason = NULL
"""

_LIMIT = """
    INSERT INTO kernel.queues (name, concurrency) VALUES (%s, %s)
    ON CONFLICT (name) DO UPDATE SET concurrency = excluded.concurrency
"""

_STATUS = """
    SELECT q.name, p.paused_at, p.paused_until, p.pause_reason, q.concurrency
    FROM kernel.queues q
    LEFT JOIN kernel.queues p ON p.name = q.name AND kernel.is_paused(p.paused_at, p.paused_until)
    WHERE q.name = %s
"""

_NOTIFY = "SELECT pg_notify('kernel_jobs', 'q' || %s::text)"

_USED = """
    SELECT %(name)s = ANY(%(known)s::text[])
        OR EXISTS (SELECT FROM kernel.queues WHERE name = %(name)s AND seen_at > now() - interval '7 days')
        OR EXISTS (SELECT FROM kernel.subscriptions WHERE queue = %(name)s)
        OR EXISTS (SELECT FROM kernel.schedules WHERE queue = %(name)s)
        OR EXISTS (SELECT FROM kernel.jobs WHERE queue = %(name)s)
        OR EXISTS (SELECT FROM kernel.dead_letters WHERE queue = %(name)s),
        EXISTS (SELECT FROM kernel.queues WHERE name = %(name)s)
"""

_NAMES = """
    SELECT name FROM kernel.queues UNION SELECT queue FROM kernel.subscriptions UNION SELECT queue FROM kernel.schedules
    UNION SELECT queue FROM kernel.jobs UNION SELECT queue FROM kernel.dead_letters
    UNION SELECT * FROM unnest(%s::text[]) LIMIT 1000
"""

# rows that are locked are being updated by another process
_REGISTER = "INSERT INTO kernel.queues (name) SELECT unnest(%s::text[]) ON CONFLICT DO NOTHING"
_SEEN = """
    UPDATE kernel.queues SET seen_at = now() WHERE name IN (
        SELECT name FROM kernel.queues WHERE name = ANY(%s) AND seen_at < now() - interval '1 minute'
        ORDER BY name FOR UPDATE SKIP LOCKED
    )
"""


class QueueNotFound(NotFound):
    """There is no such queue."""

    code = "QUEUE_NOT_FOUND"
    hint = f"{NAME} queues list"
    title = "There is no such queue"


async def register_queues(db: Queries, names: Sequence[str]) -> None:
    """Register the queues of a consumer's handlers. Safe to repeat."""
    await db.run(_REGISTER, (sorted(set(names)),))
    await db.run(_SEEN, (sorted(set(names)),))


@dataclass(frozen=True, slots=True)
class ListedQueue:
    """A queue with its job counts by state and the age of its oldest ready job in seconds.

    `paused_until` and `pause_reason` belong to its pause; `paused_by` is who paused it: a username, or the user of the
    operating system. `done_in_minute` and `done_in_hour` are jobs that were done lately, as processes count.
    """

    name: str
    paused_at: datetime | None
    paused_until: datetime | None
    pause_reason: str | None
    concurrency: int | None
    scheduled: int
    ready: int
    waiting: int
    leased: int
    dead: int
    oldest_ready_s: float | None
    paused_by: str | None = None
    done_in_minute: int = 0
    done_in_hour: int = 0

    columns: ClassVar[Columns] = (
        Column("queue", "name"),
        Column("ready"),
        Column("oldest", lambda queue: lasting(queue.oldest_ready_s), extra=True),
        Column("scheduled", extra=True),
        Column("waiting", extra=True),
        Column("leased"),
        Column("dead"),
        Column("done/min", "done_in_minute", extra=True),
        Column("done/h", "done_in_hour", extra=True),
        Column("limit", "concurrency", extra=True),
        Column("paused", lambda queue: ("paused", queue.paused_at) if queue.paused_at else "", is_state=True),
        Column("until", "paused_until"),
        Column("reason", "pause_reason", extra=True),
        Column("by", "paused_by", extra=True),
    )


@dataclass(frozen=True, slots=True)
class QueueStatus:
    """The pause and the limit of a queue; `is_used` is false if nothing uses it, for example after a typing error."""

    name: str
    paused_at: datetime | None
    paused_until: datetime | None
    pause_reason: str | None
    concurrency: int | None
    is_used: bool

    def __str__(self) -> str:
        at_once = "any number of its jobs" if self.concurrency is None else f"at most {self.concurrency} of its jobs"
        return f"{self.name} {pause_text(self.paused_at, self.paused_until)}; {at_once} may run at once"


def pause_text(paused_at: datetime | None, paused_until: datetime | None) -> str:
    """Return a pause as the predicate of a sentence."""
    if paused_at is None:
        return "is not paused"
    until = f" until {paused_until:%Y-%m-%d %H:%M:%S}Z" if paused_until else ""
    return f"has been paused since {paused_at:%Y-%m-%d %H:%M:%S}Z{until}"


@dataclass(frozen=True, slots=True)
class QueueAdmin:
    """Queues of `kernel.queues`, of jobs, subscribers and schedules, and of the settings."""

    known: Sequence[str]

    async def all(self, db: Queries) -> list[ListedQueue]:
        """Return all queues, without `paused_by`."""
        return [ListedQueue(*row) for row in await db.all(_ALL, (list(self.known),))]

    async def names(self, db: Queries) -> list[str]:
        """Return the names of all known queues."""
        return [known for (known,) in await db.all(_NAMES, (list(self.known),))]

    async def pause(
        self, tx: Transaction, name: str, until: datetime | None = None, reason: str | None = None
    ) -> QueueStatus:
        """Stop starting jobs of a queue until a time, or until it is resumed. Raises QueueNotFound.

        Running jobs continue. Pausing a paused queue replaces the expiry and the reason. Workers are notified, because
        they fetch again when the pause expires.
        """
        used = await self._is_used(tx, name)
        await tx.run(_PAUSE, {"name": name, "until": until, "reason": reason})
        return await self._changed(tx, name, used)

    async def resume(self, tx: Transaction, name: str) -> QueueStatus:
        """Resume a queue and notify the workers. Raises QueueNotFound."""
        used = await self._is_used(tx, name)
        await tx.run(_RESUME, (name,))
        return await self._changed(tx, name, used)

    async def limit(self, tx: Transaction, name: str, concurrency: int | None) -> QueueStatus:
        """Set or remove the concurrency limit of a queue, and notify the workers. Raises QueueNotFound."""
        used = await self._is_used(tx, name)
        await tx.run(_LIMIT, (name, concurrency))
        return await self._changed(tx, name, used)

    async def _changed(self, tx: Transaction, name: str, used: bool) -> QueueStatus:
        """Notify the workers; return the new status."""
        await tx.run(_NOTIFY, (name,))
        row = await tx.one(_STATUS, (name,))
        assert row is not None
        return QueueStatus(*row, is_used=used)

    async def _is_used(self, tx: Transaction, name: str) -> bool:
        """Return whether a queue is in use. Raises QueueNotFound if it was never used."""
        row = await tx.one(_USED, {"name": name, "known": list(self.known)})
        used, stored = row or (False, False)
        if not used and not stored:
            raise QueueNotFound(f"there is no queue {name}{suggestion(name, await self.names(tx))}")
        return bool(used)
