"""Migrations: yoyo applies SQL files, each with its record and checksum in one transaction.

The lock is an advisory lock on the connection that migrates, so a killed migrator blocks nobody. Other processes poll
it: a blocked `pg_advisory_lock` would itself make CREATE INDEX CONCURRENTLY wait. That statement needs
`-- transactional: false` and a file of its own; an invalid index that an interrupted one left is dropped before it runs
again.
"""

import asyncio
import contextlib
import re
import socket
import sys
import threading
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, LiteralString

import psycopg
from loguru import logger
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from app.kernel import product
from app.kernel.config import Misconfigured, PostgresSettings
from app.kernel.db.connection import hang_up
from app.kernel.db.migration_files import NAME, BadMigration, Migration, read
from app.kernel.db.refusals import READ_ONLY, refusal_of
from app.kernel.db.server import Server, server
from app.kernel.errors import Conflict, NotFound, Refusal, Unavailable
from app.kernel.process import Process

TABLE = "_migrations"
_CHECKSUMS = "_migration_checksums"
_LOCK_KEY = 0x6D69_6772_6174_6521  # "migrate!"
_WAIT_S = 3600.0
_POLL_S = 0.1
_STOP_S = 4.0
_AGAIN_S = 1.0
_MISSING = ("42P01", "42703", "42883", "3F000")  # SQLSTATE of a missing table, column, function or schema
_DEPENDED_ON = "2BP01"
_BUILDS_INDEX = re.compile(
    r"CREATE\s+(?:UNIQUE\s+)?INDEX\s+CONCURRENTLY\s+(?:IF\s+NOT\s+EXISTS\s+)?(?P<index>[\w$]+|\"[^\"]+\")"
    r"\s+ON\s+(?:ONLY\s+)?(?P<table>[\w$.\"]+)",
    re.IGNORECASE,
)

State = Literal["applied", "pending", "edited", "unknown"]


class MigrationFailed(Refusal):
    """A migration failed; nothing of it was recorded."""

    code = "MIGRATION_FAILED"
    title = "A migration failed; nothing of it was recorded"


@dataclass(frozen=True, slots=True)
class Status:
    """One migration in files and database. `unknown` is applied, but has no file here: a newer release applied it."""

    id: str
    state: State
    applied_at: datetime | None


