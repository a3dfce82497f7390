"""The server whose WAL is stored: who it is, its slot, what waits, and the record of what is stored."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, LiteralString

import psycopg
from psycopg import pq, sql
from psycopg.conninfo import make_conninfo

from app.kernel.backup.timelines import Fork, WalFile, history_of, lsn_text, wal_file, way
from app.kernel.errors import Unavailable
from app.kernel.product import NAME

_SERVER: LiteralString = """
    SELECT pg_is_in_recovery(), rolsuper OR rolreplication, rolname, host(inet_client_addr()), current_database(),
        s.system_identifier::text, w.setting::bigint,
        CASE WHEN NOT pg_is_in_recovery() THEN left(pg_walfile_name(pg_current_wal_insert_lsn()), 8) END
    FROM pg_roles, pg_control_system() s, pg_settings w WHERE rolname = current_user AND w.name = 'wal_segment_size'
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
    WITH others AS (DELETE FROM kernel.backup_wal WHERE cluster <> %s)
    SELECT coalesce(timeline, 0), coalesce(lsn - '0/0', 0)::bigint, coalesce(stored_at, now())
    FROM (VALUES (1)) one LEFT JOIN kernel.backup_wal ON cluster = %s
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
    """A session on the server that accepts writes. Methods raise psycopg.Error when it goes away."""

    def __init__(self, connection: psycopg.Connection[Any], conninfo: str) -> None:
        """Raises Unavailable for a standby."""
        self._connection = connection
        is_standby, self._may_stream, self._role, self._client, database, *about = self._one(_SERVER)
        if is_standby:
            raise Unavailable("the server is a standby; waiting until it accepts writes")
        self.cluster, self.segment_bytes, timeline = about
        self.timeline, self.slot = int(timeline, 16), slot_name(database)
        self.stretches = way(self.timeline, ())
        """The way to its timeline, of which it is not known here where that comes from."""
        self.version = connection.info.server_version
        where = connection.info  # the same of several hosts
        self.conninfo = make_conninfo(
            conninfo, host=where.host, port=where.port, target_session_attrs="any", options=""
        )

    def lock(self) -> bool:
        """Return whether this session is the only one that stores WAL of this database, until it ends."""
        return self._one(_LOCK)[0]

    def history(self) -> tuple[Fork, ...]:
        """Return from which timelines that of the server comes, oldest first, as one that streams WAL is told.

        Raises Unavailable, with what to do, if we may not stream.
        """
        if not self._may_stream:
            role = sql.Identifier(self._role).as_string(self._connection)
            grant = f"ALTER ROLE {role} REPLICATION;"
            raise Unavailable(f"the role {self._role} may not stream WAL; run as a superuser: {grant}")
        connection = pq.PGconn.connect(make_conninfo(self.conninfo, replication="true").encode())
        try:
            if connection.status != pq.ConnStatus.OK:
                raise Unavailable(self._refused(connection))
            if self.timeline == 1:
                return ()
            result = connection.exec_(f"TIMELINE_HISTORY {self.timeline}".encode())
            if result.status != pq.ExecStatus.TUPLES_OK or not (content := result.get_value(0, 1)):
                raise Unavailable(f"the server does not tell its timelines: {_reason(connection)}")
            return history_of(content.decode(errors="replace"))
        finally:
            connection.finish()

    def now(self, receiver: str) -> Now:
        """Return the state of the server, and how far a receiver of this application name is."""
        return Now(*self._one(_NOW, receiver))

    def find_slot(self) -> Slot | None:
        """Return the slot, if there is one."""
        row = self._connection.execute(_SLOT, (self.slot,)).fetchone()
        return row and Slot(row[0] == "lost" or row[1] is None, row[1] or 0, row[2])

    def create_slot(self) -> Slot:
        """Create the slot, of which WAL from now on stays on the server."""
        return Slot(False, self._one(_CREATE, self.slot)[0], False)

    def drop_slot(self) -> None:
        """Drop the slot."""
        self._one(_DROP, self.slot)

    def advance_slot(self, lsn: int) -> None:
        """Let the server remove WAL before a position."""
        self._one(_ADVANCE, self.slot, lsn_text(lsn))

    def failing_archiver(self) -> str:
        """Return how archive_command fails, if it does."""
        row = self._connection.execute(ARCHIVER).fetchone()
        return f"archive_command fails: {row[0]} at {row[1]:%Y-%m-%d %H:%M:%S %Z}, {row[2]} times" if row else ""

    def archived(self) -> WalFile | None:
        """Return the segment that archive_command has stored last, as far as the server knows."""
        return wal_file(
            self._one("SELECT coalesce(last_archived_wal, '') FROM pg_stat_archiver")[0], self.segment_bytes
        )

    def recorded(self) -> Report:
        """Return what is recorded as stored; nothing until now, without a record.

        Removes the records of clusters that this database was in before.
        """
        return Report(*self._one(_BEGIN, self.cluster, self.cluster))

    def report(self, report: Report, runner: str) -> int:
        """Record what is stored; return the id of the transaction."""
        recorded = {**asdict(report), "lsn": lsn_text(report.lsn), "cluster": self.cluster, "runner": runner}
        row = self._connection.execute(REPORT, recorded).fetchone()
        assert row is not None
        return row[0]

    def _one(self, statement: LiteralString, *parameters: object) -> tuple[Any, ...]:
        row = self._connection.execute(statement, parameters).fetchone()
        assert row is not None
        return row

    def _refused(self, connection: pq.abc.PGconn) -> str:
        """Return why the server refuses to stream, and the line of pg_hba.conf that would allow it."""
        if "pg_hba.conf" not in (reason := _reason(connection)):
            return f"the server refuses to stream WAL: {reason}"
        role, client = self._role, self._client
        mask = "128" if client and ":" in client else "32"
        line = f"host replication {role} {client}/{mask} scram-sha-256" if client else f"local replication {role} peer"
        return f"the server refuses to stream WAL to {role}; add to its pg_hba.conf, and reload it: {line}"


@contextmanager
def primary(conninfo: str) -> Generator[Primary]:
    """Connect to the server that accepts writes. Raises Unavailable for a standby."""
    with psycopg.connect(conninfo, autocommit=True) as connection:
        yield Primary(connection, conninfo)


def _reason(connection: pq.abc.PGconn) -> str:
    return " ".join(connection.get_error_message().split())
