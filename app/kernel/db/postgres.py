"""The database on psycopg: a pool of autocommit connections, every wait bounded."""

import asyncio
import functools
import select
import socket
import time
import traceback
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import cached_property
from typing import Any, LiteralString, NamedTuple, Self, TypeVar

import psycopg
from loguru import logger
from opentelemetry.trace import SpanKind
from psycopg import AsyncConnection
from psycopg.pq import TransactionStatus
from psycopg_pool import AsyncConnectionPool

from app.kernel.config import PostgresSettings
from app.kernel.db import Parameters, Row, Transaction
from app.kernel.db.migrations import migrated
from app.kernel.db.refusals import refusal_of
from app.kernel.db.server import server
from app.kernel.deadlines import Deadlines
from app.kernel.errors import Invalid, Unavailable
from app.kernel.process import Process
from app.kernel.telemetry import metrics
from app.kernel.telemetry.traces import span

T = TypeVar("T")

_CANCEL_S = 1.0
_FROZEN_S = 0.5  # beyond the statement timeout: a server that did not even cancel is frozen or gone


class Connection(AsyncConnection[Row]):
    """A connection. When its task is cancelled it asks the server to cancel, which may be frozen."""

    @classmethod
    async def connect(cls, *args: Any, **kwargs: Any) -> Self:
        try:
            return await super().connect(*args, **kwargs)
        except psycopg.OperationalError as error:
            _forget_attempt(error)
            raise

    @cached_property
    def statements(self) -> psycopg.AsyncCursor[Row]:
        """The cursor of all its statements. Each is read to its end at once; a cursor for each costs a quarter more."""
        return self.cursor()

    def is_readable(self) -> bool:
        """Return whether the server has said something, or hung up."""
        return not self.closed and bool(self._poll.poll(0))

    @cached_property
    def _poll(self) -> select.poll:
        poll = select.poll()
        poll.register(self.fileno(), select.POLLIN)
        return poll

    async def cancel_safe(self, *, timeout: float = _CANCEL_S) -> None:  # noqa: ASYNC109 - the signature is psycopg's
        await super().cancel_safe(timeout=min(timeout, _CANCEL_S))


class _Queries:
    """Statements on one connection. The server cancels what takes too long; if it does not, we hang up."""

    def __init__(self, connection: Connection, deadlines: Deadlines) -> None:
        self._connection = connection
        self._deadlines = deadlines
        self._ended = False
        self.outdated = False

    @property
    def transaction(self) -> TransactionStatus:
        """The state of the connection; INERROR can only be rolled back: COMMIT would do that, and say nothing."""
        return self._connection.info.transaction_status

    def end(self) -> None:
        """Refuse further statements: the connection may be somebody else's by then."""
        self._ended = True

    async def _execute(self, sql: LiteralString, parameters: Parameters) -> psycopg.AsyncCursor[Row]:
        statements, operation = self._connection.statements, _first_word(sql)
        with span(operation, SpanKind.CLIENT, **{"db.system.name": "postgresql", "db.query.text": sql}):
            return await self._bounded(operation, lambda: statements.execute(sql, parameters or None))

    async def _bounded(self, operation: str, work: Callable[[], Awaitable[T]]) -> T:
        if self._ended:
            raise RuntimeError("this transaction has ended; open another one with begin()")

        again: asyncio.TimerHandle | None = None

        def give_up() -> None:
            nonlocal again
            if self._connection.is_readable():  # it was this process that slept: the answer is here
                again = asyncio.get_running_loop().call_later(_FROZEN_S, give_up)
            else:
                _hang_up(self._connection)

        self._deadlines.begin(give_up)
        started, outcome, asked = time.perf_counter(), "failed", _cancellations()
        try:
            result = await work()
            _raise_lost(asked)
            outcome = "done"
            return result
        except psycopg.errors.FeatureNotSupported as error:
            if error.diag.source_function != "RevalidateCachedQuery":  # its text is in the server's language
                raise
            self.outdated = True
            raise Unavailable("the schema has just changed") from error
        except (psycopg.Error, UnicodeEncodeError) as error:
            if (refusal := refusal_of(error)) is None:
                raise
            if isinstance(refusal, Invalid):
                logger.warning("the database refused what a check should have: {}", refusal)
            raise refusal from error
        finally:
            self._deadlines.end(give_up)
            if again is not None:
                again.cancel()
            metrics.statement_ended(operation, outcome, time.perf_counter() - started)

    async def one(self, sql: LiteralString, parameters: Parameters = ()) -> Row | None:
        return await (await self._execute(sql, parameters)).fetchone()

    async def all(self, sql: LiteralString, parameters: Parameters = ()) -> list[Row]:
        return await (await self._execute(sql, parameters)).fetchall()

    async def run(self, sql: LiteralString, parameters: Parameters = ()) -> int:
        return (await self._execute(sql, parameters)).rowcount

    async def copy(self, sql: LiteralString, rows: Iterable[Sequence[Any]]) -> None:
        async def write() -> None:
            async with self._connection.cursor() as cursor, cursor.copy(sql) as copy:
                for row in rows:
                    await copy.write_row(row)

        await self._bounded("COPY", write)


class PoolUse(NamedTuple):
    """How much of a pool is in use: connections taken and idle, requests that wait for one, the most there may be."""

    used: int
    idle: int
    waiting: int
    most: int


