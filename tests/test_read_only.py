"""A database that takes no changes: processes that start on it, commands, and a disk that is full."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import psycopg
import pytest

from tests.commands.outcome import last_line
from tests.conftest import TestDatabase, log_in
from tests.support.outages import PROCESSES
from tests.support.project import Project, eventually


@contextmanager
def read_only(database: TestDatabase) -> Iterator[None]:
    """For all sessions to come; those that are open are ended."""
    with psycopg.connect(database.server.conninfo(), autocommit=True) as elsewhere:
        elsewhere.execute(f"ALTER DATABASE {database.name} SET default_transaction_read_only = on")
        elsewhere.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database.name}'")
        yield
        elsewhere.execute(f"ALTER DATABASE {database.name} RESET ALL")


def ready(url: str) -> tuple[int, str]:
    answer = httpx.get(f"{url}/ready", timeout=10)
    return answer.status_code, answer.json().get("missing", {}).get("database", "")


READ_ONLY = "the database is read-only: it accepts no writes; processes go on by themselves when it does"


def test_processes_start_on_a_read_only_database_are_not_ready_and_serve_when_it_takes_changes(
    project: Project, database: TestDatabase
) -> None:
    with read_only(database):
        running = {name: project.start(name) for name in PROCESSES}
        urls = {name: process.url() for name, process in running.items()}
        for name, url in urls.items():
            assert eventually(lambda url=url: ready(url)) == (503, READ_ONLY), name
            assert httpx.get(f"{url}/health").status_code == 200
    started = time.monotonic()
    for url in urls.values():
        eventually(lambda url=url: ready(url)[0] == 200, 10)
    assert time.monotonic() - started < 10
    client = log_in(project, running["run-all-in-one"])  # with a signing key that is made now
    assert client.get("/auth/v1/me").status_code == 200
    assert {name for (name,) in database.all("SELECT name FROM kernel.schedules")} >= {"platform.heartbeat"}
    assert [process.stop() for process in running.values()] == [0] * len(running)


def test_a_start_with_pending_migrations_on_a_read_only_database_waits_and_is_then_unavailable(
    unmigrated: Project, empty_database: TestDatabase
) -> None:
    unmigrated.env["POSTGRES_STARTUP_TIMEOUT"] = "2s"
    with read_only(empty_database):
        started = time.monotonic()
        done = unmigrated.app("run-event-consumer", "--port", "0")
        assert time.monotonic() - started > 2
        assert done.returncode == 69, done.stderr
        assert last_line(done.stderr).startswith("app: migrations are pending, and the database is read-only")
        assert unmigrated.app("migrate", "up").returncode == 69
        unmigrated.env["POSTGRES_STARTUP_TIMEOUT"] = "60s"
        process = unmigrated.start("run-event-consumer")
        eventually(lambda: any("waiting to migrate" in message for message in process.messages()))
    process.ready()
    assert process.stop() == 0


@pytest.mark.parametrize(
    "command",
    [
        ("auth", "create-superuser", "--username", "root", "--password-stdin"),
        ("auth", "keys", "rotate"),
        ("jobs", "list"),
        ("schedules", "trigger", "platform.prune"),
    ],
    ids=" ".join,
)
def test_commands_on_a_read_only_database_are_unavailable(
    project: Project, database: TestDatabase, command: tuple[str, ...]
) -> None:
    with read_only(database):
        done = project.app(*command, stdin="correct horse battery staple")
        assert project.app("migrate", "status").returncode == 0
    assert done.returncode == 69, done.stderr
    assert done.stderr.splitlines() == [
        f"app: {READ_ONLY}",
        "hint: app doctor --only replication --only postgresql-settings",
    ]


REFUSE = """
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN RAISE EXCEPTION 'could not extend file' USING ERRCODE = 'disk_full'; END $$;
    CREATE TRIGGER refuse BEFORE INSERT OR UPDATE OR DELETE ON {} FOR EACH STATEMENT EXECUTE FUNCTION refuse()
"""
TABLES = "SELECT schemaname || '.' || tablename FROM pg_tables WHERE schemaname IN ('kernel', 'auth')"


def test_writes_that_a_full_disk_refuses_end_no_process(project: Project, database: TestDatabase) -> None:
    running = {name: project.start(name) for name in PROCESSES}
    client = log_in(project, running["run-all-in-one"])
    for process in running.values():
        process.ready()
    tables = [name for (name,) in database.all(TABLES)]
    database.run(REFUSE.format(tables[0]))
    for table in tables[1:]:
        database.run(REFUSE.partition(";\n")[2].format(table))
    answer = client.post("/auth/v1/roles", json={"name": "writers"})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "2"), answer.text
    assert "full" in answer.json()["detail"]
    done = project.app("queues", "pause", "default")
    assert done.returncode == 69, done.stderr
    time.sleep(8)  # the length of the outage; every loop writes within it
    assert [process.popen.poll() for process in running.values()] == [None] * len(running)
    database.run("DROP FUNCTION refuse CASCADE")
    assert client.post("/auth/v1/roles", json={"name": "writers"}).status_code == 201
    for process in running.values():
        process.ready()
    assert [process.stop() for process in running.values()] == [0] * len(running)
