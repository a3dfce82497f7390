"""What the checks examine: settings as far as they are valid, and the database as far as it answers."""

import asyncio
import os
import socket
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import LiteralString, TypeVar

import psycopg

from app.kernel.config import UNSAFE, Misconfigured, PostgresSettings, Section, Settings
from app.kernel.db import Parameters, Row
from app.kernel.db.connection import Connection
from app.kernel.db.devserver.embedded import running_server
from app.kernel.db.libpq import Attempt, forget_variables
from app.kernel.db.server import Server, configured_server, embedded, too_old
from app.kernel.doctor import NotChecked, in_thread
from app.kernel.product import NAME

S = TypeVar("S", bound=Section)
_STATEMENT_MS = 3000
_LOCK_MS = 250  # checks share a connection: one that waits for a lock delays the others
_FETCH_S = 20.0


@dataclass(frozen=True, slots=True)
class Reached:
    """The server, how the attempt to connect ended, and the connection if it succeeded.

    `through` is how the attempt through `postgres.host` ended, if `postgres.direct_host` is the server.
    """

    server: Server
    attempt: Attempt
    connection: Connection | None
    through: Attempt | None = None


class Deployment:
    """A deployment as its settings describe it. `error` is what `load` raises, if anything."""

    def __init__(
        self,
        settings: Settings,
        error: Misconfigured | None,
        sections: Sequence[type[Section]],
        root: Path,
        data: Path,
        modules: Sequence[str],
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        """`root` has the folders `settings` and `migrations`, `data` that of the embedded server."""
        self.settings = settings
        self.error = error
        self.sections = sections
        self.root = root
        self.data = data
        self.schemas = ["kernel", *modules]
        self.environ = environ
        self.fetching: Misconfigured | None = None
        """Why secrets could not be fetched from their stores."""
        self._reaching: asyncio.Task[Reached] | None = None

    def __getitem__(self, section: type[S]) -> S:
        """Return a section of the settings. Raises NotChecked when it is invalid."""
        if section not in self.settings.sections:
            raise NotChecked(f"the settings of {section.section} are invalid")
        return self.settings[section]

    @property
    def environment(self) -> str:
        """APP_ENV, also when there is no such environment."""
        return self.settings.environment if self.settings.sections else self.environ.get("APP_ENV", "local")

    @property
    def is_published(self) -> bool:
        """Whether this is an environment for one machine, with published secrets and an embedded server."""
        return self.settings.environment in UNSAFE

    async def fetch(self) -> None:
        """Fetch the secrets that are in a store; what fails is in `fetching`. Safe to repeat."""
        try:
            async with asyncio.timeout(_FETCH_S):
                await in_thread(self.settings.fetch_all)
        except Misconfigured as error:
            self.fetching = error
        except TimeoutError:
            self.fetching = Misconfigured(f"the store of secrets did not answer within {_FETCH_S:g} s")

    async def reached(self) -> Reached:
        """Connect once, for all checks. Raises NotChecked when there is no server to connect to."""
        self._reaching = self._reaching or asyncio.ensure_future(self._reach())
        return await asyncio.shield(self._reaching)

    async def _reach(self) -> Reached:
        forget_variables()
        name = f"doctor@{socket.gethostname()}:{os.getpid()}"
        settings = self[PostgresSettings]
        server = configured_server(settings, name) if settings.host else self._embedded(name)
        made = await server.attempt()
        if not made.server_version or made.is_pooled or too_old(made.server_version):
            return Reached(server, made, None)
        through = await server.attempt(server.pool) if server.pool else None
        try:
            return Reached(server, made, await self.connect(server), through)
        except psycopg.Error as error:
            return Reached(server, Attempt(0, " ".join(str(error).split()), hint="try again"), None)

    def _embedded(self, name: str) -> Server:
        """Return the embedded server if it runs. Raises NotChecked."""
        try:
            running = running_server(self.data / "postgres")
        except OSError as error:
            raise NotChecked(f"the embedded PostgreSQL is not ours: {error.strerror}") from error
        if running is None:
            raise NotChecked("the embedded PostgreSQL does not run now; the first process starts it")
        return embedded(running, name)

    async def connect(self, server: Server, statement_ms: int = _STATEMENT_MS, lock_ms: int = _LOCK_MS) -> Connection:
        """Open a further connection. Raises psycopg.Error."""
        conninfo = server.reading_conninfo(statement_timeout=statement_ms, lock_timeout=lock_ms)
        return await Connection.connect(conninfo, autocommit=True)

    async def all(self, sql: LiteralString, parameters: Parameters = ()) -> list[Row]:
        """Run a statement; return its rows. Raises NotChecked when the database or a table is away or locked."""
        return (await self.table(sql, parameters))[1]

    async def table(self, sql: LiteralString, parameters: Parameters = ()) -> tuple[list[str], list[Row]]:
        """Run a statement; return the names of its columns, and its rows. Raises as `all` does."""
        connection = (await self.reached()).connection
        if connection is None:
            raise NotChecked("the database does not answer")
        try:
            cursor = await connection.execute(sql, parameters or None)
            return [column.name for column in cursor.description or ()], await cursor.fetchall()
        except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName) as error:
            raise NotChecked(f"the tables do not exist yet: {NAME} migrate up") from error
        except psycopg.errors.LockNotAvailable as error:
            raise NotChecked("a table that it reads is locked: see snapshots") from error
        except psycopg.errors.InsufficientPrivilege as error:
            raise NotChecked(f"this role may not: {error.diag.message_primary}") from error
        except psycopg.OperationalError as error:
            if connection.closed:
                raise NotChecked("the database stopped answering") from error
            raise

    async def one(self, sql: LiteralString, parameters: Parameters = ()) -> Row:
        """Run a statement; return its first row. Raises NotChecked when the database does not answer."""
        return (await self.all(sql, parameters))[0]

    @asynccontextmanager
    async def repairing(self, statement_ms: int = 60_000) -> AsyncGenerator[Connection]:
        """Open a connection for a repair, which may take longer than a check."""
        connection = await self.connect((await self.reached()).server, statement_ms, lock_ms=0)
        try:
            yield connection
        finally:
            await connection.close()

    async def close(self) -> None:
        """Close the connection. Safe to repeat."""
        task, self._reaching = self._reaching, None
        if task is None:
            return
        task.cancel()
        await asyncio.wait({task}, timeout=1)
        if task.done() and not task.cancelled() and not task.exception() and (c := task.result().connection):
            c.drop()
