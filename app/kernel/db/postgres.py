"""The database on psycopg: a pool of autocommit connections, every wait bounded."""

import asyncio
import select
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Any, LiteralString

import psycopg
from psycopg import AsyncConnection
from psycopg.pq import TransactionStatus
from psycopg_pool import AsyncConnectionPool, PoolClosed, PoolTimeout, TooManyRequests

from app.kernel.config import PostgresSettings
from app.kernel.db import Parameters, Row, Transaction
from app.kernel.db.migrations import migrated
from app.kernel.db.server import server
from app.kernel.errors import Unavailable
from app.kernel.process import Process

Connection = AsyncConnection[Row]
_GIVE_UP = (psycopg.OperationalError, psycopg.InterfaceError, PoolTimeout, TooManyRequests, PoolClosed)
_FROZEN_S = 0.5  # beyond the statement timeout: a server that did not even cancel is frozen or gone


class _Queries:
    """Statements on one connection. The server cancels what takes too long; if it does not, we hang up."""

    def __init__(self, connection: Connection, deadline_s: float) -> None:
        self._connection = connection
        self._deadline_s = deadline_s

    @property
    def failed(self) -> bool:
        """Whether the open transaction can only be rolled back: COMMIT would do that, and say nothing."""
        return self._connection.info.transaction_status == TransactionStatus.INERROR

    async def _execute(self, sql: LiteralString, parameters: Parameters) -> psycopg.AsyncCursor[Row]:
        hang_up = asyncio.get_running_loop().call_later(self._deadline_s, _hang_up, self._connection)
        try:
            return await self._connection.execute(sql, parameters or None)
        except _GIVE_UP as error:
            raise _unavailable(error) from error
        finally:
            hang_up.cancel()

    async def one(self, sql: LiteralString, parameters: Parameters = ()) -> Row | None:
        return await (await self._execute(sql, parameters)).fetchone()

    async def all(self, sql: LiteralString, parameters: Parameters = ()) -> list[Row]:
        return await (await self._execute(sql, parameters)).fetchall()

    async def run(self, sql: LiteralString, parameters: Parameters = ()) -> int:
        return (await self._execute(sql, parameters)).rowcount


class PostgresDatabase:
    """A pool of connections to one database."""

    def __init__(self, pool: AsyncConnectionPool[Connection], deadline_s: float) -> None:
        self._pool = pool
        self._deadline_s = deadline_s

    @asynccontextmanager
    async def _connection(self) -> AsyncGenerator[_Queries]:
        try:
            connection = await self._pool.getconn()
        except _GIVE_UP as error:
            raise _unavailable(error) from error
        try:
            yield _Queries(connection, self._deadline_s)
        finally:
            await self._pool.putconn(connection)

    async def one(self, sql: LiteralString, parameters: Parameters = ()) -> Row | None:
        async with self._connection() as connection:
            return await connection.one(sql, parameters)

    async def all(self, sql: LiteralString, parameters: Parameters = ()) -> list[Row]:
        async with self._connection() as connection:
            return await connection.all(sql, parameters)

    async def run(self, sql: LiteralString, parameters: Parameters = ()) -> int:
        async with self._connection() as connection:
            return await connection.run(sql, parameters)

    @asynccontextmanager
    async def begin(self) -> AsyncGenerator[Transaction]:
        async with self._connection() as tx:
            await tx.run("BEGIN")
            try:
                yield tx
                if tx.failed:
                    raise RuntimeError("a statement failed in this transaction, and the code went on; rolled back")
            except BaseException:
                with suppress(Unavailable):  # a broken connection has rolled back already
                    await tx.run("ROLLBACK")
                raise
            await tx.run("COMMIT")

    async def check(self) -> None:
        """Raise Unavailable unless the database answers."""
        await self.one("SELECT 1")


def _unavailable(error: BaseException) -> Unavailable:
    if isinstance(error, TooManyRequests):
        return Unavailable("too many requests are waiting for a database connection")
    if isinstance(error, PoolTimeout):
        return Unavailable("no database connection became free in time", retry_after_s=2)
    if isinstance(error, psycopg.errors.QueryCanceled):
        return Unavailable("the database took too long")
    if isinstance(error, psycopg.errors.LockNotAvailable | psycopg.errors.TransactionRollback):
        return Unavailable("the database is busy with a conflicting change")
    return Unavailable("the database is not available", retry_after_s=2)


def _hang_up(connection: Connection) -> None:
    """Shut the socket: the waiting statement fails at once, without asking a server that does not answer."""
    if connection.closed:
        return
    sock = socket.socket(fileno=connection.fileno())
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
    finally:
        sock.detach()


async def _check(connection: Connection) -> None:
    """Refuse a connection that the server has closed. An idle one has nothing to read, so no round trip is needed."""
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    if poll.poll(0):
        await AsyncConnectionPool.check_connection(connection)


@asynccontextmanager
async def database(p: Process) -> AsyncGenerator[PostgresDatabase]:
    """Provide the database, migrated. Raises what `server` and `migrated` raise."""
    settings = p.settings[PostgresSettings]
    found = await p.use(server)
    await p.use(migrated)
    conninfo = found.conninfo(
        statement_timeout=round(settings.statement_timeout * 1000),
        lock_timeout=round(settings.lock_timeout * 1000),
        idle_in_transaction_session_timeout=60_000,
    )
    kwargs: dict[str, Any] = {"autocommit": True}
    pool = AsyncConnectionPool[Connection](
        conninfo,
        kwargs=kwargs,
        min_size=1,
        max_size=settings.pool_size,
        timeout=settings.pool_timeout,
        max_waiting=settings.pool_queue,
        check=_check,
        # a lost connection is replaced when somebody asks for one, not after an ever longer backoff
        reconnect_timeout=1,
        open=False,
    )
    async with pool:
        opened = PostgresDatabase(pool, settings.statement_timeout + _FROZEN_S)
        p.checks["database"] = opened.check
        yield opened
        p.checks.pop("database")
