"""Captured errors in `kernel.errors`."""

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any, LiteralString
from uuid import UUID

from app.kernel.db import Database, Queries, Transaction, where
from app.kernel.product import VERSION
from app.kernel.queue.enqueue import Queue
from app.kernel.sentinel import NOTIFY, DueGroup, ErrorFilters, ErrorNotFound, Group, State, StoredError
from app.kernel.sentinel.releases import is_newer

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

# locks in the order of _STORE
_KNOWN = """
    SELECT fingerprint, state, resolved_releases FROM kernel.errors WHERE fingerprint = ANY(%(fingerprints)s)
    ORDER BY fingerprint FOR UPDATE
"""
_REOPEN = """
    UPDATE kernel.errors
    SET state = 'regressed', notified_at = NULL, resolved_releases = NULL, regressed_at = now(),
        regressed_release = %(release)s
    WHERE fingerprint = ANY(%(reopened)s)
"""
_STORE = """
    INSERT INTO kernel.errors AS e
        (fingerprint, kind, type, title, culprit, count, processes, first_seen_at, last_seen_at, first_release,
         last_release, samples, hourly, hourly_at)
    SELECT fingerprint, kind, type, title, culprit, count, ARRAY[%(process)s::text], first_seen_at, last_seen_at,
        %(release)s, %(release)s, samples::jsonb, kernel.hourly(NULL, NULL, count), now()
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
        hourly = kernel.hourly(e.hourly, e.hourly_at, excluded.count),
        hourly_at = now(),
        state = CASE WHEN e.state = 'muted' AND e.muted_until < now() THEN 'open' ELSE e.state END
"""

_COLUMNS = """
    SELECT id, kind, type, title, culprit, CASE WHEN state = 'muted' AND muted_until < now() THEN 'open' ELSE state END,
        count, processes, first_seen_at, last_seen_at, first_release, last_release, muted_until, notified_at,
        regressed_at, regressed_release, resolved_releases, kernel.hourly(hourly, hourly_at, 0)
    FROM kernel.errors
"""

_COUNT = "SELECT count(*) FROM kernel.errors"

_IN_STATE: dict[State, LiteralString] = {
    "open": "(state = 'open' OR state = 'muted' AND muted_until < now())",
    "resolved": "state = 'resolved'",
    "muted": "state = 'muted' AND muted_until >= now()",
    "regressed": "state = 'regressed'",
}
_UNRESOLVED = "state <> 'resolved'"

_RESOLVE = """
    UPDATE kernel.errors e SET state = 'resolved', muted_until = NULL, resolved_releases = CASE WHEN %(next_release)s
        THEN ARRAY(SELECT version FROM kernel.processes UNION SELECT e.last_release UNION SELECT %(version)s ORDER BY 1)
        END
"""
_MUTE = """
    UPDATE kernel.errors e SET state = 'muted', muted_until = %(until)s, resolved_releases = NULL
"""
# locked in the order of _STORE
_CHOSEN_START = "WITH page AS (SELECT id FROM kernel.errors"
_CHOSEN_END = """
        ORDER BY id LIMIT %(limit)s
    ), chosen AS (
        SELECT id FROM kernel.errors WHERE id IN (SELECT id FROM page) AND state <> 'resolved'
        ORDER BY fingerprint FOR UPDATE
    ), changed AS (
"""
_COUNTED = """
        WHERE id IN (SELECT id FROM chosen) RETURNING id
    )
    SELECT (SELECT count(*) FROM page), (SELECT count(*) FROM changed), (SELECT id FROM page ORDER BY id DESC LIMIT 1)
"""


