"""Attempts in `auth.limits`."""

from dataclasses import dataclass

from app.kernel.db import Queries
from app.kernel.db.chunks import run_in_chunks


@dataclass(frozen=True, slots=True)
class PostgresLimits:
    """Attempts in `auth.limits`: one row a key, a fixed window from its first attempt."""

    async def hit(self, db: Queries, key: str, window_s: float) -> tuple[int, int]:
        sql = """
            INSERT INTO auth.limits AS l (key, hits) VALUES (%(key)s, 1)
            ON CONFLICT (key) DO UPDATE SET
                hits = CASE WHEN l.started_at < now() - %(window)s * interval '1 second' THEN 1 ELSE l.hits + 1 END,
                started_at = CASE WHEN l.started_at < now() - %(window)s * interval '1 second'
                                  THEN now() ELSE l.started_at END
            RETURNING hits, ceil(extract(epoch FROM started_at - now()) + %(window)s)::int
        """
        row = await db.one(sql, {"key": key, "window": window_s})
        return (0, 0) if row is None else (row[0], max(1, row[1]))

    async def hits(self, db: Queries, key: str, window_s: float) -> tuple[int, int]:
        sql = """
            SELECT hits, ceil(extract(epoch FROM started_at - now()) + %(window)s)::int
            FROM auth.limits
            WHERE key = %(key)s AND started_at >= now() - %(window)s * interval '1 second'
        """
        row = await db.one(sql, {"key": key, "window": window_s})
        return (0, 0) if row is None else (row[0], max(1, row[1]))

    async def forget(self, db: Queries, key: str) -> bool:
        return await db.run("DELETE FROM auth.limits WHERE key = %s", (key,)) == 1

    async def prune(self, db: Queries, window_s: float) -> int:
        sql = """
            DELETE FROM auth.limits WHERE key IN (
                SELECT key FROM auth.limits WHERE started_at < now() - %(window_s)s * interval '1 second'
                ORDER BY started_at LIMIT %(chunk)s
            )
        """
        return await run_in_chunks(db, sql, window_s=window_s)
