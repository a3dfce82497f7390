"""Applies migrations under an advisory lock, which is released with the connection of a killed process.

Other processes poll the lock, because a blocked `pg_advisory_lock` would block CREATE INDEX CONCURRENTLY.
"""

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, LiteralString

import psycopg
from loguru import logger

from app.kernel.config import PostgresSettings
from app.kernel.db.connection import hang_up
from app.kernel.db.migrations.files import Migration, read
from app.kernel.db.migrations.plan import UP, Status, behind, compare, newer_release, to_apply, to_roll_back
from app.kernel.db.migrations.steps import CHECKSUMS, TABLE, MigrationFailed, connect, load, prepare, run
from app.kernel.db.refusals import READ_ONLY, DatabaseUnavailable, read_only, refusal_of
from app.kernel.db.server import Server, server
from app.kernel.errors import Conflict, Unavailable
from app.kernel.process import Process
from app.kernel.product import NAME

LOCK_KEY = 0x6D69_6772_6174_6521  # "migrate!"
_WAIT_S = 3600.0
_POLL_S = 0.1
_STOP_S = 4.0
_AGAIN_S = 1.0
_MISSING = ("42P01", "42703", "42883", "3F000")  # SQLSTATE of a missing table, column, function or schema


class Migrator:
    """Migrates one database. Its methods block; other threads may call `stop` and `hang_up`.

    They raise Misconfigured for a database from before the squash, BadMigration, and psycopg.Error. `warning` is the
    message about migrations that are unknown to this release, after the last check.
    """

    def __init__(self, server: Server, folder: Path) -> None:
        self._server = server
        self._folder = folder
        self._stopped = threading.Event()
        self._connection: psycopg.Connection[Any] | None = None
        self.warning = ""

    def status(self) -> list[Status]:
        """Return every migration with its state, in order. Read-only, without a lock."""
        with psycopg.connect(self._server.reading_conninfo(statement_timeout=10_000), autocommit=True) as connection:
            self._connection = connection
            return self._status(connection)

    def _status(self, connection: psycopg.Connection[Any]) -> list[Status]:
        applied = _recorded(connection, TABLE, "SELECT migration_id, applied_at_utc FROM _migrations")
        checksums = _recorded(connection, CHECKSUMS, "SELECT migration_id, sha256 FROM _migration_checksums")
        found = compare(read(self._folder), applied, checksums)
        self.warning = newer_release(found)
        return found

    def pending(self) -> list[Migration]:
        """Return the migrations that `up` would apply, in order."""
        return to_apply(self.status())

    def up(self, report: Callable[[str], None], on_wait: Callable[[str], None] | None = None) -> list[str]:
        """Apply pending migrations in order; return their ids. Safe to repeat, and to run concurrently.

        Raises MigrationFailed, and Unavailable when another migrator does not finish.
        """
        if not self.pending():  # the usual start: no lock, no yoyo
            return []
        with self._locked(on_wait or report) as backend:
            todo = to_apply(self._status(backend.connection))
            for migration in todo:
                started = time.monotonic()
                self._check_stopped()
                run(backend, migration, "apply")
                report(f"applied {migration.id} in {time.monotonic() - started:.2f} s")
            return [migration.id for migration in todo]

    def last(self, module: str = "") -> list[Migration]:
        """Return the migrations that `down` would roll back, in order. Raises as `to_roll_back` does."""
        return to_roll_back(self.status(), module)

    def down(self, report: Callable[[str], None], module: str = "") -> list[str]:
        """Roll back the newest applied migration, or all of a module, newest first; return the ids.

        Atomic, unless one of them is not transactional. Raises as `up` and `last` do; Conflict when another schema
        depends on this one.
        """
        self.last(module)  # before the lock, which creates tables
        with self._locked(report) as backend:
            todo = to_roll_back(self._status(backend.connection), module)
            is_atomic = all(load(migration).use_transactions for migration in todo)
            with backend.transaction() if is_atomic else contextlib.nullcontext():
                for migration in todo:
                    self._check_stopped()
                    run(backend, migration, "rollback")
            for migration in todo:
                report(f"rolled back {migration.id}")
            return [migration.id for migration in todo]

    def stop(self) -> None:
        """Stop waiting, start no further migration, and cancel the running statement. Safe to repeat."""
        self._stopped.set()
        if (connection := self._connection) is not None:
            with contextlib.suppress(psycopg.Error):
                connection.cancel_safe(timeout=1)

    def hang_up(self) -> None:
        """Disconnect from an unresponsive server, which rolls back when it notices. Safe to repeat."""
        self._stopped.set()
        if (connection := self._connection) is not None:
            hang_up(connection)

    @contextlib.contextmanager
    def _locked(self, report: Callable[[str], None]) -> Generator[Any]:
        """Yield a yoyo backend (not annotated, hence Any) that holds the lock."""
        backend = connect(self._server)
        self._connection = backend.connection
        with contextlib.closing(backend.connection):
            self._lock(backend.connection, report)
            prepare(backend)
            yield backend

    def _lock(self, connection: psycopg.Connection[Any], report: Callable[[str], None]) -> None:
        deadline, told = time.monotonic() + _WAIT_S, time.monotonic()
        while not connection.execute("SELECT pg_try_advisory_lock(%s)", (LOCK_KEY,)).fetchall()[0][0]:
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"another process has been migrating for {_WAIT_S / 60:.0f} minutes",
                    hint=f"{NAME} doctor --only migrations",
                )
            if time.monotonic() - told > 2:
                told = time.monotonic()
                report(f"waiting for {_holder(connection)} to finish migrating")
            if self._stopped.wait(_POLL_S):
                raise Unavailable("stopped while waiting for another migrator")
        self._check_stopped()

    def _check_stopped(self) -> None:
        if self._stopped.is_set():
            raise Unavailable("stopped before all migrations were applied")


