"""What operators see of queues, and do to them."""

import asyncio

import pytest

from app.kernel.config import KeepSettings
from app.kernel.db.partitions import PostgresPartitions
from app.kernel.db.retention import Retention
from app.kernel.queue import Handler, Task
from app.kernel.queue.queues import QueueNotFound
from app.modules.platform.queues import QueueLimit, QueueRef
from tests.kernel.queue.conftest import GREET, Bench, Greeting
from tests.modules.platform.conftest import OPERATOR, Operator
from tests.support.project import Project

ELSEWHERE = Task("greet.elsewhere", Greeting, queue="elsewhere")


async def test_queues_say_how_much_is_in_them_and_for_how_long(bench: Bench, operator: Operator) -> None:
    assert [queue.name for queue in (await operator.queues.list()).items] == ["default"]  # consumers work on it
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
    found = {queue.name: queue for queue in (await operator.queues.list()).items}
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
        paused = await operator.queues.pause(OPERATOR, QueueRef("default"))
        again = await operator.queues.pause(OPERATOR, QueueRef("default"))
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
        await operator.queues.pause(OPERATOR, QueueRef("defualt"))
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
        assert (await operator.queues.pause(OPERATOR, QueueRef("elsewhere"))).is_used


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
