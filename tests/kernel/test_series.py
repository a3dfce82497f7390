"""Time series: whatever happens to processes and to the job, each count is in them once."""

import asyncio
import random
import signal
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import psycopg
import pytest

from app.kernel import series
from app.kernel.actions.compose import make
from app.kernel.config import load
from app.kernel.db import Database
from app.kernel.db.retention import Retention
from app.kernel.identifiers import uuid7
from app.kernel.process import Process
from app.kernel.process.registry import LiveProcess, Registry
from app.kernel.process.rollouts import Rollouts, started_with
from app.kernel.series import Series, quantile
from app.kernel.telemetry import metrics
from app.processes import new_process, sections
from tests.commands.database import migrated_database
from tests.conftest import PostgresServer, TestDatabase
from tests.support.project import ROOT, Project, eventually

NOW = datetime.now(UTC)
NAMES = ("requests", "jobs_done", "requests_le_0.1")
IN_ALL = "SELECT resolution, key, sum(value::bigint)::bigint FROM kernel.series, jsonb_each_text(counts) GROUP BY 1, 2"


@dataclass
class Counting:
    """A process that counts; `stored` is what reached the database, `known` what it was told of."""

    id: UUID = field(default_factory=uuid7)
    counts: dict[str, int] = field(default_factory=dict)
    known: dict[str, int] = field(default_factory=dict)
    stored: dict[str, int] = field(default_factory=dict)

    async def report(self, registry: Registry, *, is_answered: bool = True) -> None:
        await registry.count(self.id, self.counts, self.known)
        self.stored = dict(self.counts)
        if is_answered:
            self.known = dict(self.counts)


async def run_job(db: Database, *, fails: bool = False) -> None:
    try:
        async with db.begin() as tx:
            await Series().add(tx)
            if fails:
                raise ZeroDivisionError
    except ZeroDivisionError:
        pass


async def pass_time(db: Database, minutes: int) -> None:
    for by in (-500_000_000, 500_000_000 + minutes):  # rows must not meet on their way
        await db.run(
            "UPDATE kernel.series SET at = at - ago, measured_at = measured_at - ago"
            " FROM (SELECT make_interval(mins => %s) AS ago) given",
            (by,),
        )
    await db.run(
        "UPDATE kernel.counters SET seen_at = seen_at - ago, since = since - ago"
        " FROM (SELECT make_interval(mins => %s) AS ago) given",
        (minutes,),
    )


@pytest.fixture(scope="module")
def migrated(postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestDatabase]:
    with migrated_database(postgres, tmp_path_factory.mktemp("migrated")) as created:
        yield created


@pytest.fixture
async def process(migrated: TestDatabase) -> AsyncIterator[Process]:
    """A process on a database that the tests of this file share."""
    migrated.run(
        "TRUNCATE kernel.series, kernel.counters, kernel.counted, kernel.rollouts, kernel.processes, kernel.jobs"
    )
    settings = load(ROOT, sections(), {"APP_ENV": "test", **migrated.env})
    async with new_process("test", settings).opened() as opened:
        yield opened


@pytest.mark.parametrize("seed", range(4))
async def test_each_count_is_in_the_series_once_whatever_happens(process: Process, seed: int) -> None:
    chance = random.Random(seed)
    db = await make(process, Database)
    registry, retention = Registry(db), await make(process, Retention)
    all_processes = [Counting()]
    alive = list(all_processes)
    for _ in range(120):
        one = chance.choice(alive)
        match chance.choice(
            ["count", "count", "report", "unanswered", "die", "start", "job", "twice", "fails", "late", "prune"]
        ):
            case "count":
                name = chance.choice(NAMES)
                one.counts[name] = one.counts.get(name, 0) + chance.randrange(1, 50)
            case "report":
                await one.report(registry)
            case "unanswered":  # stored, but the process does not know; it repeats soon
                await one.report(registry, is_answered=False)
                await one.report(registry)
            case "die" if len(alive) > 1:  # or a restart, with "start"
                alive.remove(one)
            case "start":
                all_processes.append(Counting())
                alive.append(all_processes[-1])
            case "job":
                await run_job(db)
            case "twice":
                await asyncio.gather(run_job(db), run_job(db))
            case "fails":
                await run_job(db, fails=True)
            case "late":
                await pass_time(db, chance.choice([1, 7, 50]))
            case "prune":  # of those frozen for more than a day, too
                await pass_time(db, 25 * 60)
                await retention.prune(db)
            case _:
                pass
    await run_job(db)
    expected: dict[str, int] = {}
    for each in all_processes:
        for name, count in each.stored.items():
            expected[name] = expected.get(name, 0) + count
    found: dict[str, dict[str, int]] = {"minute": {}, "hour": {}}
    for resolution, name, count in await db.all(IN_ALL):
        found[resolution][name] = count
    assert found["hour"] == expected
    assert sum(expected.values()) > 0
    assert all(found["minute"].get(name, 0) <= count for name, count in expected.items())  # they are kept for two days


