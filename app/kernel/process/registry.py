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
from app.kernel.config import Settings
from app.kernel.db import Database
from app.kernel.errors import Unavailable
from app.kernel.identifiers import uuid7
from app.kernel.process import Process, pause
from app.kernel.product import VERSION
from app.kernel.services import Run

_REPORT_EVERY_S = 3.0
_ALIVE_S = 3 * _REPORT_EVERY_S
_LOCK = (1802661741, 3)
_OF_ONE = frozenset({"http_server.host", "http_server.port", "operations.host", "operations.port", "logger.output"})
"""Settings in which processes of a machine differ."""

_SAME = """
    UPDATE kernel.rollouts SET last_seen_at = now() WHERE id = (
        SELECT id FROM kernel.rollouts
        WHERE name = %(name)s AND version = %(version)s AND settings = %(settings)s AND (
            last_seen_at > now() - interval '10 minutes'
            OR id = (SELECT id FROM kernel.rollouts WHERE name = %(name)s ORDER BY id DESC LIMIT 1)
        )
        ORDER BY id DESC LIMIT 1
    )
    RETURNING id
"""
_ROLL_OUT = """
    INSERT INTO kernel.rollouts (id, name, version, settings) VALUES (%(id)s, %(name)s, %(version)s, %(settings)s)
    RETURNING id
"""


@dataclass(frozen=True, slots=True)
class LiveProcess:
    """A process that has reported itself lately.

    `worker` of `workers` is its number under its supervisor; null without one. `memory_bytes` is its resident memory;
    null where the system does not tell.
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

    async def roll_out(self, name: str, version: str, settings: Mapping[str, str]) -> UUID:
        """Store what a process was started with unless others run it, or did minutes ago; return the id of the row."""
        about = {"id": uuid7(), "name": name, "version": version, "settings": json.dumps(settings)}
        async with self.db.begin() as tx:
            await tx.run("SELECT pg_advisory_xact_lock(%s, %s)", _LOCK)
            row = await tx.one(_SAME, about)
            if row is None:
                row = await tx.one(_ROLL_OUT, about)
        assert row is not None
        return row[0]

    async def forget(self, process_id: UUID) -> None:
        """Remove a process, and those that were killed long ago. Safe to repeat."""
        sql = "DELETE FROM kernel.processes WHERE id = %s OR last_seen_at < now() - interval '1 day'"
        await self.db.run(sql, (process_id,))


async def reporter(p: Process) -> Run:
    """Return what reports the process until the end of its drain. An outage is what /ready and requests tell."""
    registry = Registry(await make(p, Database))
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
                rollout_id = rollout_id or await registry.roll_out(p.name, VERSION, started_with(p.settings))
                counts = series.counts()
                await registry.count(identifier, counts, known)
                known = counts
            stopping = await pause(stop, _REPORT_EVERY_S)
        with suppress(Unavailable):
            await registry.count(identifier, series.counts(), known)
            await registry.forget(identifier)

    return run


def started_with(settings: Settings) -> dict[str, str]:
    """Return the effective settings by key: no secrets, and nothing in which processes of a machine differ."""
    return {value.key: value.text for value in settings.values() if not value.secret and value.key not in _OF_ONE}


def _resident_bytes() -> int | None:
    """Return the resident memory of this process; None where there is no /proc."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None
