"""The contract of events, which is the same through PostgreSQL and through NATS."""

import asyncio
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, ClassVar

import pytest
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from app.kernel.db import Transaction, now
from app.kernel.queue import NeverRetry, RetryAfter, Subscriber
from app.kernel.queue.dead_letters import DeadLetterAdmin
from app.kernel.queue.events import EventLog, Period
from app.kernel.queue.queues import QueueAdmin
from tests.kernel.queue.conftest import Bench


@dataclass(frozen=True)
class Moved:
    event_type: ClassVar[str] = "test.moved"
    steps: int
    note: str = ""


@dataclass(frozen=True)
class MovedLater:
    event_type: ClassVar[str] = "test.moved"
    event_version: ClassVar[int] = 2
    distance: float

    @staticmethod
    def upgrade(version: int, fields: dict[str, Any]) -> dict[str, Any]:
        return {"distance": fields["steps"] * 0.5}


class Ear:
    """A subscriber's operation that remembers what it heard."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    async def __call__(self, event: Any) -> None:
        self.heard.append(event)

    async def steps(self) -> list[int]:
        return sorted(event.steps for event in self.heard)


async def quiet(bench: Bench) -> None:
    """Wait until no event waits anywhere: neither in the outbox, nor in NATS, nor as a job."""

    async def waiting() -> int:
        (count,) = (await bench.rows("SELECT (SELECT count(*) FROM kernel.jobs) + count(*) FROM kernel.event_outbox"))[
            0
        ]
        found = await bench.stream.info() if bench.stream else None
        return count + (found["state"]["messages"] if found else 0)

    await bench.until(waiting, 0)


async def test_each_subscriber_is_given_each_committed_event_once(transport: Bench) -> None:
    one, other = Ear(), Ear()
    async with transport.consuming([Subscriber("a", Moved, one), Subscriber("b-c.d", Moved, other)]):
        with pytest.raises(ZeroDivisionError):  # noqa: PT012
            async with transport.db.begin() as tx:
                await transport.queue.publish(tx, Moved(99))
                raise ZeroDivisionError
        await transport.queue.publish(transport.db, *(Moved(n) for n in range(30)))
        await transport.until(one.steps, list(range(30)))
        await transport.until(other.steps, list(range(30)))
        await quiet(transport)
    assert await one.steps() == await other.steps() == list(range(30))
    assert await transport.dead() == []


async def test_an_event_of_a_transaction_that_commits_late_is_not_missed(transport: Bench) -> None:
    ear = Ear()
    async with transport.consuming([Subscriber("a", Moved, ear)]):
        async with transport.db.begin() as tx:
            await transport.queue.publish(tx, Moved(1))
            await transport.queue.publish(transport.db, Moved(2))
            await transport.until(ear.steps, [2])
        await transport.until(ear.steps, [1, 2])


async def test_a_failed_event_is_tried_again_until_it_is_a_dead_letter_that_can_be_revived(transport: Bench) -> None:
    attempts: list[float] = []
    clock = asyncio.get_running_loop().time

    async def hear(event: Moved) -> None:
        attempts.append(clock())
        if len(attempts) <= 2:
            raise RetryAfter(0.3, f"attempt {len(attempts)}")

    async with transport.consuming([Subscriber("a", Moved, hear, max_attempts=2)]):
        await transport.queue.publish(transport.db, Moved(1))
        await transport.until(transport.dead, ["failed 2 times, at last with RetryAfter: attempt 2"])
        assert attempts[1] - attempts[0] >= 0.3
        rows = await transport.rows("SELECT id, attempt, jsonb_array_length(errors) FROM kernel.dead_letters")
        assert [row[1:] for row in rows] == [(2, 2)]
        async with transport.db.begin() as tx:
            await DeadLetterAdmin().revive(tx, rows[0][0])
        await quiet(transport)
    assert len(attempts) == 3


async def test_an_event_that_is_never_to_be_retried_is_a_dead_letter_at_once(transport: Bench) -> None:
    async def hear(event: Moved) -> None:
        raise NeverRetry("no")

    async with transport.consuming([Subscriber("a", Moved, hear)]):
        await transport.queue.publish(transport.db, Moved(1))
        await transport.until(transport.dead, ["never to be retried: no"])
        await quiet(transport)
    assert await transport.rows("SELECT attempt, event_id IS NOT NULL FROM kernel.dead_letters") == [(1, True)]


async def test_what_a_subscriber_writes_in_its_transaction_is_there_once(transport: Bench) -> None:
    await transport.db.run("CREATE TABLE heard (steps integer)")
    failed: set[int] = set()

    async def hear(tx: Transaction, event: Moved) -> None:
        await tx.run("INSERT INTO heard VALUES (%s)", (event.steps,))
        if event.steps % 3 == 0 and event.steps not in failed:
            failed.add(event.steps)
            raise RetryAfter(0)

    subscriber = Subscriber("a", Moved, hear, mode="tx")
    async with transport.consuming([subscriber], "x"), transport.consuming([subscriber], "y"):
        await transport.queue.publish(transport.db, *(Moved(n) for n in range(20)))
        await transport.until(lambda: transport.rows("SELECT count(*) FROM heard"), [(20,)])
        await quiet(transport)
    assert await transport.rows("SELECT steps FROM heard ORDER BY 1") == [(n,) for n in range(20)]


async def test_a_subscriber_in_order_hears_one_event_at_a_time_also_through_retries(transport: Bench) -> None:
    heard: list[int] = []

    async def hear(event: Moved) -> None:
        if event.steps == 5 and heard.count(5) == 0:
            heard.append(5)
            raise RetryAfter(0.1)
        await asyncio.sleep(0.002 * (event.steps % 3))
        heard.append(event.steps)

    subscriber = Subscriber("a", Moved, hear, in_order=True)
    async with transport.consuming([subscriber], "x"), transport.consuming([subscriber], "y"):
        for start in range(0, 20, 5):
            await transport.queue.publish(transport.db, *(Moved(n) for n in range(start, start + 5)))
        await transport.until(lambda: asyncio.sleep(0, len(heard)), 21)
    assert heard == sorted([*range(20), 5])


async def test_a_replay_delivers_events_of_the_log_again(transport: Bench) -> None:
    ear, log = Ear(), EventLog()
    async with transport.consuming([Subscriber("a", Moved, ear)]):
        since = await log.now(transport.db)
        await transport.queue.publish(transport.db, *(Moved(n) for n in range(3)))
        await transport.until(ear.steps, [0, 1, 2])
        async with transport.db.begin() as tx:
            replayed, _ = await log.replay(tx, "a", Period(since, since + timedelta(minutes=1)), 100)
        assert replayed == 3
        await transport.until(ear.steps, [0, 0, 1, 1, 2, 2])


async def test_a_paused_queue_starts_no_event_until_it_is_resumed(transport: Bench) -> None:
    ear, queues = Ear(), QueueAdmin(["default"])
    async with transport.consuming([Subscriber("a", Moved, ear)]):
        async with transport.db.begin() as tx:
            await queues.pause(tx, "default")
        await transport.queue.publish(transport.db, Moved(1), Moved(2))
        await transport.until(transport.states, [("ready", 0)] * 2)
        assert ear.heard == []
        async with transport.db.begin() as tx:
            await queues.resume(tx, "default")
        await transport.until(ear.steps, [1, 2])


async def test_the_lag_of_a_subscriber_is_what_it_has_not_handled(
    transport: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.kernel.queue.transport.nats.intake._WATCH_EVERY_S", 0.2)
    go = asyncio.Event()

    async def hear(event: Moved) -> None:
        await go.wait()

    async def lag() -> int:
        [found] = await EventLog().subscriptions(transport.db)
        return found.job_count + found.outbox_count + (found.nats_count or 0)

    async with transport.consuming([Subscriber("a", Moved, hear)], concurrency=2):
        await transport.queue.publish(transport.db, *(Moved(n) for n in range(10)))
        await transport.until(lag, 10)
        go.set()
        await transport.until(lag, 0)


async def test_a_pause_of_a_queue_expires_in_every_consumer_while_it_is_idle(transport: Bench) -> None:
    ear, queues = Ear(), QueueAdmin(["default"])

    async def finished() -> object:
        return await transport.rows("SELECT count(*) FROM kernel.finished_jobs")

    async def pause(seconds: float) -> datetime:
        async with transport.db.begin() as tx:
            until = await now(tx) + timedelta(seconds=seconds)
            await queues.pause(tx, "default", until, "the mail server is down")
        return until

    subscriber = Subscriber("a", Moved, ear)
    # their next poll is far away, and they first hear of a pause until tomorrow
    async with (
        transport.consuming([subscriber], "x", poll_interval=60),
        transport.consuming([subscriber], "y", poll_interval=60),
    ):
        await pause(86_400)
        await transport.queue.publish(transport.db, *(Moved(n) for n in range(20)))
        await transport.until(transport.states, [("ready", 0)] * 20)
        until = await pause(1.5)
        await transport.until(ear.steps, list(range(20)), seconds=8)
        await transport.until(finished, [(20,)])
        ((first, last),) = await transport.rows("SELECT min(finished_at), max(finished_at) FROM kernel.finished_jobs")
        assert until <= first
        assert last < until + timedelta(seconds=5)  # within a moment, but the machine may be busy
        await transport.queue.publish(transport.db, Moved(20))  # the pause that has expired is no pause
        await transport.until(ear.steps, list(range(21)), seconds=8)


async def test_a_queue_with_a_limit_runs_no_more_events_at_once_in_all_consumers(transport: Bench) -> None:
    running, most, done = 0, 0, 0

    async def hear(event: Moved) -> None:
        nonlocal running, most, done
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.02)
        running -= 1
        done += 1

    subscriber = Subscriber("a", Moved, hear)
    async with transport.consuming([subscriber], "x"), transport.consuming([subscriber], "y"):
        async with transport.db.begin() as tx:
            await QueueAdmin(["default"]).limit(tx, "default", 2)
        await transport.queue.publish(transport.db, *(Moved(n) for n in range(12)))
        await transport.until(lambda: asyncio.sleep(0, done), 12)
    assert most == 2


async def test_the_subscriber_continues_the_trace_of_the_publisher(transport: Bench) -> None:
    seen: list[int] = []

    async def hear(event: Moved) -> None:
        seen.append(trace.get_current_span().get_span_context().trace_id)

    async with transport.consuming([Subscriber("a", Moved, hear)]):
        with trace.use_span(NonRecordingSpan(SpanContext(0xABC, 0xDEF, False, TraceFlags(1)))):
            await transport.queue.publish(transport.db, Moved(1))
        await transport.until(lambda: asyncio.sleep(0, seen), [0xABC])


async def test_older_events_are_upgraded_and_newer_ones_left_to_newer_releases(transport: Bench) -> None:
    later, before = Ear(), Ear()
    async with transport.consuming([Subscriber("later", MovedLater, later), Subscriber("before", Moved, before)]):
        await transport.queue.publish(transport.db, Moved(10), MovedLater(1.5))
        await transport.until(lambda: asyncio.sleep(0, sorted(e.distance for e in later.heard)), [1.5, 5.0])
        await transport.until(transport.states, [("scheduled", 0)])
    assert before.heard == [Moved(10)]


async def test_an_event_that_runs_for_longer_than_a_lease_runs_once(transport: Bench) -> None:
    ear = Ear()

    async def hear(event: Moved) -> None:
        await ear(event)
        await asyncio.sleep(1.5)

    short = replace(transport, settings=replace(transport.settings, lease=0.6))
    if short.stream:
        short.stream = replace(short.stream, lease_s=0.6)
    async with (
        short.consuming([Subscriber("a", Moved, hear)], "x"),
        short.consuming([Subscriber("a", Moved, hear)], "y"),
    ):
        await short.queue.publish(short.db, Moved(1))
        await short.until(ear.steps, [1])
        await quiet(short)
    assert await ear.steps() == [1]


async def test_an_event_that_is_larger_than_a_message_arrives(transport: Bench) -> None:
    ear = Ear()
    async with transport.consuming([Subscriber("a", Moved, ear)]):
        await transport.queue.publish(transport.db, Moved(1, "x" * 1_500_000))
        await transport.until(ear.steps, [1])
    assert len(ear.heard[0].note) == 1_500_000
