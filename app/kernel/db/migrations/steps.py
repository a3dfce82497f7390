"""Applies one migration with yoyo's steps: its statements, record and checksum are committed together.

yoyo's `apply_one` commits them separately. Its objects have no types, hence Any.
"""

import contextlib
import re
import socket
import sys
import uuid
from datetime import UTC, datetime
from typing import Any, Literal

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from app.kernel.db.migrations.files import BadMigration, Migration
from app.kernel.db.refusals import DatabaseUnavailable, refusal_of
from app.kernel.db.server import Server
from app.kernel.errors import Conflict, Refusal, Unavailable
from app.kernel.product import NAME

TABLE, CHECKSUMS = "_migrations", "_migration_checksums"
_DEPENDED_ON = "2BP01"
_BUILDS_INDEX = re.compile(
    r"CREATE\s+(?:UNIQUE\s+)?INDEX\s+CONCURRENTLY\s+(?:IF\s+NOT\s+EXISTS\s+)?(?P<index>[\w$]+|\"[^\"]+\")"
    r"\s+ON\s+(?:ONLY\s+)?(?P<table>[\w$.\"]+)",
    re.IGNORECASE,
)
Direction = Literal["apply", "rollback"]


class MigrationFailed(Refusal):
    """A migration failed; nothing of it was recorded."""

    code = "MIGRATION_FAILED"
    title = "A migration failed; nothing of it was recorded"
    hint = f"{NAME} migrate plan"


def connect(server: Server) -> Any:
    """Return a backend of yoyo, connected. Raises psycopg.Error."""
    from yoyo.backends.core.postgresql import PostgresqlPsycopgBackend
    from yoyo.connections import DatabaseURI

    parameters: dict[str, Any] = conninfo_to_dict(
        server.conninfo(
            statement_timeout=0,
            lock_timeout=60_000,
            client_connection_check_interval=1000,  # the statement of a killed migrator ends within a second
        )
    )

    def log_data(migration: Any = None, operation: str = "apply") -> dict[str, object]:
        return {
            "id": str(uuid.uuid4()),
            "migration_id": migration.id if migration else None,
            "migration_hash": migration.hash if migration else None,
            "username": server.parameters["application_name"],
            "hostname": socket.gethostname(),
            "created_at_utc": datetime.now(UTC).replace(tzinfo=None),
            "operation": operation,
        }

    uri = DatabaseURI("postgresql+psycopg", None, None, None, None, parameters.pop("dbname"), parameters)
    backend: Any = PostgresqlPsycopgBackend(uri, TABLE)
    backend.get_log_data = log_data  # yoyo's looks up the user name, which containers may lack, and DNS
    return backend


def prepare(backend: Any) -> None:
    """Create the tables of the records, with the advisory lock. Safe to repeat."""
    backend.connection.execute(
        "CREATE TABLE IF NOT EXISTS _migration_checksums (migration_id text PRIMARY KEY, sha256 text NOT NULL)"
    )
    backend.connection.execute(
        "CREATE TABLE IF NOT EXISTS yoyo_lock (locked int DEFAULT 1 PRIMARY KEY, ctime timestamp, pid int NOT NULL)"
    )
    backend.break_lock()  # left by a killed migrator; the advisory lock excludes others
    backend.ensure_internal_schema_updated()


def load(migration: Migration) -> Any:
    """Return yoyo's migration, loaded. Raises BadMigration."""
    from yoyo.exceptions import BadMigration as YoyoBadMigration
    from yoyo.migrations import Migration as YoyoMigration

    step: Any = YoyoMigration(migration.id, str(migration.path), str(migration.path.parent))
    name = migration.path.name
    try:
        step.load()
    except UnicodeDecodeError:
        raise BadMigration(f"{name} or its rollback is not UTF-8 text") from None
    except KeyError as error:
        raise BadMigration(f"{name}: transactional is true or false, not {error}") from None
    except YoyoBadMigration:
        raise BadMigration(f"{name}: remove its depends line; migrations apply in the order of their names") from None
    return step


def run(backend: Any, migration: Migration, direction: Direction) -> None:
    """Apply or roll back one file and its record. Raises Conflict, MigrationFailed, Unavailable."""
    step = load(migration)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # yoyo prints results of SELECT
            if step.use_transactions:
                with backend.transaction():
                    step.process_steps(backend, direction)
                    _record(backend, step, migration, direction)
            else:
                if direction == "apply":
                    _drop_half_built(backend.connection, migration)
                step.process_steps(backend, direction)
                with backend.transaction():
                    _record(backend, step, migration, direction)
    except psycopg.Error as error:
        name, reason = migration.path.name, " ".join(str(error).split())
        if isinstance(refusal_of(error), Unavailable):
            raise DatabaseUnavailable(f"{name}: {direction} was interrupted: {reason}; try again") from error
        if direction == "rollback" and error.sqlstate == _DEPENDED_ON:
            users = " ".join((error.diag.message_detail or reason).split())
            raise Conflict(f"{migration.module} is still used; roll back first what depends on it: {users}") from error
        kept = "nothing of the file was kept" if step.use_transactions else "its earlier statements were kept"
        todo = "correct the file, or the data that it fails on, and try again"
        raise MigrationFailed(f"{name}: {direction} failed: {reason}; {kept}: {todo}") from error


def _drop_half_built(connection: psycopg.Connection[Any], migration: Migration) -> None:
    """Drop the invalid index of an interrupted build, because IF NOT EXISTS would keep it."""
    for build in _BUILDS_INDEX.finditer(migration.path.read_text(encoding="utf-8")):
        index = build["index"]
        left = connection.execute(
            "SELECT n.nspname, c.relname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid"
            " JOIN pg_namespace n ON n.oid = c.relnamespace"
            " WHERE i.indrelid = to_regclass(%s) AND c.relname = %s AND NOT i.indisvalid",
            (build["table"], index.strip('"') if index.startswith('"') else index.lower()),
        ).fetchall()
        for schema, name in left:
            connection.execute(sql.SQL("DROP INDEX CONCURRENTLY {}").format(sql.Identifier(schema, name)))


def _record(backend: Any, step: Any, migration: Migration, direction: Direction) -> None:
    backend.log_migration(step, direction)
    if direction == "apply":
        backend.mark_one(step, log=False)
        backend.connection.execute(
            "INSERT INTO _migration_checksums (migration_id, sha256) VALUES (%s, %s)"
            " ON CONFLICT (migration_id) DO UPDATE SET sha256 = excluded.sha256",
            (migration.id, migration.sha256),
        )
    else:
        backend.unmark_one(step, log=False)
        backend.connection.execute("DELETE FROM _migration_checksums WHERE migration_id = %s", (migration.id,))
