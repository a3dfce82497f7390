"""Turns of a group key or a concurrency key: passed on at once by whatever ends a job, and locked key by key."""

import asyncio
import math
import random
import time
from collections import Counter
from typing import Any
from uuid import UUID

import pytest
from pydantic import TypeAdapter

from app.kernel.queue import Handler, NeverRetry, RetryAfter, Task
from app.kernel.queue.jobs import JobAdmin
from app.kernel.queue.worker.fetcher import QueueState
from app.kernel.queue.worker.leases import ANY_RANK, Fetched, Leases, again_s
from tests.kernel.queue.conftest import GREET, Bench, Greeting

GREETING: TypeAdapter[Greeting] = TypeAdapter(Greeting)

GROUP, CONCURRENCY = {"group_key": "k"}, {"concurrency_key": "k"}
SOON_S = 8.0
NEVER = {"poll_interval": 3600, "lease": 3600}  # nothing but a notification makes a worker look


class Greeter:
    """Its first job waits until it is told how to end."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.end = asyncio.get_running_loop().create_future()

    async def __call__(self, *arguments: Any) -> None:
        name = arguments[-1].name
        self.begun.append(name)
        if name == "first" and self.begun.count(name) == 1:
            await self.end


async def waiting_behind(bench: Bench, greeter: Greeter, key: dict) -> UUID:
    """Enqueue two jobs of a key; return the id of the one that runs, once the other one waits for its turn."""

    async def states() -> list[str]:
        return [state for state, _ in await bench.states()]

    async def begun() -> list[str]:
        return greeter.begun

    first = await bench.queue.enqueue(bench.db, GREET, Greeting("first"), **key)
    await bench.until(states, ["leased"])
    await bench.queue.enqueue(bench.db, GREET, Greeting("second"), **key)
    await bench.until(states, ["leased", "waiting"])
    await bench.until(begun, ["first"])  # it may be leased before it begins
    return first


@pytest.mark.parametrize("key", [GROUP, CONCURRENCY], ids=["group", "concurrency"])
@pytest.mark.parametrize("how", ["done", "done in its transaction", "dead", "cancelled", "postponed"])
async def test_the_next_job_starts_at_once_when_one_ends(bench: Bench, how: str, key: dict) -> None:
    greeter = Greeter()
    handlers = [Handler(GREET, greeter, "tx" if "transaction" in how else "at_least_once")]

    async def begun() -> list[str]:
        return greeter.begun

    async with bench.consuming(handlers, "one", **NEVER), bench.consuming(handlers, "other", **NEVER):
        first = await waiting_behind(bench, greeter, key)
        if how == "cancelled":
            async with bench.db.begin() as tx:
                await JobAdmin().ask_to_cancel(tx, first)
        elif how == "dead":
            greeter.end.set_exception(NeverRetry("it is over"))
        elif how == "postponed":
            greeter.end.set_exception(RetryAfter(3600))
        else:
            greeter.end.set_result(None)
        if how == "postponed" and key is GROUP:  # which keeps its turn
            await bench.until(bench.states, [("scheduled", 1), ("waiting", 0)], SOON_S)
            async with bench.db.begin() as tx:
                await JobAdmin().remove(tx, first)
        await bench.until(begun, ["first", "second"], SOON_S)


@pytest.mark.parametrize("key", [GROUP, CONCURRENCY], ids=["group", "concurrency"])
async def test_the_turn_of_a_killed_worker_is_passed_when_its_lease_has_expired(bench: Bench, key: dict) -> None:
    greeter = Greeter()
    greeter.end.set_result(None)
    for name in ("first", "second"):
        await bench.queue.enqueue(bench.db, GREET, Greeting(name), **key)
    assert len((await Leases("killed", 0.5).fetch(bench.db, "default", 9, ANY_RANK, 0)).jobs) == 1
    async with bench.consuming(greeter, **(NEVER | {"lease": 2})):
        await bench.until(bench.finished, [("done", 1), ("done", 1)], SOON_S)
    assert greeter.begun == ["first", "second"]


async def test_a_worker_that_freezes_while_it_passes_a_turn_delays_only_that_turn(bench: Bench) -> None:
    leases, begun = Leases("frozen", 60), []

    async def greet(greeting: Greeting) -> None:
        begun.append(greeting.name)

    async def all_begun() -> list[str]:
        return begun

    await bench.queue.enqueue(bench.db, GREET, Greeting("a1"), group_key="a")
    held = (await leases.fetch(bench.db, "default", 1, ANY_RANK, 0)).jobs
    for name in ("a2", "b1", "b2", "c1"):
        await bench.queue.enqueue(bench.db, GREET, Greeting(name), group_key=name[0])
    async with bench.db.begin() as tx:
        await leases.finish(tx, held)
        async with bench.consuming(greet, **NEVER):
            await bench.until(all_begun, ["b1", "c1", "b2"], 1.5)  # the server ends the frozen transaction after 2 s
            (state,) = await tx.all("SELECT state FROM kernel.jobs WHERE turn_key = 'group/a'")
            assert tuple(state) in {("ready",), ("waiting",)}
            await tx.run("COMMIT; BEGIN")  # it thaws
            await bench.until(all_begun, ["b1", "c1", "b2", "a2"], SOON_S)


async def test_workers_that_end_jobs_of_the_same_keys_in_any_order_do_not_deadlock(bench: Bench) -> None:
    limited = Task("limited", Greeting, concurrency=3)
    keys, jobs, done = 12, 480, 0
    running: Counter[str] = Counter()
    last: dict[str, int] = {}
    async with bench.db.begin() as tx:
        for number in range(jobs):
            name = f"{number % keys}"
            if number % 3:
                await bench.queue.enqueue(tx, limited, Greeting(name, number), concurrency_key=name)
            else:
                await bench.queue.enqueue(tx, GREET, Greeting(f"in order {name}", number), group_key=name)

    async def work(worker: str) -> None:
        nonlocal done
        leases, chance = Leases(worker, 60), random.Random(worker)
        while done < jobs:
            found = (await leases.fetch(bench.db, "default", 20, ANY_RANK, 0)).jobs
            greetings = [GREETING.validate_json(job.payload or "") for job in found]
            for greeting in greetings:
                running[greeting.name] += 1
                assert running[greeting.name] <= (1 if "in order" in greeting.name else 3)
                if "in order" in greeting.name:
                    assert last.get(greeting.name, -1) < greeting.times
                    last[greeting.name] = greeting.times
            chance.shuffle(found)
            await asyncio.sleep(0.001)
            running.subtract(greeting.name for greeting in greetings)
            finished = await leases.finish(bench.db, found) if found else 0
            done += finished

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        for number in range(5):
            group.create_task(work(f"worker {number}"))
    await bench.until(lambda: bench.rows("SELECT count(*) FROM kernel.jobs"), [(0,)])
    await asyncio.sleep(0)
    assert await bench.rows(
        "SELECT pg_stat_get_db_deadlocks(oid) FROM pg_database WHERE datname = current_database()"
    ) == [(0,)]


async def test_a_turn_is_passed_in_order_while_a_fetch_has_the_next_job_locked(bench: Bench) -> None:
    for name in ("first", "second", "third"):
        await bench.queue.enqueue(bench.db, GREET, Greeting(name), **GROUP)
    leases = Leases("worker", 60)
    held = (await leases.fetch(bench.db, "default", 3, ANY_RANK, 0)).jobs
    assert [state for state, _ in await bench.states()] == ["leased", "waiting", "waiting"]
    async with bench.db.begin() as fetching:
        await fetching.run("SELECT FROM kernel.jobs WHERE state = 'waiting' ORDER BY seq LIMIT 1 FOR UPDATE")
        finishing = asyncio.ensure_future(leases.finish(bench.db, held))
        sleeping = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'"

        async def waits_or_ended() -> bool:
            return finishing.done() or await bench.rows(sleeping) == [(1,)]

        await bench.until(waits_or_ended, True)
    assert await finishing == 1
    assert [state for state, _ in await bench.states()] == ["ready", "waiting"]


async def test_a_job_that_stays_locked_holds_up_nobody_who_passes_its_turn(bench: Bench) -> None:
    for name in ("first", "second"):
        await bench.queue.enqueue(bench.db, GREET, Greeting(name), **GROUP)
    leases = Leases("worker", 60)
    held = (await leases.fetch(bench.db, "default", 2, ANY_RANK, 0)).jobs
    async with bench.db.begin() as tx:
        await tx.run("SELECT FROM kernel.jobs WHERE state = 'waiting' FOR UPDATE")
        assert await leases.finish(bench.db, held) == 1
    assert [state for state, _ in await bench.states()] == ["waiting"]
    await leases.rescue(bench.db)
    assert [state for state, _ in await bench.states()] == ["ready"]


async def test_the_locks_of_a_statement_are_limited(bench: Bench) -> None:
    held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
    for keys, locks in ((1, 2), (100, 101), (101, 1), (5000, 1)):
        async with bench.db.begin() as tx:
            await tx.run("SELECT kernel.lock_turns(array_agg('key ' || n)) FROM generate_series(1, %s) n", (keys,))
            await tx.run("SELECT kernel.lock_turns(ARRAY['key 1'])")  # as the trigger does
            assert await tx.one(held) == (locks,)


def test_a_queue_is_fetched_again_at_once_behind_waiting_jobs_soon_for_a_turn_and_when_a_pause_expires() -> None:
    queue, inf = QueueState("default"), math.inf
    for again, least_s, most_s in (("", inf, inf), ("soon", 0.001, 1), ("now", 0, 0), ("30.5", 30, 31), ("", inf, inf)):
        now = time.monotonic()
        queue.fetched(Fetched([], again_s(again), limited=False), queue.next_rank(now), 10, now)
        assert least_s <= queue.wait_s(now) <= most_s
