"""Retention: keeps partitions, and deletes old rows in chunks, by an index."""

from dataclasses import dataclass
from typing import Protocol

from app.kernel.config import KeepSettings
from app.kernel.db import Database, run_in_chunks

PARTITIONED = ("finished_jobs", "events")
"""Tables of the kernel that are partitioned by time; a setting of the same name says how long they are kept."""

# rows that a wrong clock dated before the oldest partition
_PRUNE_FINISHED = """
    DELETE FROM kernel.finished_jobs_past WHERE ctid IN (
        SELECT ctid FROM kernel.finished_jobs_past
        WHERE finished_at < now() - %(keep_s)s * interval '1 second' LIMIT %(chunk)s
    )
"""
_PRUNE_EVENTS = """
    DELETE FROM kernel.events_past WHERE ctid IN (
        SELECT ctid FROM kernel.events_past
        WHERE published_at < now() - %(keep_s)s * interval '1 second' LIMIT %(chunk)s
    )
"""
_PRUNE_DEAD_LETTERS = """
    DELETE FROM kernel.dead_letters WHERE id IN (
        SELECT id FROM kernel.dead_letters WHERE died_at < now() - %(keep_s)s * interval '1 second'
        ORDER BY died_at LIMIT %(chunk)s
    )
"""
_PRUNE_PURGED = """
    DELETE FROM kernel.purged_dead_letters WHERE id IN (
        SELECT id FROM kernel.purged_dead_letters WHERE purged_at < now() - interval '1 day'
        ORDER BY purged_at LIMIT %(chunk)s
    )
"""
_PRUNE_AUDIT = """
    DELETE FROM kernel.audit WHERE id IN (
        SELECT id FROM kernel.audit WHERE at < now() - %(keep_s)s * interval '1 second' ORDER BY at LIMIT %(chunk)s
    )
"""
_PRUNE_ERRORS = """
    DELETE FROM kernel.errors WHERE id IN (
        SELECT id FROM kernel.errors WHERE last_seen_at < now() - %(keep_s)s * interval '1 second'
        ORDER BY last_seen_at LIMIT %(chunk)s
    )
"""
# not those of events that a relay may send again
_PRUNE_INBOX = """
    DELETE FROM kernel.event_inbox WHERE ctid IN (
        SELECT ctid FROM kernel.event_inbox WHERE event_id < (
            lpad(to_hex((extract(epoch FROM least(
                now() - interval '7 days', (SELECT min(published_at) - interval '1 hour' FROM kernel.event_outbox)
            )) * 1000)::bigint), 12, '0') || repeat('0', 20)
        )::uuid ORDER BY event_id LIMIT %(chunk)s
    )
"""
_FORGET_PROCESSES = "DELETE FROM kernel.processes WHERE last_seen_at < now() - interval '1 day'"
_FORGET_CANARIES = "DELETE FROM kernel.canaries WHERE ended_at < now() - interval '30 days'"
_FORGET_SUBSCRIPTIONS = "DELETE FROM kernel.subscriptions WHERE seen_at < now() - interval '7 days'"
_FORGET_SERIES = """
    DELETE FROM kernel.series WHERE at < now() - interval '90 days'
        OR resolution = 'minute' AND at < now() - interval '2 days'
"""
# of processes that ended, once all that they counted is in the series
_FORGET_COUNTERS = """
    DELETE FROM kernel.counters c USING kernel.counted n
    WHERE n.process_id = c.process_id AND n.counts = c.reported AND c.seen_at < now() - interval '1 day'
"""
_FORGET_ROLLOUTS = "DELETE FROM kernel.rollouts WHERE last_seen_at < now() - interval '400 days'"
_FORGET_BACKUP_RUNS = "DELETE FROM kernel.backup_runs WHERE finished_at < now() - interval '400 days'"
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


class Partitions(Protocol):
    """Keeps the partitions of `PARTITIONED`. Features know no driver, and this needs a session of its own."""

    async def keep(self, keep_s: dict[str, float]) -> tuple[int, int]:
        """Make those of the days ahead, drop those past their retention; return the numbers. Raises Unavailable."""
        ...


@dataclass(frozen=True, slots=True)
class Retention:
    """Applies retention to the kernel's tables."""

    keep: KeepSettings
    partitions: Partitions

    async def prune(self, db: Database) -> Pruned:
        """Create the partitions of the days ahead, and remove rows beyond their retention. Safe to repeat.

        Raises Unavailable, also when a reader delays the drop of a partition; the rest is then done.
        """
        rows = await run_in_chunks(db, _PRUNE_FINISHED, keep_s=self.keep.finished_jobs)
        rows += await run_in_chunks(db, _PRUNE_EVENTS, keep_s=self.keep.events)
        rows += await run_in_chunks(db, _PRUNE_DEAD_LETTERS, keep_s=self.keep.dead_letters)
        rows += await run_in_chunks(db, _PRUNE_PURGED)
        rows += await run_in_chunks(db, _PRUNE_AUDIT, keep_s=self.keep.audit)
        rows += await run_in_chunks(db, _PRUNE_ERRORS, keep_s=self.keep.errors)
        rows += await run_in_chunks(db, _PRUNE_INBOX)
        for sql in (
            _FORGET_PROCESSES,
            _FORGET_CANARIES,
            _FORGET_SUBSCRIPTIONS,
            _FORGET_QUEUES,
            _FORGET_SERIES,
            _FORGET_COUNTERS,
            _FORGET_ROLLOUTS,
            _FORGET_BACKUP_RUNS,
        ):
            rows += await db.run(sql)
        return Pruned(*await self.partitions.keep({name: getattr(self.keep, name) for name in PARTITIONED}), rows)