def _recorded(connection: psycopg.Connection[Any], table: str, rows: LiteralString) -> dict[str, Any]:
    """Return the rows of a table by migration id; empty when the table does not exist."""
    if connection.execute("SELECT to_regclass(%s) IS NULL", (table,)).fetchall() == [(True,)]:
        return {}
    return dict(connection.execute(rows).fetchall())


def _holder(connection: psycopg.Connection[Any]) -> str:
    """Return the name of the process that holds the lock."""
    row = connection.execute(
        "SELECT a.application_name FROM pg_locks l JOIN pg_stat_activity a USING (pid)"
        " WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1"
        " AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        " AND (l.classid::bigint << 32 | l.objid::bigint) = %s",
        (LOCK_KEY,),
    ).fetchone()
    return row[0] if row and row[0] else "another process"


async def in_thread(migrator: Migrator, work: Callable[[], Any]) -> Any:
    """Run a blocking method of the migrator; when cancelled, stop it and wait until it has closed its connection.

    Raises as the method does, Unavailable when the connection is lost, MigrationFailed when a privilege is missing.
    """
    task = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        deadline = time.monotonic() + _STOP_S
        try:
            while not task.done() and time.monotonic() < deadline:  # it may be between two statements
                await asyncio.to_thread(migrator.stop)
                await asyncio.wait({task}, timeout=0.2)
        finally:
            migrator.hang_up()  # no effect unless it still runs
            await asyncio.wait({task}, timeout=1)
        if task.done():
            task.exception()  # stopped on purpose
        raise
    except psycopg.Error as error:
        reason = " ".join(str(error).split())
        if error.sqlstate == READ_ONLY:
            raise Unavailable("migrations are pending, and the database is read-only", hint=read_only().hint) from error
        if isinstance(refusal_of(error), Unavailable):
            raise DatabaseUnavailable(f"the connection was lost while migrating: {reason}") from error
        if isinstance(error, psycopg.errors.InsufficientPrivilege):
            raise MigrationFailed(
                f"the database does not let this role migrate: {reason}; make it the owner of the database,"
                " or let it: GRANT CREATE ON SCHEMA public",
                hint=f"{NAME} doctor --only privileges",
            ) from error
        raise


@asynccontextmanager
async def migrated(p: Process) -> AsyncGenerator[None]:
    """Provide a database with a current schema, before any other provider uses it.

    Retries for `startup_timeout` while the database cannot be migrated, for example because it is read-only. A process
    that does not migrate logs pending migrations and continues; its errors then mention them.
    Raises MigrationFailed, BadMigration, Misconfigured, Unavailable; Conflict for pending migrations that this process
    may not apply.
    """
    migrator = Migrator(await p.use(server), p.root / "migrations")
    pending: list[Migration] = []
    if p.migrates:
        await _migrate(migrator, p.settings[PostgresSettings], is_brief=p.launch.on_terminal)
    elif pending := await in_thread(migrator, migrator.pending):
        logger.warning("{}; run: {}", behind(pending), UP)
    if migrator.warning:
        logger.warning(migrator.warning)
    try:
        yield
    except psycopg.Error as error:
        if pending and error.sqlstate in _MISSING:
            raise Unavailable("the schema of the database is older than this command", hint=UP) from error
        raise


async def _migrate(migrator: Migrator, settings: PostgresSettings, *, is_brief: bool) -> None:
    report = logger.debug if is_brief else logger.info
    deadline = time.monotonic() + settings.startup_timeout
    while True:
        try:
            if settings.migrate:
                applied = await in_thread(migrator, lambda: migrator.up(report, logger.info))
                if applied and is_brief:
                    logger.info("schema: {} migration{} applied", len(applied), "s" if len(applied) > 1 else "")
            elif pending := await in_thread(migrator, migrator.pending):
                raise Conflict(behind(pending), hint=UP)
        except Unavailable as error:
            if time.monotonic() >= deadline:
                raise
            logger.warning("waiting to migrate: {}", error)
        else:
            return
        await asyncio.sleep(_AGAIN_S)
