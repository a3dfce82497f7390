"""Sessions behind PgBouncer in each of its modes: they have our settings, and what needs a session goes round it."""

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager

import psycopg
import pytest
from loguru import logger

from app.kernel.config import Misconfigured, load
from app.kernel.db.listener import listening
from app.kernel.db.postgres import PooledDatabase, PostgresDatabase
from app.kernel.db.postgres import database as provider
from app.kernel.errors import Unavailable
from app.kernel.process import Process
from app.processes import sections
from tests.conftest import log_in, postgres_binaries
from tests.kernel.db.test_session import FOREIGN, THEIRS
from tests.support.debian import DebianServer, debian_server, free_port
from tests.support.pgbouncer import PgBouncer, pgbouncer
from tests.support.project import ROOT, Project, eventually

REFUSED = ("a connection pooler such as PgBouncer answers at", "\nhint: export POSTGRES_DIRECT_HOST=")


@pytest.fixture(scope="module")
def server() -> Iterator[DebianServer]:
    with debian_server(postgres_binaries()) as found:
        yield found


@pytest.fixture(scope="module")
def pooler(server: DebianServer) -> Iterator[PgBouncer]:
    with pgbouncer(server, default_pool_size=3) as found:
        yield found


@asynccontextmanager
async def connected(env: dict[str, str]) -> AsyncGenerator[PostgresDatabase]:
    async with Process("test", load(ROOT, sections(), {"APP_ENV": "test", **env}), ROOT).opened() as p:
        yield await p.use(provider)


@pytest.mark.parametrize("of", ["ROLE app", "DATABASE app"])
async def test_every_transaction_has_our_settings_and_none_of_the_role_s(
    server: DebianServer, pooler: PgBouncer, of: str
) -> None:
    theirs = {name: "3s" if value == "1ms" else value for name, value in FOREIGN.items()}  # BEGIN takes some ms, too
    for name, value in theirs.items():
        server.run(f"ALTER {of} SET {name} = '{value}'", "postgres")
    pooler.tell("RECONNECT")
    try:
        async with connected(pooler.env | {"POSTGRES_STATEMENT_TIMEOUT": "700ms"}) as db:
            assert isinstance(db, PooledDatabase)
            kept = {("default_transaction_isolation", "serializable"), ("default_transaction_deferrable", "on")}
            assert set(await db.all(THEIRS)) == {*kept, ("idle_session_timeout", "3000")}
            found = await db.one("SELECT 1.5::float8, '\\x00ff'::bytea, ARRAY[1, NULL], current_schema()")
            assert found == (1.5, b"\x00\xff", [1, None], "public")
            limits = "SELECT current_setting('transaction_isolation'), current_setting('statement_timeout')"
            assert await db.one(limits) == ("read committed", "700ms")
            with pytest.raises(Unavailable, match="took too long"):
                await db.one("SELECT pg_sleep(2)")
            async with db.begin() as tx:
                assert await tx.one(limits) == ("read committed", "700ms")
    finally:
        server.run(f"ALTER {of} RESET ALL", "postgres")
        pooler.tell("RECONNECT")


async def test_a_transaction_leaves_nothing_in_the_session_of_the_next_client(server: DebianServer) -> None:
    kept = "SELECT name FROM pg_settings WHERE source = 'session' AND name <> 'application_name'"
    with pgbouncer(server, default_pool_size=1) as single:
        async with connected(single.env) as db:
            before = await db.one("SELECT pg_backend_pid()")
            with pytest.raises(Unavailable):
                await db.one("SELECT pg_sleep(9)")
            where = {"host": "127.0.0.1", "port": single.port, "user": "app", "dbname": "app"}
            with psycopg.connect(**where, password=server.password, autocommit=True) as other:
                assert other.execute("SELECT pg_backend_pid()").fetchone() == before
                assert other.execute(kept).fetchall() == []


