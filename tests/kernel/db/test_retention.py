"""Retention: what is old goes, what is not stays."""

from dataclasses import replace

import psycopg
import pytest

from app.kernel.config import KeepSettings
from app.kernel.db.retention import Retention
from app.kernel.errors import Unavailable
from app.modules.auth.postgres.limits import Limits
from app.modules.auth.postgres.sessions import Sessions
from tests.kernel.queue.conftest import Bench, bench

__all__ = ["bench"]

DAY_S = 86400.0
RETENTION = Retention(KeepSettings(7 * DAY_S, 90 * DAY_S, 30 * DAY_S, 400 * DAY_S, 90 * DAY_S))
PARTITIONS = """
    SELECT count(*) FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid
    WHERE c.relname ~ '^(finished_jobs|events)_[0-9]{8}$'
"""


async def finish(bench: Bench, days_ago: int, count: int = 1) -> None:
    await bench.db.run(
        "INSERT INTO kernel.finished_jobs (id, queue, task, outcome, attempt, created_at, finished_at)"
        " SELECT kernel.uuid7(), 'default', 't', 'done', 1, now(), now() - %s * interval '1 day'"
        " FROM generate_series(1, %s)",
        (days_ago, count),
    )


async def test_the_partitions_of_the_days_ahead_are_made_once(bench: Bench) -> None:
    retention = RETENTION
    assert await bench.rows(PARTITIONS) == [(16,)]
    ((newest,),) = await bench.rows("SELECT max(relname) FROM pg_class WHERE relname ~ '^events_[0-9]{8}$'")
    with psycopg.connect(bench.test.conninfo, autocommit=True) as connection:
        connection.execute(psycopg.sql.SQL("DROP TABLE kernel.{}").format(psycopg.sql.Identifier(newest)))
    assert (await retention.prune(bench.db)).partitions_made == 1
    assert (await retention.prune(bench.db)).partitions_made == 0
    assert await bench.rows(PARTITIONS) == [(16,)]


async def test_a_day_whose_rows_are_in_the_default_partition_already_goes_on_there(bench: Bench) -> None:
    ((newest,),) = await bench.rows("SELECT max(relname) FROM pg_class WHERE relname ~ '^finished_jobs_[0-9]{8}$'")
    with psycopg.connect(bench.test.conninfo, autocommit=True) as connection:
        connection.execute(psycopg.sql.SQL("DROP TABLE kernel.{}").format(psycopg.sql.Identifier(newest)))
    await finish(bench, days_ago=-7)
    assert (await RETENTION.prune(bench.db)).partitions_made == 0
    assert await bench.rows("SELECT count(*) FROM kernel.finished_jobs") == [(1,)]


async def test_what_is_older_than_it_is_kept_goes_and_the_rest_stays(bench: Bench) -> None:
    await finish(bench, days_ago=6, count=3)  # into the default partition: there are none of former days
    await finish(bench, days_ago=8, count=12_000)
    await bench.db.run(
        "INSERT INTO kernel.events (id, type, version, payload, published_at)"
        " SELECT kernel.uuid7(), 't', 1, '{}', now() - d * interval '1 day' FROM unnest(ARRAY[29, 31]) AS d"
    )
    await bench.db.run(
        "INSERT INTO kernel.dead_letters"
        " (id, queue, task, reason, attempt, max_attempts, timeout_s, created_at, died_at)"
        " SELECT kernel.uuid7(), 'q', 't', 'r', 1, 1, 1, now(), now() - d * interval '1 day'"
        " FROM unnest(ARRAY[89, 91]) AS d"
    )
    await bench.db.run(
        "INSERT INTO kernel.audit (id, action, outcome, at)"
        " SELECT kernel.uuid7(), 'a', 'done', now() - d * interval '1 day' FROM unnest(ARRAY[399, 401]) AS d"
    )
    done = await RETENTION.prune(bench.db)
    assert done.rows == 12_003
    counts = await bench.rows(
        "SELECT (SELECT count(*) FROM kernel.finished_jobs), (SELECT count(*) FROM kernel.events),"
        " (SELECT count(*) FROM kernel.dead_letters), (SELECT count(*) FROM kernel.audit)"
    )
    assert counts == [(3, 1, 1, 1)]


async def test_a_day_that_is_over_is_dropped_whole_unless_somebody_reads_it(bench: Bench) -> None:
    await finish(bench, days_ago=0)
    retention = Retention(replace(RETENTION.keep, finished_jobs=-2 * DAY_S))  # as if it were two days later
    with psycopg.connect(bench.test.conninfo) as reader:
        reader.execute("SELECT count(*) FROM kernel.finished_jobs")
        with pytest.raises(Unavailable):
            await retention.prune(bench.db)
        assert await bench.rows("SELECT count(*) FROM kernel.finished_jobs") == [(1,)]
    assert (await retention.prune(bench.db)).partitions_dropped == 2
    assert await bench.rows("SELECT count(*) FROM kernel.finished_jobs") == [(0,)]


async def test_sessions_and_counts_that_are_over_are_removed(bench: Bench) -> None:
    await bench.db.run(
        "INSERT INTO auth.actors (id, type, username, username_key) VALUES (kernel.uuid7(), 'user', 'you', 'you')"
    )
    await bench.db.run(
        "INSERT INTO auth.sessions (id, actor_id, idle_expires_at, expires_at, ended_at, user_agent)"
        " SELECT kernel.uuid7(), a.id, now() + idle::interval, now() + life::interval, now() + ended::interval, name"
        " FROM auth.actors a, (VALUES ('live', '1 day', '1 day', NULL), ('just ended', '1 day', '1 day', '-6 days'),"
        " ('ended', '1 day', '1 day', '-8 days'), ('idle', '-8 days', '1 day', NULL),"
        " ('expired', '1 day', '-8 days', NULL)) AS s (name, idle, life, ended)"
    )
    await bench.db.run(
        "INSERT INTO auth.limits (key, hits, started_at, window_s)"
        " VALUES ('old', 1, now() - interval '1 hour', 900), ('new', 1, now(), 900)"
    )
    assert await Sessions().prune(bench.db, 7 * 86400) == 3
    assert await Limits().prune(bench.db) == 1
    assert await bench.rows("SELECT user_agent FROM auth.sessions ORDER BY 1") == [("just ended",), ("live",)]
    assert await bench.rows("SELECT key FROM auth.limits") == [("new",)]