class Migrator:
    """Migrates one database. Its methods block; `stop` may be called from another thread.

    `unknown` are the applied migrations without a file here, as of the last look at the database.
    """

    def __init__(self, server: Server, folder: Path) -> None:
        self._server = server
        self._folder = folder
        self._stopped = threading.Event()
        self._connection: psycopg.Connection[Any] | None = None
        self.unknown: list[str] = []

    def status(self) -> list[Status]:
        """Return every migration with its state, in order. Changes nothing."""
        with psycopg.connect(self._server.conninfo(statement_timeout=10_000), autocommit=True) as connection:
            self._connection = connection
            return self._status(connection)

    def _status(self, connection: psycopg.Connection[Any]) -> list[Status]:
        applied = _recorded(connection, TABLE, "SELECT migration_id, applied_at_utc FROM _migrations")
        checksums = _recorded(connection, _CHECKSUMS, "SELECT migration_id, sha256 FROM _migration_checksums")
        files = {migration.id: migration for migration in read(self._folder)}
        if applied and files and (first := min(applied)) < min(files) and first not in files:
            raise _squashed(first)
        found: list[Status] = []
        for name in sorted(files.keys() | applied.keys()):
            state: State = "applied"
            if name not in applied:
                state = "pending"
            elif name not in files:
                state = "unknown"
            elif checksums.get(name, files[name].sha256) != files[name].sha256:
                state = "edited"
            found.append(Status(name, state, applied[name].replace(tzinfo=UTC) if name in applied else None))
        self.unknown = [s.id for s in found if s.state == "unknown"]
        return found

    def newer_release(self) -> str:
        """Return what to warn of when migrations without a file here are applied, as of the last look; or nothing."""
        if not self.unknown:
            return ""
        count = f"{len(self.unknown)} applied migration{'s have' if len(self.unknown) > 1 else ' has'} no file here"
        return (
            f"{count}, the last is {self.unknown[-1]}: a newer release has migrated this database; this older one"
            f" goes on, see {product.NAME} migrate status"
        )

    def pending(self) -> list[Migration]:
        """Return what `up` would apply, in order. Raises BadMigration when an applied file was edited."""
        return self._pending(self.status())

    def _pending(self, status: Sequence[Status]) -> list[Migration]:
        if edited := [s.id for s in status if s.state == "edited"]:
            raise BadMigration(
                f"{', '.join(edited)}: edited after it was applied; restore the file and write a new migration"
            )
        wanted = {s.id for s in status if s.state == "pending"}
        pending = [migration for migration in read(self._folder) if migration.id in wanted]
        for migration in pending:
            migration.require_statement()
        return pending

    def up(self, report: Callable[[str], None]) -> list[str]:
        """Apply what is pending, in order; return the ids. Safe to repeat, and to run many times at once.

        Raises MigrationFailed, BadMigration, and Unavailable when another migrator does not finish.
        """
        if not self.pending():  # the usual start: no lock, no yoyo
            return []
        with self._locked(report) as backend:
            todo = self._pending(self._status(backend.connection))
            for migration in todo:
                started = time.monotonic()
                self._step(backend, migration, "apply")
                report(f"applied {migration.id} in {time.monotonic() - started:.2f} s")
            return [migration.id for migration in todo]

    def last(self, module: str = "") -> list[Migration]:
        """Return what `down` would roll back, in its order. Raises as `down` does."""
        return self._last(self.status(), module)

    def _last(self, status: Sequence[Status], module: str) -> list[Migration]:
        applied = {s.id: match["module"] for s in status if s.applied_at and (match := NAME.fullmatch(s.id))}
        files = {migration.id: migration for migration in read(self._folder)}
        modules = {*applied.values(), *(migration.module for migration in files.values())}
        if module and module not in modules:
            raise NotFound(
                f"there are no migrations of {module!r}; modules with migrations: {', '.join(sorted(modules))}"
            )
        if module == "kernel" and (others := sorted({*applied.values()} - {"kernel"})):
            raise Conflict(f"every module uses the tables of the kernel; roll back {', '.join(others)} first")
        wanted = sorted((name for name, owner in applied.items() if module in ("", owner)), reverse=True)
        wanted = wanted if module else wanted[:1]
        if gone := [name for name in wanted if name not in files]:
            raise BadMigration(f"{gone[0]} has no file here; roll back with the release that applied it")
        return [files[name] for name in wanted]

    def down(self, report: Callable[[str], None], module: str = "") -> list[str]:
        """Roll back the newest applied migration, or all of a module, newest first; return the ids.

        All or none, unless one of them is not transactional. Raises as `up` does; NotFound for an unknown module,
        Conflict when another schema depends on what would be dropped.
        """
        self.last(module)  # before the lock, which makes tables
        with self._locked(report) as backend:
            todo = self._last(self._status(backend.connection), module)
            is_atomic = all(_load(migration, self._folder).use_transactions for migration in todo)
            with backend.transaction() if is_atomic else contextlib.nullcontext():
                for migration in todo:
                    self._step(backend, migration, "rollback")
            for migration in todo:
                report(f"rolled back {migration.id}")
            return [migration.id for migration in todo]

    def stop(self) -> None:
        """Give up: stop waiting, begin no other migration, cancel the statement that runs. Safe to repeat."""
        self._stopped.set()
        if (connection := self._connection) is not None:
            with contextlib.suppress(psycopg.Error):
                connection.cancel_safe(timeout=1)

    def hang_up(self) -> None:
        """Give up without asking a server that does not answer; it rolls back when it notices. Safe to repeat."""
        self._stopped.set()
        if (connection := self._connection) is not None:
            hang_up(connection)

    @contextlib.contextmanager
    def _locked(self, report: Callable[[str], None]) -> Generator[Any]:
        """Yield a yoyo backend (not annotated, hence Any) that nobody else migrates with."""
        from yoyo.backends.core.postgresql import PostgresqlPsycopgBackend
        from yoyo.connections import DatabaseURI

        parameters: dict[str, Any] = conninfo_to_dict(
            self._server.conninfo(
                statement_timeout=0,
                lock_timeout=60_000,
                client_connection_check_interval=1000,  # a killed migrator's statement ends within a second
            )
        )
        uri = DatabaseURI("postgresql+psycopg", None, None, None, None, parameters.pop("dbname"), parameters)
        backend: Any = PostgresqlPsycopgBackend(uri, TABLE)
        backend.get_log_data = self._log_data
        connection: psycopg.Connection[Any] = backend.connection
        self._connection = connection
        with contextlib.closing(connection):
            self._lock(connection, report)
            connection.execute(
                "CREATE TABLE IF NOT EXISTS _migration_checksums (migration_id text PRIMARY KEY, sha256 text NOT NULL)"
            )
            connection.execute(
                "CREATE TABLE IF NOT EXISTS yoyo_lock"
                " (locked int DEFAULT 1 PRIMARY KEY, ctime timestamp, pid int NOT NULL)"
            )
            backend.break_lock()  # left by a killed migrator: whoever holds the advisory lock is alone
            backend.ensure_internal_schema_updated()
            yield backend

    def _lock(self, connection: psycopg.Connection[Any], report: Callable[[str], None]) -> None:
        deadline, told = time.monotonic() + _WAIT_S, time.monotonic()
        while not connection.execute("SELECT pg_try_advisory_lock(%s)", (_LOCK_KEY,)).fetchall()[0][0]:
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"another process has been migrating for {_WAIT_S / 60:.0f} minutes; see who holds it"
                )
            if time.monotonic() - told > 2:
                told = time.monotonic()
                report(f"waiting for {self._holder(connection)} to finish migrating")
            if self._stopped.wait(_POLL_S):
                raise Unavailable("stopped while waiting for another migrator")
        self._go_on()

    def _go_on(self) -> None:
        if self._stopped.is_set():
            raise Unavailable("stopped before everything was migrated")

    def _holder(self, connection: psycopg.Connection[Any]) -> str:
        row = connection.execute(
            "SELECT a.application_name FROM pg_locks l JOIN pg_stat_activity a USING (pid)"
            " WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1"
            " AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
            " AND (l.classid::bigint << 32 | l.objid::bigint) = %s",
            (_LOCK_KEY,),
        ).fetchone()
        return row[0] if row and row[0] else "another process"

    def _step(self, backend: Any, migration: Migration, direction: Literal["apply", "rollback"]) -> None:
        """Apply or roll back one file, together with its record: yoyo's own apply_one would commit them apart."""
        self._go_on()
        step = _load(migration, self._folder)
        try:
            # yoyo prints what a SELECT returns
            with contextlib.redirect_stdout(sys.stderr):
                if step.use_transactions:
                    with backend.transaction():
                        step.process_steps(backend, direction)
                        self._record(backend, step, migration, direction)
                else:
                    if direction == "apply":
                        self._drop_half_built(backend.connection, migration)
                    step.process_steps(backend, direction)
                    with backend.transaction():
                        self._record(backend, step, migration, direction)
        except psycopg.Error as error:
            reason = " ".join(str(error).split())
            if isinstance(refusal_of(error), Unavailable):
                raise Unavailable(f"{migration.path.name}: {direction} was interrupted: {reason}; try again") from error
            if direction == "rollback" and error.sqlstate == _DEPENDED_ON:
                detail = " ".join((error.diag.message_detail or reason).split())
                raise Conflict(
                    f"{migration.module} cannot be rolled back, roll back first what uses it: {detail}"
                ) from error
            raise MigrationFailed(f"{migration.path.name}: {direction} failed: {reason}") from error

    def _log_data(self, migration: Any = None, operation: str = "apply") -> dict[str, object]:
        """Return a row of yoyo's log. Its own asks for the user's name, which a container may not have, and the DNS."""
        return {
            "id": str(uuid.uuid4()),
            "migration_id": migration.id if migration else None,
            "migration_hash": migration.hash if migration else None,
            "username": self._server.parameters["application_name"],
            "hostname": socket.gethostname(),
            "created_at_utc": datetime.now(UTC).replace(tzinfo=None),
            "operation": operation,
        }

    def _drop_half_built(self, connection: psycopg.Connection[Any], migration: Migration) -> None:
        """Drop the invalid index that an interrupted build left: IF NOT EXISTS would take it for done."""
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

    def _record(self, backend: Any, step: Any, migration: Migration, direction: str) -> None:
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


