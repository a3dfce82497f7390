"""What operators see of queues, and do to them."""

import asyncio
from datetime import datetime, timedelta

import pytest

from app.kernel.config import KeepSettings
from app.kernel.db import now
from app.kernel.db.partitions import PostgresPartitions
from app.kernel.db.retention import Retention
from app.kernel.errors import Invalid
from app.kernel.paging import PageByName
from app.kernel.queue import Handler, Task
from app.kernel.queue.queues import QueueNotFound
from app.modules.platform.domain.pauses import Pause, pause_of
from app.modules.platform.queues import QueueLimit, QueuePause, QueueRef
from tests.kernel.queue.conftest import GREET, Bench, Greeting
from tests.modules.platform.conftest import OPERATOR, Operator
from tests.support.project import Project

ELSEWHERE = Task("greet.elsewhere", Greeting, queue="elsewhere")


async def test_queues_say_how_much_is_in_them_and_for_how_long(bench: Bench, operator: Operator) -> None:
    assert [queue.name for queue in (await operator.queues.list(PageByName())).items] == [
        "default"
    ]  # consumers work on it
    await bench.queue.enqueue_many(bench.db, GREET, [Greeting(str(n)) for n in range(3)])
    await bench.queue.enqueue(bench.db, ELSEWHERE, Greeting("late"), delay_s=60)
    await bench.db.run(
        "UPDATE kernel.jobs SET run_at = now() - interval '90 s', state = CASE payload->>'name' WHEN '0' THEN 'leased'"
        " WHEN '1' THEN 'waiting' ELSE 'ready' END WHERE queue = 'default'"
    )
    await bench.db.run(
        "INSERT INTO kernel.dead_letters (id, queue, task, reason, attempt, max_attempts, timeout_s, created_at)"
        " VALUES (kernel.uuid7(), 'graveyard', 'greet', 'because', 1, 1, 1, now())"
    )
    await bench.db.run(
        "INSERT INTO kernel.subscriptions (subscriber, event_type, queue) VALUES ('hears', 'test.moved', 'heard')"
    )
    await bench.db.run("INSERT INTO kernel.queues (name) VALUES ('limited')")  # as a consumer does
    await operator.queues.limit(OPERATOR, QueueLimit("limited", 2))
    found = {queue.name: queue for queue in (await operator.queues.list(PageByName())).items}
    assert list(found) == ["default", "elsewhere", "graveyard", "heard", "limited"]
    default = found["default"]
    assert (default.scheduled, default.ready, default.waiting, default.leased, default.dead) == (0, 1, 1, 1, 0)
    assert default.oldest_ready_s is not None
    assert 90 <= default.oldest_ready_s < 100
    assert (found["elsewhere"].scheduled, found["elsewhere"].oldest_ready_s) == (1, None)
    assert (found["graveyard"].dead, found["heard"].ready, found["limited"].concurrency) == (1, 0, 2)


async def test_a_paused_queue_starts_nothing_until_it_is_resumed(bench: Bench, operator: Operator) -> None:
    started, go = asyncio.Event(), asyncio.Event()

    async def greet(greeting: Greeting) -> None:
        started.set()
        await go.wait()

    async with bench.consuming(greet, poll_interval=20):
        await bench.queue.enqueue(bench.db, GREET, Greeting("running"))
        await asyncio.wait_for(started.wait(), 10)
        paused = await operator.queues.pause(OPERATOR, QueuePause("default"))
        again = await operator.queues.pause(OPERATOR, QueuePause("default"))
        assert paused.paused_at == again.paused_at is not None
        assert paused.is_used
        await bench.queue.enqueue(bench.db, GREET, Greeting("held back"))
        go.set()
        await bench.until(bench.finished, [("done", 1)])
        await asyncio.sleep(0.3)
        assert await bench.states() == [("ready", 0)]
        resumed = await operator.queues.resume(OPERATOR, QueueRef("default"))
        assert resumed.paused_at is None
        # workers are told: their next poll is far away
        await bench.until(bench.finished, [("done", 1)] * 2, seconds=5)
    assert operator.audited() == [
        ("platform.pause_queue", "default"),
        ("platform.pause_queue", "default"),
        ("platform.resume_queue", "default"),
    ]


