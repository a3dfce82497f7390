"""The server whose WAL is stored: who it is, its slot, what waits, and the record of what is stored."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, LiteralString

import psycopg
from psycopg import pq, sql
from psycopg.conninfo import make_conninfo

from app.kernel.backup.timelines import Fork, Stretch, history_of, lsn_text, way
from app.kernel.errors import Unavailable
from app.kernel.product import NAME

_ME: LiteralString = """
    SELECT pg_is_in_recovery(), rolsuper OR rolreplication, rolname, host(inet_client_addr()), current_database()
    FROM pg_roles WHERE rolname = current_user
"""
_LOCK: LiteralString = "SELECT pg_try_advisory_lock(hashtext('backup'), hashtext('wal'))"
# the snapshot is taken before the function is called: transactions that it shows as ended are before that position
_NOW: LiteralString = """
    SELECT now(), pg_snapshot_xmin(s)::text::bigint, pg_snapshot_xmax(s)::text::bigint,
        (pg_current_wal_insert_lsn() - '0/0')::bigint,
        (SELECT (max(write_lsn) - '0/0')::bigint FROM pg_stat_replication WHERE application_name = %s)
    FROM pg_current_snapshot() s
"""
_SLOT: LiteralString = """
    SELECT coalesce(wal_status, 'lost'), (restart_lsn - '0/0')::bigint, active FROM pg_replication_slots
    WHERE slot_name = %s
"""
_CREATE: LiteralString = "SELECT (lsn - '0/0')::bigint FROM pg_create_physical_replication_slot(%s, true)"
_DROP: LiteralString = "SELECT pg_drop_replication_slot(%s)"
_ADVANCE: LiteralString = "SELECT pg_replication_slot_advance(%s, %s::pg_lsn)"
ARCHIVER: LiteralString = """
    SELECT last_failed_wal, last_failed_time, failed_count FROM pg_stat_archiver
    WHERE last_failed_time > coalesce(last_archived_time, '-infinity')
"""
_BEGIN: LiteralString = """
    WITH others AS (DELETE FROM kernel.backup_wal WHERE cluster <> %(cluster)s)
    SELECT coalesce(timeline, 0), coalesce(lsn - '0/0', 0)::bigint, coalesce(stored_at, now())
    FROM (VALUES (1)) one LEFT JOIN kernel.backup_wal ON cluster = %(cluster)s
"""
REPORT: LiteralString = """
    INSERT INTO kernel.backup_wal
        (cluster, timeline, lsn, stored_at, waiting_since, problem, runner, reported_at)
    VALUES (%(cluster)s, %(timeline)s, %(lsn)s, %(stored_at)s, %(waiting_since)s, %(problem)s, %(runner)s, now())
    ON CONFLICT (cluster) DO UPDATE
    SET timeline = excluded.timeline, lsn = excluded.lsn, stored_at = excluded.stored_at,
        waiting_since = excluded.waiting_since, problem = excluded.problem, runner = excluded.runner,
        reported_at = excluded.reported_at
    RETURNING pg_current_xact_id()::text::bigint
