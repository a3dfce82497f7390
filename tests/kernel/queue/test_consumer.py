"""The consumer: what becomes of a job, whatever its operation does."""

import asyncio
import math
import time
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from loguru import logger

from app.kernel.config import LoggerSettings
from app.kernel.db import Transaction
from app.kernel.errors import Unavailable
from app.kernel.queue import Handler, NeverRetry, RetryAfter, Task
from app.kernel.queue.worker.fetcher import QueueState
from app.kernel.queue.worker.leases import ANY_RANK, Fetched
from app.kernel.sentinel.capture import Capture
from app.kernel.telemetry import logs, metrics
from tests.kernel.queue.conftest import GREET, Bench, Greeting


async def nothing(greeting: Greeting) -> None:
    """Does nothing."""


async def test_a_job_is_run_with_its_payload_and_leaves_the_queue(bench: Bench) -> None:
    given: list[Greeting] = []

    async def greet(greeting: Greeting) -> None:
        given.append(greeting)

    async with bench.consuming(greet):
        await bench.queue.enqueue(bench.db, GREET, Greeting("you", 2))
        await bench.until(bench.finished, [("done", 1)])
        assert await bench.states() == []
    assert given == [Greeting("you", 2)]


async def test_a_job_that_fails_is_tried_again_later_and_is_a_dead_letter_after_its_last_attempt(bench: Bench) -> None:
    async def greet(greeting: Greeting) -> None:
        raise RuntimeError("not today")

    async with bench.consuming(greet):
        await bench.queue.enqueue(bench.db, GREET, Greeting("you"), max_attempts=2)
        await bench.until(bench.states, [("scheduled", 1)])
        ((delay_s,),) = await bench.rows("SELECT extract(epoch FROM run_at - now())::float8 FROM kernel.jobs")
        assert 0 < delay_s <= 1.2
        await bench.until(bench.dead, ["failed 2 times, at last with RuntimeError: not today"])
        assert await bench.states() == []
    ((errors,),) = await bench.rows("SELECT errors FROM kernel.dead_letters")
    assert [(e["attempt"], e["error"]) for e in errors] == [
        (2, "RuntimeError: not today"),
        (1, "RuntimeError: not today"),
    ]


async def test_later_attempts_wait_longer(bench: Bench) -> None:
    async def greet(greeting: Greeting) -> None:
        raise RuntimeError("not today")

    async with bench.consuming(greet):
        await bench.queue.enqueue(bench.db, GREET, Greeting("you"), max_attempts=9)
        for attempt, shortest in ((1, 0), (2, 11), (3, 60), (4, 190)):
            await bench.until(bench.states, [("scheduled", attempt)])
            ((delay_s,),) = await bench.rows("SELECT extract(epoch FROM run_at - now())::float8 FROM kernel.jobs")
            assert delay_s > shortest
            await bench.db.run("UPDATE kernel.jobs SET run_at = now()")


@pytest.mark.parametrize(
    ("error", "shortest", "longest"), [(RetryAfter(90), 85, 90), (Unavailable("gone", retry_after_s=40), 35, 40)]
)
async def test_an_operation_says_when_to_try_again(
    bench: Bench, error: Exception, shortest: float, longest: float
) -> None:
    async def greet(greeting: Greeting) -> None:
        raise error

    async with bench.consuming(greet):
        await bench.queue.enqueue(bench.db, GREET, Greeting("you"))
        await bench.until(bench.states, [("scheduled", 1)])
    ((delay_s,),) = await bench.rows("SELECT extract(epoch FROM run_at - now())::float8 FROM kernel.jobs")
    assert shortest < delay_s <= longest


async def test_an_operation_says_never_to_try_again(bench: Bench) -> None:
    async def greet(greeting: Greeting) -> None:
        raise NeverRetry("nobody lives here")

    async with bench.consuming(greet):
        await bench.queue.enqueue(bench.db, GREET, Greeting("you"))
        await bench.until(bench.dead, ["never to be retried: nobody lives here"])