async def test_a_pause_says_why_until_when_and_by_whom_until_it_has_expired(bench: Bench, operator: Operator) -> None:
    for_a_day = QueuePause("default", "mail is down", seconds=86_400)
    first = await operator.queues.pause(OPERATOR, for_a_day)
    until = first.paused_at + timedelta(hours=2)
    again = await operator.queues.pause(OPERATOR, QueuePause("default", "mail is slow", until=until))
    assert (again.paused_at, again.paused_until, again.pause_reason) == (first.paused_at, until, "mail is slow")
    assert str(again).startswith(f"default has been paused since {first.paused_at:%Y-%m-%d %H:%M:%S}Z until ")
    [listed] = (await operator.queues.list(PageByName())).items
    assert (listed.paused_at, listed.paused_until, listed.pause_reason) == (first.paused_at, until, "mail is slow")
    assert listed.paused_by == str(OPERATOR.origin.address)
    open_ended = await operator.queues.pause(OPERATOR, QueuePause("default"))
    assert (open_ended.paused_at, open_ended.paused_until, open_ended.pause_reason) == (first.paused_at, None, None)
    details = await bench.rows("SELECT details FROM kernel.audit ORDER BY id")
    assert [found for (found,) in details[1:]] == [{"reason": "mail is slow", "until": until.isoformat()}, {}]
    resumed = await operator.queues.resume(OPERATOR, QueueRef("default"))
    assert (resumed.paused_at, resumed.paused_until, resumed.pause_reason) == (None, None, None)

    await asyncio.gather(  # several operators at once: one of their pauses holds, whole
        *(operator.queues.pause(OPERATOR, QueuePause("default", f"{n} s", seconds=n)) for n in range(60, 68))
    )
    [held] = (await operator.queues.list(PageByName())).items
    assert round((held.paused_until - held.paused_at).total_seconds()) == int(held.pause_reason.split()[0])
    await bench.db.run("UPDATE kernel.queues SET paused_until = now()")  # expired at this moment
    [expired] = (await operator.queues.list(PageByName())).items
    assert (expired.paused_at, expired.paused_until, expired.pause_reason, expired.paused_by) == (None,) * 4
    assert (await operator.queues.limit(OPERATOR, QueueLimit("default", 2))).paused_at is None
    assert (await operator.queues.pause(OPERATOR, for_a_day)).paused_at > first.paused_at  # a pause of its own


async def test_a_pause_expires_after_now_and_within_a_year(bench: Bench) -> None:
    year, moment = timedelta(days=366), timedelta.resolution
    async with bench.db.begin() as tx:
        at = await now(tx)
        for until in (at, at - moment, at + year + moment, datetime(2026, 12, 1)):  # noqa: DTZ001 - without a time zone
            with pytest.raises(Invalid):
                await pause_of(tx, None, until, None)
        with pytest.raises(Invalid, match="either seconds or until"):
            await pause_of(tx, 60, at + year, None)
        assert [await pause_of(tx, None, until, "x") for until in (at + moment, at + year)] == [
            Pause(at + moment, "x"),
            Pause(at + year, "x"),
        ]
        assert await pause_of(tx, year.total_seconds(), None, None) == Pause(at + year, None)


async def test_the_release_before_respects_pauses_and_its_own_commands_still_pause_and_resume(bench: Bench) -> None:
    pause = "UPDATE kernel.queues SET paused_at = coalesce(queues.paused_at, now()) WHERE name = 'default'"
    resume = "UPDATE kernel.queues SET paused_at = NULL WHERE name = 'default'"
    controlled = "SELECT name FROM kernel.queues WHERE paused_at IS NOT NULL OR concurrency IS NOT NULL"
    fetch = "SELECT count(*) FROM kernel.fetch_jobs('default', kernel.uuid7(), 'w', 60, 1, 0)"
    await bench.queue.enqueue_many(bench.db, GREET, [Greeting(str(n)) for n in range(9)])

    async def after(*statements: str) -> int:
        for statement in statements:
            await bench.db.run(statement)
        ((fetched,),) = await bench.rows(fetch)
        return fetched

    new = (
        "INSERT INTO kernel.queues (name, paused_at, paused_until, pause_reason)"
        " VALUES ('default', now(), now() + interval '1 hour', 'x')"
    )
    assert await after(new) == 0
    assert await bench.rows(controlled) == [("default",)]
    assert await after(pause) == 0
    assert await after(resume) == 1
    assert await bench.rows("SELECT paused_until, pause_reason FROM kernel.queues") == [(None, None)]
    assert await after(pause) == 0  # without an expiry
    assert await after("UPDATE kernel.queues SET paused_until = now()") == 1
    assert await after("UPDATE kernel.queues SET seen_at = now(), concurrency = 50") == 1  # changes no pause
    assert await after(pause) == 0  # a new one, though the row still had the pause that had expired
    assert await bench.rows("SELECT paused_until, paused_at > now() - interval '1 minute' FROM kernel.queues") == [
        (None, True)
    ]


