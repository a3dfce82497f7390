"""Queues as operators see and change them: how much is in them, paused or not, and how much runs at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from app.kernel.db import Queries, Transaction

_ALL = """
    WITH j AS (
        SELECT queue AS name, count(*) FILTER (WHERE state = 'scheduled') AS scheduled,
            count(*) FILTER (WHERE state = 'ready') AS ready, count(*) FILTER (WHERE state = 'waiting') AS waiting,
            count(*) FILTER (WHERE state = 'leased') AS leased, min(run_at) FILTER (WHERE state = 'ready') AS oldest
        FROM kernel.jobs GROUP BY queue
    ), d AS (
        SELECT queue AS name, count(*) AS dead FROM kernel.dead_letters GROUP BY queue
    )
    SELECT name, q.paused_at, q.concurrency, coalesce(j.scheduled, 0), coalesce(j.ready, 0), coalesce(j.waiting, 0),
        coalesce(j.leased, 0), coalesce(d.dead, 0), extract(epoch FROM now() - j.oldest)::float8
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
    ORDER BY name
"""

_PAUSE = """
    INSERT INTO kernel.queues (name, paused_at) VALUES (%s, now())
    ON CONFLICT (name) DO UPDATE SET paused_at = coalesce(queues.paused_at, now())
    RETURNING name, paused_at, concurrency
"""

_RESUME = """
    INSERT INTO kernel.queues (name) VALUES (%s)
    ON CONFLICT (name) DO UPDATE SET paused_at = NULL
    RETURNING name, paused_at, concurrency
"""

_LIMIT = """
    INSERT INTO kernel.queues (name, concurrency) VALUES (%s, %s)
    ON CONFLICT (name) DO UPDATE SET concurrency = excluded.concurrency
    RETURNING name, paused_at, concurrency
"""

_TELL = "SELECT pg_notify('kernel_jobs', 'q' || %s::text)"

_USED = """
    SELECT %(name)s = ANY(%(known)s::text[])
        OR EXISTS (SELECT FROM kernel.subscriptions WHERE queue = %(name)s)
        OR EXISTS (SELECT FROM kernel.schedules WHERE queue = %(name)s)
        OR EXISTS (SELECT FROM kernel.jobs WHERE queue = %(name)s)
        OR EXISTS (SELECT FROM kernel.dead_letters WHERE queue = %(name)s)
"""


@dataclass(frozen=True, slots=True)
class ListedQueue:
    """A queue: how many jobs it has in each state, and for how many seconds the oldest ready one has been due."""

    name: str
    paused_at: datetime | None
    concurrency: int | None
    scheduled: int
    ready: int
    waiting: int
    leased: int
    dead: int
    oldest_ready_s: float | None


@dataclass(frozen=True, slots=True)
class QueueControl:
    """What operators have set for a queue; `is_used` unless nothing that we know of uses it: a mistyped name?"""

    name: str
    paused_at: datetime | None
    concurrency: int | None
    is_used: bool


@dataclass(frozen=True, slots=True)
class Queues:
    """Queues in `kernel.queues`, those of jobs, subscribers and schedules, and those known otherwise."""

    known: Sequence[str]

    async def all(self, db: Queries) -> list[ListedQueue]:
        """Return every queue, by name."""
        return [ListedQueue(*row) for row in await db.all(_ALL, (list(self.known),))]

    async def pause(self, tx: Transaction, name: str) -> QueueControl:
        """Let no worker take a job of it any more. Those that run go on."""
        return await self._set(tx, name, await tx.one(_PAUSE, (name,)))

    async def resume(self, tx: Transaction, name: str) -> QueueControl:
        """Let workers take its jobs again, and tell them."""
        resumed = await self._set(tx, name, await tx.one(_RESUME, (name,)))
        await tx.run(_TELL, (name,))
        return resumed

    async def limit(self, tx: Transaction, name: str, concurrency: int | None) -> QueueControl:
        """Let at most so many of its jobs run at once in the whole deployment, or any number; tell the workers."""
        limited = await self._set(tx, name, await tx.one(_LIMIT, (name, concurrency)))
        await tx.run(_TELL, (name,))
        return limited

    async def _set(
        self, tx: Transaction, name: str, row: tuple[str, datetime | None, int | None] | None
    ) -> QueueControl:
        assert row is not None
        used = await tx.one(_USED, {"name": name, "known": list(self.known)})
        return QueueControl(*row, is_used=bool(used and used[0]))