async def test_a_bucket_says_for_how_long_it_was_counted_and_what_the_queue_held(process: Process) -> None:
    db = await make(process, Database)
    registry, one = Registry(db), Counting(counts={"requests": 60, "requests_le_0.1": 60, "jobs_done": 6})
    await one.report(registry)
    await run_job(db)
    await pass_time(db, 10)  # the job did not run
    one.counts = {"requests": 660, "requests_le_0.1": 650, "requests_slower": 10, "jobs_done": 6}
    await one.report(registry)
    await db.run(
        "INSERT INTO kernel.jobs (id, queue, task, max_attempts, timeout_s, rank, run_at)"
        " SELECT gen_random_uuid(), 'q', 't', 1, 1, 1, now() - interval '90 s' FROM generate_series(1, 3)"
    )
    await run_job(db)
    [first, second], total = await Series().period(db, "minute", 3600)
    assert (first.requests, first.jobs_done, first.ready, second.jobs_done) == (60, 6, 0, 0)
    assert 0.05 < (first.p99_s or 0) <= 0.1
    assert second.requests == 600
    assert 590 < second.seconds < 620
    assert 0.9 < second.requests_per_s < 1.1
    assert (second.p99_s, second.ready, second.leased, second.dead) == (30, 3, 0, 0)
    assert 90 <= second.oldest_ready_s < 100
    assert total is not None
    assert (total.requests, total.jobs_done, total.ready) == (660, 6, 3)


async def test_series_are_kept_for_two_and_ninety_days(process: Process) -> None:
    db, retention = await make(process, Database), await make(process, Retention)
    await db.run(
        "INSERT INTO kernel.series SELECT r, now() - make_interval(days => d), now(), 60, '{}', '{}'"
        " FROM unnest(ARRAY['minute', 'hour']) r, unnest(ARRAY[1, 3, 89, 91]) d"
    )
    await retention.prune(db)
    left = await db.all("SELECT resolution, (now() - at)::text FROM kernel.series ORDER BY at DESC, 1")
    assert [(resolution, age.split()[0]) for resolution, age in left] == [
        ("hour", "1"), ("minute", "1"), ("hour", "3"), ("hour", "89"),
    ]  # fmt: skip


async def test_spikes_are_minutes_with_many_more_errors_than_usual(process: Process) -> None:
    db = await make(process, Database)
    by_minute = [0] * 20 + [1, 0, 2, 9, 60, 70, 1] + [8] * 30 + [30, 8, 200] + [0] * 3
    for ago, errors in enumerate(reversed(by_minute)):
        await db.run(
            "INSERT INTO kernel.series VALUES ('minute', now() - make_interval(mins => %s), now(), 60, %s, '{}')",
            (ago, f'{{"errors": {errors}}}'),
        )
    assert [(s.resolution, s.errors) for s in await Series().spikes(db, 10)] == [("minute", 200), ("minute", 60)]


