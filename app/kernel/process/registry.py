"""The registry of processes: each reports itself every few seconds, so that others can see who is alive."""

import asyncio
import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from app.kernel.actions.compose import make
from app.kernel.db import Database
from app.kernel.errors import Unavailable
from app.kernel.identifiers import uuid7
from app.kernel.process import Process, pause
from app.kernel.product import VERSION
from app.kernel.services import Run

_REPORT_EVERY_S = 3.0
_ALIVE_S = 3 * _REPORT_EVERY_S


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


@dataclass(frozen=True, slots=True)
class Registry:
    """The processes in `kernel.processes`."""

    db: Database

    async def alive(self) -> list[LiveProcess]:
        """Return the processes seen within the last seconds, by name."""
        sql = """
            SELECT id, name, version, host, pid, state, services, started_at, last_seen_at
            FROM kernel.processes
            WHERE last_seen_at > now() - %s * interval '1 second'
            ORDER BY name, started_at
        """
        return [LiveProcess(*row) for row in await self.db.all(sql, (_ALIVE_S,))]

    async def report(self, process: LiveProcess) -> None:
        """Store that the process is alive now, in this state."""
        sql = """
            INSERT INTO kernel.processes (id, name, version, host, pid, state, services, started_at, last_seen_at)
            VALUES (%s, %s, %s, %s, %s, %s, %s, %s, now())
            ON CONFLICT (id) DO UPDATE
            SET state = excluded.state, services = excluded.services, last_seen_at = now()
        """
        p = process
        await self.db.run(sql, (p.id, p.name, p.version, p.host, p.pid, p.state, p.services, p.started_at))

    async def forget(self, process_id: UUID) -> None:
        """Remove a process, and those that were killed long ago. Safe to repeat."""
        sql = "DELETE FROM kernel.processes WHERE id = %s OR last_seen_at < now() - interval '1 day'"
        await self.db.run(sql, (process_id,))


async def reporter(p: Process) -> Run:
    """Return what reports the process until the end of its drain. An outage is what /ready and requests tell."""
    registry = Registry(await make(p, Database))
    identifier, host, pid = uuid7(), socket.gethostname(), os.getpid()

    def now() -> LiveProcess:
        services = list(p.services)
        return LiveProcess(identifier, p.name, VERSION, host, pid, p.state, services, p.started_at, p.started_at)

    async def run(stop: asyncio.Event) -> None:
        stopping = False
        while not stopping:
            with suppress(Unavailable):
                await registry.report(now())
            stopping = await pause(stop, _REPORT_EVERY_S)
        with suppress(Unavailable):
            await registry.forget(identifier)

    return run