async def test_a_cancelled_task_cancels_its_statement_and_nothing_else(server: DebianServer, pooler: PgBouncer) -> None:
    async with connected(pooler.env | {"POSTGRES_STATEMENT_TIMEOUT": "20s"}) as db:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(db.one("SELECT pg_sleep(15)"), 0.3)
        sleeping = "SELECT pid FROM pg_stat_activity WHERE state = 'active' AND query = 'SELECT pg_sleep(15)'"
        await asyncio.to_thread(eventually, lambda: not server.all(sleeping), 5)
        answers = await asyncio.gather(*(db.one("SELECT %s::int", (number,)) for number in range(50)))
        assert answers == [(number,) for number in range(50)]


async def test_many_more_clients_than_sessions_of_the_server(server: DebianServer, pooler: PgBouncer) -> None:
    async with connected(pooler.env) as db:
        assert await db.one("SELECT count(*) FROM pg_prepared_statements") == (0,)
        for _ in range(20):  # psycopg would prepare it
            assert await db.one("SELECT %s::int + 1", (1,)) == (2,)
        [(sessions,)] = await db.all("SELECT count(*) FROM pg_stat_activity WHERE datname = 'app'")
        assert sessions <= 3


def test_a_pooler_without_the_server_behind_it_is_refused_at_once_and_doctor_says_so(
    cli: Project, pooler: PgBouncer
) -> None:
    cli.env |= pooler.env | {"POSTGRES_STARTUP_TIMEOUT": "60s"}
    for env in ({"POSTGRES_DIRECT_HOST": ""}, {"POSTGRES_DIRECT_PORT": "0"}):
        done = cli.app("run-event-consumer", "--port", "0", env=env)
        assert done.returncode == 78
        assert all(text in done.stderr for text in REFUSED), done.stderr
    found = cli.app("doctor", "--only", "postgresql", env={"POSTGRES_DIRECT_HOST": ""})
    assert found.returncode == 1
    assert REFUSED[0] in found.stdout


@pytest.mark.parametrize("settings", [{"ignore_startup_parameters": "options"}, {"pool_mode": "session"}], ids=str)
async def test_a_pooler_is_noticed_whatever_it_ignores_and_in_session_mode(
    server: DebianServer, settings: dict[str, str]
) -> None:
    with pgbouncer(server, **settings) as found:
        with pytest.raises(Misconfigured, match=REFUSED[0]):
            async with connected(found.env | {"POSTGRES_DIRECT_HOST": ""}):
                pass
        async with connected(found.env) as db:
            assert isinstance(db, PooledDatabase)
            assert await db.one("SHOW timezone") == ("UTC",)


@pytest.mark.parametrize("fault", ["down", "paused"])
def test_a_pooler_that_does_not_answer_is_waited_for_as_a_server_is_and_named(
    cli: Project, server: DebianServer, fault: str
) -> None:
    """A paused one, or one whose server is down, accepts clients and lets their statements wait."""
    with pgbouncer(server, query_wait_timeout=0) as found:
        cli.env |= found.env | {"POSTGRES_STARTUP_TIMEOUT": "100ms"}
        assert cli.app("jobs", "list").returncode in (0, 69)  # so that it knows its server
        if fault == "paused":
            found.tell("PAUSE")
        else:
            assert found.process is not None
            found.process.kill()
            found.process.wait(10)
        began = time.monotonic()
        done = cli.app("migrate", "status")
        assert time.monotonic() - began < 20
        assert done.returncode == 69
        message, hint = done.stderr.splitlines()[-2:]
        assert message.startswith(f"app: PostgreSQL or PgBouncer at 127.0.0.1:{found.port} ")
        assert ("a statement got no answer within" in message) == (fault == "paused")
        assert hint == "hint: app doctor --only postgresql"
        doctor = cli.app("doctor", "--only", "postgresql")
        assert doctor.returncode == 1
        assert f"PostgreSQL or PgBouncer at 127.0.0.1:{found.port}" in doctor.stdout
        if fault == "paused":
            found.tell("RESUME")


