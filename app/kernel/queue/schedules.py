"""Administration of schedules, which cron managers register from the code."""

from dataclasses import dataclass
from datetime import datetime
from typing import ClassVar, Literal
from uuid import UUID

from app.kernel.actions.columns import Column, Columns
from app.kernel.db import Queries, Transaction
from app.kernel.identifiers import uuid7
from app.kernel.queue.enqueue import insert_jobs
from app.kernel.telemetry.traces import current_context

_ALL = """
    SELECT s.name, s.task, s.queue, s.spec, s.misfire, s.overlap, s.next_fire_at, s.last_fire_at, s.fired_count,
        s.skipped_count, s.paused_at, last.outcome, last.finished_at
    FROM kernel.schedules s LEFT JOIN LATERAL (
        SELECT outcome, finished_at FROM (
            (SELECT outcome, finished_at FROM kernel.finished_jobs WHERE schedule = s.name
            ORDER BY finished_at DESC LIMIT 1)
            UNION ALL
            (SELECT 'dead', died_at FROM kernel.dead_letters WHERE schedule = s.name ORDER BY died_at DESC LIMIT 1)
        ) ended ORDER BY finished_at DESC LIMIT 1
    ) last ON true
    ORDER BY s.name
"""

_LOCK = "SELECT overlap, paused_at FROM kernel.schedules WHERE name = %s FOR UPDATE"

_UNFINISHED = """
    SELECT j.id FROM kernel.schedules s JOIN kernel.jobs j ON j.schedule = s.name AND j.task = s.task
    WHERE s.name = %s LIMIT 1
"""

_ENQUEUE = insert_jobs(
    rows="kernel.schedules WHERE name = %(name)s",
    id="%(id)s",
    unique_key="name || '@manual-' || %(id)s::text",
    turn_key="CASE WHEN overlap = 'wait' THEN 'schedule/' || name END",
    in_order="overlap = 'wait'",
    schedule="name",
)

_PAUSE = "UPDATE kernel.schedules SET paused_at = coalesce(paused_at, now()) WHERE name = %s RETURNING paused_at"

_RESUME = "UPDATE kernel.schedules SET paused_at = NULL, resumed_at = now() WHERE name = %s AND paused_at IS NOT NULL"


@dataclass(frozen=True, slots=True)
class ListedSchedule:
    """A schedule and the outcome of its last job. A paused schedule ignores `next_fire_at`."""

    name: str
    task: str
    queue: str
    spec: str
    misfire: Literal["skip", "one", "all"]
    overlap: Literal["allow", "skip", "wait"]
    next_fire_at: datetime
    last_fire_at: datetime | None
    fired_count: int
    skipped_count: int
    paused_at: datetime | None
    last_outcome: Literal["done", "cancelled", "dead"] | None
    last_finished_at: datetime | None

    columns: ClassVar[Columns] = (
        Column("schedule", "name"),
        Column("rhythm", "spec", extra=True),
        Column("next", lambda s: ("paused", s.paused_at) if s.paused_at else s.next_fire_at, is_state=True),
        Column("fired", "fired_count", extra=True),
        Column("skipped", "skipped_count", extra=True),
        Column("last job", lambda s: (s.last_outcome, s.last_finished_at), is_state=True),
    )


@dataclass(frozen=True, slots=True)
class LockedSchedule:
    """A schedule that is locked until the transaction ends."""

    overlap: Literal["allow", "skip", "wait"]
    paused_at: datetime | None


@dataclass(frozen=True, slots=True)
class ScheduleAdmin:
    """Schedules in `kernel.schedules`."""

    async def all(self, db: Queries) -> list[ListedSchedule]:
        """Return all schedules by name."""
        return [ListedSchedule(*row) for row in await db.all(_ALL)]

    async def lock(self, tx: Transaction, name: str) -> LockedSchedule | None:
        """Lock a schedule until the transaction ends, and return it."""
        row = await tx.one(_LOCK, (name,))
        return LockedSchedule(*row) if row else None

    async def unfinished(self, db: Queries, name: str) -> UUID | None:
        """Return the id of an unfinished job of a schedule."""
        row = await db.one(_UNFINISHED, (name,))
        return row[0] if row else None

    async def enqueue(self, tx: Transaction, name: str) -> UUID:
        """Enqueue a job of a schedule; return its id."""
        job_id = uuid7()
        await tx.run(_ENQUEUE, {"name": name, "id": job_id, "trace": current_context()})
        return job_id

    async def pause(self, tx: Transaction, name: str) -> datetime | None:
        """Pause a schedule; return the time of its pause."""
        row = await tx.one(_PAUSE, (name,))
        return row[0] if row else None

    async def resume(self, tx: Transaction, name: str) -> None:
        """Resume a schedule from now on. Ticks during the pause are skipped."""
        await tx.run(_RESUME, (name,))
