"""Records what others store: the newest backup of a provider, and how far pgBackRest or a provider has WAL."""

import asyncio
import os
import socket
from dataclasses import asdict, dataclass
from typing import Any, LiteralString

import psycopg
from loguru import logger

from app.kernel.backup import Backup
from app.kernel.backup.engine import Engine, Wal, engine_of
from app.kernel.backup.primary import ARCHIVER, REPORT
from app.kernel.config.backup import BackupSettings
from app.kernel.config.settings import Misconfigured
from app.kernel.db.server import server
from app.kernel.errors import Refusal
from app.kernel.identifiers import uuid7
from app.kernel.process import Process
from app.kernel.services import Run

_EVERY_S = 60.0
_MOST = 500
_CLUSTER: LiteralString = """
    SELECT s.system_identifier::text, c.timeline_id FROM pg_control_system() s, pg_control_checkpoint() c
"""
_NOTE: LiteralString = """
    INSERT INTO kernel.backup_runs
        (id, kind, state, engine, backup_id, started_at, finished_at, runner, size_bytes, stored_bytes)
    SELECT %(id)s, 'backup', 'succeeded', %(engine)s, %(backup_id)s, %(started_at)s, %(finished_at)s, %(runner)s,
        %(size_bytes)s, %(size_bytes)s
    WHERE NOT EXISTS (SELECT FROM kernel.backup_runs WHERE kind = 'backup' AND backup_id = %(backup_id)s)
"""


@dataclass(frozen=True, slots=True)
class Observed:
    """The newest backup, how far WAL is stored, and what is wrong with that; empty if nothing is."""

    backup: Backup | None
    wal: Wal | None
    problem: str = ""


def observe(conninfo: str, engine: Engine) -> Observed:
    """Look at what is stored, and record it in the database. Safe to repeat. Raises Refusal, psycopg.Error."""
    newest = next(reversed(engine.list()), None)
    with psycopg.connect(conninfo, autocommit=True) as connection:
        row = connection.execute(_CLUSTER).fetchone()
        assert row is not None
        cluster, timeline = row
        wal = engine.wal(cluster)
        failing = connection.execute(ARCHIVER).fetchone() if engine.name == "pgbackrest" else None
        problem = wal.gap if wal is not None else "no WAL is stored"
        if failing is not None:
            problem = f"archive_command fails: {failing[0]}, {failing[2]} times. {problem}".strip()
        runner = f"{socket.gethostname()}:{os.getpid()}"
        if engine.name == "managed" and newest is not None:
            connection.execute(_NOTE, {**asdict(newest), "id": uuid7(), "backup_id": newest.id, "runner": runner})
        if wal is not None:
            state: dict[str, Any] = {
                "cluster": cluster,
                "timeline": wal.timeline or timeline,
                "lsn": wal.lsn,
                "stored_at": wal.stored_at,
                "waiting_since": wal.stored_at,
                "problem": problem[:_MOST] or None,
                "runner": runner,
            }
            connection.execute(REPORT, state)
    return Observed(newest, wal, problem)


async def observer(p: Process) -> Run:
    """Return the service that records, once per backup.wal_interval, and at most once a minute, what is stored."""
    found, every_s = await p.use(server), max(_EVERY_S, p.settings[BackupSettings].wal_interval)

    async def run(stop: asyncio.Event) -> None:
        said = ""
        while not stop.is_set():
            try:
                seen = await asyncio.to_thread(lambda: observe(found.conninfo(), engine_of(p.settings, p.data)))
                problem = seen.problem
            except (Refusal, Misconfigured, psycopg.Error, OSError) as error:
                problem = " ".join(str(error).split())
            if problem and problem != said:
                logger.warning("backups: {}", problem)
            said = problem
            try:
                async with asyncio.timeout(every_s):
                    await stop.wait()
            except TimeoutError:
                continue

    return run
