"""The database on psycopg: a pool of autocommit connections; every wait has a timeout."""

import asyncio
import functools
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, LiteralString, TypeVar

import psycopg
from loguru import logger
from opentelemetry.trace import SpanKind
from psycopg.pq import TransactionStatus

from app.kernel.concurrency import Deadlines, Shared
from app.kernel.config import PostgresSettings
from app.kernel.db import Parameters, Row, Transaction
from app.kernel.db.connection import Connection
from app.kernel.db.migrations.migrator import migrated
from app.kernel.db.notifier import NOTIFY, Notifier
from app.kernel.db.pool import Pool, PoolUse
from app.kernel.db.refusals import DISK_FULL, READ_ONLY, DatabaseUnavailable, read_only, refusal_of
from app.kernel.db.server import server
from app.kernel.errors import Constraints, Invalid, Unavailable
from app.kernel.process import Process
from app.kernel.telemetry import metrics
from app.kernel.telemetry.traces import span

T = TypeVar("T")

_FROZEN_S = 0.5  # beyond the statement timeout: a server that did not cancel the statement is frozen or unreachable
_TRUSTED_S = 1.0  # the network may have silently dropped a connection that was idle for longer
_PROBE_S = 1.0
_UNCONFIRMED = "no synchronous standby confirmed the commit; the change was made, and may be lost in a failover"

# whether this session is read-only, or a new one would be: a changed setting does not affect open sessions
_CHECK = """
    SELECT current_setting('transaction_read_only')::bool OR coalesce((
        SELECT split_part(setting, '=', 2)::bool
        FROM pg_catalog.pg_db_role_setting s
            JOIN pg_catalog.pg_database d ON d.datname = current_database() AND s.setdatabase IN (0, d.oid)
            JOIN pg_catalog.pg_roles r ON r.rolname = session_user AND s.setrole IN (0, r.oid),
            unnest(s.setconfig) AS setting
        WHERE split_part(setting, '=', 1) = 'default_transaction_read_only'
        ORDER BY s.setrole = 0, s.setdatabase = 0 LIMIT 1
    ), false)
"""
# allocates a page on the disk of the database, and rolls back
_WRITE = """
    BEGIN;
    SET LOCAL temp_tablespaces = '';
    CREATE TEMPORARY TABLE app_write_check AS SELECT repeat('x', 1000) AS filler;
    ROLLBACK
"""


class _Queries:
    """Statements on one connection. The server cancels slow ones; if it does not, the connection is closed."""

    def __init__(self, connection: Connection, deadlines: Deadlines, constraints: Constraints) -> None:
        self._connection = connection
        self._constraints = constraints
        self._deadlines = deadlines
        self._ended = False
        self.outdated = False
        self.refused_with = ""

    @property
    def transaction(self) -> TransactionStatus:
        """State of the connection. COMMIT would roll INERROR back without an error."""
        return self._connection.info.transaction_status

    def end(self) -> None:
        """Refuse further statements, because the connection may serve another request."""
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
            if self._connection.is_readable():  # this process was suspended, and the answer has arrived
                again = asyncio.get_running_loop().call_later(_FROZEN_S, give_up)
            else:
                self._connection.hang_up()

        self._connection.is_unconfirmed = False
        self._deadlines.begin(give_up)
        started, outcome, asked = time.perf_counter(), "failed", _cancellations()
        try:
            result = await work()
            _raise_lost(asked)
            self._raise_unconfirmed()
            outcome = "done"
            return result
        except psycopg.errors.FeatureNotSupported as error:
            if error.diag.source_function != "RevalidateCachedQuery":  # the message is localised
                raise
            self.outdated = True
            raise DatabaseUnavailable("the schema has just changed") from error
        except (psycopg.Error, UnicodeEncodeError) as error:
            if (refusal := refusal_of(error, self._constraints)) is None:
                raise
            if isinstance(refusal, Invalid):
                logger.warning("the database refused input that validation should have refused: {}", refusal)
            self.refused_with = getattr(error, "sqlstate", None) or ""
            raise refusal from error
        finally:
            self._deadlines.end(give_up)
            if again is not None:
                again.cancel()
            metrics.statement_ended(operation, outcome, time.perf_counter() - started)

    def _raise_unconfirmed(self) -> None:
        if self._connection.is_unconfirmed:
            raise DatabaseUnavailable(_UNCONFIRMED, retry_after_s=2)

    async def commit(self) -> None:
        """Commit, at less cost than as a statement of a cursor."""
        with span("COMMIT", SpanKind.CLIENT, **{"db.system.name": "postgresql", "db.query.text": "COMMIT"}):
            await self._bounded("COMMIT", self._connection.commit)

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


