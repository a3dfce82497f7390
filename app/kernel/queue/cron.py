"""The cron manager: enqueues exactly one job per tick, with any number of managers.

A transaction locks the row of a due schedule, enqueues the job and advances the row. This needs no leader, and a
killed manager leaves no lock. After procrastinate's periodic tasks.
"""

import asyncio
import functools
import itertools
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.interval import IntervalTrigger
from loguru import logger

from app.kernel.config import QueueSettings
from app.kernel.db import Database, Transaction, now
from app.kernel.db.postgres import database
from app.kernel.errors import Unavailable
from app.kernel.process import Process, pause
from app.kernel.queue import Schedule
from app.kernel.queue.crontab import EPOCH, Crontab
from app.kernel.queue.enqueue import KEEP_UNFINISHED, insert_jobs
from app.kernel.services import Run
from app.kernel.telemetry import metrics

_CATCH_UP = 1000  # maximum number of ticks of a schedule, and of jobs, in a transaction
_FIRED_AT_ONCE = 100  # maximum number of schedules in a transaction
_SEEN_EVERY_S = 10.0
_GONE_AFTER_S = 60.0

_STORED_ALREADY = """
SELECT 1 FROM kernel.schedules
WHERE name = %(name)s AND task = %(task)s AND queue = %(queue)s AND max_attempts = %(max_attempts)s
  AND timeout_s = %(timeout_s)s::real AND spec = %(spec)s AND misfire = %(misfire)s AND overlap = %(overlap)s
"""

# a due tick of the former interval is still fired
_REGISTER = """
INSERT INTO kernel.schedules
    (name, task, queue, max_attempts, timeout_s, spec, misfire, overlap, next_fire_at, seen_at)
VALUES (%(name)s, %(task)s, %(queue)s, %(max_attempts)s, %(timeout_s)s, %(spec)s, %(misfire)s, %(overlap)s, %(next)s,
    now())
ON CONFLICT (name) DO UPDATE
SET task = excluded.task, queue = excluded.queue, max_attempts = excluded.max_attempts, timeout_s = excluded.timeout_s,
    spec = excluded.spec, misfire = excluded.misfire, overlap = excluded.overlap, seen_at = now(),
    next_fire_at = CASE WHEN schedules.spec = excluded.spec OR schedules.next_fire_at <= now()
        THEN schedules.next_fire_at ELSE excluded.next_fire_at END
"""

_SEEN = """
UPDATE kernel.schedules SET seen_at = now()
WHERE name IN (SELECT name FROM kernel.schedules WHERE name = ANY(%s) ORDER BY name FOR UPDATE SKIP LOCKED)
"""

# a schedule that is declared here stays, even if a lock on its row prevented updates of seen_at
_FORGET_GONE = "DELETE FROM kernel.schedules WHERE seen_at < now() - %s * interval '1 second' AND name <> ALL(%s)"

_TAKE_DUE = """
SELECT s.name, s.next_fire_at, now(), s.resumed_at, s.paused_until
FROM kernel.schedules s
WHERE s.next_fire_at <= now() AND NOT kernel.is_paused(s.paused_at, s.paused_until)
  AND (s.name, s.spec) IN (SELECT * FROM unnest(%(names)s::text[], %(specs)s::text[]))
ORDER BY s.next_fire_at
LIMIT %(most)s
FOR UPDATE SKIP LOCKED
"""

_UNFINISHED = "SELECT count(*) FROM kernel.jobs WHERE schedule = %s AND task = %s"

_ENQUEUE = insert_jobs(
    given="""
    given AS (
        SELECT * FROM unnest(%(queues)s::text[], %(tasks)s::text[], %(keys)s::text[], %(attempts)s::integer[],
                %(timeouts)s::real[], %(schedules)s::text[], %(waits)s::boolean[],
                %(priorities)s::integer[])
            AS tick (queue, task, key, max_attempts, timeout_s, schedule, waits, priority)
    ),
    """,
    rows="given",
    priority="priority",
    unique_key="key",
    turn_key="CASE WHEN waits THEN 'schedule/' || schedule END",
    in_order="waits",
    schedule="schedule",
    trace_context="NULL",
    on_conflict=KEEP_UNFINISHED,
)

