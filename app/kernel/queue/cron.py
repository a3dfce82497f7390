"""The cron manager: turns due ticks into jobs, exactly one each, however many managers run.

A tick is taken by locking its schedule's row, and the row is advanced in the transaction that enqueues the job; so no
leader is needed, and a killed manager leaves nothing behind. After procrastinate's periodic tasks.
"""

import asyncio
import itertools
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.interval import IntervalTrigger
from loguru import logger

from app.kernel.config import QueueSettings
from app.kernel.db import Database
from app.kernel.db.postgres import database
from app.kernel.errors import Unavailable
from app.kernel.identifiers import uuid7
from app.kernel.process import Process, Service, pause
from app.kernel.queue import Schedule

_CATCH_UP = 1000  # ticks of one schedule enqueued in one transaction
_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)

_REGISTER = """
INSERT INTO kernel.schedules (name, spec, misfire, next_fire_at)
VALUES (%(name)s, %(spec)s, %(misfire)s, %(next)s)
ON CONFLICT (name) DO UPDATE
SET spec = excluded.spec,
    misfire = excluded.misfire,
    next_fire_at = CASE WHEN schedules.spec = excluded.spec THEN schedules.next_fire_at ELSE excluded.next_fire_at END
"""

_TAKE_DUE = """
SELECT name, next_fire_at, now()
FROM kernel.schedules
WHERE next_fire_at <= now() AND name = ANY(%s)
ORDER BY next_fire_at
LIMIT 1
FOR UPDATE SKIP LOCKED
"""

_ENQUEUE = """
INSERT INTO kernel.jobs (id, task, payload, unique_key, max_attempts, run_at)
VALUES (%(id)s, %(task)s, '{}', %(key)s, %(max_attempts)s, now())
ON CONFLICT (unique_key) DO NOTHING
"""

_ADVANCE = "UPDATE kernel.schedules SET next_fire_at = %(next)s, last_fire_at = %(last)s WHERE name = %(name)s"

_MAX_ATTEMPTS = 5


class CronManager:
    """Enqueues a job for every tick of its schedules."""

    def __init__(self, db: Database, schedules: Sequence[Schedule], poll_s: float) -> None:
        self._db = db
        self._schedules = {schedule.name: schedule for schedule in schedules}
        self._poll_s = poll_s

    async def register(self) -> None:
        """Store the schedules; an edited one starts anew from now. Safe to repeat."""
        now = datetime.now(UTC)
        for name, schedule in self._schedules.items():
            spec = schedule.cron or f"every {schedule.every_s} s"
            first = next(upcoming(schedule, now))
            await self._db.run(_REGISTER, {"name": name, "spec": spec, "misfire": schedule.misfire, "next": first})

    async def run(self, stop: asyncio.Event) -> None:
        """Enqueue what is due until asked to stop. An outage of the database delays ticks, it loses none."""
        while not stop.is_set():
            try:
                while await self.fire_one():
                    pass
            except Unavailable as error:
                logger.warning("cron manager: {}; trying again", error)
            await pause(stop, self._poll_s)

    async def fire_one(self) -> bool:
        """Take one due schedule, enqueue its jobs and advance it; return whether there was one."""
        async with self._db.begin() as tx:
            row = await tx.one(_TAKE_DUE, (list(self._schedules),))
            if row is None:
                return False
            name, due, now = row
            schedule = self._schedules[name]
            ticks = itertools.takewhile(lambda tick: tick <= now, upcoming(schedule, due))
            missed = list(itertools.islice(itertools.chain([due], ticks), _CATCH_UP))
            last = missed[-1]
            for tick in missed if schedule.misfire == "all" else [last]:
                key = f"{name}@{tick.isoformat()}"
                await tx.run(_ENQUEUE, {"id": uuid7(), "task": name, "key": key, "max_attempts": _MAX_ATTEMPTS})
            following = next(upcoming(schedule, last))
            await tx.run(_ADVANCE, {"name": name, "next": following, "last": last})
        logger.bind(schedule=name, tick=last.isoformat()).debug("tick of {}", name)
        return True


def upcoming(schedule: Schedule, after: datetime) -> Iterator[datetime]:
    """Yield the ticks of a schedule later than a moment, in UTC; the same in every process."""
    trigger: Any  # APScheduler is not annotated
    if schedule.cron:
        trigger = cast("Any", CronTrigger).from_crontab(schedule.cron, timezone=UTC)
    else:
        trigger = IntervalTrigger(seconds=schedule.every_s, start_date=_EPOCH, timezone=UTC)
    while True:
        # without a previous fire time, the triggers compute the first tick at or after the moment
        after = trigger.get_next_fire_time(None, after + timedelta(microseconds=1)).astimezone(UTC)
        yield after


async def cron_manager(p: Process, schedules: Sequence[Schedule]) -> Service:
    """Return the cron manager as a service."""
    db = await p.use(database)
    manager = CronManager(db, schedules, p.settings[QueueSettings].poll_interval)
    await manager.register()
    return Service("cron manager", manager.run)