class PostgresDatabase:
    """A pool of connections to one database."""

    def __init__(
        self, pool: Pool, wait_s: float, statement_s: float, constraints: Constraints, begin: LiteralString = "BEGIN"
    ) -> None:
        """`begin` is the statement that begins a transaction."""
        self._pool = pool
        self._begin: LiteralString = begin
        self._constraints = constraints
        self._wait_s = wait_s
        self._deadlines = Deadlines(statement_s + _FROZEN_S)
        self._probing = Deadlines(_PROBE_S)
        self._disk_full = False
        self.invalidated: Callable[[str], None] | None = None
        """Called with what a transaction has invalidated in caches, before anybody learns that it has ended."""
        self.check = Shared(self._check)
        self.notifier = Notifier(
            lambda channels, payloads: self.run(NOTIFY, {"channels": channels, "payloads": payloads})
        )

    @asynccontextmanager
    async def _connection(self, *, urgent: bool = False) -> AsyncGenerator[_Queries]:
        connection = await self._alive(urgent)
        queries = _Queries(connection, self._deadlines, self._constraints)
        try:
            yield queries
        finally:
            queries.end()
            if connection.invalidations:
                self._invalidate(connection)
            notifications, connection.notifications = connection.notifications, []
            self._give_back(connection, queries)
            if notifications:
                self.notifier.add(notifications)

    async def _alive(self, urgent: bool) -> Connection:
        """Check a working connection out. Connections that the server has closed are replaced.

        A round trip is needed only if the connection was idle for long or is readable.
        """
        deadline: float | None = None
        while True:
            connection = self._pool.take_idle()
            if connection is None:
                now = time.monotonic()
                deadline = deadline or now + self._wait_s
                connection = await self._pool.take(deadline - now, urgent=urgent)
            if time.monotonic() - connection.idle_since < _TRUSTED_S and not connection.is_readable():
                return connection
            deadline = deadline or time.monotonic() + self._wait_s
            queries = _Queries(connection, self._probing, self._constraints)
            try:
                await queries.run("SELECT 1")
            except (Unavailable, psycopg.Error):
                connection.drop()
                self._give_back(connection, queries)
            except BaseException:
                self._give_back(connection, queries)
                raise
            else:
                return connection

    def _invalidate(self, connection: Connection) -> None:
        invalidations, connection.invalidations = connection.invalidations, []
        if self.invalidated is not None:
            for payload in invalidations:
                self.invalidated(payload)

    def _give_back(self, connection: Connection, queries: _Queries) -> None:
        if queries.outdated or queries.refused_with == READ_ONLY:  # the others are, too
            self._pool.renew()
        if queries.refused_with == DISK_FULL:
            self._disk_full = True
        if connection.mute:  # the others may be, too
            self._pool.drop_idle()
        self._pool.give_back(connection)

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
                await tx.run(self._begin)
                yield tx
                if tx.transaction == TransactionStatus.INERROR:
                    raise RuntimeError("a statement failed in this transaction, and the code continued; rolled back")
                if tx.transaction == TransactionStatus.IDLE:
                    raise RuntimeError("the code ended this transaction itself; only begin() may end it")
            except BaseException:
                if tx.transaction in (TransactionStatus.INTRANS, TransactionStatus.INERROR):
                    with suppress(Unavailable):  # a broken connection has already rolled back
                        await tx.run("ROLLBACK")
                raise
            lost_before = tx.transaction == TransactionStatus.UNKNOWN
            try:
                await tx.commit()
            except Unavailable as error:
                if tx.transaction == TransactionStatus.UNKNOWN and not lost_before:
                    raise DatabaseUnavailable(
                        "the connection was lost during the commit; the change may have been committed", retry_after_s=2
                    ) from error
                raise

    async def _check(self) -> None:
        """Raise Unavailable unless the database answers and accepts writes. Served before other requests."""
        async with self._connection(urgent=True) as connection:
            if await connection.one(_CHECK) != (False,):
                connection.refused_with = READ_ONLY
                raise read_only()
            if self._disk_full:
                with suppress(psycopg.errors.InsufficientPrivilege):  # writes cannot be checked
                    await connection.run(_WRITE)
                self._disk_full = False

    def pool_use(self) -> PoolUse:
        """Return the current state of the pool."""
        return self._pool.use()


