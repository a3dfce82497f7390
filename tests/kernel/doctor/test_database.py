"""Faults of the schema and the work, on a server of the wheel."""

import asyncio
import contextlib
import re
import shutil
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest

from app.kernel.db.migrations.migrator import LOCK_KEY
from app.kernel.doctor import postgresql, schema
from app.modules.auth.master_secret import Sealer
from tests.conftest import PostgresServer, TestDatabase
from tests.kernel.doctor.planted import Planted
from tests.support.project import ROOT, eventually
from tests.support.server import FAST

JOB = """
    INSERT INTO kernel.jobs (id, queue, task, max_attempts, timeout_s, rank, run_at)
    VALUES (gen_random_uuid(), %s, 'reports.render', 3, 60, 0, now() - interval '1 hour')
"""
PROCESS = """
    INSERT INTO kernel.processes (id, name, version, host, pid, state, services, started_at, last_seen_at)
    SELECT gen_random_uuid(), 'run-auth-http', '1', 'web-1', n, 'ready', '{http}', now(), now() - %s::interval
    FROM generate_series(1, %s) n
"""


@pytest.fixture(scope="module", autouse=True)
def _flushing(postgres: PostgresServer) -> Iterator[None]:
    """The server flushes what it writes, as doctor wants it to."""
    admin = TestDatabase(postgres, "app")
    admin.run("ALTER SYSTEM RESET ALL")
    admin.run("SELECT pg_reload_conf()")
    eventually(lambda: admin.all("SHOW fsync") == [("on",)])
    yield
    for statement in FAST:
        admin.run(statement)


@pytest.fixture
async def planted(migrated: TestDatabase, tmp_path: Path) -> AsyncIterator[Planted]:
    """A deployment that is healthy before, and after its fault is gone."""
    found = Planted(tmp_path / "data", dict(migrated.env))
    assert await found.examine() == {}
    yield found
    assert await found.examine() == {}


def files(planted: Planted, folder: Path) -> Path:
    shutil.copytree(ROOT / "settings", folder / "settings", ignore=shutil.ignore_patterns(".secrets.yaml"))
    shutil.copytree(ROOT / "migrations", folder / "migrations")
    planted.root = folder
    return folder / "migrations"


async def test_a_healthy_system_has_no_findings_and_skips_only_what_is_not_used(planted: Planted) -> None:
    assert await planted.examine() == {}
    assert planted.skipped == {
        "tls",
        "certificates",
        "embedded",
        "collector",
        "nats",
        "redis",
        "replicas",
        "notifications",
        "backups",
        "wal",
        "drills",
        "backup-server",
        "backup-target",
        "backup-machine",
    }
    assert all(result.status in ("ok", "skip") for result in planted.results)


async def test_pending_edited_and_unknown_migrations_are_found(planted: Planted, tmp_path: Path) -> None:
    folder = files(planted, tmp_path / "copy")
    new = folder / "20991231000000_auth_later.sql"
    new.write_text("SELECT 1;\n")
    new.with_suffix(".rollback.sql").write_text("SELECT 1;\n")
    assert (await planted.examine())["migrations"][0] == "warn"
    assert planted.findings[0].fix == "app migrate up"
    planted.env["POSTGRES_MIGRATE"] = "false"
    found = await planted.examine()
    assert found.keys() == {"migrations"}
    assert found["migrations"] == ("fail", "1 pending, the first is 20991231000000_auth_later: no process starts")
    for wrong, reason in {"-- depends: auth\nSELECT 1;\n": "depends", "-- nothing\n": "no statement"}.items():
        new.write_text(wrong)
        level, text = (await planted.examine())["migrations"]
        assert (level, new.name in text, reason in text) == ("fail", True, True), text
    new.unlink()
    new.with_suffix(".rollback.sql").unlink()
    first = next(path for path in sorted(folder.glob("*.sql")) if "rollback" not in path.name)
    text = first.read_text()
    first.write_text(text + "-- edited\n")
    found = await planted.examine()
    assert found == {"migrations": ("fail", f"edited after they were applied: {first.stem}")}
    first.write_text(text)
    last = max(folder.glob("*_auth_*.sql"))
    shutil.move(last, tmp_path / last.name)
    found = await planted.examine()
    assert found.keys() == {"migrations"}
    assert found["migrations"][0] == "warn"
    assert "by a newer release" in found["migrations"][1]
    shutil.move(tmp_path / last.name, last)


