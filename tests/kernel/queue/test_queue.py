"""The way in, and the order in which jobs come out."""

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

import pytest

from app.kernel.errors import Invalid
from app.kernel.queue import Handler, JobExists, Subscriber, Task
from tests.kernel.queue.conftest import GREET, Bench, Greeting


@dataclass(frozen=True)
class SomethingHappened:
    event_type: ClassVar[str] = "test.something_happened"


def recorder(names: list[str]) -> Any:
    async def greet(greeting: Greeting) -> None:
        names.append(greeting.name)

    return greet


async def test_a_job_is_enqueued_with_its_transaction_or_not_at_all(bench: Bench) -> None:
    class Broken(Exception):
        pass

    with pytest.raises(Broken):  # noqa: PT012
        async with bench.db.begin() as tx:
            await bench.queue.enqueue(tx, GREET, Greeting("never"))
            await bench.queue.enqueue_many(tx, GREET, [Greeting("never")] * 2000)
            raise Broken
    async with bench.db.begin() as tx:
        await bench.queue.enqueue(tx, GREET, Greeting("you"))
        assert await bench.states() == []
    assert await bench.states() == [("ready", 0)]


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        (Greeting("you", "often"), "times: Input should be a valid integer"),  # type: ignore[arg-type]
        ({"name": "you"}, "is a dict, not a Greeting"),
        (None, "is a NoneType, not a Greeting"),
        (Greeting("a\0b"), "NUL"),
    ],
)
async def test_a_payload_that_does_not_fit_is_refused_when_it_is_enqueued(
    bench: Bench, payload: object, says: str
) -> None:
    with pytest.raises(Invalid, match=says):
        await bench.queue.enqueue(bench.db, GREET, payload)
    with pytest.raises(Invalid, match=says):
        await bench.queue.enqueue_many(bench.db, GREET, [payload])
    assert await bench.states() == []


def incompressible(length: int) -> str:
    """Return text that PostgreSQL cannot make smaller, four bytes a character."""
    return "".join(chr(0x20000 + n * n * n % 40_009) for n in range(length))


@pytest.mark.parametrize("name", ["unique_key", "group_key", "concurrency_key"])
async def test_the_longest_key_with_the_longest_names_is_stored_leased_and_finished(bench: Bench, name: str) -> None:
    longest = Task(incompressible(128), queue=incompressible(128)[::-1])
    await bench.queue.enqueue(bench.db, longest, **{name: incompressible(256)})  # type: ignore[arg-type]

    async def work() -> None:
        pass

    async with bench.consuming([Handler(longest, work)], names=(longest.queue,)):
        await bench.until(bench.finished, [("done", 1)])


@pytest.mark.parametrize("wrong", ["", "x" * 129, "a\0b", "a\nb"])
def test_a_declared_name_that_no_index_holds_is_refused_at_once(wrong: str) -> None:
    with pytest.raises(ValueError, match="printable characters"):
        Task(wrong)
    with pytest.raises(ValueError, match="printable characters"):
        Task("t", queue=wrong)
    with pytest.raises(ValueError, match="printable characters"):
        Subscriber(wrong, SomethingHappened, lambda: None)  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"priority": 1001}, "priority"),
        ({"at": datetime(2030, 1, 1)}, "time zone"),  # noqa: DTZ001 - this is what is refused
        ({"group_key": "a", "concurrency_key": "b"}, "not both"),
        *(
            ({name: key}, f"{name} must be text of 1 to 1024 bytes")
            for name in ("unique_key", "group_key", "concurrency_key")
            for key in ("", "x" * 1025, "\N{GREEK SMALL LETTER ALPHA}" * 513, "a\0b", "\ud800")
        ),
    ],
)
async def test_an_option_that_does_not_fit_is_refused(bench: Bench, options: dict, says: str) -> None:
    with pytest.raises(Invalid, match=says):
        await bench.queue.enqueue(bench.db, GREET, Greeting("you"), **options)


@pytest.mark.parametrize("count", [1, 999, 1000, 25_000])
async def test_many_jobs_are_enqueued_whatever_the_way(bench: Bench, count: int) -> None:
    assert (
        await bench.queue.enqueue_many(bench.db, GREET, (Greeting(str(n)) for n in range(count)), priority=3) == count
    )
    found = await bench.rows(
        "SELECT count(DISTINCT payload), min(state), max(state), min(priority), bool_and(run_at <= now()),"
        " bool_and(rank - kernel.job_rank(run_at, priority) BETWEEN 0 AND 25000) FROM kernel.jobs"
    )
    assert found == [(count, "ready", "ready", 3, True, True)]


