"""The database on psycopg: what a statement, a transaction and the pool do when something is slow, broken or gone."""

import asyncio
import os
import re
import signal
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest

from app.kernel.config import load
from app.kernel.db.postgres import Connection, PostgresDatabase
from app.kernel.db.postgres import database as provider
from app.kernel.errors import Unavailable
from app.kernel.process import Process
from app.processes import sections
from tests.conftest import PostgresServer, TestDatabase
from tests.support.project import ROOT
from tests.support.proxy import proxy_to

BACKENDS = (
    "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND starts_with(application_name, 'test@')"
    " AND backend_type = 'client backend'"
)


@asynccontextmanager
async def connected(database: TestDatabase, **settings: object) -> AsyncGenerator[PostgresDatabase]:
    server = database.server
    where = {"host": server.host, "port": server.port, "user": server.user, "db": database.name}
    overrides = {f"postgres.{key}": value for key, value in {**where, **settings}.items()}
    process = Process("test", load(ROOT, sections(), {"APP_ENV": "test"}, overrides), ROOT)
    async with process.opened() as p:
        yield await p.use(provider)


Connect = Callable[..., AbstractAsyncContextManager[PostgresDatabase]]


@pytest.fixture
def connect(database: TestDatabase) -> Connect:
    database.run("CREATE TABLE t (n int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED)")
    return lambda **settings: connected(database, **{"pool_size": 1, **settings})


def rows(database: TestDatabase) -> list[int]:
    return [n for (n,) in database.all("SELECT n FROM t ORDER BY n")]


async def soon(probe: Callable[[], Any], seconds: float = 10) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := await asyncio.to_thread(probe)):
        assert time.monotonic() < deadline, f"did not happen within {seconds} s"
        await asyncio.sleep(0.02)
    return found


async def idle(db: PostgresDatabase, database: TestDatabase, size: int) -> None:
    """Fail unless every connection is back in the pool, alive and outside a transaction."""
    await soon(lambda: db.pool_use().used == 0)
    assert db.pool_use().idle <= size
    assert [c.info.transaction_status.name for c in db._pool._idle] == ["IDLE"] * db.pool_use().idle
    # the server needs a moment to notice that a client has left; a leak would stay
    await soon(lambda: len(database.all(BACKENDS)) == db.pool_use().idle)
    assert await db.one("SELECT 1") == (1,)


@contextmanager
def timed(at_most_s: float, at_least_s: float = 0.0) -> Iterator[None]:
    started = time.monotonic()
    yield
    assert at_least_s <= time.monotonic() - started < at_most_s


async def test_begin_commits_when_the_body_ends(connect: Connect, database: TestDatabase) -> None:
    async with connect() as db:
        async with db.begin() as tx:
            assert await tx.run("INSERT INTO t VALUES (1), (2)") == 2
            assert rows(database) == []
        assert rows(database) == [1, 2]
        await idle(db, database, 1)


async def test_begin_rolls_back_when_the_body_raises(connect: Connect, database: TestDatabase) -> None:
    async with connect() as db:

        async def body() -> None:
            async with db.begin() as tx:
                await tx.run("INSERT INTO t VALUES (1)")
                raise KeyError("mine")

        with pytest.raises(KeyError, match="mine"):
            await body()
        assert rows(database) == []
        await idle(db, database, 1)


async def test_begin_rolls_back_when_its_task_is_cancelled_between_statements(
    connect: Connect, database: TestDatabase
) -> None:
    async with connect() as db:
        inserted = asyncio.Event()

        async def body() -> None:
            async with db.begin() as tx:
                await tx.run("INSERT INTO t VALUES (1)")
                inserted.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(body())
        await inserted.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert rows(database) == []
        await idle(db, database, 1)


async def test_a_cancelled_statement_ends_in_the_server_too(connect: Connect, database: TestDatabase) -> None:
    async with connect(statement_timeout=30) as db:

        async def body() -> None:
            async with db.begin() as tx:
                await tx.run("INSERT INTO t VALUES (1)")
                await tx.run("SELECT pg_sleep(30)")

        running = BACKENDS + " AND query = 'SELECT pg_sleep(30)' AND state = 'active'"
        task = asyncio.create_task(body())
        await soon(lambda: database.all(running))
        task.cancel()
        with timed(5), pytest.raises(asyncio.CancelledError):
            await task
        assert database.all(running) == []
        assert rows(database) == []
        await idle(db, database, 1)


