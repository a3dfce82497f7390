"""The registry of processes: each reports itself every few seconds, so that others can see who is alive."""

import asyncio
import json
import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import ClassVar
from uuid import UUID

from app.kernel import series
from app.kernel.actions.columns import Column, Columns
from app.kernel.actions.compose import make
from app.kernel.db import Database
from app.kernel.errors import Unavailable
from app.kernel.identifiers import uuid7
from app.kernel.process import Process, pause
from app.kernel.process.rollouts import Rollouts, started_with
from app.kernel.product import VERSION
from app.kernel.services import Run

_REPORT_EVERY_S = 3.0
_ALIVE_S = 3 * _REPORT_EVERY_S


@dataclass(frozen=True, slots=True)
class LiveProcess:
    """A process that has reported itself lately.

    `worker` of `workers` is its number under its supervisor; null without one. `memory_bytes` is its resident memory;
    null where the system does not report it.
    """

    id: UUID
    name: str
    version: str
    host: str
    pid: int
    state: str
    services: list[str]
    started_at: datetime
    last_seen_at: datetime
    memory_bytes: int | None = None
    worker: int | None = None
    workers: int | None = None

    columns: ClassVar[Columns] = (
        Column("process", "name"),
        Column("state", is_state=True),
        Column("host", lambda p: f"{p.host}:{p.pid}"),
        Column("worker", lambda p: f"{p.worker}/{p.workers}" if p.worker else "", extra=True),
        Column("version", extra=True),
        Column("memory", lambda p: f"{p.memory_bytes / 1e6:.0f} MB" if p.memory_bytes else ""),
        Column("started", "started_at"),
        Column("seen", "last_seen_at"),
        Column("services", extra=True),
    )


@dataclass(frozen=True, slots=True)
class Registry:
    """The processes in `kernel.processes`."""

    db: Database

    async def alive(self) -> list[LiveProcess]:
        """Return the processes seen within the last seconds, by name."""
        sql = """
            SELECT id, name, version, host, pid, state, services, started_at, last_seen_at,
                memory_bytes, worker, workers
            FROM kernel.processes
            WHERE last_seen_at > now() - %s * interval '1 second'
            ORDER BY name, started_at
        """
        return [LiveProcess(*row) for row in await self.db.all(sql, (_ALIVE_S,))]

    async def report(self, process: LiveProcess, rollout_id: UUID | None = None) -> None:
        """Store that the process is alive now, in this state."""
        sql = """
            INSERT INTO kernel.processes
                (id, name, version, host, pid, state, services, started_at, memory_bytes, worker, workers, last_seen_at,
                 rollout_id)
            VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, now(), %s)
            ON CONFLICT (id) DO UPDATE
            SET state = excluded.state, services = excluded.services, memory_bytes = excluded.memory_bytes,
                last_seen_at = now(), rollout_id = excluded.rollout_id
        """
        p = process
        about = (p.id, p.name, p.version, p.host, p.pid, p.state, p.services, p.started_at)
        await self.db.run(sql, (*about, p.memory_bytes, p.worker, p.workers, rollout_id))

    async def count(self, process_id: UUID, counts: Mapping[str, int], known: Mapping[str, int]) -> None:
        """Store what the process has counted since it started. `known` is what it has stored before. Safe to repeat."""
        sql = """
            INSERT INTO kernel.counters (process_id, base, reported) VALUES (%s, %s, %s)
            ON CONFLICT (process_id) DO UPDATE SET reported = excluded.reported, seen_at = now()
        """
        await self.db.run(sql, (process_id, json.dumps(known), json.dumps(counts)))

    async def forget(self, process_id: UUID) -> None:
        """Remove a process, and those that were killed long ago. Safe to repeat."""
        sql = "DELETE FROM kernel.processes WHERE id = %s OR last_seen_at < now() - interval '1 day'"
        await self.db.run(sql, (process_id,))


async def reporter(p: Process) -> Run:
    """Return what reports the process until the end of its drain. An outage is what /ready and requests tell."""
    db = await make(p, Database)
    registry, rollouts = Registry(db), Rollouts()
    identifier, host, pid = uuid7(), socket.gethostname(), os.getpid()

    worker = p.launch.worker
    numbers = (None, None) if worker is None else (worker.number, worker.count)

    def now() -> LiveProcess:
        about = (identifier, p.name, VERSION, host, pid, p.state, list(p.services), p.started_at, p.started_at)
        return LiveProcess(*about, _resident_bytes(), *numbers)

    async def run(stop: asyncio.Event) -> None:
        stopping, rollout_id, known = False, None, dict[str, int]()
        while not stopping:
            with suppress(Unavailable):
                await registry.report(now(), rollout_id)
                if rollout_id is None:
                    rollout_id = await rollouts.roll_out(db, p.name, VERSION, started_with(p.settings))
                counts = series.counts()
                await registry.count(identifier, counts, known)
                known = counts
            stopping = await pause(stop, _REPORT_EVERY_S)
        with suppress(Unavailable):
            await registry.count(identifier, series.counts(), known)
            await registry.forget(identifier)

    return run


def _resident_bytes() -> int | None:
    """Return the resident memory of this process; None where there is no /proc."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None
