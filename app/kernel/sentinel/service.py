"""The service that stores what this process captured, and looks out for outages of others."""

import asyncio
import os
import socket
from dataclasses import dataclass

from app import __version__
from app.kernel.config import SentinelSettings, current_environment
from app.kernel.db import Database
from app.kernel.db.postgres import database
from app.kernel.errors import Unavailable
from app.kernel.process import Process, Service, pause
from app.kernel.queue import Queue
from app.kernel.queue.postgres import PostgresQueue
from app.kernel.sentinel.capture import Capture
from app.kernel.sentinel.postgres import PostgresErrors
from app.kernel.telemetry import logs

_STORE_EVERY_S = 1.0
_GONE_AFTER_S = 30

# one process looks, whichever comes first
_MY_TURN = "UPDATE kernel.watch SET checked_at = now() WHERE checked_at < now() - interval '15 seconds'"

_GONE = """
    DELETE FROM kernel.processes WHERE last_seen_at < now() - %s * interval '1 second'
    RETURNING name, name || ' on ' || host || ' (pid ' || pid || ') has not reported for '
        || extract(epoch FROM now() - last_seen_at)::int || ' s'
"""
_LATE = """
    SELECT name, name || ' was due at ' || next_fire_at || ' and has not fired: does a cron manager run?'
    FROM kernel.schedules WHERE paused_at IS NULL AND next_fire_at < now() - %s * interval '1 second'
"""
_STUCK = """
    SELECT j.queue, 'the oldest job of the queue ' || j.queue || ' has been due for '
        || extract(epoch FROM now() - min(j.run_at))::int || ' s: does a consumer work on it?'
    FROM kernel.jobs j LEFT JOIN kernel.queues q ON q.name = j.queue
    WHERE j.state = 'ready' AND q.paused_at IS NULL
    GROUP BY j.queue HAVING min(j.run_at) < now() - %s * interval '1 second'
"""
_HELD = """
    SELECT coalesce(nullif(application_name, ''), usename, 'unknown'), 'pid ' || pid || ' has held a snapshot for '
        || extract(epoch FROM now() - xact_start)::int || ' s: tables grow, because nothing can be cleaned away'
    FROM pg_stat_activity
    WHERE backend_xmin IS NOT NULL AND backend_type = 'client backend' AND pid <> pg_backend_pid()
      AND xact_start < now() - %s * interval '1 second'
    UNION ALL
    SELECT 'prepared transaction', gid || ' has been prepared for ' || extract(epoch FROM now() - prepared)::int || ' s'
    FROM pg_prepared_xacts WHERE prepared < now() - %s * interval '1 second'
    LIMIT 20
"""


@dataclass(frozen=True, slots=True)
class Sentinel:
    """Stores captured errors, and captures outages."""

    capture: Capture
    db: Database
    queue: Queue
    errors: PostgresErrors
    settings: SentinelSettings
    process: str

    async def run(self, stop: asyncio.Event) -> None:
        """Store every second until asked to stop. While the database is away, keep and count."""
        stopping = False
        while not stopping:
            stopping = await pause(stop, _STORE_EVERY_S)
            try:
                await self.store()
                if not stopping and await self.db.run(_MY_TURN):
                    await self.look_out()
            except Unavailable:
                continue  # it is in the log, and what was captured is kept for the next time

    async def store(self) -> None:
        """Store what was captured since the last time. Raises Unavailable, having kept it."""
        groups = self.capture.drain()
        if not groups:
            return
        try:
            await self.errors.store(self.db, self.queue, groups, self.process, __version__)
        except BaseException:
            self.capture.put_back(groups)
            raise

    async def look_out(self) -> None:
        """Capture processes that vanished, schedules that are late, queues that are stuck, snapshots that are held."""
        limits = self.settings
        for name, said in await self.db.all(_GONE, (_GONE_AFTER_S,)):
            self.capture.add("outage", "ProcessGone", said, name)
        for name, said in await self.db.all(_LATE, (limits.late_schedule,)):
            self.capture.add("outage", "ScheduleLate", said, name)
        for name, said in await self.db.all(_STUCK, (limits.stuck_queue,)):
            self.capture.add("outage", "QueueStuck", said, name)
        for name, said in await self.db.all(_HELD, (limits.held_snapshot, limits.held_snapshot)):
            self.capture.add("outage", "SnapshotHeld", said, name)
        async with self.db.begin() as tx:  # for what has become due again
            await self.errors.tell(tx, self.queue)


async def sentinel(p: Process) -> Service:
    """Return the service. From now on, what is logged as an error is captured."""
    settings = p.settings[SentinelSettings]
    host = f"{socket.gethostname()}:{os.getpid()}"
    about = {"process": p.name, "host": host, "release": __version__, "environment": current_environment(os.environ)}
    capture = Capture(about)
    logs.also(capture.sink)
    db = await p.use(database)
    watching = Sentinel(capture, db, PostgresQueue(), PostgresErrors(settings.cooldown), settings, p.name)
    return Service("sentinel", watching.run, outlives=True)