async def test_a_payload_that_no_longer_fits_is_a_dead_letter_that_says_why_but_not_the_value(bench: Bench) -> None:
    async with bench.consuming(nothing):
        await bench.queue.enqueue(bench.db, Task("greet"))
        await bench.db.run("UPDATE kernel.jobs SET payload = '{}'")
        await bench.queue.enqueue(bench.db, GREET, Greeting("you", 2), delay_s=0.3)
        await bench.db.run(
            """UPDATE kernel.jobs SET payload = '{"name": "x", "times": "s3cret"}' WHERE run_at > now()"""
        )

        async def reasons() -> int:
            return len(await bench.dead())

        await bench.until(reasons, 2)
    for reason in await bench.dead():
        assert reason.startswith("the payload does not fit: ")
        assert "s3cret" not in reason
    assert any("times" in reason for reason in await bench.dead())


async def test_a_task_that_this_release_does_not_know_is_left_to_another(bench: Bench) -> None:
    async with bench.consuming(nothing):
        await bench.queue.enqueue(bench.db, Task("from.tomorrow"))
        await bench.until(bench.states, [("scheduled", 0)])
    done: list[str] = []

    async def tomorrow() -> None:
        done.append("yes")

    async with bench.consuming([Handler(Task("from.tomorrow"), tomorrow)]):
        await bench.db.run("UPDATE kernel.jobs SET run_at = now()")
        await bench.until(bench.finished, [("done", 1)])
    assert done == ["yes"]


async def test_a_task_that_no_release_has_known_for_a_day_is_a_dead_letter(bench: Bench) -> None:
    await bench.queue.enqueue(bench.db, Task("from.tomorrow"))
    await bench.db.run("UPDATE kernel.jobs SET id = '0190a1b2-c3d4-7e5f-8607-18293a4b5c6d'")  # of July 2024
    async with bench.consuming(nothing):
        await bench.until(bench.dead, ["no release has known from.tomorrow for a day"])


async def test_a_job_that_takes_longer_than_its_timeout_is_stopped(bench: Bench) -> None:
    stopped: list[str] = []

    async def greet(greeting: Greeting) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            stopped.append(greeting.name)
            raise

    async with bench.consuming(greet):
        await bench.queue.enqueue(bench.db, GREET, Greeting("you"), timeout_s=0.1, max_attempts=1)
        await bench.until(bench.dead, ["failed 1 times, at last with TimeoutError: took longer than 0.1 s"])
        # and the worker goes on
        await bench.queue.enqueue(bench.db, GREET, Greeting("me"), timeout_s=0.1, max_attempts=1)
        await bench.until(lambda: asyncio.sleep(0, stopped), ["you", "me"])


async def test_no_more_jobs_run_at_once_than_the_concurrency(bench: Bench) -> None:
    running, most = 0, 0

    async def greet(greeting: Greeting) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.02)
        running -= 1

    async with bench.consuming(greet, concurrency=3):
        await bench.queue.enqueue_many(bench.db, GREET, [Greeting(str(n)) for n in range(30)])
        await bench.until(bench.finished, [("done", 1)] * 30)
    assert most == 3


async def test_a_worker_holds_at_most_twice_its_concurrency_of_unfinished_jobs(bench: Bench) -> None:
    most, ended = 0, 0

    async def greet(greeting: Greeting) -> None:
        nonlocal most, ended
        ((leased, finished),) = await bench.rows(
            "SELECT count(*), (SELECT count(*) FROM kernel.finished_jobs) FROM kernel.jobs WHERE state = 'leased'"
        )
        most = max(most, leased - (ended - finished))
        ended += 1

    async with bench.consuming(greet, concurrency=5):
        await bench.queue.enqueue_many(bench.db, GREET, [Greeting(str(n)) for n in range(300)])
        await bench.until(lambda: bench.rows("SELECT count(*) FROM kernel.finished_jobs"), [(300,)])
    assert 5 <= most <= 10


async def test_a_slow_task_is_not_prefetched_so_that_other_workers_get_it(bench: Bench) -> None:
    release = asyncio.Event()

    async def greet(greeting: Greeting) -> None:
        await release.wait()

    async with bench.consuming(greet, concurrency=2):
        await bench.queue.enqueue_many(bench.db, GREET, [Greeting(str(n)) for n in range(6)])
        leased = "SELECT count(*) FROM kernel.jobs WHERE state = 'leased'"
        await bench.until(lambda: bench.rows(leased), [(2,)])
        async with bench.consuming(greet, concurrency=4):
            await bench.until(lambda: bench.rows(leased), [(6,)])
            release.set()
            await bench.until(bench.finished, [("done", 1)] * 6)