async def test_signing_keys_of_another_master_secret_are_found(planted: Planted, migrated: TestDatabase) -> None:
    former, current = "pQ4x8Wm2Tz6Hk9Vb3Jd7Rn5Lc1Yf0GsEa", "K9v2Qx7Lm4Tz8Rb3Wn6Jd1Fh5Yc0GsEa"
    sealed = Sealer([former], "signing keys").seal(b"key", "first")
    insert = "INSERT INTO auth.signing_keys (kid, algorithm, private_key) VALUES ('first', 'ES256', %s)"
    migrated.run(insert, sealed)
    planted.env["AUTH_MASTER_SECRET"] = current
    found = await planted.examine("signing-keys")
    assert found["signing-keys"][0] == "fail"
    planted.env["AUTH_MASTER_SECRET_PREVIOUS"] = former  # a rotation
    assert await planted.examine("signing-keys") == {}
    migrated.run("DELETE FROM auth.signing_keys")


async def test_the_invalid_index_of_a_killed_build_is_found_and_repaired(
    planted: Planted, migrated: TestDatabase
) -> None:
    with psycopg.connect(migrated.conninfo, autocommit=True) as reader:
        reader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM kernel.jobs")
        async with await psycopg.AsyncConnection.connect(migrated.conninfo, autocommit=True) as builder:
            build = asyncio.ensure_future(
                builder.execute("CREATE INDEX CONCURRENTLY jobs_created ON kernel.jobs (created_at)")
            )
            while not migrated.all("SELECT FROM pg_index WHERE NOT indisvalid"):
                await asyncio.sleep(0.02)
            migrated.run(f"SELECT pg_terminate_backend({builder.info.backend_pid})")
            with contextlib.suppress(psycopg.OperationalError):
                await build
    found = await planted.examine()
    assert found == {
        "migrations": ("fail", "the index kernel.jobs_created is invalid: its build was interrupted"),
    }
    command = """app db shell -c 'REINDEX INDEX CONCURRENTLY "kernel"."jobs_created"'"""
    assert planted.findings[0].fix == command
    await planted.repair("migrations")


async def test_the_lock_of_a_killed_migrator_is_found_and_repaired(planted: Planted, migrated: TestDatabase) -> None:
    migrated.run("INSERT INTO yoyo_lock (locked, ctime, pid) VALUES (1, now(), 4711)")
    found = await planted.examine()
    assert found == {"migrations": ("warn", "a killed migrator (process 4711) left its lock")}
    await planted.repair("migrations")
    assert migrated.all("SELECT * FROM yoyo_lock") == []


async def test_the_lock_of_a_working_migrator_is_left_alone(planted: Planted, migrated: TestDatabase) -> None:
    with psycopg.connect(migrated.conninfo, autocommit=True) as migrator:
        migrator.execute("SELECT pg_advisory_lock(%s)", (LOCK_KEY,))
        migrator.execute("INSERT INTO yoyo_lock (locked, ctime, pid) VALUES (1, now(), 4711)")
        assert await planted.examine() == {}
        migrator.execute("CREATE TEMP TABLE applied AS SELECT * FROM _migrations")
        migrator.execute("DELETE FROM _migrations WHERE migration_id = (SELECT max(migration_id) FROM applied)")
        [(level, problem)] = (await planted.examine()).values()
        assert level == "warn"
        assert problem.startswith("1 pending, the first is ")
        assert problem.endswith(f": a client (pid {migrator.info.backend_pid}) is migrating")
        migrator.execute("INSERT INTO _migrations SELECT * FROM applied ON CONFLICT DO NOTHING")
        migrator.execute("DELETE FROM yoyo_lock")


@pytest.mark.parametrize("parent", ["events", "finished_jobs"])
async def test_a_missing_partition_is_found_and_repaired(planted: Planted, migrated: TestDatabase, parent: str) -> None:
    day = datetime.now(UTC)
    for offset, level in ((3, "fail"), (1, "warn"), (0, "fail")):
        migrated.run(f"DROP TABLE kernel.{parent}_{day + timedelta(days=offset):%Y%m%d}")
        found = await planted.examine()
        assert found.keys() == {"partitions"}
        assert found["partitions"][0] == level
    assert found["partitions"][1].startswith(f"kernel.{parent} has no partition of today and tomorrow")
    assert planted.findings[0].fix == "app doctor --fix --yes --only partitions"
    await planted.repair("partitions")