def test_quantiles_lie_between_the_bounds_of_what_was_counted() -> None:
    chance = random.Random(1)
    for _ in range(200):
        durations = [chance.expovariate(chance.choice([0.2, 5, 200])) for _ in range(chance.randrange(1, 300))]
        counted: dict[str, int] = {}
        for duration in durations:
            bound = next((b for b in metrics.REQUEST_SECONDS if duration <= b), None)
            name = "requests_slower" if bound is None else f"requests_le_{bound:g}"
            counted[name] = counted.get(name, 0) + 1
        exact = sorted(durations)[max(0, -(-len(durations) * 99 // 100) - 1)]
        bounds = [0.0, *metrics.REQUEST_SECONDS]
        upper = next((b for b in bounds if exact <= b), 30)
        lower = max((b for b in bounds if b < exact), default=0.0)
        found = quantile(counted, 0.99)
        assert found is not None
        assert min(lower, 30) <= found <= upper
    assert quantile({}, 0.99) is None


def test_a_process_counts_requests_jobs_and_errors_but_no_probes() -> None:
    before = series.counts()
    for route, status, seconds in [("/me", 200, 0.003), ("/me", 404, 0.2), ("", 503, 40), ("/health", 200, 0.001)]:
        metrics.request_ended("GET", route, status, seconds)
    for outcome in ("done", "failed", "dead", "cancelled"):
        metrics.job_ended("series.test", outcome, 0.1)
    metrics.error_captured("request")
    grown: dict[str, Any] = {name: count - before.get(name, 0) for name, count in series.counts().items()}
    assert {name: count for name, count in grown.items() if count} == {
        "requests": 3, "requests_refused": 1, "requests_failed": 1, "jobs_done": 1, "jobs_failed": 2, "errors": 1,
        "requests_le_0.005": 1, "requests_le_0.25": 1, "requests_slower": 1,
    }  # fmt: skip


async def test_a_rollout_is_stored_once_for_all_who_run_it_and_again_when_it_returns(process: Process) -> None:
    db = await make(process, Database)
    rollouts, old, new = Rollouts(), {"queue.concurrency": "10"}, {"queue.concurrency": "20"}
    first = await rollouts.roll_out(db, "run-a", "1", old)
    assert await rollouts.roll_out(db, "run-a", "1", old) == first
    assert await rollouts.roll_out(db, "run-b", "1", old) != first
    second, *others = await asyncio.gather(*(rollouts.roll_out(db, "run-a", "2", old) for _ in range(4)))
    assert others == [second] * 3
    changed = await rollouts.roll_out(db, "run-a", "2", new)
    assert await rollouts.roll_out(db, "run-a", "2", old) == second  # another instance, which has always had it
    await db.run("UPDATE kernel.rollouts SET last_seen_at = now() - interval '1 hour' WHERE id <> %s", (changed,))
    assert await rollouts.roll_out(db, "run-a", "2", old) not in (first, second)
    await Registry(db).report(LiveProcess(uuid7(), "run-a", "2", "h", 1, "ready", [], NOW, NOW), changed)
    assert await db.all("SELECT rollout_id FROM kernel.processes") == [(changed,)]


def test_what_a_process_was_started_with_has_no_secrets_and_nothing_of_one_process(process: Process) -> None:
    found = started_with(process.settings)
    assert found["postgres.pool_size"].isdigit()
    secrets = {value.key for value in process.settings.values() if value.secret}
    assert secrets
    assert not secrets & found.keys()
    assert "http_server.port" not in found


def test_requests_of_processes_that_stop_and_that_are_killed_are_in_the_series(
    cli: Project, migrated: TestDatabase
) -> None:
    migrated.run("TRUNCATE kernel.series, kernel.counters, kernel.counted")
    cli.env |= migrated.env
    counted = "SELECT coalesce(sum((reported ->> 'requests')::int), 0)::int FROM kernel.counters"
    asked = 0
    for end in (signal.SIGTERM, signal.SIGKILL):
        running = cli.start("run-platform-http")
        client = cli.client(running.ready())
        for _ in range(7):
            assert client.get("/platform/v1/queues").status_code == 401
            asked += 1
        if end == signal.SIGKILL:
            eventually(lambda expected=asked: migrated.all(counted) == [(expected,)])
        running.signal(end)
        running.wait()
    assert migrated.all(counted) == [(asked,)]  # also what was counted since the last report
    with psycopg.connect(migrated.conninfo) as session:
        session.execute(series._ADD)
    [(requests, refused, failed)] = migrated.all(
        "SELECT counts -> 'requests', counts -> 'requests_refused', counts -> 'requests_failed' FROM kernel.series"
        " WHERE resolution = 'minute'"
    )
    assert (requests, refused, failed) == (asked, asked, None)