async def test_cancelling_at_any_moment_leaks_no_connection_and_commits_all_or_nothing(
    connect: Connect, database: TestDatabase
) -> None:
    async with connect(pool_size=3, statement_timeout=30) as db:
        done: list[int] = []

        async def body(n: int) -> None:
            async with db.begin() as tx:
                await tx.run("INSERT INTO t VALUES (%s)", (n,))
                await tx.run("INSERT INTO t VALUES (%s)", (-n,))
            done.append(n)

        async def cancelled(n: int) -> None:
            task = asyncio.create_task(body(n))
            await asyncio.sleep(n % 50 / 2000)
            task.cancel()
            await asyncio.wait({task})

        for start in range(1, 200, 10):
            await asyncio.gather(*(cancelled(n) for n in range(start, start + 10)))
        found = rows(database)
        assert [-n for n in found if n < 0][::-1] == [n for n in found if n > 0]
        assert set(done) <= set(found)
        assert 0 < len(found) < 400
        await asyncio.gather(*(db.run("SELECT pg_sleep(0.05)") for _ in range(3)))  # all three can be had at once
        await idle(db, database, 3)


async def test_a_swallowed_error_of_a_statement_raises_instead_of_silently_rolling_back(
    connect: Connect, database: TestDatabase
) -> None:
    async with connect() as db:

        async def body() -> None:
            async with db.begin() as tx:
                await tx.run("INSERT INTO t VALUES (1)")
                with pytest.raises(psycopg.errors.DivisionByZero):
                    await tx.one("SELECT 1 / 0")

        with pytest.raises(RuntimeError, match="rolled back"):
            await body()
        assert rows(database) == []
        await idle(db, database, 1)


async def test_a_transaction_that_the_code_ended_itself_is_not_reported_as_committed(
    connect: Connect, database: TestDatabase
) -> None:
    async with connect() as db:

        async def body() -> None:
            async with db.begin() as tx:
                await tx.run("INSERT INTO t VALUES (1)")
                await tx.run("ROLLBACK")

        with pytest.raises(RuntimeError, match="ended this transaction"):
            await body()
        assert rows(database) == []
        await idle(db, database, 1)


async def test_a_commit_that_fails_is_not_reported_as_done(connect: Connect, database: TestDatabase) -> None:
    async with connect() as db:
        with pytest.raises(psycopg.errors.UniqueViolation):  # deferred: found at COMMIT
            async with db.begin() as tx:
                await tx.run("INSERT INTO t VALUES (1), (1)")
        assert rows(database) == []
        await idle(db, database, 1)


async def test_a_connection_lost_before_the_commit_is_not_reported_as_done(
    connect: Connect, database: TestDatabase
) -> None:
    async with connect() as db:

        async def body() -> None:
            async with db.begin() as tx:
                await tx.run("INSERT INTO t VALUES (1)")
                await asyncio.to_thread(database.all, f"SELECT pg_terminate_backend(pid) FROM ({BACKENDS}) a")
                with pytest.raises(Unavailable):
                    await tx.one("SELECT 1")

        with pytest.raises(Unavailable, match="the database is unavailable"):
            await body()
        assert rows(database) == []
        await idle(db, database, 1)


async def test_a_connection_lost_during_the_commit_is_reported_as_uncertain(
    connect: Connect, database: TestDatabase
) -> None:
    database.run(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(30); RETURN NULL; END $$;"
        "CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON t DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION slow()"
    )
    async with connect(statement_timeout=30) as db:

        async def body() -> None:
            async with db.begin() as tx:
                await tx.run("INSERT INTO t VALUES (1)")

        task = asyncio.create_task(body())
        committing = BACKENDS + " AND query = 'COMMIT' AND state = 'active'"
        await soon(lambda: database.all(committing))
        database.run(f"SELECT pg_terminate_backend(pid) FROM ({committing}) a")
        with pytest.raises(Unavailable, match="may have been committed"):
            await task
        assert rows(database) == []


async def test_a_server_that_goes_away_between_two_messages_about_the_commit_leaves_it_uncertain(
    connect: Connect, database: TestDatabase
) -> None:
    with proxy_to(database.server.host, database.server.port) as network:
        async with connect(host="127.0.0.1", port=network.port, statement_timeout=30) as db:

            async def body() -> None:
                async with db.begin() as tx:
                    await tx.run("INSERT INTO t VALUES (1)")
                    network.lost = re.compile(rb"(?<=COMMIT\0)Z\0\0\0\x05I")  # ReadyForQuery

            task = asyncio.create_task(body())
            await soon(lambda: rows(database) == [1])
            database.run(f"SELECT pg_terminate_backend(pid) FROM ({BACKENDS}) a")
            with pytest.raises(Unavailable, match="may have been committed"):
                await task
            network.lost = re.compile(rb"(?!)")
            await idle(db, database, 1)