def test_statement_mode_is_refused_at_once(cli: Project, server: DebianServer) -> None:
    with pgbouncer(server, pool_mode="statement") as found:
        cli.env |= found.env | {"POSTGRES_STARTUP_TIMEOUT": "60s"}
        done = cli.app("migrate", "up")
    assert done.returncode == 78
    assert "set pool_mode = transaction in PgBouncer" in done.stderr


@pytest.mark.parametrize("name", ["POSTGRES_DIRECT_HOST", "POSTGRES_REPLICA_HOSTS"])
def test_other_hosts_than_the_first_alone_are_refused(cli: Project, name: str) -> None:
    done = cli.app("migrate", "status", env={name: "localhost"})
    assert done.returncode == 78
    assert f"({name}) needs postgres.host (POSTGRES_HOST), too" in done.stderr


async def test_of_several_poolers_one_whose_server_accepts_writes_is_used(
    server: DebianServer, pooler: PgBouncer
) -> None:
    hosts = {"POSTGRES_HOST": f"127.0.0.1:{free_port()},127.0.0.1,localhost"}
    async with connected(pooler.env | hosts) as db:
        assert await db.one("SELECT 1") == (1,)
        server.run("ALTER DATABASE app SET default_transaction_read_only = on", "postgres")
        try:
            pooler.tell("RECONNECT")
            with pytest.raises(Unavailable, match="read-only"):
                await db.run("CREATE TABLE refused ()")
            with pytest.raises(Unavailable, match="read-only"):  # none of the poolers leads to another server
                await db.one("SELECT 1")
        finally:
            server.run("ALTER DATABASE app RESET default_transaction_read_only", "postgres")
            pooler.tell("RECONNECT")
        assert await db.run("CREATE TABLE accepted ()") == -1


async def test_two_different_databases_are_refused(server: DebianServer, pooler: PgBouncer) -> None:
    server.run("CREATE DATABASE other OWNER app", "postgres")
    with pgbouncer(server) as found:
        ini = found.folder / "pgbouncer.ini"
        ini.write_text(ini.read_text().replace("dbname=app", "dbname=other"))
        found.tell("RELOAD")
        with pytest.raises(Misconfigured, match="are not the same database; let POSTGRES_DIRECT_HOST and"):
            async with connected(found.env | {"POSTGRES_STARTUP_TIMEOUT": "500ms"}):
                pass


def test_a_process_serves_and_runs_jobs_in_session_mode(cli: Project, server: DebianServer) -> None:
    with pgbouncer(server, pool_mode="session") as found:
        cli.env |= found.env
        process = cli.start("run-all-in-one")
        client = log_in(cli, process)
        assert client.get("/auth/v1/me").status_code == 200
        assert client.post("/platform/v1/schedules/platform.heartbeat/trigger").status_code < 300
        assert process.stop() == 0
        assert not [line for line in process.logs() if line["level"] in ("warning", "error", "critical")]


async def test_a_direct_host_without_a_pooler_changes_nothing(server: DebianServer) -> None:
    async with connected(server.env | {"POSTGRES_DIRECT_HOST": "localhost"}) as db:
        assert not isinstance(db, PooledDatabase)
        assert await db.one("SHOW timezone") == ("UTC",)


async def test_a_listener_is_never_live_behind_it_because_it_would_deliver_by_chance(pooler: PgBouncer) -> None:
    said: list[str] = []
    sink = logger.add(said.append, level="WARNING", format="{message}")
    server = f"host=127.0.0.1 port={pooler.port} user=app dbname=app password={pooler.server.password}"
    try:
        async with listening(lambda **_: server) as listener, asyncio.timeout(10):
            with listener.subscribed("kernel_jobs", said.append, lambda: said.append("live")):
                while not said:
                    await asyncio.sleep(0.01)
    finally:
        logger.remove(sink)
    assert len(said) == 1
    assert "PgBouncer answers; LISTEN needs the server itself: set POSTGRES_DIRECT_HOST" in said[0]
