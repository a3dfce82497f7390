"""What operators see of jobs, and do to them."""

import asyncio
import json
from contextlib import suppress
from dataclasses import replace

import pytest
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from app.kernel.errors import Denied, Invalid
from app.kernel.queue import JobExists, NeverRetry
from app.kernel.queue import jobs as kernel_jobs
from app.modules.platform.canaries import RUN_CANARY, CanaryStep
from app.modules.platform.dead_letters import PurgeToUndo
from app.modules.platform.domain.queue import JobEnded, JobNotFound, JobRunning, JobUnfinished, JobWaiting
from app.modules.platform.jobs import JobRef, JobsWanted, JobToRunAgain
from app.modules.platform.maintenance import HEARTBEAT
from tests.kernel.queue.conftest import GREET, Bench, Greeting
from tests.modules.platform.conftest import NOBODY, OPERATOR, Operator


async def test_jobs_are_listed_newest_first_whether_they_ended_or_not(bench: Bench, operator: Operator) -> None:
    ids = []
    for number in range(4):
        ids.append(await bench.queue.enqueue(bench.db, GREET, Greeting("you"), delay_s=60 * (number == 1)))
        await asyncio.sleep(0.002)  # ids are in the order of their milliseconds
    ready, scheduled, done, cancelled = ids
    await bench.db.run(
        "WITH gone AS (DELETE FROM kernel.jobs WHERE id = %s RETURNING *)"
        " INSERT INTO kernel.finished_jobs (id, queue, task, payload, outcome, attempt, created_at)"
        " SELECT id, queue, task, payload, 'done', 1, created_at FROM gone",
        (done,),
    )
    await operator.jobs.cancel(OPERATOR, JobRef(cancelled))

    async def found(**wanted: object) -> list[tuple]:
        return [(job.id, job.state) for job in (await operator.jobs.list(JobsWanted(**wanted))).items]  # type: ignore[arg-type]

    everything = [(cancelled, "cancelled"), (done, "done"), (scheduled, "scheduled"), (ready, "ready")]
    assert await found() == everything
    for job in everything:
        assert await found(state=job[1]) == [job]
    assert await found(queue="default", task="greet") == everything
    assert await found(queue="other") == await found(task="other") == await found(state="leased") == []
    paged: list[tuple] = []
    page = await operator.jobs.list(JobsWanted(limit=3))
    paged += [(job.id, job.state) for job in page.items]
    page = await operator.jobs.list(JobsWanted(limit=3, cursor=page.next_cursor))
    assert page.next_cursor is None
    assert paged + [(job.id, job.state) for job in page.items] == everything
    assert not any(hasattr(job, "payload") for job in page.items)
    with pytest.raises(Invalid):
        await operator.jobs.list(JobsWanted(cursor="not ours"))


async def test_a_job_is_shown_with_all_that_is_known_of_it(bench: Bench, operator: Operator) -> None:
    span = NonRecordingSpan(SpanContext(0xA, 0xB, False, TraceFlags(1)))
    started = asyncio.Event()

    async def greet(greeting: Greeting) -> None:
        if greeting.name == "bad":
            raise RuntimeError("not today")
        started.set()
        await asyncio.sleep(60)

    with trace.use_span(span):
        bad = await bench.queue.enqueue(bench.db, GREET, Greeting("bad"), unique_key="k", group_key="g")
    slow = await bench.queue.enqueue(bench.db, GREET, Greeting("slow"), priority=3)
    async with bench.consuming(greet, worker="the-worker") as running:
        await asyncio.wait_for(started.wait(), 10)
        await bench.until(lambda: bench.rows("SELECT state FROM kernel.jobs WHERE attempt = 1"), [("scheduled",)])
        shown = await operator.jobs.get(JobRef(slow))
        assert (shown.state, shown.payload, shown.priority, shown.errors) == (
            "leased",
            {"name": "redacted", "times": "redacted"},
            3,
            [],
        )
        assert await operator.jobs.reveal(OPERATOR, JobRef(slow)) == replace(
            shown, payload={"name": "slow", "times": 1}
        )
        assert operator.audited() == [("platform.reveal_job", str(slow))]
        assert shown.lease
        assert shown.lease.by == "the-worker"
        running.task.cancel()
    shown = await operator.jobs.get(JobRef(bad))
    assert (shown.state, shown.attempt, shown.max_attempts, shown.lease) == ("scheduled", 1, 3, None)
    assert (shown.unique_key, shown.turn_key, shown.trace_id) == ("k", "group/g", f"{0xA:032x}")
    assert [(e.attempt, e.error) for e in shown.errors] == [(1, "RuntimeError: not today")]
    await operator.jobs.cancel(OPERATOR, JobRef(bad))
    ended = await operator.jobs.get(JobRef(bad))
    assert (ended.state, ended.attempt, ended.payload, ended.errors) == ("cancelled", 1, shown.payload, shown.errors)
    assert ended.finished_at
    for show in (operator.jobs.get, operator.jobs.reveal):
        with pytest.raises(JobNotFound):
            await show(OPERATOR, JobRef(NOBODY))