class PooledDatabase(PostgresDatabase):
    """A pool of connections to a pooler such as PgBouncer, where each transaction may have another session.

    A statement alone is a transaction too, because only transactions have our settings.
    """

    async def one(self, sql: LiteralString, parameters: Parameters = ()) -> Row | None:
        async with self.begin() as tx:
            return await tx.one(sql, parameters)

    async def all(self, sql: LiteralString, parameters: Parameters = ()) -> list[Row]:
        async with self.begin() as tx:
            return await tx.all(sql, parameters)

    async def run(self, sql: LiteralString, parameters: Parameters = ()) -> int:
        async with self.begin() as tx:
            return await tx.run(sql, parameters)

    async def copy(self, sql: LiteralString, rows: Iterable[Sequence[Any]]) -> None:
        async with self.begin() as tx:
            await tx.copy(sql, rows)


def _cancellations() -> int:
    """Return the number of cancellation requests of the task."""
    task = asyncio.current_task()
    return task.cancelling() if task else 0


def _raise_lost(asked: int) -> None:
    """Raise CancelledError if a cancellation of the task was lost.

    Until Python 3.12, asyncio.wait_for, which psycopg uses, loses a cancellation that arrives together with the result.
    """
    if _cancellations() > asked:
        raise asyncio.CancelledError


@functools.cache
def _first_word(sql: LiteralString) -> str:
    """Return the first word of a statement. Cached: statements are literals, so their number is limited."""
    return sql.split(None, 1)[0].upper()


@asynccontextmanager
async def database(p: Process) -> AsyncGenerator[PostgresDatabase]:
    """Provide the migrated database. Raises as `server` and `migrated` do."""
    settings = p.settings[PostgresSettings]
    found = await p.use(server)
    await p.use(migrated)
    timeouts = {
        "statement_timeout": round(settings.statement_timeout * 1000),
        "lock_timeout": round(settings.lock_timeout * 1000),
    }
    is_pooled = found.is_pooled
    level = "WARNING" if p.name.startswith("run-") else "DEBUG"  # commands report it themselves
    pool = Pool(
        lambda: found.open(**timeouts),
        size=settings.pool_size,
        queue=settings.pool_queue,
        level=level,
    )
    kind, limits = (
        PooledDatabase if is_pooled else PostgresDatabase,
        (settings.pool_timeout, settings.statement_timeout),
    )
    opened = kind(pool, *limits, p.constraints, found.begin(**timeouts))
    p.checks["database"] = opened.check
    forget = metrics.before_scrape(lambda: metrics.connections(*opened.pool_use()))
    try:
        yield opened
    finally:
        forget()
        p.checks.pop("database")
        await opened.notifier.sent()
        await pool.close()