async def test_a_transaction_used_after_its_end_is_refused(connect: Connect, database: TestDatabase) -> None:
    async with connect() as db:
        async with db.begin() as tx:
            pass
        with pytest.raises(RuntimeError, match="has ended"):
            await tx.run("INSERT INTO t VALUES (1)")
        assert rows(database) == []


async def test_a_statement_that_takes_too_long_is_unavailable_and_the_connection_stays(connect: Connect) -> None:
    async with connect(statement_timeout=0.2) as db:
        before = await db.one("SELECT pg_backend_pid()")
        with timed(1.9, at_least_s=0.2), pytest.raises(Unavailable, match="took too long"):
            await db.run("SELECT pg_sleep(30)")
        assert await db.one("SELECT pg_backend_pid()") == before


async def test_a_row_locked_for_too_long_is_unavailable(connect: Connect, database: TestDatabase) -> None:
    database.run("INSERT INTO t VALUES (1)")
    async with connect(lock_timeout=0.2, statement_timeout=10, pool_size=2) as db, db.begin() as holder:
        await holder.run("UPDATE t SET n = 1")
        with timed(5, at_least_s=0.2), pytest.raises(Unavailable, match="conflicting change"):
            await db.run("UPDATE t SET n = 2")


async def test_a_deadlock_is_unavailable(connect: Connect, database: TestDatabase) -> None:
    database.run("INSERT INTO t VALUES (1), (2)")
    async with connect(lock_timeout=20, statement_timeout=20, pool_size=2) as db:
        both = asyncio.Barrier(2)

        async def body(first: int, second: int) -> None:
            async with db.begin() as tx:
                await tx.one("SELECT n FROM t WHERE n = %s FOR UPDATE", (first,))
                await both.wait()
                await tx.one("SELECT n FROM t WHERE n = %s FOR UPDATE", (second,))

        with timed(10):
            ended = await asyncio.gather(body(1, 2), body(2, 1), return_exceptions=True)
        [refused] = [error for error in ended if error is not None]
        assert isinstance(refused, Unavailable)
        assert (len(ended), str(refused)) == (2, "the database is busy with a conflicting change")
        await idle(db, database, 2)


async def test_an_exhausted_pool_is_unavailable_within_the_pool_timeout(
    connect: Connect, database: TestDatabase
) -> None:
    async with connect(pool_size=1, pool_timeout=0.3) as db:
        async with db.begin():
            with timed(1.9, at_least_s=0.3), pytest.raises(Unavailable, match="became free"):
                await db.one("SELECT 1")
        await idle(db, database, 1)


async def test_a_cancellation_is_not_lost_when_it_comes_together_with_a_connection_or_an_answer(
    connect: Connect,
) -> None:
    async def request(db: PostgresDatabase) -> None:
        await db.one("SELECT 1")
        await asyncio.sleep(60)

    async with connect(pool_timeout=30) as db:
        for turns in range(80):
            async with db.begin():
                waiting = asyncio.ensure_future(request(db))
                await asyncio.sleep(0.002)
            for _ in range(turns):  # of the event loop, from the moment the connection is given back
                await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.wait({waiting}, timeout=5)
            assert waiting.cancelled(), f"after {turns} turns"
        assert await db.one("SELECT 1") == (1,)


async def test_a_full_queue_for_the_pool_is_unavailable_at_once(connect: Connect, database: TestDatabase) -> None:
    async with connect(pool_size=1, pool_queue=2, pool_timeout=10) as db:
        async with db.begin():
            waiting = [asyncio.create_task(db.one("SELECT 1")) for _ in range(2)]
            await soon(lambda: db.pool_use().waiting == 2)
            with timed(3), pytest.raises(Unavailable, match="too many requests"):
                await db.one("SELECT 1")
        assert await asyncio.gather(*waiting) == [(1,), (1,)]
        await idle(db, database, 1)


async def test_connections_killed_while_idle_are_replaced_without_an_error_however_many(
    connect: Connect, database: TestDatabase
) -> None:
    async with connect(pool_size=5, pool_timeout=30) as db:
        await asyncio.gather(*(db.run("SELECT pg_sleep(0.3)") for _ in range(5)))
        assert len(database.all(BACKENDS)) == 5
        database.run(f"SELECT pg_terminate_backend(pid) FROM ({BACKENDS}) a")
        await soon(lambda: database.all(BACKENDS) == [])
        with timed(5):
            assert await db.one("SELECT 1") == (1,)
        async with db.begin() as tx:
            assert await tx.run("INSERT INTO t VALUES (1)") == 1
        await idle(db, database, 5)


async def test_a_message_of_the_server_to_an_idle_connection_does_not_cost_the_connection(
    connect: Connect, database: TestDatabase
) -> None:
    async with connect() as db:
        before = await db.one("SELECT pg_backend_pid()")
        await db.run("LISTEN something")
        database.run("NOTIFY something")
        assert await db.one("SELECT pg_backend_pid()") == before


