"""Captured errors in `kernel.errors`."""

import json
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from app.kernel.db import Database, Queries, Transaction, where
from app.kernel.queue.enqueue import Queue
from app.kernel.sentinel import NOTIFY, DueGroup, ErrorNotFound, Group, StoredError

_NOTIFY_DELAY_S = 3.0  # collects groups that open at the same time in one message

# a new or regressed group is due at once, then once per cooldown; muted groups are never due
_DUE = """
    SELECT id, notified_count AS before FROM kernel.errors
    WHERE state IN ('open', 'regressed') AND (
        notified_at IS NULL
        OR count > notified_count AND notified_at < now() - %(cooldown_s)s * interval '1 second'
    )
    ORDER BY id LIMIT 500
"""
_TAKE_DUE_START = "WITH due AS ("
_TAKE_DUE_END = """
        FOR UPDATE SKIP LOCKED
    )
    UPDATE kernel.errors e SET notified_at = now(), notified_count = count FROM due WHERE e.id = due.id
    RETURNING e.id, kind, title, culprit, state, count, count - before, processes, first_seen_at
"""

_STORE = """
    INSERT INTO kernel.errors AS e
        (fingerprint, kind, type, title, culprit, count, processes, first_seen_at, last_seen_at, first_release,
         last_release, samples)
    SELECT fingerprint, kind, type, title, culprit, count, ARRAY[%(process)s::text], first_seen_at, last_seen_at,
        %(release)s, %(release)s, samples::jsonb
    FROM unnest(%(fingerprints)s::text[], %(kinds)s::text[], %(types)s::text[], %(titles)s::text[],
            %(culprits)s::text[], %(counts)s::bigint[], %(firsts)s::timestamptz[], %(lasts)s::timestamptz[],
            %(samples)s::text[])
        AS given (fingerprint, kind, type, title, culprit, count, first_seen_at, last_seen_at, samples)
    ORDER BY fingerprint
    ON CONFLICT (fingerprint) DO UPDATE SET
        title = excluded.title,
        count = e.count + excluded.count,
        processes = ARRAY(SELECT DISTINCT unnest(e.processes || excluded.processes) ORDER BY 1 LIMIT 50),
        last_seen_at = greatest(e.last_seen_at, excluded.last_seen_at),
        last_release = excluded.last_release,
        samples = CASE WHEN excluded.samples = '[]' THEN e.samples
            ELSE jsonb_path_query_array(excluded.samples || e.samples, '$[0 to 4]') END,
        notified_at = CASE WHEN e.state = 'resolved' THEN NULL ELSE e.notified_at END,
        state = CASE WHEN e.state = 'resolved' THEN 'regressed'
            WHEN e.state = 'muted' AND e.muted_until < now() THEN 'open' ELSE e.state END
"""

_COLUMNS = """
    SELECT id, kind, type, title, culprit, state, count, processes, first_seen_at, last_seen_at, first_release,
        last_release, muted_until, notified_at
    FROM kernel.errors
"""


@dataclass(frozen=True, slots=True)
class Errors:
    """Stores and reads captured errors. Each method raises Unavailable."""

    cooldown_s: float

    async def store(self, db: Database, queue: Queue | None, groups: list[Group], process: str, release: str) -> None:
        """Store groups; with a queue, also enqueue the notification in the same transaction."""
        groups = sorted(groups, key=lambda group: group.fingerprint)
        given: dict[str, Any] = {
            "process": process,
            "release": release,
            "fingerprints": [g.fingerprint for g in groups],
            "kinds": [g.kind for g in groups],
            "types": [g.type for g in groups],
            "titles": [g.title for g in groups],
            "culprits": [g.culprit for g in groups],
            "counts": [g.count for g in groups],
            "firsts": [g.first_seen_at for g in groups],
            "lasts": [g.last_seen_at for g in groups],
            "samples": [json.dumps(g.samples) for g in groups],
        }
        async with db.begin() as tx:
            await tx.run(_STORE, given)
            if queue is not None:
                await self.notify(tx, queue)

    async def notify(self, tx: Queries, queue: Queue) -> None:
        """Enqueue the notification when a group is due. Safe to repeat."""
        due = await tx.one(_DUE, {"cooldown_s": self.cooldown_s})
        if due is not None:
            await queue.enqueue(tx, NOTIFY, delay_s=_NOTIFY_DELAY_S, unique_key="due")

    async def take_due(self, tx: Transaction) -> list[DueGroup]:
        """Return the due groups, most frequent first, and mark them as notified."""
        rows = await tx.all(_TAKE_DUE_START + _DUE + _TAKE_DUE_END, {"cooldown_s": self.cooldown_s})
        return sorted((DueGroup(*row) for row in rows), key=lambda group: -group.since)

    async def page(
        self, db: Queries, state: str | None, kind: str | None, limit: int, after: UUID | None
    ) -> list[StoredError]:
        """Return groups, newest first, after an id."""
        given = {"after": after, "state": state, "kind": kind, "limit": limit}
        asked = where(
            "id < %(after)s" if after else "", "state = %(state)s" if state else "", "kind = %(kind)s" if kind else ""
        )
        return [StoredError(*row) for row in await db.all(_COLUMNS + asked + "ORDER BY id DESC LIMIT %(limit)s", given)]

    async def get(self, db: Queries, error_id: UUID) -> tuple[StoredError, list[dict[str, Any]]]:
        """Return a group and its samples, newest first. Raises ErrorNotFound."""
        row = await db.one(_COLUMNS + "WHERE id = %s", (error_id,))
        samples = await db.one("SELECT samples FROM kernel.errors WHERE id = %s", (error_id,))
        if row is None or samples is None:
            raise ErrorNotFound
        return StoredError(*row), samples[0]

    async def resolve(self, db: Queries, error_id: UUID) -> None:
        """Resolve a group; it regresses with the next error. Raises ErrorNotFound. Safe to repeat."""
        sql = "UPDATE kernel.errors SET state = 'resolved', muted_until = NULL WHERE id = %s"
        if await db.run(sql, (error_id,)) == 0:
            raise ErrorNotFound

    async def mute(self, db: Queries, error_id: UUID, seconds: float) -> None:
        """Mute notifications of a group for some seconds. Raises ErrorNotFound. Safe to repeat."""
        sql = """
            UPDATE kernel.errors SET state = 'muted', muted_until = now() + %s * interval '1 second' WHERE id = %s
        """
        if await db.run(sql, (seconds, error_id)) == 0:
            raise ErrorNotFound