async def test_rows_that_a_wrong_clock_dated_are_found(planted: Planted, migrated: TestDatabase) -> None:
    migrated.run(
        "INSERT INTO kernel.events (id, type, version, payload, published_at)"
        " SELECT gen_random_uuid(), 'a.b', 1, '{}', now() + d * interval '1 year' FROM unnest(ARRAY[-1, 0, 1]) AS d"
    )
    found = await planted.examine()
    assert found.keys() == {"partitions"}
    assert found["partitions"][1].startswith("kernel.events_other has rows of the future")
    planted.apply(planted.findings[0].fix)
    assert migrated.all("SELECT count(*) FROM kernel.events") == [(2,)]


async def test_dead_rows_are_found_and_the_remedy_removes_them(planted: Planted, migrated: TestDatabase) -> None:
    table = f"kernel.finished_jobs_{datetime.now(UTC):%Y%m%d}"
    migrated.run(f"ALTER TABLE {table} SET (autovacuum_enabled = off)")
    migrated.run(
        "INSERT INTO kernel.finished_jobs (id, queue, task, outcome, attempt, created_at)"
        " SELECT gen_random_uuid(), 'q', 't', 'done', 1, now() FROM generate_series(1, 10500)"
    )
    migrated.run("DELETE FROM kernel.finished_jobs")
    found: dict[str, tuple[str, str]] = {}
    for _ in range(50):  # statistics are reported with a delay
        if found := await planted.examine("bloat"):
            break
        await asyncio.sleep(0.1)
    assert found.keys() == {"bloat"}
    assert found["bloat"][1].startswith(f"{table} has 10500 dead rows beside 0")
    planted.apply(planted.findings[0].fix)
    while await planted.examine("bloat"):
        await asyncio.sleep(0.1)


