"""The registry of processes: each reports itself every few seconds, so that others can see who is alive."""

import asyncio
import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from app import __version__
from app.kernel.db import Database
from app.kernel.db.postgres import database
from app.kernel.errors import Unavailable
from app.kernel.identifiers import uuid7
from app.kernel.process import Process, Service
from app.kernel.queue.pause import pause

_EVERY_S = 3.0
_ALIVE_S = 3 * _EVERY_S

_REPORT = """
INSERT INTO kernel.processes (id, name, version, host, pid, state, services, started_at, last_seen_at)
VALUES (%(id)s, %(name)s, %(version)s, %(host)s, %(pid)s, %(state)s, %(services)s, %(started_at)s, now())
ON CONFLICT (id) DO UPDATE SET state = excluded.state, services = excluded.services, last_seen_at = now()
"""
_FORGET = "DELETE FROM kernel.processes WHERE id = %s OR last_seen_at < now() - interval '1 day'"
_ALIVE = """
SELECT id, name, version, host, pid, state, services, started_at, last_seen_at
FROM kernel.processes
WHERE last_seen_at > now() - %s * interval '1 second'
ORDER BY name, started_at
"""


@dataclass(frozen=True, slots=True)
class LiveProcess:
    """A process that has reported itself lately."""

    id: UUID
    name: str
    version: str
    host: str
    pid: int
    state: str
    services: list[str]
    started_at: datetime
    last_seen_at: datetime


class Registry:
    """Reads the processes that are alive."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def alive(self) -> list[LiveProcess]:
        """Return the processes seen within the last seconds, by name."""
        return [LiveProcess(*row) for row in await self._db.all(_ALIVE, (_ALIVE_S,))]


async def reporter(p: Process) -> Service:
    """Return the service that reports this process, through its drain until the end."""
    db = await p.use(database)
    identifier = uuid7()

    async def run(stop: asyncio.Event) -> None:
        row = {
            "id": identifier,
            "name": p.name,
            "version": __version__,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started_at": p.started_at,
        }
        while True:
            with suppress(Unavailable):  # /ready and the requests say so
                await db.run(_REPORT, {**row, "state": p.state, "services": list(p.services)})
            if await pause(stop, _EVERY_S):
                break
        with suppress(Unavailable):
            await db.run(_FORGET, (identifier,))

    return Service("reporter", run, outlives=True)
