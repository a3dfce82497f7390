"""Records of backups, as the processes that take them leave them."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
from psycopg.types.json import Jsonb

from app.kernel.backup import Backup
from app.kernel.backup.catalogue import Catalogue
from app.kernel.backup.sealed import Keys
from app.kernel.backup.targets.folder import Folder
from app.kernel.config import BackupSettings, load
from app.processes import sections
from tests.conftest import TestDatabase
from tests.support.project import ROOT

RUN = """
    INSERT INTO kernel.backup_runs (id, kind, state, engine, backup_id, started_at, finished_at, runner, size_bytes,
        stored_bytes, problem, details)
    VALUES (kernel.uuid7(), %s, %s, 'builtin', '20261127T021500Z-3f2a', now() - %s * interval '1 hour',
        CASE WHEN %s <> 'running' THEN now() - %s * interval '1 hour' + interval '90 s' END, 'agent-1:77', 5000000000,
        1000000000, CASE WHEN %s = 'failed' THEN 'the target is full' END, %s)
"""
WAL = """
    INSERT INTO kernel.backup_wal (cluster, timeline, lsn, stored_at, waiting_since, problem, reported_at, runner)
    SELECT system_identifier, 1, '0/1', now(), now() - %s * interval '1 s', %s, now(), 'agent-1:77'
    FROM pg_control_system()
"""
Run = tuple[str, str, float]
"""Kind, state, and how many hours ago it began."""
GOOD: tuple[Run, ...] = (("backup", "succeeded", 25), ("drill", "succeeded", 7 * 24))


def recorded(
    database: TestDatabase,
    *runs: Run,
    wal_lag_s: float | None = 1,
    wal_problem: str | None = None,
    is_attended: bool = True,
) -> None:
    """Replace what is recorded of backups."""
    with psycopg.connect(database.conninfo, autocommit=True) as connection:
        record(connection, *runs, is_attended=is_attended)
        if wal_lag_s is not None:
            connection.execute(WAL, (wal_lag_s, wal_problem))


def record(connection: psycopg.Connection, *runs: Run, is_attended: bool = True) -> None:
    """Replace what is recorded of backups, without WAL."""
    connection.execute("TRUNCATE kernel.backup_runs, kernel.backup_wal")
    connection.execute("DELETE FROM kernel.queues WHERE name = 'backup'")
    for kind, state, hours in runs:
        details = {"rto_s": 42.5, "rpo_s": 3} if (kind, state) == ("drill", "succeeded") else {}
        connection.execute(RUN, (kind, state, hours, state, hours, state, Jsonb(details)))
    if is_attended:
        connection.execute("INSERT INTO kernel.queues (name, seen_at) VALUES ('backup', 'infinity')")


def add_of_another_cluster(target: Path) -> None:
    """Add the record of a newer backup, `of-another`, of the cluster 7, as by another deployment with the same key."""
    at = datetime.now(UTC) + timedelta(hours=1)
    backup = Backup("of-another", "7", "builtin", at, at, 1, "0/0", "0/0", 180000, "0", "", "app", 0, 0)
    Catalogue(Folder(target), Keys.of(load(ROOT, sections(), {"APP_ENV": "test"})[BackupSettings])).add(backup)