def _recorded(connection: psycopg.Connection[Any], table: str, rows: LiteralString) -> dict[str, Any]:
    """Return what a table of ours records of each applied migration; nothing when it does not exist."""
    if connection.execute("SELECT to_regclass(%s) IS NULL", (table,)).fetchall() == [(True,)]:
        return {}
    return dict(connection.execute(rows).fetchall())


def _squashed(first: str) -> Misconfigured:
    """Return the refusal of a database whose oldest migration is older than all files here."""
    error = Misconfigured(f"this database was made before the migrations were squashed, by {first}; use an empty one")
    empty = "name an empty database in POSTGRES_DB, or delete .local/postgres if the server is embedded"
    error.add_note(f"{empty}; then run: {product.NAME} migrate up")
    return error


def _load(migration: Migration, folder: Path) -> Any:
    """Return yoyo's own migration, read. Raises BadMigration."""
    from yoyo.exceptions import BadMigration as YoyoBadMigration
    from yoyo.migrations import Migration as YoyoMigration

    step: Any = YoyoMigration(migration.id, str(migration.path), str(folder))
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


async def in_thread(migrator: Migrator, work: Callable[[], Any]) -> Any:
    """Run a blocking method of the migrator; when cancelled, stop it and wait until it has let go.

    Raises what the work raises, Unavailable when the database goes away, MigrationFailed when it denies something.
    """
    task = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        deadline = time.monotonic() + _STOP_S
        try:
            while not task.done() and time.monotonic() < deadline:  # one may come between two statements
                await asyncio.to_thread(migrator.stop)
                await asyncio.wait({task}, timeout=0.2)
        finally:
            migrator.hang_up()  # nothing, unless it still runs
            await asyncio.wait({task}, timeout=1)
        if task.done():
            task.exception()  # it was told to fail
        raise
    except psycopg.Error as error:
        reason = " ".join(str(error).split())
        if error.sqlstate == READ_ONLY:
            raise Unavailable("migrations are pending, and the database is read-only; let it accept changes") from error
        if isinstance(refusal_of(error), Unavailable):
            raise Unavailable(f"the database went away while migrating: {reason}") from error
        if isinstance(error, psycopg.errors.InsufficientPrivilege):
            raise MigrationFailed(
                f"the database does not let this role migrate: {reason}; make it the owner of the database,"
                " or let it: GRANT CREATE ON SCHEMA public"
            ) from error
        raise


