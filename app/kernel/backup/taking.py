"""Takes a backup: pg_basebackup on one side, the target on the other, nothing in between but memory."""

import fcntl
import os
import re
import secrets
import select
import subprocess
import time
from collections import deque
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Thread
from typing import Any, Final, LiteralString

import psycopg
from loguru import logger
from psycopg.conninfo import make_conninfo

from app.kernel.backup import Backup, BackupInvalid, Counts, Part, Target, child
from app.kernel.backup.catalogue import Catalogue, base_name
from app.kernel.backup.counts import take_counts
from app.kernel.backup.engine import Advance, Progress
from app.kernel.backup.programs import connection_of, programs_for
from app.kernel.backup.sealed import Keys
from app.kernel.backup.tar import Entry, Take, TarReader
from app.kernel.config.backup import BackupSettings
from app.kernel.config.settings import Misconfigured
from app.kernel.errors import Denied, Unavailable
from app.kernel.product import NAME, VERSION

CHECKSUMS: Final = "CRC32C"
"""Of the files of a backup, for damage before they are sealed; SHA-512 takes a server six times as long."""
LABEL, MANIFEST = "backup_label", "backup_manifest"
_PIPE_BYTES = _READ_BYTES = 1024 * 1024
_LABEL_BYTES = _MANIFEST_END_BYTES = 64 * 1024
_LOOK_EVERY_MS = 250
_STOPS_WITHIN_S = 5.0
_STARTED = re.compile(r"^START WAL LOCATION: ([0-9A-F]+/[0-9A-F]+) ", re.MULTILINE)
_TIMELINE = re.compile(r"^START TIMELINE: (\d+)$", re.MULTILINE)
_STOPPED = re.compile(r'"End-LSN": "([0-9A-F]+/[0-9A-F]+)"')
_SERVER: LiteralString = """
    SELECT c.system_identifier::text, current_setting('server_version_num')::int, pg_is_in_recovery(),
        current_database(), current_user, (SELECT setting::int FROM pg_settings WHERE name = 'wal_segment_size'),
        current_setting('wal_level'), (SELECT rolreplication OR rolsuper FROM pg_roles WHERE rolname = current_user),
        (SELECT string_agg(spcname, ', ') FROM pg_tablespace WHERE spcname NOT IN ('pg_default', 'pg_global')),
        (SELECT coalesce(sum(pg_database_size(oid)), 0)::bigint FROM pg_database
            WHERE has_database_privilege(oid, 'CONNECT')),
        clock_timestamp(), pg_snapshot_xmin(pg_current_snapshot())::text::bigint
    FROM pg_control_system() c
"""
_SCHEMA: LiteralString = "SELECT coalesce(max(migration_id), '') FROM public._migrations"
# WAL of the time of the backup is kept until this session ends, however it ends
_KEEP_WAL: LiteralString = "SELECT pg_create_physical_replication_slot(%s, true, true)"
_REMEDIES: tuple[tuple[str, type[Misconfigured | Unavailable], str, str], ...] = (
    ("no pg_hba.conf entry", Misconfigured, "its pg_hba.conf does not let this role replicate",
        "host replication {user} ADDRESS scram-sha-256  # a line of pg_hba.conf, then SELECT pg_reload_conf()"),
    ("max_wal_senders", Unavailable, "all of its WAL senders are in use: raise max_wal_senders", ""),
    ("too many clients", Unavailable, "all of its connections are in use: raise max_connections", ""),
    ("remaining connection slots", Unavailable, "all of its connections are in use: raise max_connections", ""),
    ("No space left on device", Unavailable, "its disk is full: free some space", ""),
    ("has already been removed", Unavailable,
        "WAL was removed before it was copied: raise max_slot_wal_keep_size", ""),
    ("could not find any WAL files", Unavailable,
        "WAL was removed before it was copied: raise max_slot_wal_keep_size", ""),
    *((text, Unavailable, "the connection was lost", "") for text in ("COPY stream ended", "closed the connection")),
    ("checksum", Unavailable, "it has damaged pages, see its log; older backups may have them undamaged", ""),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Server:
    """What is known of the server."""

    cluster: str
    version: int
    is_standby: bool
    database: str
    user: str
    segment_bytes: int
    wal_level: str
    may_replicate: bool
    tablespaces: str | None
    size_bytes: int
    now: datetime
    oldest_xid: int
    """Id of the oldest transaction that runs."""
    schema: str = ""


def take(
    conninfo: str,
    settings: BackupSettings,
    target: Target,
    keys: Keys,
    embedded: Path | None,
    progress: Progress,
) -> Backup:
    """Take a backup and list it. Raises Unavailable, Misconfigured, Denied, TargetUnavailable, Stopped."""
    with session(conninfo) as connection:
        begun = time.monotonic()
        server = examined(connection)
        started_at = server.now.astimezone(UTC)  # moments to restore are told by the server's clock, too
        id_ = f"{started_at:%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}"
        _refuse_unfit(server)
        programs = programs_for(server.version, settings, embedded, exact=False)
        connection.execute(_KEEP_WAL, (f"{NAME}_{id_.replace('-', '_').lower()}",))
        given, secret = connection_of(conninfo)
        command = _command(programs, connection.info, given, id_)
        stream = _Stream(command, secret, server)
        try:
            part = stream.store(target, keys, base_name(server.cluster, id_), progress)
        finally:
            stream.close()
    backup = stream.described(
        Backup(
            id=id_,
            cluster=server.cluster,
            engine="builtin",
            started_at=started_at,
            finished_at=started_at + timedelta(seconds=time.monotonic() - begun),
            timeline=0,
            start_lsn="",
            stop_lsn="",
            server_version=server.version,
            app_version=VERSION,
            schema=server.schema,
            database=server.database,
            size_bytes=part.size_bytes,
            stored_bytes=part.stored_bytes,
            wal_segment_bytes=server.segment_bytes,
            key_id=keys.id,
            parts=(part,),
            counts=counted(conninfo, server, progress),
        )
    )
    Catalogue(target, keys).add(backup)
    return backup


@contextmanager
def session(conninfo: str) -> Generator[psycopg.Connection[Any]]:
    """Connect for a backup: without limits of time. Raises Unavailable."""
    try:
        with psycopg.connect(conninfo, autocommit=True) as connection:
            for name in ("idle_session_timeout", "statement_timeout"):
                connection.execute("SELECT set_config(%s, '0', false)", (name,))
            yield connection
    except psycopg.errors.ConfigurationLimitExceeded as error:
        raise Unavailable("all replication slots of the server are in use: raise max_replication_slots") from error
    except psycopg.Error as error:
        raise Unavailable(f"the database refused: {' '.join(str(error).split())}") from error


def examined(connection: psycopg.Connection[Any]) -> Server:
    """Return what is known of the server. Raises Unavailable for a standby."""
    row = connection.execute(_SERVER).fetchone()
    assert row is not None
    server = Server(*row)
    if server.is_standby:
        raise Unavailable("the server is a standby: backups are taken from the one that accepts writes")
    with suppress(psycopg.errors.UndefinedTable, psycopg.errors.InsufficientPrivilege):
        if found := connection.execute(_SCHEMA).fetchone():
            return replace(server, schema=found[0])
    return server


def _refuse_unfit(server: Server) -> None:
    """Raise what keeps it from being backed up with pg_basebackup."""
    if not server.may_replicate:
        raise Denied(
            f"the role {server.user} may not replicate, which backups need",
            hint=f"psql -U postgres -c 'ALTER ROLE \"{server.user}\" REPLICATION'",
        )
    if server.tablespaces:
        raise Misconfigured(
            f"the server has tablespaces ({server.tablespaces}), which the engine builtin cannot back up;"
            " set backup.engine to pgbackrest",
            hint=f"{NAME} config explain backup.engine",
        )
    if server.wal_level == "minimal":
        raise Misconfigured("wal_level of the server is minimal; backups need replica, which takes a restart")


def _command(programs: Path, info: psycopg.ConnectionInfo, given: Mapping[str, Any], id_: str) -> list[str]:
    """Return the command, for the very server of the connection, without its password."""
    known = {name: value for name, value in given.items() if name not in ("options", "dbname")}
    known |= {"host": info.host, "port": info.port}
    if info.hostaddr:
        known["hostaddr"] = info.hostaddr
    command = [
        str(programs / "pg_basebackup"),
        "--no-password",
        "-d",
        make_conninfo("", **known),
        "-D",
        "-",
        "-F",
        "tar",
    ]
    return [*command, "-X", "fetch", "-c", "fast", "-l", f"{NAME} {id_}", f"--manifest-checksums={CHECKSUMS}"]


class _Stream:
    """The archive that pg_basebackup writes, and what is read of it as it passes."""

    def __init__(self, command: list[str], secret: dict[str, str], server: Server) -> None:
        self._server = server
        self.child = child.start(command, secret, stdout=subprocess.PIPE)
        self._label, self._manifest_end = bytearray(), bytearray()
        self._said: deque[str] = deque(maxlen=20)
        self._listener = Thread(target=self._listen, name="pg_basebackup", daemon=True)
        self._listener.start()

    def store(self, target: Target, keys: Keys, name: str, progress: Progress) -> Part:
        """Store it to its end. Nothing is stored if it does not end well."""
        chunks = self._chunks(progress.step("backup", self._server.size_bytes))
        packed = keys.pack(name, chunks, in_threads=not progress.is_paced)
        try:
            target.put(name, packed)
        finally:
            if self.child.poll() is None:
                self.child.terminate()
            packed.close()
        return packed.part

    def close(self) -> None:
        """End pg_basebackup, which ends the backup on the server. Safe to repeat."""
        if self.child.poll() is None:
            self.child.terminate()
        self._listener.join(_STOPS_WITHIN_S)
        child.stop(self.child)

    def described(self, backup: Backup) -> Backup:
        """Return the backup with what the archive says of it."""
        label, end = self._label.decode(errors="replace"), self._manifest_end.decode(errors="replace")
        started, timeline, stopped = _STARTED.search(label), _TIMELINE.search(label), _STOPPED.findall(end)
        if not (started and timeline and stopped):
            raise BackupInvalid("pg_basebackup wrote an archive that does not say which WAL it needs")
        return replace(backup, timeline=int(timeline[1]), start_lsn=started[1], stop_lsn=stopped[-1])

    def _chunks(self, advance: Advance) -> Iterator[bytes]:
        assert self.child.stdout is not None
        output, reader = self.child.stdout.fileno(), TarReader("the archive of pg_basebackup", self._opened)
        with suppress(OSError, AttributeError):
            fcntl.fcntl(output, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        poll = select.poll()
        poll.register(output, select.POLLIN)
        while True:
            if not poll.poll(_LOOK_EVERY_MS):
                advance(0)
                continue
            if not (chunk := os.read(output, _READ_BYTES)):
                break
            reader.feed(chunk)
            advance(len(chunk))
            yield chunk
        if self.child.wait() != 0:
            self._listener.join(_STOPS_WITHIN_S)
            raise self._failure()
        reader.end()

    def _opened(self, entry: Entry) -> Take | None:
        if entry.name == LABEL:
            return lambda piece: self._label.extend(piece[:_LABEL_BYTES])
        return self._end_manifest if entry.name == MANIFEST else None

    def _end_manifest(self, piece: memoryview) -> None:
        self._manifest_end += piece
        del self._manifest_end[:-_MANIFEST_END_BYTES]

    def _listen(self) -> None:
        assert self.child.stderr is not None
        with suppress(OSError, ValueError):  # closed
            while line := self.child.stderr.readline(4096):
                self._said.append(" ".join(line.decode(errors="replace").split())[:1000])

    def _failure(self) -> Exception:
        lines = [line for line in self._said if line and "hint:" not in line.lower()]
        errors = [line for line in lines if "error:" in line] or lines[-1:]
        said = "; ".join(line.removeprefix("pg_basebackup: ").removeprefix("error: ") for line in errors[-3:])
        said = said or f"it ended with the status {self.child.returncode}"
        for text, kind, remedy, hint in _REMEDIES:
            if text in " ".join(lines):
                return kind(
                    f"the server cannot be backed up: {remedy} ({said})", hint=hint.format(user=self._server.user)
                )
        return Unavailable(f"pg_basebackup failed: {said}")


def counted(conninfo: str, server: Server, progress: Progress) -> Counts | None:
    """Return the rows of all tables after a backup; None, with a warning, if they cannot be counted.

    `server` is what was examined before it.
    """
    progress.step("count rows", None)
    try:
        return take_counts(conninfo, server.oldest_xid)
    except psycopg.Error as error:
        logger.warning("rows were not counted, so drills cannot compare them: {}", " ".join(str(error).split()))
        return None