async def test_the_age_of_transaction_ids_is_compared_with_the_limits(
    planted: Planted, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as limits:
        limits.setattr(schema, "_WRAPAROUND_WARN", 5)
        found = await planted.examine()
        assert found.keys() == {"bloat"}
        assert found["bloat"][0] == "warn"
        limits.setattr(schema, "_WRAPAROUND_FAIL", 5)
        assert (await planted.examine())["bloat"][0] == "fail"


async def test_a_transaction_that_is_open_for_long_is_found(planted: Planted, migrated: TestDatabase) -> None:
    planted.env["SENTINEL_HELD_SNAPSHOT"] = "1s"
    with psycopg.connect(migrated.conninfo, application_name="report") as holder:
        holder.execute("SELECT 1")
        await asyncio.sleep(1.1)
        found = await planted.examine()
        assert found.keys() == {"snapshots"}
        pid = holder.info.backend_pid
        assert found["snapshots"][1].startswith(
            f"report (pid {pid}, idle in transaction) has had a transaction open for"
        )
        planted.apply(planted.findings[0].fix)
        with contextlib.suppress(psycopg.OperationalError):
            holder.execute("SELECT 1")
        assert holder.closed


async def test_who_has_locked_a_table_is_found_and_delays_no_other_check(
    planted: Planted, migrated: TestDatabase
) -> None:
    with psycopg.connect(migrated.conninfo, autocommit=True) as locker:
        locker.execute("BEGIN; LOCK TABLE kernel.jobs, kernel.queues")
        while not migrated.all("SELECT FROM pg_stat_activity WHERE xact_start < now() - interval '1 second'"):
            await asyncio.sleep(0.05)
        [(level, problem)] = (await planted.examine()).values()
        assert (level, "queues" in planted.skipped) == ("fail", True)
        assert problem.startswith(f"app (pid {locker.info.backend_pid}) has locked kernel.jobs and 1 more for ")
        planted.apply(planted.findings[0].fix)
        locker.close()
    assert await planted.examine() == {}


async def test_a_queue_without_consumer_is_found(planted: Planted, migrated: TestDatabase) -> None:
    migrated.run(JOB, "reports")
    found = await planted.examine()
    assert found.keys() == {"queues"}
    assert found["queues"][0] == "fail"
    assert found["queues"][1].endswith("s: no consumer works on it")
    assert planted.findings[0].fix == "app run-event-consumer --queue reports"
    migrated.run("INSERT INTO kernel.queues (name, paused_at) VALUES ('reports', now())")
    assert (await planted.examine())["queues"][0] == "warn"
    planted.apply(planted.findings[0].fix)
    assert (await planted.examine())["queues"][1].endswith("too few consumers, or jobs that hang")
    migrated.run("DELETE FROM kernel.jobs")


async def test_a_schedule_that_does_not_fire_is_found(planted: Planted, migrated: TestDatabase) -> None:
    migrated.run(
        "INSERT INTO kernel.schedules (name, spec, misfire, next_fire_at, task)"
        " VALUES ('a.b', '* * * * *', 'one', now() - interval '10 minutes', 'a.b')"
    )
    found = await planted.examine()
    assert found.keys() == {"schedules"}
    assert found["schedules"][0] == "fail"
    assert re.fullmatch(r"the schedule a\.b has been due for 60\d s: no cron manager runs", found["schedules"][1])
    assert planted.findings[0].fix == "app run-cron-manager"
    migrated.run("UPDATE kernel.schedules SET paused_at = now()")


async def test_new_dead_letters_are_found(planted: Planted, migrated: TestDatabase) -> None:
    migrated.run(
        "INSERT INTO kernel.dead_letters (id, queue, task, reason, attempt, max_attempts, timeout_s, created_at)"
        " VALUES (gen_random_uuid(), 'q', 'reports.render', '', 1, 1, 1, now())"
    )
    found = await planted.examine()
    assert found == {"dead-letters": ("warn", "1 jobs of reports.render were given up within the last hour")}
    planted.apply(planted.findings[0].fix)
    migrated.run("DELETE FROM kernel.dead_letters")


async def test_a_process_that_stopped_reporting_is_found(planted: Planted, migrated: TestDatabase) -> None:
    migrated.run(PROCESS, "20 seconds", 1)
    found = await planted.examine()
    assert found.keys() == {"processes"}
    assert found["processes"][1].startswith("run-auth-http on web-1 (pid 1) has not reported for 2")
    migrated.run("DELETE FROM kernel.processes")


async def test_a_fleet_that_needs_more_connections_than_there_are_is_found(
    planted: Planted, migrated: TestDatabase
) -> None:
    planted.env["POSTGRES_POOL_SIZE"] = "33"
    migrated.run(PROCESS, "0 seconds", 5)
    assert (await planted.examine())["connections"][0] == "warn"
    migrated.run(PROCESS, "0 seconds", 5)
    found = await planted.examine()
    assert found.keys() == {"connections"}
    assert found["connections"][0] == "fail"
    assert "10 processes may open 33 + 3 connections each" in found["connections"][1]
    planted.apply(planted.findings[0].fix)
    assert await planted.examine() == {}
    assert 10 <= int(planted.env["POSTGRES_POOL_SIZE"]) < 33


async def test_notifications_that_a_session_does_not_read_are_found(
    planted: Planted, migrated: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgresql, "_QUEUED_WARN", 0.0)
    with psycopg.connect(migrated.conninfo) as idle:
        idle.execute("LISTEN nobody_reads")
        idle.commit()
        idle.execute("SELECT 1")  # and it stays in the transaction
        migrated.run("SELECT pg_notify('nobody_reads', repeat('x', 7000) || n) FROM generate_series(1, 100) n")
        level, problem = (await planted.examine("connections"))["connections"]
    assert level == "warn"
    assert problem.endswith("of their queue, because a session listens and does not read")


async def test_a_replica_that_is_the_primary_is_found(planted: Planted) -> None:
    planted.env["POSTGRES_REPLICA_HOSTS"] = planted.env["POSTGRES_HOST"]
    level, problem = (await planted.examine("replicas"))["replicas"]
    assert level == "warn"
    assert problem.endswith(", is the primary, so reads do not leave it")
    del planted.env["POSTGRES_REPLICA_HOSTS"]
