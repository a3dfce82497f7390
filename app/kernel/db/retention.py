"""Retention: creates partitions ahead, drops old ones, and deletes old rows in chunks."""

from dataclasses import dataclass

from app.kernel.config import KeepSettings
from app.kernel.db import Database, run_in_chunks

_DAYS_AHEAD = 7
_LOCK_TIMEOUT = "SET LOCAL lock_timeout = '300ms'"  # a drop waits for readers, and blocks later ones
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
_PRUNE_ERRORS = """
    DELETE FROM kernel.errors WHERE id IN (
        SELECT id FROM kernel.errors WHERE last_seen_at < now() - %(keep_s)s * interval '1 second' LIMIT %(chunk)s
    )
"""
_FORGET_SUBSCRIPTIONS = "DELETE FROM kernel.subscriptions WHERE seen_at < now() - interval '7 days'"

_FORGET_QUEUES = """
    DELETE FROM kernel.queues q WHERE seen_at < now() - interval '7 days'
      AND NOT EXISTS (SELECT FROM kernel.jobs WHERE queue = q.name)
      AND NOT EXISTS (SELECT FROM kernel.dead_letters WHERE queue = q.name)
      AND NOT EXISTS (SELECT FROM kernel.subscriptions WHERE queue = q.name)
      AND NOT EXISTS (SELECT FROM kernel.schedules WHERE queue = q.name)
"""


@dataclass(frozen=True, slots=True)
class Pruned:
    """Numbers of partitions and rows that were created and removed."""

    partitions_made: int
    partitions_dropped: int
    rows: int


@dataclass(frozen=True, slots=True)
class Retention:
    """Applies retention to the kernel's tables."""

    keep: KeepSettings

    async def prune(self, db: Database) -> Pruned:
        """Create the partitions of the days ahead, and remove rows beyond their retention. Safe to repeat.

        Raises Unavailable, also when a reader blocks the drop of a partition; the rest is then done.
        """
        row = await db.one("SELECT kernel.make_partitions(%s)", (_DAYS_AHEAD,))
        rows = await run_in_chunks(db, _PRUNE_FINISHED, keep_s=self.keep.finished_jobs)
        rows += await run_in_chunks(db, _PRUNE_EVENTS, keep_s=self.keep.events)
        rows += await run_in_chunks(db, _PRUNE_DEAD_LETTERS, keep_s=self.keep.dead_letters)
        rows += await run_in_chunks(db, _PRUNE_AUDIT, keep_s=self.keep.audit)
        rows += await run_in_chunks(db, _PRUNE_ERRORS, keep_s=self.keep.errors)
        rows += await db.run(_FORGET_SUBSCRIPTIONS)
        rows += await db.run(_FORGET_QUEUES)
        dropped = 0
        for parent, keep_s in (("finished_jobs", self.keep.finished_jobs), ("events", self.keep.events)):
            async with db.begin() as tx:
                await tx.run(_LOCK_TIMEOUT)
                found = await tx.one(_DROP, (parent, keep_s))
                dropped += found[0] if found else 0
        return Pruned(row[0] if row else 0, dropped, rows)