async def test_a_job_that_waits_for_its_next_attempt_is_run_at_once(bench: Bench, operator: Operator) -> None:
    failing = True

    async def greet(greeting: Greeting) -> None:
        if failing:
            raise RuntimeError("not yet")

    async with bench.consuming(greet, poll_interval=30):
        job = await bench.queue.enqueue(bench.db, GREET, Greeting("you"))
        await bench.until(bench.states, [("scheduled", 1)])
        await bench.db.run("UPDATE kernel.jobs SET run_at = now() + interval '1 hour', cancel_requested_at = now()")
        failing = False
        assert (await operator.jobs.retry(OPERATOR, JobRef(job))).state == "ready"
        await bench.until(bench.finished, [("done", 2)])
    assert operator.audited() == [("platform.retry_job", str(job))]


async def test_what_cannot_be_retried_says_why(bench: Bench, operator: Operator) -> None:
    first = await bench.queue.enqueue(bench.db, GREET, Greeting("1"), group_key="g")
    second = await bench.queue.enqueue(bench.db, GREET, Greeting("2"), group_key="g")
    assert (await operator.jobs.retry(OPERATOR, JobRef(first))).state == "ready"  # it was
    for state, refusal in (("leased", JobRunning), ("waiting", JobWaiting)):
        await bench.db.run("UPDATE kernel.jobs SET state = %s WHERE id = %s", (state, second))
        with pytest.raises(refusal):
            await operator.jobs.retry(OPERATOR, JobRef(second))
    await operator.jobs.cancel(OPERATOR, JobRef(first))
    for act in (operator.jobs.retry, operator.jobs.cancel):
        with pytest.raises(JobEnded, match="cancelled"):
            await act(OPERATOR, JobRef(first))
        with pytest.raises(JobNotFound):
            await act(OPERATOR, JobRef(NOBODY))
    assert operator.audited() == [("platform.cancel_job", str(first))]


async def test_cancelling_a_job_that_does_not_run_passes_its_turn_on(bench: Bench, operator: Operator) -> None:
    done: list[str] = []

    async def greet(greeting: Greeting) -> None:
        if greeting.name == "first":
            raise RuntimeError("fails")
        done.append(greeting.name)

    async with bench.consuming(greet):
        first = await bench.queue.enqueue(bench.db, GREET, Greeting("first"), group_key="g")
        await bench.until(bench.states, [("scheduled", 1)])
        await bench.db.run("UPDATE kernel.jobs SET run_at = now() + interval '1 hour'")
        await bench.queue.enqueue(bench.db, GREET, Greeting("second"), group_key="g")
        await bench.until(bench.states, [("scheduled", 1), ("waiting", 0)])
        assert (await operator.jobs.cancel(OPERATOR, JobRef(first))).state == "cancelled"
        await bench.until(bench.finished, [("cancelled", 1), ("done", 1)])
    assert done == ["second"]


async def test_a_running_job_is_cancelled_by_its_worker(bench: Bench, operator: Operator) -> None:
    started = asyncio.Event()

    async def greet(greeting: Greeting) -> None:
        started.set()
        await asyncio.sleep(60)

    async with bench.consuming(greet):
        job = await bench.queue.enqueue(bench.db, GREET, Greeting("you"))
        await asyncio.wait_for(started.wait(), 10)
        asked = await operator.jobs.cancel(OPERATOR, JobRef(job))
        assert asked.state == "leased"
        assert asked.cancel_requested_at
        await bench.until(bench.finished, [("cancelled", 1)])
    assert operator.audited() == [("platform.cancel_job", str(job))]


async def test_a_running_job_is_cancelled_also_when_the_worker_cannot_be_told(bench: Bench, operator: Operator) -> None:
    started = asyncio.Event()

    async def greet(greeting: Greeting) -> None:
        started.set()
        await asyncio.sleep(60)

    async with bench.consuming(greet, lease=0.6):
        job = await bench.queue.enqueue(bench.db, GREET, Greeting("you"))
        await asyncio.wait_for(started.wait(), 10)
        await bench.db.run("UPDATE kernel.jobs SET cancel_requested_at = now()")  # and no notification
        await bench.until(bench.finished, [("cancelled", 1)])
    assert (await operator.jobs.get(JobRef(job))).state == "cancelled"


