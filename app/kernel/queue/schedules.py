"""Administration of schedules, which cron managers register from the code."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any, ClassVar, Literal
from uuid import UUID

from app.kernel.actions.columns import Column, Columns
from app.kernel.db import Queries, Transaction, now
from app.kernel.identifiers import uuid7
from app.kernel.queue.crontab import EPOCH, ClockChange, Crontab
from app.kernel.queue.enqueue import insert_jobs
from app.kernel.telemetry.traces import current_context
from app.kernel.text import lasting

_SHOWN = 10
_CLOCK_CHANGES = {
    "skipped": "instead of a time that is skipped",
    "first": "the first of two times",
    "second": "the second of two times",
}
_FAR, _FIRST = datetime(9999, 1, 1, tzinfo=UTC), UUID(int=0)

_LISTED = """
    SELECT s.name, s.task, s.queue, s.spec, s.misfire, s.overlap, s.next_fire_at, s.last_fire_at, s.fired_count,
        s.skipped_count, p.paused_at, p.paused_until, p.pause_reason, last.outcome, last.finished_at,
        CASE WHEN p.name IS NULL AND s.next_fire_at < now()
            THEN extract(epoch FROM now() - greatest(s.next_fire_at, s.paused_until))::float8 END
    FROM kernel.schedules s
    LEFT JOIN kernel.schedules p ON p.name = s.name AND kernel.is_paused(p.paused_at, p.paused_until)
    LEFT JOIN LATERAL (
        SELECT outcome, finished_at FROM (
            (SELECT outcome, finished_at FROM kernel.finished_jobs WHERE schedule = s.name
            ORDER BY finished_at DESC LIMIT 1)
            UNION ALL
            (SELECT 'dead', died_at FROM kernel.dead_letters WHERE schedule = s.name ORDER BY died_at DESC LIMIT 1)
        ) ended ORDER BY finished_at DESC LIMIT 1
    ) last ON true
"""

_RUNS = """
    SELECT * FROM (
        (SELECT id, unique_key, outcome, attempt, created_at, finished_at AS ended_at
        FROM kernel.finished_jobs
        WHERE schedule = %(name)s AND finished_at <= %(before)s AND (finished_at, id) < (%(before)s, %(id)s)
        ORDER BY finished_at DESC, id DESC LIMIT %(limit)s)
        UNION ALL
        (SELECT id, unique_key, 'dead', attempt, created_at, died_at
        FROM kernel.dead_letters
        WHERE schedule = %(name)s AND died_at <= %(before)s AND (died_at, id) < (%(before)s, %(id)s)
        ORDER BY died_at DESC, id DESC LIMIT %(limit)s)
    ) ended ORDER BY ended_at DESC, id DESC LIMIT %(limit)s
"""

_UNFINISHED_RUNS = """
    SELECT j.id, j.unique_key, j.state, j.attempt, j.created_at, NULL::timestamptz
    FROM kernel.schedules s JOIN kernel.jobs j ON j.schedule = s.name AND j.task = s.task
    WHERE s.name = %s ORDER BY j.id DESC LIMIT %s
"""

_LOCK = "SELECT overlap FROM kernel.schedules WHERE name = %s FOR UPDATE"

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

_PAUSE = """
    UPDATE kernel.schedules
    SET paused_at = CASE WHEN kernel.is_paused(paused_at, paused_until) THEN paused_at ELSE now() END,
        paused_until = %s, pause_reason = %s
    WHERE name = %s RETURNING paused_at
"""

_RESUME = """
    UPDATE kernel.schedules SET paused_at = NULL, paused_until = NULL, pause_reason = NULL, resumed_at = now()
    WHERE name = %s AND kernel.is_paused(paused_at, paused_until)
