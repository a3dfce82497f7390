"""Partitions by time: without gaps, made ahead, dropped by age while others read and write."""

import asyncio
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest

from app.kernel.db import partitions
from app.kernel.db.partitions import PostgresPartitions
from app.kernel.db.retention import PARTITIONED
from app.kernel.errors import Unavailable
from tests.conftest import TestDatabase
from tests.kernel.db.test_migrations import Schema
from tests.support.project import ROOT

DAY_S = 86400.0
KEEP = {"events": 30 * DAY_S, "finished_jobs": 7 * DAY_S}
EVENTS = """
    INSERT INTO kernel.events (id, type, version, payload, published_at)
    SELECT kernel.uuid7(), 't', 1, '{}', at FROM unnest(%s::timestamptz[]) AS at
"""
OUTSIDE = """
    SELECT e.published_at, c.relname FROM kernel.events e JOIN pg_class c ON c.oid = e.tableoid
    LEFT JOIN kernel.partitions_of('events') p ON p.name = c.relname
    WHERE (e.published_at >= p.lower_at AND e.published_at < p.upper_at) IS NOT TRUE
"""
PENDING = "SELECT count(*) FROM pg_inherits WHERE inhdetachpending"
TODAY = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


async def keep(database: TestDatabase, **keep_s: float) -> tuple[int, int]:
    return await PostgresPartitions(lambda: database.conninfo).keep({**KEEP, **keep_s})


def bounds(database: TestDatabase, parent: str = "events") -> list[tuple[str, str, str]]:
    sql = "SELECT name, lower_at::text, upper_at::text FROM kernel.partitions_of(%s)"
    return [(name, lower, upper) for name, lower, upper in database.all(sql, parent)]


def in_order(database: TestDatabase) -> None:
    """All times have one partition, and the days ahead one of their own."""
    for parent in PARTITIONED:
        found = bounds(database, parent)
        assert found[0][1] == "-infinity"
        assert found[-1][2] == "infinity"
        assert [lower for _, lower, _ in found[1:]] == [upper for _, _, upper in found[:-1]]
        assert found[-1][0] == f"{parent}_other"
        assert datetime.fromisoformat(found[-1][1]) >= datetime.now(UTC) + timedelta(days=7)
    assert database.all(PENDING) == [(0,)]
    assert database.all(OUTSIDE) == []


def laid_out(database: TestDatabase, oldest: datetime, newest: datetime) -> None:
    """Make the partitions of some days, and _other after them, as if none had been made since."""
    for name, _, _ in bounds(database):
        database.run(f"DROP TABLE kernel.{name}")
    database.run(
        "SELECT kernel.make_partition('events', at, at + interval '1 day')"
        " FROM generate_series(%s, %s - interval '1 day', interval '1 day') AS at",
        oldest,
        newest,
    )
    database.run(
        "SELECT kernel.attach_rest('events', 'events_other', quote_literal(%s::timestamptz), 'MAXVALUE')", newest
    )


async def test_every_time_has_a_partition_whatever_the_clock_and_the_time_zone(migrated: TestDatabase) -> None:
    in_order(migrated)
    assert await keep(migrated) == (0, 0)
    midnights = [TODAY + timedelta(days=day) for day in range(-800, 800)]
    around = [at + timedelta(microseconds=d) for at in midnights for d in (-1, 0, 1)]
    wrong = [datetime(1970, 1, 1, tzinfo=UTC), datetime(2100, 2, 28, tzinfo=UTC)]
    with psycopg.connect(migrated.conninfo, autocommit=True) as session:
        session.execute("SET timezone = 'Europe/Berlin'")  # days are UTC's, also where a session's day has 23 hours
        session.execute(EVENTS, ([*around, *wrong],))
        assert session.execute("SELECT count(*) FROM kernel.events").fetchone() == (4802,)
    in_order(migrated)


async def test_a_partition_that_somebody_dropped_is_made_again(migrated: TestDatabase) -> None:
    names = [name for name, _, _ in bounds(migrated)]
    for name in names[1:4]:
        migrated.run(f"DROP TABLE kernel.{name}")
    with pytest.raises(psycopg.errors.CheckViolation):
        migrated.run(EVENTS, [TODAY])
    assert (await keep(migrated))[0] > 0
    migrated.run(EVENTS, [TODAY])
    in_order(migrated)


async def test_days_past_their_retention_are_dropped_and_others_stay(migrated: TestDatabase) -> None:
    days = [TODAY - timedelta(days=days) for days in range(60)]
    laid_out(migrated, days[50], TODAY + timedelta(days=9))
    migrated.run(EVENTS, days[:51])
    _, dropped = await keep(migrated)
    assert dropped == 20
    in_order(migrated)
    assert migrated.all("SELECT count(*), min(published_at) FROM kernel.events") == [(31, days[30])]


