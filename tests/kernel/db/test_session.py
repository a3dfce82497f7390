"""What a role, a database or libpq's environment could change in our sessions, and does not."""

import shutil
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from app.kernel.config import load
from app.kernel.db.postgres import PostgresDatabase
from app.kernel.db.postgres import database as provider
from app.kernel.process import Process
from app.processes import sections
from tests.conftest import SUPERUSER, log_in, postgres_binaries
from tests.support.debian import DebianServer, debian_server
from tests.support.project import ROOT, Project


@pytest.fixture(scope="module")
def server() -> Iterator[DebianServer]:
    with debian_server(postgres_binaries()) as found:
        yield found


@asynccontextmanager
async def connected(server: DebianServer) -> AsyncGenerator[PostgresDatabase]:
    settings = load(ROOT, sections(), {"APP_ENV": "test", **server.env})
    async with Process("test", settings, ROOT).opened() as p:
        yield await p.use(provider)


def on(cli: Project, server: DebianServer, **env: str) -> Project:
    cli.env |= server.env | env
    return cli


def signs_in_and_stops(project: Project) -> None:
    process = project.start("run-all-in-one")
    client = log_in(project, process)
    assert client.get("/auth/v1/me").json()["actor"]["username"] == SUPERUSER[0]
    assert client.get("/platform/v1/processes").json()["items"][0]["pid"] == process.pid
    assert client.post("/platform/v1/schedules/platform.heartbeat/trigger").status_code < 300
    assert process.stop() == 0
    assert not [line for line in process.logs() if line["level"] in ("ERROR", "CRITICAL")]


# what a role or a database may set, to what nobody would want here
FOREIGN = {
    "datestyle": "SQL, DMY",
    "intervalstyle": "sql_standard",
    "bytea_output": "escape",
    "extra_float_digits": "-10",
    "timezone": "Asia/Kathmandu",
    "search_path": "elsewhere",
    "array_nulls": "off",
    "transform_null_equals": "on",
    "standard_conforming_strings": "off",
    "row_security": "off",
    "default_transaction_isolation": "serializable",
    "default_transaction_deferrable": "on",
    "exit_on_error": "on",
    "client_min_messages": "debug5",
    "client_encoding": "LATIN1",
    "statement_timeout": "1ms",
    "lock_timeout": "1ms",
    "idle_in_transaction_session_timeout": "1ms",
    "idle_session_timeout": "1ms",
}


def test_settings_of_the_role_or_the_database_do_not_reach_us(cli: Project, server: DebianServer) -> None:
    server.run("CREATE DATABASE theirs OWNER app", "postgres")
    for name, value in FOREIGN.items():
        server.run(f"ALTER ROLE app IN DATABASE theirs SET {name} = '{value}'", "postgres")
    signs_in_and_stops(on(cli, server, POSTGRES_DB="theirs"))
    assert server.all("SELECT count(*) > 0 FROM public._migrations", "theirs") == [(True,)]
    server.run("DROP DATABASE theirs WITH (FORCE)", "postgres")


THEIRS = "SELECT name, setting FROM pg_settings WHERE source LIKE '%user' OR source = 'database'"


@pytest.mark.parametrize("of", ["ROLE app", "DATABASE app", "ROLE app IN DATABASE app"])
async def test_a_session_has_our_settings_and_none_of_the_role_s(server: DebianServer, of: str) -> None:
    for name, value in FOREIGN.items():
        server.run(f"ALTER {of} SET {name} = '{value}'", "postgres")
    try:
        async with connected(server) as db:
            assert await db.all(THEIRS) == []
            found = await db.one("SELECT 1.5::float8, '\\x00ff'::bytea, ARRAY[1, NULL], current_schema()")
            assert found == (1.5, b"\x00\xff", [1, None], "public")
    finally:
        server.run(f"ALTER {of} RESET ALL", "postgres")


LIBPQ = {
    "PGHOST": "nowhere.invalid",
    "PGHOSTADDR": "192.0.2.1",
    "PGPORT": "1",
    "PGUSER": "nobody_there",
    "PGDATABASE": "not_there",
    "PGPASSWORD": "pw-of-somebody-else",
    "PGOPTIONS": "-c statement_timeout=1 -c default_transaction_read_only=on",
    "PGSSLMODE": "verify-full",
    "PGSSLROOTCERT": "/nowhere",
    "PGSERVICE": "no_such_service",
    "PGTARGETSESSIONATTRS": "standby",
    "PGREQUIREAUTH": "none",
    "PGCHANNELBINDING": "require",
    "PGGSSENCMODE": "require",
    "PGCLIENTENCODING": "LATIN1",
    "PGDATESTYLE": "SQL",
    "PGTZ": "Asia/Kathmandu",
    "PGCONNECT_TIMEOUT": "1",
    "PGDATA": "/nowhere",
    "PGAPPNAME": "somebody",
}


def test_variables_of_libpq_do_not_reach_the_configured_server(cli: Project, server: DebianServer) -> None:
    cli.env |= LIBPQ
    process = on(cli, server).start("run-auth-http")
    process.ready()
    assert process.stop() == 0
    if shutil.which("psql") is not None:
        shell = cli.app("db", "shell", "-At", "-c", "SELECT current_user, current_database()")
        assert (shell.returncode, shell.stdout) == (0, "app|app\n"), shell.stderr


def test_variables_of_libpq_do_not_reach_the_embedded_server(cli: Project, tmp_path: Path) -> None:
    cli.env |= LIBPQ
    copy = cli.copy(tmp_path / "copy")
    process = copy.start("run-platform-http")
    process.ready()
    assert process.stop() == 0
    done = copy.app("db", "shell", "-At", "-c", "SELECT current_user, current_database()")
    assert (done.returncode, done.stdout) == (0, "app|app\n"), done.stderr