async def test_a_stop_finishes_the_jobs_at_hand_and_hands_back_the_others(bench: Bench) -> None:
    started, go = asyncio.Event(), asyncio.Event()

    async def greet(greeting: Greeting) -> None:
        started.set()
        await go.wait()

    async with bench.consuming(greet, concurrency=1) as running:
        await bench.queue.enqueue(bench.db, GREET, Greeting("you"))
        await asyncio.wait_for(started.wait(), 10)
        running.stop.set()
        await bench.queue.enqueue(bench.db, GREET, Greeting("late"))
        go.set()
        await asyncio.wait_for(running.task, 10)
    assert await bench.finished() == [("done", 1)]
    assert await bench.states() == [("ready", 0)]


async def test_a_cut_hands_the_job_back_as_if_it_had_not_been_tried(bench: Bench) -> None:
    started = asyncio.Event()

    async def greet(greeting: Greeting) -> None:
        started.set()
        await asyncio.sleep(60)

    async with bench.consuming(greet) as running:
        await bench.queue.enqueue(bench.db, GREET, Greeting("you"))
        await asyncio.wait_for(started.wait(), 10)
        running.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running.task
    assert await bench.states() == [("ready", 0)]
    assert await bench.finished() == []


async def test_a_lease_is_renewed_while_the_job_runs_even_when_it_blocks_the_loop(bench: Bench) -> None:
    lapsed: list[tuple] = []

    async def greet(greeting: Greeting) -> None:
        ends = time.monotonic() + 2
        while time.monotonic() < ends:  # blocks, which is what is tested
            lapsed.extend(bench.test.all("SELECT leased_until FROM kernel.jobs WHERE leased_until < now()"))

    said: list[str] = []
    sink = logger.add(lambda message: said.append(str(message)), level="ERROR")
    async with bench.consuming(greet, lease=0.6):
        job = await bench.queue.enqueue(bench.db, GREET, Greeting("you"))
        await bench.until(bench.finished, [("done", 1)])
    logger.remove(sink)
    assert lapsed == []
    (blocked,) = [line for line in said if "blocked the event loop" in line]
    assert f"job {job} of greet" in blocked
    assert "in greet" in blocked


async def test_a_job_of_a_worker_that_died_is_given_to_another(bench: Bench) -> None:
    await bench.queue.enqueue(bench.db, GREET, Greeting("you"))
    await bench.rows("SELECT id FROM kernel.fetch_jobs('default', %s, 'dead', 0.2, 10, 0)", uuid4())
    assert await bench.states() == [("leased", 0)]
    async with bench.consuming(nothing, lease=0.4):
        await bench.until(bench.finished, [("done", 1)])