"""


def slot_name(database: str) -> str:
    """Return the name of the slot for a database. Slots belong to a cluster, in which databases may have others."""
    known = "".join(c if c.isascii() and (c.isalnum() or c == "_") else "_" for c in database.lower())
    return f"{NAME}_backup_{known}"[:63]


@dataclass(frozen=True, slots=True)
class Slot:
    """A replication slot: whether WAL since its position is still there, and whether somebody streams with it."""

    is_lost: bool
    lsn: int
    is_active: bool


@dataclass(frozen=True, slots=True)
class Now:
    """The state of the server: which transactions there are, how far WAL goes, and how far it was received."""

    at: datetime
    xmin: int
    xmax: int
    written: int
    received: int | None


@dataclass(frozen=True, slots=True)
class Report:
    """What is recorded of the stored WAL, in kernel.backup_wal."""

    timeline: int
    lsn: int
    stored_at: datetime
    waiting_since: datetime | None = None
    problem: str | None = None


class Primary:
    """A session on the server. Methods raise psycopg.Error when it goes away."""

    def __init__(self, connection: psycopg.Connection[Any], conninfo: str, role: str, database: str) -> None:
        self._connection = connection
        self.role, self.slot = role, slot_name(database)
        self.version = connection.info.server_version
        # the same of several hosts
        about = connection.info
        self.conninfo = make_conninfo(
            conninfo, host=about.host, port=about.port, target_session_attrs="any", options=""
        )
        self.cluster, self.timeline, self.segment_bytes = "", 0, 0
        self.stretches: tuple[Stretch, ...] = ()

    def lock(self) -> bool:
        """Return whether this session is the only one that stores WAL of this database, until it ends."""
        row = self._connection.execute(_LOCK).fetchone()
        return row is not None and row[0]

    def identify(self, client: str | None) -> None:
        """Find out which cluster this is, its timeline and where that comes from. Raises Unavailable."""
        connection = pq.PGconn.connect(make_conninfo(self.conninfo, replication="true").encode())
        try:
            if connection.status != pq.ConnStatus.OK:
                reason = " ".join(connection.get_error_message().split())
                raise Unavailable(_refused(reason, self.role, client))
            self.cluster, timeline = (text.decode() for text in _row(connection, b"IDENTIFY_SYSTEM")[:2])
            self.timeline, forks = int(timeline), tuple[Fork, ...]()
            if self.timeline > 1:
                command = f"TIMELINE_HISTORY {self.timeline}".encode()
                forks = history_of(_row(connection, command)[1].decode(errors="replace"))
            self.stretches = way(self.timeline, forks)
        finally:
            connection.finish()
        row = self._connection.execute(
            "SELECT setting::bigint FROM pg_settings WHERE name = 'wal_segment_size'"
        ).fetchone()
        assert row is not None
        self.segment_bytes = row[0]

    def now(self, receiver: str) -> Now:
        """Return the state of the server, and how far a receiver of this application name is."""
        row = self._connection.execute(_NOW, (receiver,)).fetchone()
        assert row is not None
        return Now(*row)

    def find_slot(self) -> Slot | None:
        """Return the slot, if there is one."""
        row = self._connection.execute(_SLOT, (self.slot,)).fetchone()
        return row and Slot(row[0] == "lost" or row[1] is None, row[1] or 0, row[2])

    def create_slot(self) -> Slot:
        """Create the slot, of which WAL from now on stays on the server."""
        row = self._connection.execute(_CREATE, (self.slot,)).fetchone()
        assert row is not None
        return Slot(False, row[0], False)

    def drop_slot(self) -> None:
        """Drop the slot."""
        self._connection.execute(_DROP, (self.slot,))

    def advance_slot(self, lsn: int) -> None:
        """Let the server remove WAL before a position."""
        self._connection.execute(_ADVANCE, (self.slot, lsn_text(lsn)))

    def failing_archiver(self) -> str:
        """Return how archive_command fails, if it does."""
        row = self._connection.execute(ARCHIVER).fetchone()
        return f"archive_command fails: {row[0]} at {row[1]:%Y-%m-%d %H:%M:%S %Z}, {row[2]} times" if row else ""

    def recorded(self) -> Report:
        """Return what is recorded as stored; nothing until now, without a record.

        Removes the records of clusters that this database was in before.
        """
        row = self._connection.execute(_BEGIN, {"cluster": self.cluster}).fetchone()
        assert row is not None
        return Report(*row)

    def report(self, report: Report, runner: str) -> int:
        """Record what is stored; return the id of the transaction."""
        row = self._connection.execute(
            REPORT,
            {
                "cluster": self.cluster,
                "timeline": report.timeline,
                "lsn": lsn_text(report.lsn),
                "stored_at": report.stored_at,
                "waiting_since": report.waiting_since,
                "problem": report.problem,
                "runner": runner,
            },
        ).fetchone()
        assert row is not None
        return row[0]


@contextmanager
def primary(conninfo: str) -> Generator[tuple[Primary, str | None]]:
    """Connect to the server that accepts writes; yield it, and the address that it sees of us.

    Raises Unavailable for a standby and for a role that may not stream, with what to do.
    """
    with psycopg.connect(conninfo, autocommit=True) as connection:
        row = connection.execute(_ME).fetchone()
        assert row is not None
        is_standby, may_stream, role, client, database = row
        if is_standby:
            raise Unavailable("the server is a standby; waiting until it accepts writes")
        if not may_stream:
            quoted = sql.Identifier(role).as_string(connection)
            raise Unavailable(
                f"the role {role} may not stream WAL; run as a superuser: ALTER ROLE {quoted} REPLICATION;"
            )
        yield Primary(connection, conninfo, role, database), client


def _row(connection: pq.abc.PGconn, command: bytes) -> list[bytes]:
    result = connection.exec_(command)
    if result.status != pq.ExecStatus.TUPLES_OK or not result.ntuples:
        raise Unavailable(f"{command.decode()}: {' '.join(connection.get_error_message().split())}")
    return [result.get_value(0, column) or b"" for column in range(result.nfields)]


def _refused(reason: str, role: str, client: str | None) -> str:
    if "pg_hba.conf" not in reason:
        return f"the server refuses to stream WAL: {reason}"
    mask = "128" if client and ":" in client else "32"
    line = f"host replication {role} {client}/{mask} scram-sha-256" if client else f"local replication {role} peer"
    return f"the server refuses to stream WAL to {role}; add to its pg_hba.conf, and reload it: {line}"
