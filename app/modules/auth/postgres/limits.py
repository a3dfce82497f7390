"""Tries in `auth.limits`."""

from collections.abc import Sequence
from dataclasses import dataclass

from app.kernel.db import Queries, Row
from app.kernel.db.chunks import run_in_chunks
from app.modules.auth.domain.limits import Limit, Tally, check, too_many_at_once


@dataclass(frozen=True, slots=True)
class Limits:
    """Tries in `auth.limits`: one row a key, a fixed window from its first try; `hits` are failed and pending ones.

    Rows are locked in the order of their keys.
    """

    async def look(self, db: Queries, limits: Sequence[Limit]) -> list[Tally]:
        """Return the tries so far, in the order of the limits."""
        sql = """
            SELECT l.key, l.hits - l.pending, l.pending,
                   ceil(extract(epoch FROM l.started_at - now()) + asked.window_s)::int
            FROM unnest(%s::text[], %s::float[]) AS asked (key, window_s) JOIN auth.limits l USING (key)
            WHERE l.started_at >= now() - asked.window_s * interval '1 second'
        """
        return _tallies(limits, await db.all(sql, ([x.key for x in limits], [x.window_s for x in limits])))

    async def reserve(self, db: Queries, limits: Sequence[Limit]) -> list[Tally]:
        """Count a pending try under each key; return the tries with it, in the order of the limits.

        Raises RateLimited, having counted nothing, when one of the limits is reached. `fail` or `give_back`
        follows; a try that is left pending, because its process died, counts as failed until the window ends.
        """
        # a window begins with the first try that counts
        sql = """
            INSERT INTO auth.limits AS l (key, hits, pending, most, window_s)
            SELECT key, weight, weight, most, window_s
            FROM unnest(%s::text[], %s::int[], %s::int[], %s::float[]) AS asked (key, weight, most, window_s)
            ORDER BY key
            ON CONFLICT (key) DO UPDATE SET
                hits = CASE WHEN l.started_at < now() - excluded.window_s * interval '1 second' THEN 0 ELSE l.hits END
                       + excluded.hits,
                pending = CASE WHEN l.started_at < now() - excluded.window_s * interval '1 second'
                               THEN 0 ELSE l.pending END + excluded.pending,
                started_at = CASE WHEN l.hits = 0 OR l.started_at < now() - excluded.window_s * interval '1 second'
                                  THEN now() ELSE l.started_at END,
                most = excluded.most,
                window_s = excluded.window_s
            WHERE l.hits < excluded.most OR l.started_at < now() - excluded.window_s * interval '1 second'
            RETURNING key, hits - pending, pending,
                      ceil(extract(epoch FROM started_at - now()) + window_s)::int
        """
        asked = (
            [limit.key for limit in limits],
            [int(limit.counts) for limit in limits],
            [limit.most for limit in limits],
            [limit.window_s for limit in limits],
        )
        rows = await db.all(sql, asked)
        if len(rows) < len(limits):
            reserved = {row[0] for row in rows}
            await self.give_back(db, [limit for limit in limits if limit.key in reserved])
            check(limits, await self.look(db, limits))
            raise too_many_at_once()
        return _tallies(limits, rows)

    async def fail(self, db: Queries, limits: Sequence[Limit]) -> None:
        """Turn pending tries into failures."""
        sql = """
            INSERT INTO auth.limits AS l (key, hits, window_s)
            SELECT key, 1, window_s FROM unnest(%s::text[], %s::float[]) AS asked (key, window_s) ORDER BY key
            ON CONFLICT (key) DO UPDATE SET hits = greatest(l.hits, 1), pending = greatest(l.pending - 1, 0)
        """
        counted = [limit for limit in limits if limit.counts]
        await db.run(sql, ([limit.key for limit in counted], [limit.window_s for limit in counted]))

    async def give_back(self, db: Queries, limits: Sequence[Limit], *, forgiven: str = "") -> None:
        """Forget pending tries: they were right, or were not evaluated. Under a forgiven key, failures too."""
        sql = """
            UPDATE auth.limits l SET
                hits = greatest(CASE WHEN l.key = %s THEN l.pending ELSE l.hits END - 1, 0),
                pending = greatest(l.pending - 1, 0)
            FROM (SELECT key FROM auth.limits WHERE key = ANY(%s) ORDER BY key FOR UPDATE) AS locked
            WHERE l.key = locked.key
        """
        await db.run(sql, (forgiven, [limit.key for limit in limits if limit.counts]))

    async def is_new(self, db: Queries, key: str, window_s: float) -> bool:
        """Note a key; return whether it was not noted within its window."""
        sql = """
            INSERT INTO auth.limits AS l (key, hits, window_s) VALUES (%s, 1, %s)
            ON CONFLICT (key) DO UPDATE SET started_at = now()
            WHERE l.started_at < now() - excluded.window_s * interval '1 second'
        """
        return await db.run(sql, (key, window_s)) == 1

    async def forget(self, db: Queries, key: str) -> bool:
        """Start anew; return whether there was something to forget."""
        return await db.one("DELETE FROM auth.limits WHERE key = %s RETURNING nullif(hits, 0)", (key,)) not in _NOTHING

    async def prune(self, db: Queries) -> int:
        """Remove the counts whose window has ended; return how many."""
        sql = """
            DELETE FROM auth.limits WHERE key IN (
                SELECT key FROM auth.limits WHERE started_at < now() - window_s * interval '1 second'
                ORDER BY started_at LIMIT %(chunk)s FOR UPDATE SKIP LOCKED
            )
        """
        return await run_in_chunks(db, sql)


_NOTHING: tuple[Row | None, Row] = (None, (None,))


def _tallies(limits: Sequence[Limit], rows: Sequence[Row]) -> list[Tally]:
    found = {row[0]: Tally(row[1], row[2], max(1, row[3])) for row in rows}
    return [found.get(limit.key, Tally()) for limit in limits]
