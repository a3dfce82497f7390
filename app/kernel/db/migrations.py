"""Migrations: yoyo applies SQL files, each with its record and checksum in one transaction.

A file is `{yyyymmddHHMMSS}_{module}_{description}.sql` with a `.rollback.sql` beside it. The lock is an advisory lock
on the connection that migrates, so a killed migrator blocks nobody. Who waits polls: a blocked `pg_advisory_lock`
would itself make CREATE INDEX CONCURRENTLY wait. That statement needs `-- transactional: false` and a file of its own;
what an interrupted one left is dropped before it runs again.
"""

import asyncio
import contextlib
import hashlib
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
from typing import Any, Literal

import psycopg
from loguru import logger
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from app.kernel import product
from app.kernel.config import PostgresSettings
from app.kernel.db.connection import hang_up
from app.kernel.db.refusals import READ_ONLY, refusal_of
from app.kernel.db.server import Server, server
from app.kernel.errors import Conflict, Invalid, Refusal, Unavailable
from app.kernel.process import Process

NAME = re.compile(r"(?P<timestamp>\d{14})_(?P<module>[a-z][a-z0-9]*)_(?P<description>[a-z0-9]+(?:_[a-z0-9]+)*)")
TABLE = "_migrations"
_LOCK_KEY = 0x6D69_6772_6174_6521  # "migrate!"
_WAIT_S = 3600.0
_POLL_S = 0.1
_STOP_S = 4.0
_AGAIN_S = 1.0
_LONGEST_NAME = 100
_MISSING = ("42P01", "42703", "42883", "3F000")  # SQLSTATE of a missing table, column, function or schema
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


class BadMigration(Invalid):
    """A migration file cannot be used."""

    code = "BAD_MIGRATION"
    title = "A migration file cannot be used"


@dataclass(frozen=True, slots=True)
class Migration:
    """A file in the folder of migrations."""

    id: str
    module: str
    path: Path
    sha256: str


@dataclass(frozen=True, slots=True)
class Status:
    """One migration in files and database. `unknown` is applied, but has no file here: a newer release applied it."""

    id: str
    state: State
    applied_at: datetime | None


def read(folder: Path) -> list[Migration]:
    """Return the migrations of a folder, in order. Raises BadMigration for a bad name or a missing rollback."""
    found: list[Migration] = []
    for path in sorted(folder.glob("*.sql")):
        if path.name.endswith(".rollback.sql"):
            continue
        match = NAME.fullmatch(path.stem)
        if match is None:
            raise BadMigration(f"{path.name}: the name must be {{yyyymmddHHMMSS}}_{{module}}_{{description}}.sql")
        if not path.with_suffix(".rollback.sql").is_file():
            raise BadMigration(f"{path.name}: {path.stem}.rollback.sql is missing beside it")
        text = path.read_bytes().replace(b"\r\n", b"\n")
        found.append(Migration(path.stem, match["module"], path, hashlib.sha256(text).hexdigest()))
    return found


def create(folder: Path, module: str, description: str, modules: Sequence[str]) -> tuple[Path, Path]:
    """Make an empty migration and its rollback; return both paths. Raises Invalid for a name that does not fit."""
    words = re.sub(r"[^a-z0-9]+", "_", description.lower()).strip("_")
    if module not in modules:
        raise Invalid(f"unknown module {module!r}; one of {', '.join(modules)}")
    if not words:
        raise Invalid("the description needs a letter or a digit, such as: add_user_roles")
    if len(words) > _LONGEST_NAME:
        raise Invalid(f"the description is longer than {_LONGEST_NAME} characters; the rest belongs into the file")
    newest = max((int(migration.id[:14]) for migration in read(folder)), default=0)
    # after the newest, whatever the clock says: two in one second, or one from a clock ahead, would have no order
    moment = max(int(datetime.now(UTC).strftime("%Y%m%d%H%M%S")), newest + 1)
    up = folder / f"{moment}_{module}_{words}.sql"
    down = up.with_suffix(".rollback.sql")
    up.write_text(f"-- {module}: {' '.join(description.split())}\n", encoding="utf-8")
    down.write_text(f"-- undoes {up.name}\n", encoding="utf-8")
    return up, down


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
        tables = {
            name
            for (name,) in connection.execute(
                "SELECT table_name FROM information_schema.tables WHERE table_schema = current_schema()"
                " AND table_name IN ('_migrations', '_migration_checksums')"
            )
        }
        applied: dict[str, datetime] = {}
        checksums: dict[str, str] = {}
        if "_migrations" in tables:
            applied = {
                name: when.replace(tzinfo=UTC)
                for name, when in connection.execute("SELECT migration_id, applied_at_utc FROM _migrations")
            }
        if "_migration_checksums" in tables:
            checksums = dict(connection.execute("SELECT migration_id, sha256 FROM _migration_checksums").fetchall())
        files = {migration.id: migration for migration in read(self._folder)}
        found: list[Status] = []
        for name in sorted(files.keys() | applied.keys()):
            state: State = "applied"
            if name not in applied:
                state = "pending"
            elif name not in files:
                state = "unknown"
            elif checksums.get(name, files[name].sha256) != files[name].sha256:
                state = "edited"
            found.append(Status(name, state, applied.get(name)))
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
            lines = migration.path.read_bytes().splitlines()
            if all(not line.strip() or line.lstrip().startswith(b"--") for line in lines):
                raise BadMigration(f"{migration.path.name} has no statement yet; write it, or remove it")
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

    def down(self, report: Callable[[str], None]) -> str | None:
        """Roll back the newest applied migration; return its id, or None when there is none. Raises as `up` does."""
        with self._locked(report) as backend:
            applied = [s for s in self._status(backend.connection) if s.applied_at is not None]
            if not applied:
                return None
            newest = max(applied, key=lambda status: status.id)
            files = {migration.id: migration for migration in read(self._folder)}
            if newest.id not in files:
                raise BadMigration(f"{newest.id} has no file here; roll back with the release that applied it")
            self._step(backend, files[newest.id], "rollback")
            report(f"rolled back {newest.id}")
            return newest.id

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