async def test_jobs_that_are_cancelled_while_workers_take_them_end_once(bench: Bench, operator: Operator) -> None:
    ran: list[str] = []

    async def greet(greeting: Greeting) -> None:
        ran.append(greeting.name)

    await bench.queue.enqueue_many(bench.db, GREET, [Greeting(str(n)) for n in range(120)])
    ids = [job for (job,) in await bench.rows("SELECT id FROM kernel.jobs ORDER BY seq")]

    turns = asyncio.Semaphore(8)  # on a slow machine, all at once would wait for a connection too long

    async def cancel(job_id: object) -> None:
        async with turns:
            with suppress(JobEnded):
                await operator.jobs.cancel(OPERATOR, JobRef(job_id))  # type: ignore[arg-type]

    async with bench.consuming(greet, concurrency=4):
        await asyncio.gather(*(cancel(job_id) for job_id in reversed(ids)))
        await bench.until(lambda: bench.rows("SELECT count(*) FROM kernel.jobs"), [(0,)])
    ended = [(job_id, outcome) for job_id, outcome in await bench.rows("SELECT id, outcome FROM kernel.finished_jobs")]
    assert sorted(job_id for job_id, _ in ended) == sorted(ids)
    assert len(ran) == len(set(ran))
    assert [outcome for _, outcome in ended].count("cancelled") >= 120 - len(ran)


def payload_of(number: int) -> str:
    return f"{number} of Ada"