_ADVANCE = """
UPDATE kernel.schedules s
SET next_fire_at = given.next, last_fire_at = coalesce(given.last, s.last_fire_at),
    fired_count = fired_count + given.fired, skipped_count = skipped_count + given.skipped,
    resumed_at = given.resumed, paused_at = NULL, paused_until = NULL, pause_reason = NULL
FROM unnest(%(names)s::text[], %(nexts)s::timestamptz[], %(lasts)s::timestamptz[], %(fired)s::integer[],
    %(skipped)s::integer[], %(resumed)s::timestamptz[]) AS given (name, next, last, fired, skipped, resumed)
WHERE s.name = given.name
"""

_NEXT = """
SELECT extract(epoch FROM min(
    CASE WHEN kernel.is_paused(paused_at, paused_until) THEN greatest(next_fire_at, paused_until) ELSE next_fire_at END
) - now())::float8
FROM kernel.schedules
WHERE (paused_at IS NULL OR paused_until IS NOT NULL)
  AND (name, spec) IN (SELECT * FROM unnest(%(names)s::text[], %(specs)s::text[]))
"""


class CronManager:
    """Enqueues a job for every tick of the schedules."""

    def __init__(self, db: Database, schedules: Sequence[Schedule], poll_s: float) -> None:
        self._db = db
        self._schedules = {schedule.name: schedule for schedule in schedules}
        self._poll_s = poll_s
        self._registered = False
        self._known = {"names": list(self._schedules), "specs": [s.spec for s in schedules], "most": _FIRED_AT_ONCE}

    async def register(self) -> None:
        """Register the schedules. A changed interval applies from now. Safe to repeat."""
        at = await now(self._db)
        for name, schedule in self._schedules.items():
            task, first = schedule.task, next(upcoming(schedule, at))
            given = {"name": name, "spec": schedule.spec, "misfire": schedule.misfire, "overlap": schedule.overlap}
            given |= {"task": task.name, "queue": task.queue}
            attempts = {"max_attempts": task.max_attempts, "timeout_s": task.timeout_s}
            # an unchanged schedule needs no lock, which a frozen manager may hold
            if await self._db.one(_STORED_ALREADY, {**given, **attempts}) is None:
                await self._db.run(_REGISTER, {**given, **attempts, "next": first})
        await self._db.run(_SEEN, (list(self._schedules),))
        self._registered = True

    async def run(self, stop: asyncio.Event) -> None:
        """Enqueue jobs of due ticks until `stop` is set. An outage of the database delays ticks."""
        seen_at = reached_at = time.monotonic()
        wait_s = 0.0
        while not await pause(stop, wait_s):
            wait_s = self._poll_s
            try:
                if not self._registered:
                    await self.register()
                while await self.fire_due():
                    pass
                now = time.monotonic()
                if now - seen_at > _SEEN_EVERY_S:
                    seen_at = now
                    await self._db.run(_SEEN, (list(self._schedules),))
                    if now - reached_at > _GONE_AFTER_S:  # by now every manager has updated seen_at
                        await self._db.run(_FORGET_GONE, (_GONE_AFTER_S, list(self._schedules)))
                row = await self._db.one(_NEXT, self._known)
                if row and row[0] is not None:
                    wait_s = min(max(row[0], 0.001), self._poll_s)
            except Unavailable as error:
                reached_at = time.monotonic()
                logger.warning("cron manager: {}; trying again", error)

    async def fire_due(self) -> int:
        """Enqueue the jobs of due schedules and advance the schedules; return the number of schedules."""
        async with self._db.begin() as tx:
            rows = await tx.all(_TAKE_DUE, self._known)
            if not rows:
                return 0
            advanced = [await self._due(tx, _CATCH_UP // len(rows), *row) for row in rows]
            await self._enqueue(tx, [(self._schedules[a[0]], ticks) for a, ticks in advanced])
            columns = ("names", "nexts", "lasts", "fired", "skipped", "resumed")
            values = map(list, zip(*(a for a, _ in advanced), strict=True))
            await tx.run(_ADVANCE, dict(zip(columns, values, strict=True)))
        resumed = {name: until for name, _, _, _, until in rows if until is not None}
        for (name, *_), ticks in advanced:
            for tick in ticks[-1:]:
                metrics.schedule_fired(name, (rows[0][2] - max(tick, resumed.get(name, tick))).total_seconds())
        return len(rows)

    async def _due(
        self,
        tx: Transaction,
        most: int,
        name: str,
        due: datetime,
        now: datetime,
        resumed_at: datetime | None,
        paused_until: datetime | None,
    ) -> tuple[tuple[str, datetime, datetime | None, int, int, datetime | None], list[datetime]]:
        """Return the new state of a schedule, and the ticks that become jobs."""
        schedule = self._schedules[name]
        later = itertools.takewhile(lambda tick: tick <= now, upcoming(schedule, due))
        missed = list(itertools.islice(itertools.chain([due], later), most if schedule.misfire == "all" else _CATCH_UP))
        following = next(upcoming(schedule, missed[-1]))
        if schedule.misfire == "skip":  # else the ticks of a pause that has expired are missed ones
            resumed_at = max((at for at in (resumed_at, paused_until) if at is not None), default=None)
        wanted = [tick for tick in missed if resumed_at is None or tick >= resumed_at]
        if schedule.misfire == "one":
            wanted = wanted[-1:]
        elif schedule.misfire == "skip":  # on time is what a manager that runs can be
            wanted = [tick for tick in wanted[-1:] if now - tick <= timedelta(seconds=max(1.0, 2 * self._poll_s))]
        if schedule.misfire != "all" and following <= now:  # more than are looked at in one go
            wanted = []
        if wanted and schedule.overlap == "skip":
            row = await tx.one(_UNFINISHED, (name, schedule.task.name))
            wanted = [] if row and row[0] else wanted[-1:]
        skipped = len(missed) - len(wanted)
        later_resumed = resumed_at if resumed_at is not None and following < resumed_at else None
        return (name, following, wanted[-1] if wanted else None, len(wanted), skipped, later_resumed), wanted

    async def _enqueue(self, tx: Transaction, due: list[tuple[Schedule, list[datetime]]]) -> None:
        jobs = [(schedule, tick) for schedule, ticks in due for tick in ticks]
        if not jobs:
            return
        await tx.run(
            _ENQUEUE,
            {
                "queues": [s.task.queue for s, _ in jobs],
                "tasks": [s.task.name for s, _ in jobs],
                "keys": [f"{s.name}@{tick.isoformat()}" for s, tick in jobs],
                "attempts": [s.task.max_attempts for s, _ in jobs],
                "timeouts": [s.task.timeout_s for s, _ in jobs],
                "schedules": [s.name for s, _ in jobs],
                "waits": [s.overlap == "wait" for s, _ in jobs],
                "priorities": [s.priority for s, _ in jobs],
            },
        )


def upcoming(schedule: Schedule, after: datetime) -> Iterator[datetime]:
    """Yield the ticks of a schedule after a time, in UTC, the same in every process."""
    trigger = _trigger(schedule)
    while True:
        # without a previous fire time, a trigger returns the first tick at or after a time
        found = trigger.get_next_fire_time(None, after + timedelta(microseconds=1))
        if found is None:  # not within 40 years, such as in year 9999
            return
        after = found.astimezone(UTC)
        yield after


class CrontabTrigger(BaseTrigger):
    """An APScheduler trigger of a cron expression. APScheduler's own is wrong when clocks change."""

    def __init__(self, crontab: Crontab) -> None:
        self._crontab = crontab

    def get_next_fire_time(self, previous_fire_time: datetime | None, now: datetime) -> Any:
        """Return the first tick after the previous one, now or later."""
        after = now - timedelta(microseconds=1)
        return self._crontab.after(after if previous_fire_time is None else max(after, previous_fire_time))


@functools.lru_cache(1024)
def _trigger(schedule: Schedule) -> Any:  # APScheduler is not annotated
    if schedule.cron:
        return CrontabTrigger(Crontab(schedule.cron, schedule.timezone))
    return IntervalTrigger(seconds=schedule.every_s, start_date=EPOCH, timezone=UTC)


async def cron_manager(p: Process, schedules: Sequence[Schedule]) -> Run:
    """Register the schedules; return the service of the cron manager."""
    db = await p.use(database)
    manager = CronManager(db, schedules, p.settings[QueueSettings].poll_interval)
    try:
        await manager.register()
    except Unavailable as error:  # `run` tries again
        logger.warning("cron manager: {}; registering its schedules later", error)
    return manager.run
