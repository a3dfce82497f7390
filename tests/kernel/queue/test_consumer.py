"""The consumer, in process, on a real database."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest

from app.kernel.config import QueueSettings, load
from app.kernel.db.postgres import database as database_provider
from app.kernel.identifiers import uuid7
from app.kernel.process import Process
from app.kernel.queue import Task
from app.kernel.queue.consumer import Consumer
from app.processes import sections
from tests.conftest import TestDatabase
from tests.support.project import ROOT


@dataclass(frozen=True)
class Greeting:
    name: str
    times: int


@asynccontextmanager
async def consuming(
    database: TestDatabase, operation: Callable[..., Awaitable[Any]], **changes: Any
) -> AsyncIterator[tuple[Consumer, asyncio.Event, asyncio.Task[None]]]:
    settings = load(ROOT, sections(), {"APP_ENV": "test", **database.env})
    async with Process("test", settings, ROOT).opened() as p:
        db = await p.use(database_provider)
        queue = replace(settings[QueueSettings], poll_interval=0.02, **changes)
        consumer = Consumer(db, [Task("greet", operation)], queue)
        stop = asyncio.Event()
        running = asyncio.ensure_future(consumer.run(stop))
        yield consumer, stop, running
        stop.set()
        await asyncio.wait({running}, timeout=10)


def enqueue(database: TestDatabase, payload: str = '{"name": "you", "times": 2}', max_attempts: int = 3) -> None:
    database.run(
        "INSERT INTO kernel.jobs (id, task, payload, max_attempts, run_at) VALUES (%s, 'greet', %s, %s, now())",
        uuid7(),
        payload,
        max_attempts,
    )


async def until(probe: Callable[[], Any], seconds: float = 10) -> Any:
    async with asyncio.timeout(seconds):
        while not (found := await asyncio.to_thread(probe)):
            await asyncio.sleep(0.02)
    return found


def finished(database: TestDatabase) -> list[tuple]:
    return database.all("SELECT outcome, attempt, error FROM kernel.finished_jobs")


async def test_a_job_is_run_with_its_payload_and_leaves_the_queue(database: TestDatabase) -> None:
    given: list[Greeting] = []

    async def greet(greeting: Greeting) -> None:
        given.append(greeting)

    async with consuming(database, greet):
        enqueue(database)
        await until(lambda: finished(database) == [("done", 1, None)])
        assert database.all("SELECT count(*) FROM kernel.jobs") == [(0,)]
    assert given == [Greeting("you", 2)]


async def test_a_job_that_fails_is_tried_again_later_and_is_dead_after_its_last_attempt(database: TestDatabase) -> None:
    async def greet(greeting: Greeting) -> None:
        raise RuntimeError("not today")

    async with consuming(database, greet):
        enqueue(database, max_attempts=2)
        await until(lambda: database.all("SELECT attempt FROM kernel.jobs WHERE run_at > now()") == [(1,)])
        database.run("UPDATE kernel.jobs SET run_at = now()")
        await until(lambda: finished(database) == [("dead", 2, "RuntimeError: not today")])
        assert database.all("SELECT count(*) FROM kernel.jobs") == [(0,)]


async def test_a_payload_that_does_not_fit_is_a_failed_attempt(database: TestDatabase) -> None:
    async def greet(greeting: Greeting) -> None:
        raise AssertionError("never called")

    async with consuming(database, greet):
        enqueue(database, '{"name": "you"}', max_attempts=1)
        ((outcome, _, error),) = await until(lambda: finished(database))
    assert outcome == "dead"
    assert error.startswith("ValidationError")


async def test_no_more_jobs_run_at_once_than_the_concurrency(database: TestDatabase) -> None:
    running, most = 0, 0

    async def greet(greeting: Greeting) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.05)
        running -= 1

    async with consuming(database, greet, concurrency=3):
        for _ in range(9):
            enqueue(database)
        await until(lambda: len(finished(database)) == 9)
    assert most == 3


async def test_a_stop_finishes_the_job_at_hand(database: TestDatabase) -> None:
    started, go = asyncio.Event(), asyncio.Event()

    async def greet(greeting: Greeting) -> None:
        started.set()
        await go.wait()

    async with consuming(database, greet) as (_, stop, running):
        enqueue(database)
        await asyncio.wait_for(started.wait(), 10)
        stop.set()
        enqueue(database)
        go.set()
        await asyncio.wait_for(running, 10)
        assert finished(database) == [("done", 1, None)]
        assert database.all("SELECT attempt, leased_until FROM kernel.jobs") == [(0, None)]


async def test_a_cut_hands_the_job_back_as_if_it_had_not_been_tried(database: TestDatabase) -> None:
    started = asyncio.Event()

    async def greet(greeting: Greeting) -> None:
        started.set()
        await asyncio.sleep(60)

    async with consuming(database, greet) as (_, _, running):
        enqueue(database)
        await asyncio.wait_for(started.wait(), 10)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert database.all("SELECT attempt, leased_until FROM kernel.jobs") == [(0, None)]
        assert finished(database) == []


async def test_a_lease_is_renewed_while_the_job_runs(database: TestDatabase) -> None:
    runs = 0

    async def greet(greeting: Greeting) -> None:
        nonlocal runs
        runs += 1
        await asyncio.sleep(1.2)

    async with consuming(database, greet, lease=0.3):
        enqueue(database)
        await until(lambda: finished(database))
        assert finished(database) == [("done", 1, None)]
    assert runs == 1


async def test_a_worker_that_lost_its_lease_cannot_complete_the_job(database: TestDatabase) -> None:
    started, go = asyncio.Event(), asyncio.Event()

    async def greet(greeting: Greeting) -> None:
        started.set()
        await go.wait()

    async with consuming(database, greet) as (_, stop, running):
        enqueue(database)
        await asyncio.wait_for(started.wait(), 10)
        database.run("UPDATE kernel.jobs SET lease_token = %s", uuid7())
        go.set()
        stop.set()
        await asyncio.wait_for(running, 10)
        assert finished(database) == []
        assert database.all("SELECT count(*) FROM kernel.jobs") == [(1,)]