async def test_jobs_are_found_by_time_attempts_errors_arguments_and_trace(
    bench: Bench, operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An oracle: the filters over rows that are known, in pages of any size, of searches of any size."""
    rows = []
    for number in range(24):
        span = NonRecordingSpan(SpanContext(0x100 + number % 3, 0xB, False, TraceFlags(1)))
        with trace.use_span(span):
            job = await bench.queue.enqueue(bench.db, GREET, Greeting(payload_of(number)))
        rows.append((job, number % 4, number % 5 == 0, number % 3, number))
        sql = "UPDATE kernel.jobs SET attempt = %s, errors = %s::jsonb WHERE id = %s"
        errors = (
            '[{"attempt": 1, "at": "2026-01-01T00:00:00Z", "error": "TimeoutError: Late"}]' if number % 5 == 0 else None
        )
        await bench.db.run(sql, (number % 4, errors, job))
        await asyncio.sleep(0.002)
    for job, *_ in rows[::2]:
        await operator.jobs.cancel(OPERATOR, JobRef(job))
    times = dict(
        await bench.rows("SELECT id, created_at FROM kernel.jobs UNION SELECT id, created_at FROM kernel.finished_jobs")
    )
    middle = times[rows[12][0]]
    asked = [
        ({"min_attempts": 2}, lambda row: row[1] >= 2),
        ({"error": "timeouterror: l"}, lambda row: row[2]),
        ({"text": "1 OF ada"}, lambda row: payload_of(row[4]).endswith("1 of Ada")),
        ({"text": "%"}, lambda row: False),
        ({"trace_id": f"{0x101:032x}"}, lambda row: row[3] == 1),
        ({"created_from": middle}, lambda row: times[row[0]] >= middle),
        ({"created_to": middle, "task": "greet"}, lambda row: times[row[0]] < middle),
        ({"created_from": middle, "min_attempts": 1, "task": "greet"}, lambda row: times[row[0]] >= middle and row[1]),
    ]
    for searched in (5, 10_000):
        monkeypatch.setattr(kernel_jobs, "_SEARCHED", searched)
        for filters, matches in asked:
            for limit in (3, 100):
                found, cursor, pages = [], None, 0
                while True:
                    page = await operator.jobs.list(JobsWanted(**filters, limit=limit, cursor=cursor))
                    found += [job.id for job in page.items]
                    pages += 1
                    if (cursor := page.next_cursor) is None:
                        break
                    assert pages < 30
                assert found == [row[0] for row in reversed(rows) if matches(row)], (filters, limit, searched)
    caller = replace(OPERATOR, actor_id=NOBODY, permissions=frozenset({"platform:jobs:read"}))
    with pytest.raises(Denied, match="platform:jobs:reveal"):
        await operator.jobs.list(caller, JobsWanted(text="Ada"))
    caller = replace(caller, permissions=frozenset({"platform:jobs:reveal"}))
    assert len((await operator.jobs.list(caller, JobsWanted(text="Ada", limit=100))).items) == 24


async def test_an_ended_job_is_run_again_also_with_other_arguments(bench: Bench, operator: Operator) -> None:
    seen: list[str] = []

    async def greet(greeting: Greeting) -> None:
        seen.append(greeting.name)
        if greeting.name == "bad":
            raise NeverRetry("nobody")

    done = await bench.queue.enqueue(bench.db, GREET, Greeting("good"), group_key="g", unique_key="k")
    dead = await bench.queue.enqueue(bench.db, GREET, Greeting("bad"), priority=4)
    gone = await bench.queue.enqueue(bench.db, GREET, Greeting("gone"), delay_s=60)
    with pytest.raises(JobUnfinished):
        await operator.jobs.run_again(OPERATOR, JobToRunAgain(gone))
    await operator.jobs.cancel(OPERATOR, JobRef(gone))
    async with bench.consuming(greet):
        await bench.until(lambda: bench.rows("SELECT count(*) FROM kernel.jobs"), [(0,)])
    again = await operator.jobs.run_again(OPERATOR, JobToRunAgain(done))
    shown = await operator.jobs.reveal(OPERATOR, JobRef(again.id))
    assert (shown.origin_id, shown.payload, shown.unique_key) == (done, {"name": "good", "times": 1}, "k")
    assert (shown.turn_key, shown.state, shown.attempt, shown.errors) == ("group/g", "ready", 0, [])
    assert await bench.rows("SELECT in_order FROM kernel.jobs") == [(True,)]
    with pytest.raises(JobExists):  # its unique key is taken
        await operator.jobs.run_again(OPERATOR, JobToRunAgain(done))
    edited = await operator.jobs.run_again(OPERATOR, JobToRunAgain(dead, {"name": "secret", "times": 3}))
    assert edited.is_edited
    assert (await operator.jobs.get(JobRef(edited.id))).priority == 4
    with pytest.raises(JobNotFound):  # the dead letter was replaced, which can be undone
        await operator.jobs.run_again(OPERATOR, JobToRunAgain(dead))
    assert (await operator.dead_letters.undo_purge(OPERATOR, PurgeToUndo(dead))).restored_count == 1
    last = await operator.jobs.run_again(OPERATOR, JobToRunAgain(gone))
    async with bench.consuming(greet):
        await bench.until(lambda: bench.rows("SELECT count(*) FROM kernel.jobs"), [(0,)])
    assert sorted(seen) == ["bad", "gone", "good", "good", "secret"]
    assert (await operator.jobs.get(JobRef(last.id))).origin_id == gone
    details = await bench.rows(
        "SELECT details::text FROM kernel.audit WHERE action = 'platform.run_job_again' ORDER BY id"
    )
    assert "secret" not in str(details)
    assert [json.loads(text)["edited"] for (text,) in details] == [False, True, False]
    with pytest.raises(JobNotFound):
        await operator.jobs.run_again(OPERATOR, JobToRunAgain(NOBODY))


async def test_other_arguments_must_fit_the_task_where_it_is_known(bench: Bench, operator: Operator) -> None:
    known = await bench.queue.enqueue(bench.db, RUN_CANARY, CanaryStep(NOBODY), delay_s=60)
    bare = await bench.queue.enqueue(bench.db, HEARTBEAT, delay_s=60)
    unknown = await bench.queue.enqueue(bench.db, GREET, Greeting("?"), delay_s=60)
    for job in (known, bare, unknown):
        await operator.jobs.cancel(OPERATOR, JobRef(job))
    refused = [
        (known, {"canary_id": "no id"}, "payload.canary_id"),
        (known, {"canary_id": str(NOBODY), "more": 1}, "payload.more"),
        (known, {}, "payload.canary_id"),
        (bare, {"any": 1}, "payload"),
    ]
    for job, payload, field in refused:
        with pytest.raises(Invalid) as raised:
            await operator.jobs.run_again(OPERATOR, JobToRunAgain(job, payload))
        assert [name for name, _ in raised.value.fields] == [field]
    assert await bench.rows("SELECT count(*) FROM kernel.jobs") == [(0,)]
    for job, payload in ((known, {"canary_id": str(NOBODY)}), (bare, None), (unknown, {"whatever": [1, {"is": None}]})):
        again = await operator.jobs.run_again(OPERATOR, JobToRunAgain(job, payload))
        assert (await operator.jobs.reveal(OPERATOR, JobRef(again.id))).payload == payload