@pytest.mark.parametrize("count", [1, 1000])
async def test_many_jobs_may_be_delayed(bench: Bench, count: int) -> None:
    await bench.queue.enqueue_many(bench.db, GREET, [Greeting("later")] * count, delay_s=60)
    found = await bench.rows("SELECT DISTINCT state, run_at > now() + interval '50 seconds' FROM kernel.jobs")
    assert found == [("scheduled", True)]


async def test_of_a_unique_key_there_is_one_unfinished_job(bench: Bench) -> None:
    names: list[str] = []
    first = await bench.queue.enqueue(bench.db, GREET, Greeting("first"), unique_key="k")
    assert await bench.queue.enqueue(bench.db, GREET, Greeting("second"), unique_key="k") == first
    with pytest.raises(JobExists):
        await bench.queue.enqueue(bench.db, GREET, Greeting("third"), unique_key="k", on_conflict="refuse")
    fourth = await bench.queue.enqueue(bench.db, GREET, Greeting("fourth"), unique_key="k", on_conflict="replace")
    assert fourth == first
    async with bench.consuming(recorder(names)):
        await bench.until(bench.finished, [("done", 1)])
        await bench.queue.enqueue(bench.db, GREET, Greeting("fifth"), unique_key="k")
        await bench.until(bench.finished, [("done", 1)] * 2)
    assert names == ["fourth", "fifth"]


async def test_a_running_job_cannot_be_replaced(bench: Bench) -> None:
    await bench.queue.enqueue(bench.db, GREET, Greeting("first"), unique_key="k")
    await bench.db.run("UPDATE kernel.jobs SET state = 'leased'")
    with pytest.raises(JobExists):
        await bench.queue.enqueue(bench.db, GREET, Greeting("second"), unique_key="k", on_conflict="replace")


async def test_twenty_at_once_with_one_unique_key_make_one_job(bench: Bench) -> None:
    made = await asyncio.gather(
        *(bench.queue.enqueue(bench.db, GREET, Greeting(str(n)), unique_key="k") for n in range(20))
    )
    assert len(set(made)) == 1
    assert await bench.states() == [("ready", 0)]


async def test_a_higher_priority_goes_first_but_does_not_starve_what_has_waited_long(bench: Bench) -> None:
    names: list[str] = []
    for name, priority, age_s in (("low", 0, 0), ("high", 5, 0), ("old", 0, 51), ("less old", 0, 49)):
        at = datetime.now(UTC) - timedelta(seconds=age_s)
        await bench.queue.enqueue(bench.db, GREET, Greeting(name), priority=priority, at=at)
    async with bench.consuming(recorder(names), concurrency=1):
        await bench.until(lambda: asyncio.sleep(0, len(names)), 4)
    assert names == ["old", "high", "less old", "low"]


async def test_what_was_enqueued_earlier_but_seen_later_is_not_forgotten(bench: Bench) -> None:
    names: list[str] = []
    async with bench.consuming(recorder(names)):
        async with bench.db.begin() as tx:  # its rank is of now, and it becomes visible after the next one has run
            await bench.queue.enqueue(tx, GREET, Greeting("early"))
            await bench.queue.enqueue(bench.db, GREET, Greeting("late"))
            await bench.until(lambda: asyncio.sleep(0, list(names)), ["late"])
        await bench.until(lambda: asyncio.sleep(0, list(names)), ["late", "early"])


async def test_jobs_of_a_group_run_one_at_a_time_in_order_also_when_one_is_retried(bench: Bench) -> None:
    names: list[str] = []
    running = 0

    async def greet(greeting: Greeting) -> None:
        nonlocal running
        running += 1
        assert running == 1
        await asyncio.sleep(0.005)
        running -= 1
        names.append(greeting.name)
        if names.count("3") == 1 and greeting.name == "3":
            raise RuntimeError("once more")

    for n in range(8):
        await bench.queue.enqueue(bench.db, GREET, Greeting(str(n)), group_key="g", priority=n)
    async with bench.consuming(greet, "a", concurrency=4), bench.consuming(greet, "b", concurrency=4):
        await bench.until(bench.finished, [("done", 1)] * 3 + [("done", 2)] + [("done", 1)] * 4)
    assert names == ["0", "1", "2", "3", "3", "4", "5", "6", "7"]