async def test_a_queue_that_is_resumed_while_a_worker_drains_is_left_to_the_others(
    bench: Bench, operator: Operator
) -> None:
    started, go = asyncio.Event(), asyncio.Event()

    async def greet(greeting: Greeting) -> None:
        started.set()
        await go.wait()

    async with bench.consuming(greet, poll_interval=20) as draining:
        await bench.queue.enqueue(bench.db, GREET, Greeting("running"))
        await asyncio.wait_for(started.wait(), 10)
        await operator.queues.pause(OPERATOR, QueuePause("default", seconds=3600))
        await bench.queue.enqueue(bench.db, GREET, Greeting("held back"))
        draining.stop.set()
        await operator.queues.resume(OPERATOR, QueueRef("default"))
        await asyncio.sleep(0.2)
        assert sorted(await bench.states()) == [("leased", 0), ("ready", 0)]
        async with bench.consuming(greet, poll_interval=20):
            await bench.until(bench.states, [("leased", 0)] * 2)
            go.set()
            await bench.until(bench.finished, [("done", 1)] * 2)


async def test_a_limit_holds_for_all_workers_together_until_it_is_lifted(bench: Bench, operator: Operator) -> None:
    go = asyncio.Event()

    async def greet(greeting: Greeting) -> None:
        await go.wait()

    leased = "SELECT count(*) FROM kernel.jobs WHERE state = 'leased'"
    assert (await operator.queues.limit(OPERATOR, QueueLimit("default", 2))).concurrency == 2
    async with bench.consuming(greet, poll_interval=20), bench.consuming(greet, poll_interval=20):
        await bench.queue.enqueue_many(bench.db, GREET, [Greeting(str(n)) for n in range(6)])
        await bench.until(lambda: bench.rows(leased), [(2,)])
        await asyncio.sleep(0.2)
        assert await bench.rows(leased) == [(2,)]
        await operator.queues.limit(OPERATOR, QueueLimit("default", None))
        await bench.until(lambda: bench.rows(leased), [(6,)], seconds=5)
        go.set()
        await bench.until(bench.finished, [("done", 1)] * 6)


async def test_a_queue_that_nothing_has_ever_used_is_not_found_and_leaves_nothing(
    bench: Bench, operator: Operator
) -> None:
    with pytest.raises(QueueNotFound, match="there is no queue defualt; did you mean default"):
        await operator.queues.pause(OPERATOR, QueuePause("defualt"))
    with pytest.raises(QueueNotFound):
        await operator.queues.resume(OPERATOR, QueueRef("defualt"))
    with pytest.raises(QueueNotFound):
        await operator.queues.limit(OPERATOR, QueueLimit("defualt", 1))
    assert await bench.rows("SELECT name FROM kernel.queues") == []
    assert operator.audited() == []


async def test_a_queue_that_only_a_handler_of_a_consumer_names_can_be_paused(bench: Bench, operator: Operator) -> None:
    async def greet(greeting: Greeting) -> None:
        """Does nothing."""

    async with bench.consuming([Handler(ELSEWHERE, greet)]) as running:
        assert running.consumer.unhandled() == ["default"]
        await bench.until(lambda: bench.rows("SELECT name FROM kernel.queues"), [("elsewhere",)])
        assert (await operator.queues.pause(OPERATOR, QueuePause("elsewhere"))).is_used


async def test_a_queue_that_nothing_has_used_for_a_week_is_forgotten_with_its_settings(
    bench: Bench, operator: Operator
) -> None:
    await bench.queue.enqueue(bench.db, ELSEWHERE, Greeting("late"), delay_s=60)
    await bench.db.run(
        "INSERT INTO kernel.queues (name, paused_at) VALUES ('elsewhere', now()), ('gone', now()), ('new', now())"
    )
    await bench.db.run("UPDATE kernel.queues SET seen_at = now() - interval '8 days' WHERE name <> 'new'")
    assert not (await operator.queues.limit(OPERATOR, QueueLimit("gone", 2))).is_used
    week = 7 * 86400
    await Retention(KeepSettings(week, week, week, week, week), PostgresPartitions(lambda: bench.conninfo)).prune(
        bench.db
    )
    assert await bench.rows("SELECT name FROM kernel.queues ORDER BY name") == [("elsewhere",), ("new",)]


def test_a_consumer_warns_of_a_queue_that_no_handler_uses_and_refuses_a_blank_one(project: Project) -> None:
    for blank in ("", " "):
        done = project.app("run-event-consumer", "--port", "0", "--queue", blank)
        assert done.returncode == 78
        assert "queue.names" in done.stderr
        assert done.stderr.count("\n") == 1
    process = project.start("run-event-consumer", "--queue", "defualt", "--queue", "elsewhere", "--queue", "default")
    process.ready()
    warnings = [line["message"] for line in process.logs() if line["level"] == "warning"]
    assert warnings == [
        "no handler of this release uses the queue defualt; did you mean default?",
        "no handler of this release uses the queue elsewhere; they use default",
    ]
    assert process.stop() == 0