@pytest.mark.parametrize("days", [0, 1, 40])
async def test_rows_of_days_without_partition_are_kept_while_others_write(migrated: TestDatabase, days: int) -> None:
    newest = TODAY - timedelta(days=days)
    laid_out(migrated, newest - timedelta(days=2), newest)
    hours = [newest + timedelta(hours=hour) for hour in range(24 * days)]
    migrated.run(EVENTS, hours)
    written, stop = 0, asyncio.Event()

    async def write() -> None:
        nonlocal written
        async with await psycopg.AsyncConnection.connect(migrated.conninfo, autocommit=True) as connection:
            while not stop.is_set():
                await connection.execute(EVENTS, ([datetime.now(UTC)],))
                written += 1

    writers = [asyncio.create_task(write()) for _ in range(3)]
    await asyncio.sleep(0.1)
    await keep(migrated)
    stop.set()
    await asyncio.gather(*writers)
    assert written > 3
    assert migrated.all("SELECT count(*) FROM kernel.events") == [(len(hours) + written,)]
    assert migrated.all("SELECT count(*) FROM kernel.events_other") == [(0,)]
    in_order(migrated)


async def test_a_drop_keeps_no_reader_and_no_writer_waiting_and_is_finished_after_a_long_one(
    migrated: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    laid_out(migrated, TODAY - timedelta(days=2), TODAY + timedelta(days=9))
    await keep(migrated)
    migrated.run(EVENTS, [TODAY - timedelta(days=2)])
    monkeypatch.setattr(partitions, "_TRIES", 3)
    with psycopg.connect(migrated.conninfo) as reader:
        assert reader.execute("SELECT count(*) FROM kernel.events").fetchone() == (1,)
        dropping = asyncio.create_task(keep(migrated, events=DAY_S))
        for _ in range(20):
            with psycopg.connect(migrated.conninfo, autocommit=True) as other:
                other.execute("SET lock_timeout = '1ms'")
                other.execute("SELECT count(*) FROM kernel.events")
                other.execute(EVENTS, ([TODAY],))
            await asyncio.sleep(0.01)
        with pytest.raises(Unavailable):
            await dropping
        assert migrated.all(PENDING) == [(1,)]
    assert (await keep(migrated, events=DAY_S))[1] == 1
    in_order(migrated)
    assert migrated.all("SELECT count(*) FROM kernel.events") == [(20,)]


async def test_a_detachment_whose_session_was_killed_is_finished_the_next_time(
    migrated: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    laid_out(migrated, TODAY - timedelta(days=2), TODAY + timedelta(days=9))
    await keep(migrated)
    monkeypatch.setattr(partitions, "_LOCK_MS", 20_000)
    with psycopg.connect(migrated.conninfo) as reader:
        reader.execute("SELECT count(*) FROM kernel.events")
        dropping = asyncio.create_task(keep(migrated, events=DAY_S))
        while migrated.all(PENDING) == [(0,)]:
            await asyncio.sleep(0.01)
        migrated.all("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE %s", "%CONCURRENTLY")
        with pytest.raises(Unavailable):
            await dropping
    assert migrated.all(PENDING) == [(1,)]
    at_once = await asyncio.gather(keep(migrated, events=DAY_S), keep(migrated, events=DAY_S))
    assert sorted(at_once) == [(0, 0), (0, 1)]
    in_order(migrated)


UNBUILT = "SELECT count(*) FROM pg_index x JOIN pg_class c ON c.oid = x.indexrelid WHERE NOT x.indisvalid"


async def test_the_rows_of_a_default_partition_of_before_are_kept_and_the_release_before_goes_on(
    tmp_path: Path, empty_database: TestDatabase
) -> None:
    folder = tmp_path / "migrations"
    shutil.copytree(ROOT / "migrations", folder, ignore=lambda _, names: [n for n in names if n > "20261127120100_b"])
    Schema(folder, empty_database).up()
    empty_database.run(f"DROP TABLE kernel.events_{TODAY + timedelta(days=2):%Y%m%d}")
    days = [-40, -2, -1, 0, 2, 7, 8, 9, 400]
    empty_database.run(EVENTS, [TODAY + timedelta(days=day) for day in days])
    Schema(ROOT / "migrations", empty_database).up()
    assert empty_database.all("SELECT count(*) FROM kernel.events") == [(len(days),)]
    in_order(empty_database)
    assert empty_database.all("SELECT count(*) FROM kernel.events_other") == [(1,)]
    assert empty_database.all("SELECT kernel.make_partitions(7)") == [(0,)]
    assert empty_database.all("SELECT kernel.drop_partitions('events', %s)", -DAY_S) == [(1,)]  # as if it were tomorrow
    assert empty_database.all("SELECT count(*) FROM kernel.events") == [(len(days) - 1,)]
    [(step,)] = empty_database.all("SELECT kernel.index_step('events')")
    assert step.startswith("CREATE INDEX CONCURRENTLY events_"), "an index of rows is not built by the migration"
    empty_database.run(step)
    empty_database.run(
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = %s::regclass", f"kernel.{step.split()[3]}"
    )
    await keep(empty_database)  # as after a build that was interrupted
    assert empty_database.all(UNBUILT) == [(0,)]
    in_order(empty_database)