@dataclass(frozen=True, slots=True)
class Batch:
    """The result of a batch: the number of changed groups, and the last id, which is None at the end."""

    changed: int
    last: UUID | None


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
            known = await tx.all(_KNOWN, given)
            reopened = [
                fingerprint
                for fingerprint, state, releases in known
                if state == "resolved" and (releases is None or is_newer(release, releases))
            ]
            if reopened:
                await tx.run(_REOPEN, {"release": release, "reopened": reopened})
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

    async def page(self, db: Queries, filters: ErrorFilters, limit: int, after: UUID | None) -> list[StoredError]:
        """Return groups, newest first, after an id."""
        sql = _COLUMNS + _matching(filters, "id < %(after)s" if after else "") + "ORDER BY id DESC LIMIT %(limit)s"
        rows = await db.all(sql, {**_given(filters), "limit": limit, "after": after})
        return [StoredError(*row) for row in rows]

    async def latest(self, db: Queries, limit: int) -> list[StoredError]:
        """Return the groups that need attention and were seen last."""
        needy = "WHERE (" + _IN_STATE["open"] + " OR " + _IN_STATE["regressed"] + ") "
        rows = await db.all(_COLUMNS + needy + "ORDER BY last_seen_at DESC LIMIT %s", (limit,))
        return [StoredError(*row) for row in rows]

    async def count_unresolved(self, db: Queries, filters: ErrorFilters) -> int:
        """Return the number of groups that are not resolved."""
        row = await db.one(_COUNT + _matching(filters, _UNRESOLVED), _given(filters))
        return row[0] if row else 0

    async def get(self, db: Queries, error_id: UUID) -> tuple[StoredError, list[dict[str, Any]]]:
        """Return a group and its samples, newest first. Raises ErrorNotFound."""
        row = await db.one(_COLUMNS + "WHERE id = %s", (error_id,))
        samples = await db.one("SELECT samples FROM kernel.errors WHERE id = %s", (error_id,))
        if row is None or samples is None:
            raise ErrorNotFound
        return StoredError(*row), samples[0]

    async def resolve(self, db: Queries, error_id: UUID, *, next_release: bool) -> None:
        """Resolve a group; it regresses with the next error. Raises ErrorNotFound. Safe to repeat.

        With `next_release` it regresses only with an error of a release that is newer than those that run now.
        """
        await self._change_one(db, _RESOLVE, error_id, _resolving(next_release))

    async def resolve_some(
        self, tx: Transaction, filters: ErrorFilters, limit: int, after: UUID | None, *, next_release: bool
    ) -> Batch:
        """Resolve a batch of groups by id."""
        return await self._change_some(tx, _RESOLVE, filters, limit, after, _resolving(next_release))

    async def mute(self, db: Queries, error_id: UUID, until: datetime) -> None:
        """Mute notifications of a group until a time. Raises ErrorNotFound. Safe to repeat."""
        await self._change_one(db, _MUTE, error_id, {"until": until})

    async def mute_some(
        self, tx: Transaction, filters: ErrorFilters, limit: int, after: UUID | None, until: datetime
    ) -> Batch:
        """Mute a batch of groups that are not resolved, by id."""
        return await self._change_some(tx, _MUTE, filters, limit, after, {"until": until})

    async def _change_one(self, db: Queries, change: LiteralString, error_id: UUID, given: dict[str, Any]) -> None:
        if await db.run(change + "WHERE id = %(id)s", {**given, "id": error_id}) == 0:
            raise ErrorNotFound

    async def _change_some(
        self,
        tx: Transaction,
        change: LiteralString,
        filters: ErrorFilters,
        limit: int,
        after: UUID | None,
        given: dict[str, Any],
    ) -> Batch:
        page = _CHOSEN_START + _matching(filters, _UNRESOLVED, "id > %(after)s" if after else "") + _CHOSEN_END
        row = await tx.one(page + change + _COUNTED, {**_given(filters), **given, "limit": limit, "after": after})
        seen, changed, last = row or (0, 0, None)
        return Batch(changed, last if seen == limit else None)


def _resolving(next_release: bool) -> dict[str, Any]:
    return {"next_release": next_release, "version": VERSION}


def _matching(filters: ErrorFilters, *others: LiteralString) -> LiteralString:
    return where(
        *others,
        _IN_STATE[filters.state] if filters.state else "",
        "kind = %(kind)s" if filters.kind else "",
        "strpos(lower(type || ' ' || title || ' ' || culprit), lower(%(q)s)) > 0" if filters.q else "",
        "(first_release = %(release)s OR last_release = %(release)s)" if filters.release else "",
        "last_seen_at >= %(seen_after)s" if filters.seen_after else "",
        "last_seen_at < %(seen_before)s" if filters.seen_before else "",
    )


def _given(filters: ErrorFilters) -> dict[str, Any]:
    return {
        "kind": filters.kind,
        "q": filters.q,
        "release": filters.release,
        "seen_after": filters.seen_after,
        "seen_before": filters.seen_before,
    }