async def test_groups_do_not_wait_for_each_other(bench: Bench) -> None:
    go = asyncio.Event()
    names: list[str] = []

    async def greet(greeting: Greeting) -> None:
        if greeting.name == "slow":
            await go.wait()
        names.append(greeting.name)

    async with bench.consuming(greet, concurrency=3):
        for _ in range(20):
            await bench.queue.enqueue(bench.db, GREET, Greeting("slow"), group_key="slow")
        await bench.queue.enqueue(bench.db, GREET, Greeting("quick"), group_key="quick")
        await bench.until(lambda: asyncio.sleep(0, list(names)), ["quick"])
        go.set()
        await bench.until(bench.finished, [("done", 1)] * 21)


@pytest.mark.parametrize("limit", [1, 3])
async def test_no_more_jobs_of_a_concurrency_key_run_at_once_than_the_task_says(bench: Bench, limit: int) -> None:
    running, most = 0, 0
    task = Task("limited", Greeting, concurrency=limit)

    async def greet(greeting: Greeting) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1

    handlers = [Handler(task, greet)]
    for n in range(30):
        await bench.queue.enqueue(bench.db, task, Greeting(str(n)), concurrency_key="api")
    async with bench.consuming(handlers, "a", concurrency=9), bench.consuming(handlers, "b", concurrency=9):
        await bench.until(bench.finished, [("done", 1)] * 30)
    assert most == limit


async def test_a_job_that_waits_for_its_next_attempt_does_not_take_up_its_concurrency_key(bench: Bench) -> None:
    task = Task("limited", Greeting)

    async def greet(greeting: Greeting) -> None:
        if greeting.name == "bad":
            raise RuntimeError("bad")

    for name in ("bad", "good", "good"):
        await bench.queue.enqueue(bench.db, task, Greeting(name), concurrency_key="api")
    async with bench.consuming([Handler(task, greet)]):
        await bench.until(bench.finished, [("done", 1)] * 2)


async def test_the_one_whose_turn_it_was_may_be_deleted(bench: Bench) -> None:
    task = Task("limited", Greeting)
    go = asyncio.Event()

    async def greet(greeting: Greeting) -> None:
        await go.wait()

    for n in range(4):
        await bench.queue.enqueue(bench.db, task, Greeting(str(n)), concurrency_key="api")
    async with bench.consuming([Handler(task, greet)], concurrency=1):
        await bench.until(bench.states, [("leased", 0)] + [("ready", 0)] * 3)
        async with bench.consuming([Handler(task, greet)], "other"):
            await bench.until(bench.states, [("leased", 0)] + [("waiting", 0)] * 3)
        await bench.db.run("DELETE FROM kernel.jobs WHERE state = 'leased'")
        assert await bench.states() == [("ready", 0), ("waiting", 0), ("waiting", 0)]
        await bench.db.run("DELETE FROM kernel.jobs WHERE state = 'ready'")
        assert await bench.states() == [("ready", 0), ("waiting", 0)]
        go.set()
        await bench.until(bench.finished, [("done", 1)] * 2)


async def test_a_paused_queue_rests_until_it_is_resumed(bench: Bench) -> None:
    names: list[str] = []
    await bench.db.run("INSERT INTO kernel.queues (name, paused_at) VALUES ('default', now())")
    async with bench.consuming(recorder(names), poll_interval=0.02):
        await bench.queue.enqueue(bench.db, GREET, Greeting("you"))
        await bench.queue.enqueue(bench.db, GREET, Greeting("me"), delay_s=0.1)
        await bench.until(bench.states, [("ready", 0), ("ready", 0)])
        assert names == []
        await bench.db.run("UPDATE kernel.queues SET paused_at = NULL")
        await bench.until(bench.finished, [("done", 1)] * 2)


async def test_no_more_jobs_of_a_limited_queue_run_at_once_in_all_workers(bench: Bench) -> None:
    running, most = 0, 0

    async def greet(greeting: Greeting) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1

    await bench.db.run("INSERT INTO kernel.queues (name, concurrency) VALUES ('default', 3)")
    await bench.queue.enqueue_many(bench.db, GREET, [Greeting(str(n)) for n in range(40)])
    async with bench.consuming(greet, "a", concurrency=9), bench.consuming(greet, "b", concurrency=9):
        await bench.until(bench.finished, [("done", 1)] * 40)
    assert most == 3
