"""Upkeep of the kernel's tables: partitions made ahead and dropped whole, and what nobody needs any more pruned."""

from dataclasses import dataclass

from app.kernel.config import KeepSettings
from app.kernel.db import Database
from app.kernel.db.chunks import run_in_chunks

_DAYS_AHEAD = 7
_LOCK_TIMEOUT = "SET LOCAL lock_timeout = '300ms'"  # dropping waits for readers, and everybody else for the dropping
_DROP = "SELECT kernel.drop_partitions(%s, %s)"

_PRUNE_FINISHED = """
    DELETE FROM kernel.finished_jobs_other WHERE ctid IN (
        SELECT ctid FROM kernel.finished_jobs_other
        WHERE finished_at < now() - %(keep_s)s * interval '1 second' LIMIT %(chunk)s
    )
"""
_PRUNE_EVENTS = """
    DELETE FROM kernel.events_other WHERE ctid IN (
        SELECT ctid FROM kernel.events_other
        WHERE published_at < now() - %(keep_s)s * interval '1 second' LIMIT %(chunk)s
    )
"""
_PRUNE_DEAD_LETTERS = """
    DELETE FROM kernel.dead_letters WHERE id IN (
        SELECT id FROM kernel.dead_letters WHERE died_at < now() - %(keep_s)s * interval '1 second' LIMIT %(chunk)s
    )
"""
_PRUNE_AUDIT = """
    DELETE FROM kernel.audit WHERE id IN (
        SELECT id FROM kernel.audit WHERE at < now() - %(keep_s)s * interval '1 second' ORDER BY id LIMIT %(chunk)s
    )
"""
_FORGET_SUBSCRIPTIONS = "DELETE FROM kernel.subscriptions WHERE seen_at < now() - interval '7 days'"
_FORGET_PROCESSES = "DELETE FROM kernel.processes WHERE last_seen_at < now() - interval '1 day'"

_HELD = """
    SELECT 'pid ' || pid || ' (' || coalesce(nullif(application_name, ''), usename, 'unknown') || ')',
        extract(epoch FROM now() - xact_start)::float8
    FROM pg_stat_activity
    WHERE backend_xmin IS NOT NULL AND pid <> pg_backend_pid() AND backend_type = 'client backend'
      AND xact_start < now() - %(age_s)s * interval '1 second'
    UNION ALL
    SELECT 'prepared transaction ' || gid, extract(epoch FROM now() - prepared)::float8
    FROM pg_prepared_xacts WHERE prepared < now() - %(age_s)s * interval '1 second'
    ORDER BY 2 DESC
    LIMIT 10
"""


@dataclass(frozen=True, slots=True)
class HeldSnapshot:
    """A transaction that keeps the rows of finished jobs from being cleaned away, and for how long."""

    holder: str
    age_s: float


@dataclass(frozen=True, slots=True)
class Pruned:
    """What was made and removed."""

    partitions_made: int
    partitions_dropped: int
    rows: int


@dataclass(frozen=True, slots=True)
class Upkeep:
    """Keeps the kernel's tables small."""

    keep: KeepSettings

    async def prune(self, db: Database) -> Pruned:
        """Make the partitions of the days ahead, remove what is older than it is kept. Safe to repeat.

        Raises Unavailable, also when somebody reads what is to be dropped; the rest is done then.
        """
        keep = self.keep
        row = await db.one("SELECT kernel.make_partitions(%s)", (_DAYS_AHEAD,))
        rows = await run_in_chunks(db, _PRUNE_FINISHED, keep_s=keep.finished_jobs)
        rows += await run_in_chunks(db, _PRUNE_EVENTS, keep_s=keep.events)
        rows += await run_in_chunks(db, _PRUNE_DEAD_LETTERS, keep_s=keep.dead_letters)
        rows += await run_in_chunks(db, _PRUNE_AUDIT, keep_s=keep.audit)
        rows += await db.run(_FORGET_SUBSCRIPTIONS)
        rows += await db.run(_FORGET_PROCESSES)
        dropped = 0
        for parent, keep_s in (("finished_jobs", keep.finished_jobs), ("events", keep.events)):
            async with db.begin() as tx:
                await tx.run(_LOCK_TIMEOUT)
                found = await tx.one(_DROP, (parent, keep_s))
                dropped += found[0] if found else 0
        return Pruned(row[0] if row else 0, dropped, rows)

    async def held_snapshots(self, db: Database, age_s: float) -> list[HeldSnapshot]:
        """Return who has held a snapshot for longer than that, longest first. Raises Unavailable."""
        return [HeldSnapshot(*row) for row in await db.all(_HELD, {"age_s": age_s})]
