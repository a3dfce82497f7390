"""Reads on a streaming replica that is paused, resumed, killed, in conflict, promoted: never wrong, never an error."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx
import psycopg
import pytest

from app.kernel.config import load
from app.kernel.db import Database, Replicas
from app.kernel.db.replicas import PostgresReplicas
from app.kernel.errors import Unavailable
from app.processes import new_process, sections
from tests.conftest import SUPERUSER, log_in, postgres_binaries
from tests.support.debian import DebianServer, with_standby
from tests.support.project import ROOT, Project, Running, eventually

LAG_S = 3.0


@dataclass
class Fleet:
    """Two processes on a primary with a replica, and two sessions."""

    primary: DebianServer
    replica: DebianServer
    first: Running
    second: Running
    writer: httpx.Client
    reader: httpx.Client
    made: list[str] = field(default_factory=list)

    @property
    def label(self) -> str:
        return f"127.0.0.1:{self.replica.port}"

    def write(self) -> str:
        """Make a role in the first process, as the writer; return its id, which is the target in the audit trail."""
        answer = self.writer.post("/auth/v1/roles", json={"name": f"role-{len(self.made)}"})
        assert answer.status_code == 201, answer.text
        self.made.append(answer.json()["id"])
        return self.made[-1]

    def newest(self, client: httpx.Client, process: Running) -> str:
        """Return the target of the newest role that a session sees in a process."""
        query = {"action": "auth.create_role", "limit": 1}
        headers = {"Authorization": client.headers["Authorization"]}
        answer = httpx.get(f"{process.url()}/platform/v1/audit", params=query, headers=headers, timeout=20)
        assert answer.status_code == 200, answer.text
        return next((item["target"] for item in answer.json()["items"]), "")

    def reads(self, process: Running, outcome: str = "done", replica: str = "") -> float:
        """Return how many statements had an outcome."""
        name = f'db_replica_reads_total{{outcome="{outcome}",replica="{replica or self.label}"}} '
        lines = httpx.get(f"{process.url()}/metrics", timeout=20).text.splitlines()
        return sum(float(line.removeprefix(name)) for line in lines if line.startswith(name))

    def is_used(self, process: Running) -> bool:
        """Return whether a read by somebody who has written nothing is made on the replica."""
        before = self.reads(process)
        self.newest(self.reader, process)
        return self.reads(process) > before

    def left_out(self, process: Running) -> str:
        answer = httpx.get(f"{process.url()}/ready", timeout=20)
        assert answer.status_code == 200
        return answer.json().get("degraded", {}).get("replicas", "")


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with with_standby(postgres_binaries(), max_standby_streaming_delay="100ms") as (primary, replica):
        settings = {"POSTGRES_REPLICA_HOSTS": f"127.0.0.1:{replica.port}", "POSTGRES_REPLICA_MAX_LAG": f"{LAG_S:g}s"}
        project = Project(ROOT, tmp_path_factory.mktemp("fleet"), {**primary.env, **settings})
        try:
            first = project.start("run-all-in-one")
            writer = log_in(project, first)
            second = project.start("run-platform-http")
            second.ready()
            name, password = SUPERUSER
            reader = project.client(first.url())
            session = reader.post("/auth/v1/login", json={"username": name, "password": password}).json()["session"]
            reader.headers["Authorization"] = f"Bearer {session['access_token']}"
            fleet = Fleet(primary, replica, first, second, writer, reader)
            fleet.write()
            yield fleet
            assert [process.stop() for process in (first, second)] == [0, 0]
        finally:
            project.end()


@contextmanager
def awaiting_standbys(admin: psycopg.Connection) -> Iterator[None]:
    """Let commits wait for a synchronous standby that does not exist."""
    admin.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
    admin.execute("SELECT pg_reload_conf()")
    eventually(lambda: admin.execute("SHOW synchronous_standby_names").fetchall() == [("nobody",)])
    try:
        yield
    finally:
        admin.execute("ALTER SYSTEM RESET synchronous_standby_names")
        admin.execute("SELECT pg_reload_conf()")


@pytest.fixture(autouse=True)
def healthy(fleet: Fleet) -> None:
    for process in (fleet.first, fleet.second):
        eventually(lambda process=process: fleet.is_used(process))
        assert fleet.left_out(process) == ""


def test_a_session_sees_what_it_wrote_while_others_read_a_paused_replica_until_that_lags(fleet: Fleet) -> None:
    before = fleet.made[-1]
    assert fleet.newest(fleet.reader, fleet.second) == before
    fleet.replica.run("SELECT pg_wal_replay_pause()", "postgres")
    try:
        eventually(lambda: fleet.replica.all("SELECT pg_get_wal_replay_pause_state()", "postgres") == [("paused",)])
        made = fleet.write()
        paused_at = time.monotonic()
        assert fleet.newest(fleet.writer, fleet.first) == made
        # another process is notified when the transaction commits; nothing waits for that
        assert eventually(lambda: fleet.newest(fleet.writer, fleet.second) == made, LAG_S / 2)
        for process in (fleet.first, fleet.second):
            assert fleet.newest(fleet.reader, process) == before
        for process in (fleet.first, fleet.second):
            eventually(lambda process=process: fleet.newest(fleet.reader, process) == made)
        assert LAG_S - 1.5 < time.monotonic() - paused_at < LAG_S + 4
        assert f"{fleet.label}: it lags by" in eventually(lambda: fleet.left_out(fleet.second))
        assert fleet.newest(fleet.writer, fleet.second) == made
    finally:
        fleet.replica.run("SELECT pg_wal_replay_resume()", "postgres")
    eventually(lambda: fleet.is_used(fleet.second), 5)
    before_s = fleet.reads(fleet.first)
    assert eventually(lambda: fleet.newest(fleet.writer, fleet.first) == made and fleet.reads(fleet.first) > before_s)


def test_reads_go_on_while_the_replica_is_killed_and_return_to_it_when_it_is_back(fleet: Fleet) -> None:
    fleet.replica.kill()
    try:
        slowest_s = 0.0
        for _ in range(15):
            started = time.monotonic()
            assert fleet.newest(fleet.reader, fleet.second) == fleet.made[-1]
            slowest_s = max(slowest_s, time.monotonic() - started)
        assert slowest_s < 3  # the first may wait for a connection
        assert fleet.label in fleet.left_out(fleet.second)
        assert fleet.reads(fleet.second, "primary", "none") > 10
    finally:
        fleet.replica.start()
    eventually(lambda: fleet.is_used(fleet.second), 10)


async def test_a_read_that_conflicts_with_recovery_is_repeated_on_the_primary(fleet: Fleet) -> None:
    both = f"127.0.0.1:{fleet.primary.port},{fleet.label}"
    environ = {"APP_ENV": "test", **fleet.primary.env, "POSTGRES_REPLICA_HOSTS": both}
    fleet.primary.run("CREATE TABLE busy AS SELECT 1 AS value; GRANT SELECT ON busy TO app")
    async with new_process("run-test", load(ROOT, sections(), environ)).opened() as p:
        replicas: PostgresReplicas = await p.use(p.providers[Replicas])
        async with asyncio.timeout(10):
            while await (db := replicas.reading("")).one("SELECT pg_is_in_recovery()") == (False,):
                await asyncio.sleep(0.1)
        read = asyncio.ensure_future(db.all("SELECT value, pg_is_in_recovery(), pg_sleep(1) FROM busy"))
        await asyncio.sleep(0.2)
        await asyncio.to_thread(fleet.primary.run, "TRUNCATE busy")
        assert await read == []  # of the primary, where it is empty
        assert await db.one("SELECT pg_is_in_recovery()") == (False,)
        assert replicas.trouble == ""  # the primary is passed over


async def test_a_commit_whose_wait_for_a_synchronous_standby_is_cancelled_is_not_acknowledged(fleet: Fleet) -> None:
    waiting = "FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND application_name LIKE 'run-test@%'"
    fleet.primary.run("CREATE TABLE awaited (value int); GRANT ALL ON awaited TO app")
    async with new_process("run-test", load(ROOT, sections(), {"APP_ENV": "test", **fleet.primary.env})).opened() as p:
        db: Database = await p.use(p.providers[Database])
        with fleet.primary.connect() as admin, awaiting_standbys(admin):
            writing = asyncio.ensure_future(db.run("INSERT INTO awaited VALUES (1)"))
            while admin.execute(f"SELECT pg_cancel_backend(pid) {waiting}").fetchall() != [(True,)]:
                await asyncio.sleep(0.02)
            with pytest.raises(Unavailable, match="no synchronous standby confirmed the commit"):
                await writing
        assert await db.one("SELECT count(*) FROM awaited") == (1,)


async def test_a_replica_that_is_promoted_is_not_used_and_takes_over_from_a_primary_that_turns_read_only(
    fleet: Fleet,
) -> None:
    environ = {"APP_ENV": "test", **fleet.primary.env}
    environ["POSTGRES_HOST"] = f"127.0.0.1:{fleet.primary.port},127.0.0.1:{fleet.replica.port}"
    async with new_process("run-test", load(ROOT, sections(), environ)).opened() as p:
        db: Database = await p.use(p.providers[Database])
        where = "SELECT inet_server_port()"
        assert await db.one(where) == (fleet.primary.port,)
        fleet.replica.promote()
        assert await db.one(where) == (fleet.primary.port,)
        fleet.primary.run("ALTER SYSTEM SET default_transaction_read_only = on", "postgres")
        fleet.primary.run("SELECT pg_reload_conf()", "postgres")
        try:
            eventually(lambda: fleet.primary.all("SHOW transaction_read_only") == [("on",)])
            with pytest.raises(Unavailable, match="read-only"):
                await db.run("CREATE TABLE accepted ()")
            assert await db.one(where) == (fleet.replica.port,)
            await db.run("CREATE TABLE accepted ()")
            assert await p.missing() == {"process": "starting"}
            await p.checks["database"]()
        finally:
            with fleet.primary.connect() as connection:
                connection.execute("SET default_transaction_read_only = off")
                connection.execute("ALTER SYSTEM RESET default_transaction_read_only")
                connection.execute("SELECT pg_reload_conf()")
    fleet.replica.run("SET session_replication_role = replica; DELETE FROM kernel.audit")
    assert eventually(lambda: "it is no standby" in fleet.left_out(fleet.second))
    for process in (fleet.first, fleet.second):
        eventually(lambda process=process: fleet.newest(fleet.reader, process) == fleet.made[-1])
        assert not fleet.is_used(process)