@asynccontextmanager
async def migrated(p: Process) -> AsyncGenerator[None]:
    """Provide a database whose schema is current: nothing else may open before.

    While the database cannot be migrated for now, such as being read-only, this tries again for `startup_timeout`.
    A process that does not migrate is told what is pending, and goes on. What fails then fails because of it.
    Raises MigrationFailed, BadMigration, Unavailable; Conflict when something is pending and may not be applied.
    """
    migrator = Migrator(await p.use(server), p.root / "migrations")
    pending: list[Migration] = []
    if p.migrates:
        await _migrate(migrator, p.settings[PostgresSettings])
    elif pending := await in_thread(migrator, migrator.pending):
        logger.warning(_behind(pending))
    if warning := migrator.newer_release():
        logger.warning(warning)
    try:
        yield
    except psycopg.Error as error:
        if pending and error.sqlstate in _MISSING:
            up = f"{product.NAME} migrate up"
            raise Conflict(f"the schema of the database is older than this command; run: {up}") from error
        raise


async def _migrate(migrator: Migrator, settings: PostgresSettings) -> None:
    deadline = time.monotonic() + settings.startup_timeout
    while True:
        try:
            if settings.migrate:
                await in_thread(migrator, lambda: migrator.up(logger.info))
            elif pending := await in_thread(migrator, migrator.pending):
                raise Conflict(_behind(pending))
        except Unavailable as error:
            if time.monotonic() >= deadline:
                raise
            logger.warning("waiting to migrate: {}", error)
        else:
            return
        await asyncio.sleep(_AGAIN_S)


def _behind(pending: Sequence[Migration]) -> str:
    count = f"{len(pending)} migration{'s are' if len(pending) > 1 else ' is'} pending"
    return f"{count}, the first is {pending[0].id}; run: {product.NAME} migrate up"