"""


@dataclass(frozen=True, slots=True)
class ListedSchedule:
    """A schedule and the outcome of its last job. A paused schedule ignores `next_fire_at`.

    `late_s` is how long its next tick has been due, in seconds; null if it is not, or is paused.
    """

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
    paused_until: datetime | None
    pause_reason: str | None
    last_outcome: Literal["done", "cancelled", "dead"] | None
    last_finished_at: datetime | None
    late_s: float | None

    columns: ClassVar[Columns] = (
        Column("schedule", "name"),
        Column("rhythm", "spec", extra=True),
        Column("next", lambda s: ("paused", s.paused_at) if s.paused_at else s.next_fire_at, is_state=True),
        Column("until", "paused_until", extra=True),
        Column("late", lambda s: lasting(s.late_s), extra=True),
        Column("fired", "fired_count", extra=True),
        Column("skipped", "skipped_count", extra=True),
        Column("last job", lambda s: (s.last_outcome, s.last_finished_at), is_state=True),
    )


@dataclass(frozen=True, slots=True)
class Tick:
    """A tick of a schedule; `local` is its time in the zone of the schedule, with the offset from UTC.

    `clock_change`: it stands for a local time that is skipped that day, or its local time occurs twice, and it is at
    the first or the second one.
    """

    at: datetime
    local: str
    clock_change: ClockChange | None

    columns: ClassVar[Columns] = (
        Column("tick", "at"),
        Column("local time", lambda tick: tick.local.replace("T", " ")),
        Column("change of clocks", lambda tick: _CLOCK_CHANGES.get(tick.clock_change, "")),
    )


def ticks(spec: str, begin: datetime) -> Iterator[Tick]:
    """Yield the ticks of a schedule from a time on; `spec` is that of `queue.Schedule`."""
    words = spec.split()
    if len(words) == 3 and words[0] == "every":
        every, at = timedelta(seconds=int(words[1])), begin.astimezone(UTC)
        at += (EPOCH - at) % every
        while True:
            yield Tick(at, at.isoformat(), None)
            at += every
    crontab = Crontab(" ".join(words[:-1]), words[-1])
    found = crontab.after(begin - timedelta.resolution)
    while found is not None:
        local, change = crontab.shown(found)
        yield Tick(found, local.isoformat(), change)
        found = crontab.after(found)


@dataclass(frozen=True, slots=True)
class ScheduleRun:
    """A job of a schedule; `tick` is null if an operator triggered it.

    `late_s` is how long after its tick it was enqueued, in seconds.
    """

    id: UUID
    tick: datetime | None
    state: Literal["scheduled", "ready", "waiting", "leased", "done", "cancelled", "dead"]
    attempts: int
    enqueued_at: datetime
    late_s: float | None
    ended_at: datetime | None

    columns: ClassVar[Columns] = (
        Column("job", "id"),
        Column("tick", lambda run: run.tick or "by hand"),
        Column("late", lambda run: "" if run.late_s is None else f"{run.late_s:.1f} s"),
        Column("state", is_state=True),
        Column("attempts", extra=True),
        Column("ended at"),
    )


@dataclass(frozen=True, slots=True)
class ScheduleDetails:
    """A schedule with its next ten ticks, fewer if they end within forty years, and its last ten jobs.

    While it is paused without an expiry, it has no next ticks; otherwise they begin when the pause expires.
    """

    schedule: ListedSchedule
    next_ticks: list[Tick]
    last_runs: list[ScheduleRun]


@dataclass(frozen=True, slots=True)
class ScheduleAdmin:
    """Schedules in `kernel.schedules`."""

    async def all(self, db: Queries) -> list[ListedSchedule]:
        """Return all schedules."""
        return [ListedSchedule(*row) for row in await db.all(_LISTED)]

    async def get(self, db: Queries, name: str) -> ScheduleDetails | None:
        """Return a schedule with its next ticks and last jobs."""
        row = await db.one(_LISTED + "WHERE s.name = %s", (name,))
        if row is None:
            return None
        schedule, begin = ListedSchedule(*row), max(await now(db), row[6])
        unfinished = [_run(*run) for run in await db.all(_UNFINISHED_RUNS, (name, _SHOWN))]
        last = [*unfinished, *await self.runs(db, name, _SHOWN)][:_SHOWN]
        if schedule.paused_at is not None:
            if schedule.paused_until is None:
                return ScheduleDetails(schedule, [], last)
            begin = max(begin, schedule.paused_until)
        return ScheduleDetails(schedule, list(islice(ticks(schedule.spec, begin), _SHOWN)), last)

    async def runs(
        self, db: Queries, name: str, limit: int, before: datetime | None = None, after: UUID | None = None
    ) -> list[ScheduleRun]:
        """Return the ended jobs of a schedule, latest first; those that ended before the job `after`."""
        given = {"name": name, "limit": limit, "before": before or _FAR, "id": after or _FIRST}
        return [_run(*row) for row in await db.all(_RUNS, given)]

    async def lock(self, tx: Transaction, name: str) -> Literal["allow", "skip", "wait"] | None:
        """Lock a schedule until the transaction ends; return what it does with jobs that overlap."""
        row = await tx.one(_LOCK, (name,))
        return row[0] if row else None

    async def unfinished(self, db: Queries, name: str) -> UUID | None:
        """Return the id of an unfinished job of a schedule."""
        row = await db.one(_UNFINISHED, (name,))
        return row[0] if row else None

    async def enqueue(self, tx: Transaction, name: str) -> UUID:
        """Enqueue a job of a schedule; return its id."""
        job_id = uuid7()
        await tx.run(_ENQUEUE, {"name": name, "id": job_id, "trace": current_context()})
        return job_id

    async def pause(self, tx: Transaction, name: str, until: datetime | None, reason: str | None) -> datetime | None:
        """Pause a schedule until a time, or until it is resumed; return the time of its pause.

        Pausing a paused schedule replaces the expiry and the reason.
        """
        row = await tx.one(_PAUSE, (until, reason, name))
        return row[0] if row else None

    async def resume(self, tx: Transaction, name: str) -> None:
        """Resume a schedule from now on. Ticks during the pause are skipped."""
        await tx.run(_RESUME, (name,))


def _run(
    job_id: UUID, key: str | None, state: Any, attempts: int, enqueued_at: datetime, ended_at: datetime | None
) -> ScheduleRun:
    _, _, text = (key or "").rpartition("@")
    tick = None if text.startswith("manual-") or not text else datetime.fromisoformat(text)
    late_s = None if tick is None else (enqueued_at - tick).total_seconds()
    return ScheduleRun(job_id, tick, state, attempts, enqueued_at, late_s, ended_at)
