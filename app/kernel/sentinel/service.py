"""The service that stores captured errors of this process, and detects outages."""

import asyncio
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import LiteralString

from app.kernel.actions.compose import make
from app.kernel.backup import QUEUE
from app.kernel.config import UNSAFE, BackupSettings, SentinelSettings
from app.kernel.db import Database
from app.kernel.db.postgres import PoolUse, database
from app.kernel.db.server import server
from app.kernel.errors import Unavailable
from app.kernel.process import Process, pause
from app.kernel.product import VERSION
from app.kernel.queue.enqueue import Queue
from app.kernel.sentinel.backups import BackupWatch
from app.kernel.sentinel.capture import Capture
from app.kernel.sentinel.connections import ConnectionWatch
from app.kernel.sentinel.postgres import Errors
from app.kernel.services import Run
from app.kernel.telemetry import logs

_STORE_EVERY_S = 1.0
_GONE_AFTER_S = 30
_NEARLY_FULL = 0.9
_FULL_FOR_S = 10.0

# one process checks, the first one after the interval
_MY_TURN = "UPDATE kernel.watch SET checked_at = now() WHERE checked_at < now() - interval '15 seconds'"

_GONE = """
    DELETE FROM kernel.processes WHERE last_seen_at < now() - %s * interval '1 second'
    RETURNING name, name || ' on ' || host || ' (pid ' || pid || ') has not reported for '
        || extract(epoch FROM now() - last_seen_at)::int || ' s'
"""
_LATE = """
    SELECT name, name || ' was due at ' || next_fire_at || ' and has not fired: does a cron manager run?'
    FROM kernel.schedules
    WHERE NOT kernel.is_paused(paused_at, paused_until)
      AND greatest(next_fire_at, paused_until) < now() - %s * interval '1 second'
"""
_STUCK = """
    SELECT j.queue, 'the oldest job of the queue ' || j.queue || ' has been due for '
        || extract(epoch FROM now() - min(j.run_at))::int || ' s: '
        || CASE WHEN q.seen_at > now() - interval '3 minutes' THEN 'too few consumers, or jobs that hang'
            ELSE 'no consumer works on it' END
    FROM kernel.jobs j LEFT JOIN kernel.queues q ON q.name = j.queue
    WHERE j.state = 'ready' AND NOT kernel.is_paused(q.paused_at, q.paused_until)
    GROUP BY j.queue, q.paused_until, q.seen_at
    HAVING greatest(min(j.run_at), q.paused_until) < now() - %s * interval '1 second'
"""
_HELD = """
    SELECT coalesce(nullif(application_name, ''), usename, 'unknown'), 'pid ' || pid || ' has held a snapshot for '
        || extract(epoch FROM now() - xact_start)::int || ' s: tables grow, because VACUUM cannot remove dead rows'
    FROM pg_stat_activity
    WHERE backend_xmin IS NOT NULL AND backend_type = 'client backend' AND pid <> pg_backend_pid()
      AND xact_start < now() - %s * interval '1 second'
    UNION ALL
    SELECT 'prepared transaction', gid || ' has been prepared for ' || extract(epoch FROM now() - prepared)::int || ' s'
    FROM pg_prepared_xacts WHERE prepared < now() - %s * interval '1 second'
    LIMIT 20
"""
_CROWDED = """
    SELECT 'the server', used || ' of ' || most || ' connections of PostgreSQL are in use'
    FROM (SELECT sum(numbackends) AS used FROM pg_stat_database) u,
        (SELECT current_setting('max_connections')::int AS most) m
    WHERE used >= most * %s
"""


class PoolWatch:
    """Detects a pool of this process that stays nearly full."""

    def __init__(self, pool_use: Callable[[], PoolUse]) -> None:
        self._pool_use = pool_use
        self._full_since: float | None = None

    def complaint(self, now: float) -> str:
        """Return a message when the pool has been nearly full for a while, once per such period; otherwise empty."""
        used, _, waiting, most = self._pool_use()
        if used < most * _NEARLY_FULL:
            self._full_since = None
            return ""
        if self._full_since is None:
            self._full_since = now
        if now - self._full_since < _FULL_FOR_S:
            return ""
        self._full_since = now
        return f"for {_FULL_FOR_S:g} s, {used} of {most} connections of the pool were in use; {waiting} requests wait"


@dataclass(frozen=True, slots=True)
class Sentinel:
    """Stores captured errors, and captures outages."""

    capture: Capture
    db: Database
    queue: Queue
    errors: Errors
    settings: SentinelSettings
    process: str
    pool: PoolWatch
    connections: ConnectionWatch
    backups: BackupWatch

    @property
    def _notifier(self) -> Queue | None:
        """The queue, when people are to be notified."""
        return self.queue if self.settings.notify_urls.get_secret_value() else None

    async def run(self, stop: asyncio.Event) -> None:
        """Store every second until asked to stop. While the database is unavailable, keep and count."""
        stopping = False
        while not stopping:
            stopping = await pause(stop, _STORE_EVERY_S)
            if complaint := self.pool.complaint(time.monotonic()):
                self.capture.add("outage", "PoolNearlyFull", complaint, self.process)
            try:
                await self.store()
                if not stopping:
                    await self.connections.measure()
                    await self.backups.measure()
                if not stopping and await self.db.run(_MY_TURN):
                    await self.detect_outages()
            except Unavailable:
                continue  # already logged; the groups are kept

    async def store(self) -> None:
        """Store the captured groups. Raises Unavailable, and keeps them."""
        groups = self.capture.drain()
        if not groups:
            return
        try:
            await self.errors.store(self.db, self._notifier, groups, self.process, VERSION)
        except BaseException:
            self.capture.put_back(groups)
            raise

    async def detect_outages(self) -> None:
        """Capture lost processes, late schedules, stuck queues, held snapshots, a nearly full server, bad backups."""
        limits = self.settings
        checks: tuple[tuple[str, LiteralString, tuple[float, ...]], ...] = (
            ("ProcessGone", _GONE, (_GONE_AFTER_S,)),
            ("ScheduleLate", _LATE, (limits.late_schedule,)),
            ("QueueStuck", _STUCK, (limits.stuck_queue,)),
            ("SnapshotHeld", _HELD, (limits.held_snapshot, limits.held_snapshot)),
            ("ConnectionsNearlyUsedUp", _CROWDED, (_NEARLY_FULL,)),
        )
        for type_, sql, parameters in checks:
            for name, message in await self.db.all(sql, parameters):
                self.capture.add("outage", type_, message, name)
        for problem in await self.backups.problems():
            self.capture.add("outage", problem.type, problem.text, QUEUE)
        if self._notifier is not None:
            async with self.db.begin() as tx:  # for groups that have become due again
                await self.errors.notify(tx, self._notifier)


async def sentinel(p: Process) -> Run:
    """Start capturing logged errors; return the service that stores them."""
    settings = p.settings[SentinelSettings]
    host = f"{socket.gethostname()}:{os.getpid()}"
    about = {"process": p.name, "host": host, "release": VERSION, "environment": p.settings.environment}
    capture = Capture(about)
    logs.set_listener(capture)
    db = await p.use(database)
    errors, pool = Errors(settings.cooldown), PoolWatch(db.pool_use)
    connections = ConnectionWatch(db, await p.use(server))
    backups = BackupWatch(db, p.settings[BackupSettings], is_published=p.settings.environment in UNSAFE)
    watching = Sentinel(capture, db, await make(p, Queue), errors, settings, p.name, pool, connections, backups)
    return watching.run
