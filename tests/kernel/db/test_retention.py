"""Retention: what is old goes, what is not stays."""

import time
from uuid import UUID

from app.kernel.config import KeepSettings
from app.kernel.db.partitions import PostgresPartitions
from app.kernel.db.retention import Retention
from app.modules.auth.postgres.limits import Limits
from app.modules.auth.postgres.sessions import Sessions
from tests.kernel.queue.conftest import Bench, bench

__all__ = ["bench"]

DAY_S = 86400.0
KEEP = KeepSettings(7 * DAY_S, 90 * DAY_S, 30 * DAY_S, 400 * DAY_S, 90 * DAY_S)


def retention(bench: Bench) -> Retention:
    return Retention(KEEP, PostgresPartitions(lambda: bench.conninfo))


async def finish(bench: Bench, days_ago: int, count: int = 1) -> None:
    await bench.db.run(
        "INSERT INTO kernel.finished_jobs (id, queue, task, outcome, attempt, created_at, finished_at)"
        " SELECT kernel.uuid7(), 'default', 't', 'done', 1, now(), now() - %s * interval '1 day'"
        " FROM generate_series(1, %s)",
        (days_ago, count),
    )


async def test_what_is_older_than_it_is_kept_goes_and_the_rest_stays(bench: Bench) -> None:
    await finish(bench, days_ago=6, count=3)  # before the oldest partition
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
    ids = [f"{round((time.time() - days * DAY_S) * 1000):012x}7{'0' * 19}" for days in (6, 8)]
    await bench.db.run("INSERT INTO kernel.event_inbox (event_id, subscriber) SELECT unnest(%s::uuid[]), 's'", (ids,))
    done = await retention(bench).prune(bench.db)
    assert done.rows == 12_004
    assert await bench.rows("SELECT event_id::text FROM kernel.event_inbox") == [(str(UUID(ids[0])),)]
    counts = await bench.rows(
        "SELECT (SELECT count(*) FROM kernel.finished_jobs), (SELECT count(*) FROM kernel.events),"
        " (SELECT count(*) FROM kernel.dead_letters), (SELECT count(*) FROM kernel.audit)"
    )
    assert counts == [(3, 1, 1, 1)]


async def test_ended_canaries_are_kept_for_a_month_and_rollouts_and_runs_of_backups_for_400_days_after_their_end(
    bench: Bench,
) -> None:
    await bench.db.run(
        "INSERT INTO kernel.canaries (id, queue, died_before, rate_per_s, max_failed, started_by, letter_id, last_id,"
        " total, started_at, ended_at) SELECT kernel.uuid7(), name, now(), 1, 1, 'me', kernel.uuid7(), kernel.uuid7(),"
        " 1, now() - interval '99 days', now() - ended * interval '1 day'"
        " FROM (VALUES ('running', NULL), ('recent', 29), ('old', 31)) given (name, ended)"
    )
    await bench.db.run("INSERT INTO kernel.canary_letters SELECT id, letter_id FROM kernel.canaries")
    await bench.db.run(
        "INSERT INTO kernel.rollouts (id, at, name, version, settings, last_seen_at) SELECT kernel.uuid7(),"
        " now() - interval '999 days', 'run-' || seen, '1', '{}', now() - seen * interval '1 day'"
        " FROM unnest(ARRAY[399, 401]) AS seen"
    )
    await bench.db.run(
        "INSERT INTO kernel.backup_runs (id, kind, state, engine, runner, finished_at) SELECT kernel.uuid7(),"
        " 'backup', 'succeeded', 'builtin', ended::text, now() - ended * interval '1 day'"
        " FROM unnest(ARRAY[399, 401]) AS ended"
    )
    await retention(bench).prune(bench.db)
    assert await bench.rows("SELECT queue FROM kernel.canaries ORDER BY 1") == [("recent",), ("running",)]
    assert await bench.rows("SELECT count(*) FROM kernel.canary_letters") == [(2,)]
    assert await bench.rows("SELECT name FROM kernel.rollouts") == [("run-399",)]
    assert await bench.rows("SELECT runner FROM kernel.backup_runs") == [("399",)]


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