class PostgresDatabase:
    """A pool of connections to one database."""

    def __init__(self, pool: AsyncConnectionPool[Connection], deadline_s: float) -> None:
        self._pool = pool
        self._deadlines = Deadlines(deadline_s)

    @asynccontextmanager
    async def _connection(self) -> AsyncGenerator[_Queries]:
        queries, connection = await self._alive()
        try:
            yield queries
        finally:
            queries.end()
            await self._give_back(connection, queries)

    async def _alive(self) -> tuple[_Queries, Connection]:
        """Take a connection. Those that the server closed meanwhile are replaced, all of them if need be.

        The pool's own `check` waits a second after the second dead one, so a restarted server would cost the next
        requests their connection. An idle connection has nothing to read; only if it has, a round trip is needed.
        """
        deadline = time.monotonic() + self._pool.timeout
        while True:
            asked = _cancellations()
            try:
                connection = await self._pool.getconn(deadline - time.monotonic())
            except psycopg.Error as error:  # closed, full or too slow
                raise refusal_of(error) or Unavailable from error
            queries = _Queries(connection, self._deadlines)
            try:
                _raise_lost(asked)
                if connection.closed or connection.is_readable():
                    await queries.run("SELECT 1")
            except (Unavailable, psycopg.Error):
                await connection.close()
                await self._give_back(connection, queries)
            except BaseException:
                await self._give_back(connection, queries)
                raise
            else:
                return queries, connection

    async def _give_back(self, connection: Connection, queries: _Queries) -> None:
        if queries.outdated:  # and so are the others, which prepared the same statements
            await self._pool.drain()
        if queries.outdated or queries.transaction != TransactionStatus.IDLE:
            await connection.close()  # the pool would wait for a rollback, however long it takes
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

    async def copy(self, sql: LiteralString, rows: Iterable[Sequence[Any]]) -> None:
        async with self._connection() as connection:
            await connection.copy(sql, rows)

    @asynccontextmanager
    async def begin(self) -> AsyncGenerator[Transaction]:
        async with self._connection() as tx:
            try:
                await tx.run("BEGIN")
                yield tx
                if tx.transaction == TransactionStatus.INERROR:
                    raise RuntimeError("a statement failed in this transaction, and the code went on; rolled back")
                if tx.transaction == TransactionStatus.IDLE:
                    raise RuntimeError("the code ended this transaction itself; what begin() opens, it ends")
            except BaseException:
                if tx.transaction in (TransactionStatus.INTRANS, TransactionStatus.INERROR):
                    with suppress(Unavailable):  # a broken connection has rolled back already
                        await tx.run("ROLLBACK")
                raise
            lost_before = tx.transaction == TransactionStatus.UNKNOWN
            try:
                await tx.run("COMMIT")
            except Unavailable as error:
                if tx.transaction == TransactionStatus.UNKNOWN and not lost_before:
                    raise Unavailable(
                        "the database went away during the commit; the change may have been made", retry_after_s=2
                    ) from error
                raise

    async def check(self) -> None:
        """Raise Unavailable unless the database answers."""
        await self.one("SELECT 1")

    def pool_use(self) -> PoolUse:
        """Return how much of the pool is in use at this moment. Safe to repeat."""
        stats = self._pool.get_stats()
        size, idle = stats.get("pool_size", 0), stats.get("pool_available", 0)
        return PoolUse(size - idle, idle, stats.get("requests_waiting", 0), self._pool.max_size)


def _cancellations() -> int:
    """Return how often the task was asked to stop."""
    task = asyncio.current_task()
    return task.cancelling() if task else 0


def _raise_lost(asked: int) -> None:
    """Raise CancelledError if the task was asked to stop since, and nobody told it.

    Until Python 3.12, asyncio.wait_for forgets it when what it waits for comes at the same moment, and both psycopg and
    its pool wait so: the request would go on, and nothing would stop it any more.
    """
    if _cancellations() > asked:
        raise asyncio.CancelledError


@functools.cache
def _first_word(sql: LiteralString) -> str:
    """Return what a statement begins with: a bounded number of words, since statements are literals."""
    return sql.split(None, 1)[0].upper()


def _forget_attempt(error: BaseException) -> None:
    """Close the socket of a connection attempt that was given up.

    psycopg leaves it to the generator that was connecting, which lives on in the traceback of the error: with a frozen
    server, every attempt would cost it a connection until the error is collected as garbage.
    """
    following: BaseException | None = error
    while following is not None:
        traceback.clear_frames(following.__traceback__)
        following = following.__cause__ or following.__context__


def _hang_up(connection: Connection) -> None:
    """Shut the socket: the waiting statement fails at once, without asking a server that does not answer."""
    with suppress(psycopg.Error, OSError):  # closed meanwhile
        sock = socket.socket(fileno=connection.fileno())
        try:
            sock.shutdown(socket.SHUT_RDWR)
        finally:
            sock.detach()


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
        connection_class=Connection,
        kwargs=kwargs,
        min_size=1,
        max_size=settings.pool_size,
        timeout=settings.pool_timeout,
        max_waiting=settings.pool_queue,
        # a lost connection is replaced when somebody asks for one, not after an ever longer backoff
        reconnect_timeout=1,
        open=False,
    )
    async with pool:
        opened = PostgresDatabase(pool, settings.statement_timeout + _FROZEN_S)
        p.checks["database"] = opened.check
        forget = metrics.before_scrape(lambda: metrics.connections(*opened.pool_use()))
        yield opened
        forget()
        p.checks.pop("database")