async def test_a_changed_type_of_a_column_costs_one_statement_not_every_one(
    connect: Connect, database: TestDatabase
) -> None:
    async with connect(pool_size=3) as db:
        async with AsyncExitStack() as stack:  # all at once, so each has a connection of its own
            for tx in [await stack.enter_async_context(db.begin()) for _ in range(3)]:
                for _ in range(10):  # psycopg prepares what is run often
                    await tx.all("SELECT n FROM t")
                assert await tx.one("SELECT count(*) > 0 FROM pg_prepared_statements") == (True,)
        assert db.pool_use().idle == 3
        database.run("ALTER TABLE t ALTER COLUMN n TYPE bigint")
        with pytest.raises(Unavailable, match="schema has just changed"):
            await db.all("SELECT n FROM t")
        for _ in range(6):
            assert await db.all("SELECT n FROM t") == []
        await idle(db, database, 3)


async def test_an_answer_that_came_while_the_event_loop_was_blocked_is_taken(
    connect: Connect, database: TestDatabase
) -> None:
    async with connect(statement_timeout=0.2) as db:
        async with db.begin() as tx:
            running = asyncio.create_task(tx.run("INSERT INTO t VALUES (1)"))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            time.sleep(1)  # past the deadline of the statement
            assert await running == 1
            await tx.run("INSERT INTO t VALUES (2)")
        assert rows(database) == [1, 2]


def everything_of(server: PostgresServer) -> list[int]:
    """Return the process ids of the whole server."""
    postmaster = server.postmaster()
    found = [postmaster]
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == postmaster:
            found.append(int(stat.parent.name))
    return found


@contextmanager
def frozen(server: PostgresServer) -> Iterator[None]:
    pids = everything_of(server)  # the postmaster first: it starts no other, and takes note of no end
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):  # it was about to end
                os.kill(pid, signal.SIGCONT)


async def test_a_connection_attempt_that_is_given_up_costs_the_server_nothing(own_database: TestDatabase) -> None:
    conninfo = f"{own_database.conninfo} application_name=attempt connect_timeout=2"
    with frozen(own_database.server), pytest.raises(psycopg.OperationalError) as kept:
        await Connection.connect(conninfo)
    assert "timeout" in str(kept.value)
    own_database.run("SELECT 1")  # the server has thawed
    left = "SELECT pid FROM pg_stat_activity WHERE application_name = 'attempt'"
    await soon(lambda: not own_database.all(left))


async def answers(work: Callable[[], Awaitable[None]]) -> bool:
    try:
        await work()
    except Unavailable:
        return False
    return True


async def test_a_frozen_server_is_unavailable_within_a_second_of_the_statement_timeout_and_works_again_afterwards(
    own_database: TestDatabase,
) -> None:
    own_database.run("CREATE TABLE t (n int)")
    async with connected(own_database, statement_timeout=0.5, pool_timeout=0.5, pool_size=2) as db:
        assert await db.one("SELECT 1") == (1,)

        async def change() -> None:
            async with db.begin() as tx:
                await tx.run("INSERT INTO t VALUES (1)")

        async def frozen_inside() -> None:
            async with db.begin() as tx:
                await tx.run("INSERT INTO t VALUES (2)")
                with frozen(own_database.server):
                    with timed(2.5, at_least_s=0.5), pytest.raises(Unavailable):
                        await tx.run("INSERT INTO t VALUES (3)")
                    with timed(2.5), pytest.raises(Unavailable):
                        await change()
                    with timed(2.5), pytest.raises(Unavailable):
                        await db.check()

        with pytest.raises(Unavailable):
            await frozen_inside()

        async with asyncio.timeout(10):
            while not await answers(change):
                await asyncio.sleep(0.05)
        assert rows(own_database) == [1]
        await idle(db, own_database, 2)


async def test_a_statement_cancelled_on_a_frozen_server_lets_go_and_the_loop_goes_on_meanwhile(
    own_database: TestDatabase,
) -> None:
    async with connected(own_database, statement_timeout=0.5, pool_size=1) as db:
        await idle(db, own_database, 1)
        with frozen(own_database.server):
            task = asyncio.create_task(db.one("SELECT 1"))
            await soon(lambda: db.pool_use().used == 1)
            task.cancel()
            rounds = 0
            with timed(4):
                while not task.done():
                    await asyncio.sleep(0.001)
                    rounds += 1
        assert task.cancelled()
        assert rounds > 50
        async with asyncio.timeout(10):
            while not await answers(db.check):
                await asyncio.sleep(0.05)
        await idle(db, own_database, 1)
