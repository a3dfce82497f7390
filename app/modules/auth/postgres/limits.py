"""Limits in `auth.limits`."""

from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

from app.kernel.db import Queries, Row, run_in_chunks
from app.kernel.errors import Unauthenticated, Unavailable
from app.modules.auth.domain.limits import Limit, Tally, Try, check, too_many_at_once

# locks rows in the order of `reserve`: notes, then limits by key
GIVE_BACK = """
    forgotten AS (
        DELETE FROM auth.limits WHERE key = ANY(%(noted)s) RETURNING key
    ), locked AS (
        SELECT key FROM auth.limits
        WHERE key = ANY(%(keys)s) AND (SELECT count(*) FROM forgotten) >= 0
        ORDER BY key FOR UPDATE
    ), given_back AS (
        UPDATE auth.limits l SET
            hits = greatest(CASE WHEN l.key = %(forgiven)s THEN l.pending ELSE l.hits END - %(own)s, 0),
            pending = greatest(l.pending - %(own)s, 0)
        FROM locked
        WHERE l.key = locked.key
    )
"""
"""Parts of a statement that uncounts an attempt; `given_back` returns their parameters."""


def given_back(tried: Try, *, forgiven: str = "") -> dict[str, Any]:
    """Return the parameters of `GIVE_BACK`. Failures under the `forgiven` key are reset too."""
    if tried.shared_as:  # PostgreSQL has only failures
        return {"keys": [forgiven], "noted": [], "forgiven": forgiven, "own": 0}
    noted = [limit.noted_as for limit in tried.limits if limit.noted_as]
    return {"keys": [limit.key for limit in tried.limits], "noted": noted, "forgiven": forgiven, "own": 1}


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits in `auth.limits`: a row per key, a fixed window from the first attempt; `hits` = failed and pending.

    To avoid deadlocks, rows are locked in one order: notes of limits with `once_for`, then limits by key.
    """

    async def look(self, db: Queries, limits: Sequence[Limit]) -> dict[str, Tally]:
        """Return the tallies by key."""
        sql = """
            SELECT key, hits - pending, pending, ceil(extract(epoch FROM started_at - now()) + window_s)::int
            FROM auth.limits
            WHERE key = ANY(%s) AND started_at >= now() - window_s * interval '1 second'
        """
        return tallies(await db.all(sql, ([limit.key for limit in limits],)))

    async def reserve(
        self,
        db: Queries,
        limits: Sequence[Limit],
        known: Mapping[str, Tally] | None = None,  # noqa: ARG002 - limits in Redis use it
    ) -> Try:
        """Count a pending attempt under each key, in one statement outside a transaction.

        `known` are tallies that were just read. Raises RateLimited if a limit is reached, and counts nothing then. Call
        `fail` or `give_back` afterwards. If the process dies before that, the attempt counts as failed until the window
        ends.
        """
        # a window begins with the first counted attempt
        sql = """
            WITH asked AS (
                SELECT * FROM unnest(%(keys)s::text[], %(most)s::int[], %(locks)s::int[], %(windows)s::real[],
                                     %(noted)s::text[])
                    AS asked (key, most, locks_from, window_s, noted_as)
            ), noted AS (
                INSERT INTO auth.limits AS l (key, hits, window_s)
                SELECT noted_as, 1, window_s FROM asked WHERE noted_as <> ''
                ON CONFLICT (key) DO UPDATE SET started_at = now()
                WHERE l.started_at < now() - excluded.window_s * interval '1 second'
                RETURNING key
            ), weighed AS (
                SELECT key, most, window_s,
                       (noted_as = '' OR noted_as IN (SELECT noted.key FROM noted))::int AS weight
                FROM asked
            ), reserved AS (
                INSERT INTO auth.limits AS l (key, hits, pending, most, window_s)
                SELECT key, weight, weight, most, window_s FROM weighed ORDER BY key
                ON CONFLICT (key) DO UPDATE SET
                    hits = excluded.hits + CASE WHEN l.started_at < now() - excluded.window_s * interval '1 second'
                                                THEN 0 ELSE l.hits END,
                    pending = excluded.pending
                        + CASE WHEN l.started_at < now() - excluded.window_s * interval '1 second'
                               THEN 0 ELSE l.pending END,
                    started_at = CASE WHEN l.hits = 0 OR l.started_at < now() - excluded.window_s * interval '1 second'
                                      THEN now() ELSE l.started_at END,
                    most = excluded.most,
                    window_s = excluded.window_s
                WHERE l.started_at < now() - excluded.window_s * interval '1 second'
                   OR l.hits < (SELECT CASE WHEN l.hits - l.pending < a.locks_from THEN a.locks_from ELSE a.most END
                                FROM asked a WHERE a.key = l.key)
                RETURNING key, hits - pending AS failed, pending,
                          ceil(extract(epoch FROM started_at - now()) + window_s)::int AS ends_in_s
            )
            SELECT key, failed, pending, ends_in_s, weight = 1 FROM weighed LEFT JOIN reserved USING (key)
        """
        asked = {
            "keys": [limit.key for limit in limits],
            "most": [limit.most for limit in limits],
            "locks": [limit.locks_from for limit in limits],
            "windows": [limit.window_s for limit in limits],
            "noted": [limit.noted_as for limit in limits],
        }
        rows = {row[0]: row[1:] for row in await db.all(sql, asked)}
        counted = [limit for limit in limits if rows[limit.key][-1]]
        refused = [limit.key for limit in limits if rows[limit.key][0] is None]
        if refused:
            undone = given_back(Try(counted, {}))
            undone["keys"] = [key for key in undone["keys"] if key not in refused]
            await self._give_back(db, undone)
            check(limits, await self.look(db, limits))
            raise too_many_at_once()
        return Try(counted, tallies([(key, *row[:-1]) for key, row in rows.items()]))

    async def fail(self, db: Queries, tried: Try) -> None:
        """Turn a pending attempt into a failed one."""
        sql = """
            INSERT INTO auth.limits AS l (key, hits, window_s)
            SELECT key, 1, window_s FROM unnest(%s::text[], %s::float[]) AS asked (key, window_s) ORDER BY key
            ON CONFLICT (key) DO UPDATE SET hits = greatest(l.hits, 1), pending = greatest(l.pending - 1, 0)
        """
        await db.run(sql, ([limit.key for limit in tried.limits], [limit.window_s for limit in tried.limits]))

    async def count_failed(self, db: Queries, limits: Sequence[Limit]) -> None:
        """Count a failed attempt that was not pending here, and note those with `once_for`."""
        sql = """
            INSERT INTO auth.limits AS l (key, hits, most, window_s)
            SELECT key, 1, most, window_s FROM unnest(%s::text[], %s::int[], %s::real[]) AS asked (key, most, window_s)
            ORDER BY most > 0, key
            ON CONFLICT (key) DO UPDATE SET
                hits = 1 + CASE WHEN l.started_at < now() - excluded.window_s * interval '1 second'
                                THEN 0 ELSE l.hits END,
                pending = CASE WHEN l.started_at < now() - excluded.window_s * interval '1 second'
                               THEN 0 ELSE l.pending END,
                started_at = CASE WHEN l.hits = 0 OR l.started_at < now() - excluded.window_s * interval '1 second'
                                  THEN now() ELSE l.started_at END,
                most = excluded.most,
                window_s = excluded.window_s
        """
        rows = [(limit.key, limit.most, limit.window_s) for limit in limits]
        rows += [(limit.noted_as, 0, limit.window_s) for limit in limits if limit.noted_as]
        if rows:
            await db.run(sql, [list(column) for column in zip(*rows, strict=True)])

    async def settled(self, tried: Try, forgiven: str) -> None:
        """Uncount what is not in PostgreSQL, after the transaction of `SignIns.settle`."""

    @asynccontextmanager
    async def undone_unless_decided(self, db: Queries, tried: Try) -> AsyncGenerator[None]:
        """Uncount an attempt if its evaluation is cancelled or fails for another reason than a wrong secret."""
        try:
            yield
        except Unauthenticated:
            raise
        except BaseException:
            with suppress(Unavailable):  # the attempt then counts as failed until its window ends
                await self.give_back(db, tried)
            raise

    async def give_back(self, db: Queries, tried: Try) -> None:
        """Uncount a pending attempt that was right or was not evaluated."""
        await self._give_back(db, given_back(tried))

    async def _give_back(self, db: Queries, given: dict[str, Any]) -> None:
        await db.run("WITH " + GIVE_BACK + "SELECT", given)

    async def forget(self, db: Queries, key: str) -> bool:
        """Reset the count of a key; return whether it was above 0."""
        return await db.one("DELETE FROM auth.limits WHERE key = %s RETURNING nullif(hits, 0)", (key,)) not in _NOTHING

    async def prune(self, db: Queries) -> int:
        """Remove counts whose window has ended; return their number."""
        sql = """
            DELETE FROM auth.limits WHERE key IN (
                SELECT key FROM auth.limits
                WHERE started_at < now() - interval '15 minutes' AND started_at < now() - window_s * interval '1 second'
                ORDER BY started_at LIMIT %(chunk)s FOR UPDATE SKIP LOCKED
            )
        """
        return await run_in_chunks(db, sql)


_NOTHING: tuple[Row | None, Row] = (None, (None,))


def tallies(rows: Iterable[Sequence[Any]]) -> dict[str, Tally]:
    """Return tallies by key from rows of key, failed attempts, pending attempts and seconds left."""
    return {key: Tally(failed, pending, max(1, ends_in_s)) for key, failed, pending, ends_in_s in rows}