async def test_a_job_that_kills_its_workers_is_a_dead_letter_in_the_end_that_people_hear_of(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    capture = Capture({})
    monkeypatch.setattr(logs, "_listener", capture)
    logs.configure(LoggerSettings("info", "json", "/dev/null"), "test")
    counted = 'jobs_total{outcome="dead",task="greet"}'

    async def count() -> float:
        return float(said().partition(counted)[2].split()[0]) if counted in said() else 0

    before = await count()
    await bench.queue.enqueue(bench.db, GREET, Greeting("you"))
    await bench.db.run("UPDATE kernel.jobs SET rescues = 10, state = 'leased', leased_until = now()")
    async with bench.consuming(nothing, lease=0.2):
        await bench.until(bench.dead, ["its worker died 10 times while it had the job"])
        await bench.until(count, before + 1)
    logger.remove()
    assert ("job", "dead letter: its worker died 10 times while it had the job") in [
        (group.kind, group.title) for group in capture.drain()
    ]


async def test_a_worker_that_lost_its_lease_cannot_complete_the_job(bench: Bench) -> None:
    started, go = asyncio.Event(), asyncio.Event()

    async def greet(greeting: Greeting) -> None:
        started.set()
        await go.wait()

    async with bench.consuming(greet) as running:
        await bench.queue.enqueue(bench.db, GREET, Greeting("you"))
        await asyncio.wait_for(started.wait(), 10)
        await bench.db.run("UPDATE kernel.jobs SET lease_token = %s", (uuid4(),))
        go.set()
        running.stop.set()
        await asyncio.wait_for(running.task, 10)
    assert await bench.finished() == []
    assert await bench.states() == [("leased", 0)]


async def test_what_a_tx_operation_writes_commits_with_its_completion_or_not_at_all(bench: Bench) -> None:
    await bench.db.run("CREATE TABLE effects (name text)")

    async def greet(tx: Transaction, greeting: Greeting) -> None:
        await tx.run("INSERT INTO effects VALUES (%s)", (greeting.name,))
        if greeting.name == "stale":
            await bench.db.run("UPDATE kernel.jobs SET lease_token = %s", (uuid4(),))
        if greeting.name == "bad":
            raise NeverRetry("bad")

    async with bench.consuming([Handler(GREET, greet, mode="tx")]):
        for name in ("good", "bad"):
            await bench.queue.enqueue(bench.db, GREET, Greeting(name))
        await bench.until(bench.finished, [("done", 1)])
        await bench.until(bench.dead, ["never to be retried: bad"])
        await bench.queue.enqueue(bench.db, GREET, Greeting("stale"))
        await bench.until(lambda: bench.rows("SELECT lease_token IS NOT NULL FROM kernel.jobs"), [(True,)])
    assert await bench.rows("SELECT name FROM effects") == [("good",)]
    assert await bench.finished() == [("done", 1)]


async def test_a_running_job_is_cancelled(bench: Bench) -> None:
    started = asyncio.Event()

    async def greet(greeting: Greeting) -> None:
        started.set()
        await asyncio.sleep(60)

    async with bench.consuming(greet) as running:
        job = await bench.queue.enqueue(bench.db, GREET, Greeting("you"))
        await asyncio.wait_for(started.wait(), 10)
        await bench.until(running.listens, True)
        await bench.db.run("SELECT pg_notify('kernel_jobs', 'c' || %s)", (str(job),))
        await bench.until(bench.finished, [("cancelled", 1)])


async def test_a_delayed_job_runs_when_it_is_due_and_not_before(bench: Bench) -> None:
    ran: list[float] = []

    async def greet(greeting: Greeting) -> None:
        ran.append(time.time())

    async with bench.consuming(greet):
        started = time.time()
        await bench.queue.enqueue(bench.db, GREET, Greeting("you"), delay_s=0.7)
        await bench.until(bench.finished, [("done", 1)])
    assert ran[0] - started >= 0.7


async def test_a_job_is_noticed_by_polling_when_nothing_notifies(bench: Bench) -> None:
    bench.conninfo = "host=127.0.0.1 port=1"  # the listener cannot listen, nor the heartbeat renew
    async with bench.consuming(nothing, poll_interval=0.1):
        await bench.queue.enqueue(bench.db, GREET, Greeting("you"))
        await bench.until(bench.finished, [("done", 1)])


async def test_several_queues_are_worked_on_and_others_are_not(bench: Bench) -> None:
    tasks = [Task(f"greet.{name}", Greeting, queue=name) for name in ("a", "b", "c")]
    async with bench.consuming([Handler(task, nothing) for task in tasks], names=("a", "b")):
        for task in tasks:
            await bench.queue.enqueue_many(bench.db, task, [Greeting(str(n)) for n in range(30)])
        left = "SELECT queue, count(*) FROM kernel.jobs GROUP BY queue"
        await bench.until(lambda: bench.rows(left), [("c", 30)])


async def test_a_job_is_not_kept_waiting_by_many_that_wait_for_their_turn(bench: Bench) -> None:
    async with bench.db.begin() as tx:
        for _ in range(60):
            await bench.queue.enqueue(tx, GREET, Greeting("one of many"), group_key="many")
    await bench.queue.enqueue(bench.db, GREET, Greeting("you"))
    ran = asyncio.Event()

    async def greet(greeting: Greeting) -> None:
        if greeting.name == "you":
            ran.set()
        else:
            await ran.wait()

    async with bench.consuming(greet, concurrency=5, poll_interval=30), asyncio.timeout(10):
        await ran.wait()


async def test_a_limited_queue_goes_on_as_soon_as_jobs_end(bench: Bench) -> None:
    await bench.db.run("INSERT INTO kernel.queues (name, concurrency) VALUES ('default', 2)")
    await bench.queue.enqueue_many(bench.db, GREET, [Greeting("you")] * 20)
    async with bench.consuming(nothing, poll_interval=30):
        await bench.until(bench.states, [], seconds=10)


async def test_a_job_that_outranks_the_last_one_is_not_kept_waiting(bench: Bench) -> None:
    late_s: list[float] = []
    sent = 0.0

    async def greet(_: Greeting) -> None:
        late_s.append(time.monotonic() - sent)

    async with bench.consuming(greet, poll_interval=30):
        for priority in range(1, 41):
            sent = time.monotonic()
            await bench.queue.enqueue(bench.db, GREET, Greeting("you"), priority=priority)
            async with asyncio.timeout(10):
                while len(late_s) < priority:
                    await asyncio.sleep(0.001)
    assert sorted(late_s)[10] < 0.09  # a quarter of them: each waited a tenth of a second, on a machine at rest


def _fetch(queue: QueueState, from_rank: int, took_s: float) -> float:
    now = time.monotonic()
    queue.next_rank(now)
    queue.fetched(Fetched([], None, False), from_rank, 10, now - took_s)
    return time.monotonic()


def test_a_worker_goes_on_from_the_last_rank_while_dead_rows_are_slow() -> None:
    queue, now = QueueState("default"), 0.0
    queue._from = 5
    for _ in range(2):
        now = _fetch(queue, ANY_RANK, 1)
    assert queue.wait_s(now) == math.inf
    queue.may_have_more = True
    assert queue.next_rank(now) == 5
    assert 8 < queue.wait_s(now) <= 10.1  # then from the start, for what was added before
    assert queue.next_rank(now + 11) == ANY_RANK
    assert queue.wait_s(now + 11) == math.inf


def test_a_worker_does_not_pass_by_lower_ranks_because_its_machine_is_slow() -> None:
    """The next job of a group has a lower rank than others that were fetched meanwhile."""
    queue = QueueState("default")
    queue._from = 5
    for _ in range(2):
        _fetch(queue, 5, 1)
    for _ in range(5):
        assert queue.next_rank(_fetch(queue, ANY_RANK, 0.6)) == ANY_RANK
    for _ in range(2):  # and then there are dead rows
        now = _fetch(queue, ANY_RANK, 3)
    assert queue.next_rank(now) == 5


async def test_metrics_tell_what_became_of_jobs_and_what_is_left(bench: Bench) -> None:
    task, other = Task("measured"), Task("measured", queue="elsewhere")

    async def fail() -> None:
        raise RuntimeError("no")

    await bench.queue.enqueue(bench.db, other, delay_s=60)
    await bench.queue.enqueue(bench.db, other, at=datetime.now(UTC) - timedelta(seconds=90))
    async with bench.consuming([Handler(task, fail)], lease=0.2):
        await bench.queue.enqueue(bench.db, task, max_attempts=1)
        await bench.until(lambda: asyncio.sleep(0, 'jobs_total{outcome="dead",task="measured"} 1.0' in said()), True)
        await bench.until(
            lambda: asyncio.sleep(0, 'queue_depth{queue="elsewhere",state="scheduled"} 1.0' in said()), True
        )
    assert 'job_duration_seconds_count{outcome="dead",task="measured"} 1.0' in said()
    (oldest,) = [
        line for line in said().splitlines() if line.startswith('queue_oldest_job_age_seconds{queue="elsewhere"')
    ]
    assert 89 < float(oldest.split()[-1]) < 120


def said() -> str:
    return metrics.exposition()[0].decode()


@pytest.mark.parametrize("kind", [RuntimeError, NeverRetry])
async def test_what_an_operation_says_when_it_fails_may_be_anything(bench: Bench, kind: type[Exception]) -> None:
    async def greet(greeting: Greeting) -> None:
        raise kind("a lone \ud800 and a \0")

    async with bench.consuming(greet):
        await bench.queue.enqueue(bench.db, GREET, Greeting("you"), max_attempts=1)

        async def count() -> int:
            return len(await bench.dead())

        await bench.until(count, 1)
    (reason,) = await bench.dead()
    assert reason.endswith("a lone ? and a ")
