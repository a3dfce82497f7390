"""One dead letter first, the others at a rate: what a canary does with them, and what others do to a canary."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import psycopg
import pytest

from app.kernel.errors import Invalid
from app.kernel.queue import Handler, JobExists
from app.kernel.queue import canaries as kernel_canaries
from app.kernel.queue.canaries import STEP_S, allowance
from app.modules.platform.canaries import CanariesWanted, CanaryRef, CanaryWanted
from app.modules.platform.dead_letters import DeadLetterRef, DeadLettersChosen
from app.modules.platform.domain.queue import CanaryNotFound, CanaryRunning, DeadLetterNotFound
from app.modules.platform.jobs import JobRef
from tests.conftest import TestDatabase
from tests.kernel.queue.conftest import GREET, Bench, Greeting
from tests.modules.platform.conftest import NOBODY, OPERATOR, Operator
from tests.support.project import Project, eventually

LETTERS = """
    INSERT INTO kernel.dead_letters
        (id, queue, task, payload, reason, attempt, max_attempts, timeout_s, unique_key, created_at, died_at)
    SELECT kernel.uuid7(), %(queue)s, %(task)s, jsonb_build_object('name', n::text), 'boom', 3, 3, 60, %(key)s,
        now() - interval '1 hour', now() + %(died_s)s * interval '1 s'
    FROM generate_series(1, %(count)s) n
"""
FINISH = """
    WITH gone AS (DELETE FROM kernel.jobs WHERE task = 'greet' RETURNING *)
    INSERT INTO kernel.finished_jobs (id, queue, task, outcome, attempt, created_at)
    SELECT id, queue, task, 'done', attempt + 1, created_at FROM gone
"""
DIE = """
    WITH gone AS (
        DELETE FROM kernel.jobs WHERE id IN (SELECT id FROM kernel.jobs WHERE task = 'greet' LIMIT %s) RETURNING *
    )
    INSERT INTO kernel.dead_letters (id, queue, task, reason, attempt, max_attempts, timeout_s, created_at)
    SELECT id, queue, task, 'boom again', 3, max_attempts, timeout_s, created_at FROM gone
"""

FAIL = """
    UPDATE kernel.jobs SET attempt = 1, state = 'scheduled'
    WHERE id IN (SELECT id FROM kernel.jobs WHERE task = 'greet' AND attempt = 0 LIMIT 1)
"""


async def letters(bench: Bench, count: int, queue: str = "default", key: str | None = None, died_s: int = -60) -> None:
    await bench.db.run(LETTERS, {"count": count, "queue": queue, "task": "greet", "key": key, "died_s": died_s})


async def count(bench: Bench, table: str) -> int:
    [(found,)] = await bench.rows(f"SELECT count(*) FROM kernel.{table} WHERE task = 'greet'")
    return found


@asynccontextmanager
async def started(bench: Bench, operator: Operator, **wanted: Any) -> AsyncIterator["Stepped"]:
    canary = await operator.canaries.start(OPERATOR, CanaryWanted(task="greet", **wanted))
    yield Stepped(bench, operator, canary.id)


class Stepped:
    """A canary whose steps the test makes, each after so many seconds."""

    def __init__(self, bench: Bench, operator: Operator, canary_id: UUID) -> None:
        self.bench, self.operator, self.id = bench, operator, canary_id

    async def step(self, after_s: float = STEP_S) -> Any:
        back = "released_at = released_at - %(s)s * interval '1 s', progress_at = progress_at - %(s)s * interval '1 s'"
        await self.bench.db.run(f"UPDATE kernel.canaries SET {back} WHERE id = %(id)s", {"s": after_s, "id": self.id})
        async with self.bench.db.begin() as tx:
            self.delay_s = await self.operator.steps.step(tx, self.id, "default")
        return await self.operator.canaries.get(CanaryRef(self.id))


def test_the_rate_is_kept_whatever_the_steps() -> None:
    """An oracle: over any steps, at most rate x time plus two steps are released, and almost as many without delays."""
    for rate in (0.1, 0.7, 1, 3.3, 10, 99, 500):
        for step_s in (0.5, STEP_S, 11.0):
            released, at, released_at = 0, 0.0, 0.0
            while at < 300:
                at += step_s
                most, left_s = allowance(rate, at - released_at, 0)
                released += most
                released_at = at - left_s if most else released_at
            assert released <= rate * at + 1
            if step_s <= STEP_S:
                assert released >= rate * at * 0.9 - 1
            longest = max(2 * STEP_S, 1 / rate)
            assert allowance(rate, 1e9, 0)[0] <= max(1, rate * longest)
    assert allowance(500, 4, 990) == (10, 0.0)
    assert allowance(500, 4, 1000)[0] == allowance(500, 4, 5000)[0] == allowance(500, -1, 0)[0] == 0


async def test_one_is_tried_with_a_single_attempt_and_the_others_follow_at_the_rate(
    bench: Bench, operator: Operator
) -> None:
    await letters(bench, 8)
    async with started(bench, operator, rate=1) as canary:
        assert await bench.rows("SELECT max_attempts - attempt FROM kernel.jobs WHERE task = 'greet'") == [(1,)]
        shown = await canary.step()
        assert (shown.state, shown.total, shown.released, await count(bench, "dead_letters")) == ("trying", 8, 1, 7)
        await bench.db.run(FINISH)
        shown = await canary.step()
        assert (shown.state, shown.released, shown.succeeded) == ("releasing", 1, 1)
        shown = await canary.step(2)
        assert (shown.released, await count(bench, "dead_letters")) == (3, 5)
        assert await bench.rows("SELECT DISTINCT max_attempts - attempt FROM kernel.jobs WHERE task = 'greet'") == [
            (3,)
        ]
        assert (await canary.step(600)).released == 7  # it does not catch up
        await letters(bench, 2, died_s=5)  # dead after its start
        await bench.db.run(FINISH)
        await canary.step(4)
        await bench.db.run(FINISH)
        shown = await canary.step()
        assert (shown.state, shown.released, shown.succeeded, shown.failed) == ("done", 8, 8, 0)
        assert canary.delay_s is None
        assert (await canary.step(0)) == shown
    assert await bench.rows("SELECT count(*) FROM kernel.canary_letters") == [(0,)]
    [(action, target)] = operator.audited()
    assert (action, target) == ("platform.start_canary", str(canary.id))


async def test_it_fails_with_its_first_letter_and_releases_nothing(bench: Bench, operator: Operator) -> None:
    await letters(bench, 3)
    async with started(bench, operator) as canary:
        await bench.db.run(DIE, (1,))
        shown = await canary.step()
        assert (shown.state, shown.failed, shown.reason) == ("failed", 1, "the first letter is dead again: boom again")
        assert await count(bench, "dead_letters") == 3
        assert (await canary.step()).released == 1


@pytest.mark.parametrize("how", ["purged", "cancelled"])
async def test_a_first_letter_that_somebody_takes_away_releases_nothing(
    bench: Bench, operator: Operator, how: str
) -> None:
    await letters(bench, 3)
    async with started(bench, operator) as canary:
        [(first,)] = await bench.rows("SELECT id FROM kernel.jobs WHERE task = 'greet'")
        if how == "purged":
            await bench.db.run(DIE, (1,))
            await operator.dead_letters.purge(OPERATOR, DeadLetterRef(first))
            assert (await canary.step()).state == "failed"
        else:
            await operator.jobs.cancel(OPERATOR, JobRef(first))
            assert (await canary.step()).state == "stopped"
        assert await count(bench, "jobs") == 0


async def test_it_stops_when_more_than_the_threshold_fail_again_for_good_or_for_now(
    bench: Bench, operator: Operator
) -> None:
    await letters(bench, 30)
    async with started(bench, operator, max_failed=3, rate=5) as canary:
        await bench.db.run(FINISH)
        await canary.step()
        await canary.step(4)
        await bench.db.run(DIE, (2,))
        await bench.db.run(FAIL)
        shown = await canary.step(1)
        assert (shown.state, shown.failed) == ("releasing", 2)  # at the threshold
        released = shown.released
        await bench.db.run(DIE, (1,))
        await bench.db.run(FAIL)
        shown = await canary.step(1)
        assert shown.state == "failed"
        assert shown.released == released < 30
        assert "failed again; at most 3 may" in shown.reason


async def test_only_one_runs_for_a_filter_whoever_presses_and_it_is_stopped_once(
    bench: Bench, operator: Operator
) -> None:
    await letters(bench, 4)
    wanted = CanaryWanted(task="greet")
    both = await asyncio.gather(*(operator.canaries.start(OPERATOR, wanted) for _ in range(5)), return_exceptions=True)
    [canary] = [each for each in both if not isinstance(each, BaseException)]
    assert sum(isinstance(each, CanaryRunning) for each in both) == 4
    assert await count(bench, "jobs") == 1
    other = await operator.canaries.start(OPERATOR, CanaryWanted(queue="default"))  # overlaps, and releases others
    assert await count(bench, "jobs") == 2
    stopped = await operator.canaries.stop(OPERATOR, CanaryRef(canary.id))
    assert (stopped.state, stopped.reason) == ("stopped", "stopped by ")
    assert await operator.canaries.stop(OPERATOR, CanaryRef(canary.id)) == stopped
    assert [action for action, _ in operator.audited()].count("platform.stop_canary") == 1
    assert (await Stepped(bench, operator, canary.id).step()).released == 1
    again = await operator.canaries.start(OPERATOR, wanted)
    assert {each.state for each in (await operator.canaries.list(CanariesWanted())).items} == {"stopped", "trying"}
    for each in (again, other):
        await operator.canaries.stop(OPERATOR, CanaryRef(each.id))
    for act in (operator.canaries.get, operator.canaries.stop):
        with pytest.raises(CanaryNotFound):
            await act(OPERATOR, CanaryRef(NOBODY))


async def test_what_cannot_be_started_leaves_everything_as_it_was(bench: Bench, operator: Operator) -> None:
    with pytest.raises(DeadLetterNotFound):
        await operator.canaries.start(OPERATOR, CanaryWanted(task="greet"))
    for unclear in (CanaryWanted(), CanaryWanted(all=True, task="greet")):
        with pytest.raises(Invalid):
            await operator.canaries.start(OPERATOR, unclear)
    await letters(bench, 2, key="k")
    await bench.queue.enqueue(bench.db, GREET, Greeting("new"), unique_key="k")
    with pytest.raises(JobExists):
        await operator.canaries.start(OPERATOR, CanaryWanted(task="greet"))
    assert (await operator.canaries.list(CanariesWanted())).items == []
    assert operator.audited() == []


async def test_letters_that_others_retry_or_purge_meanwhile_are_released_once_or_not(
    bench: Bench, operator: Operator
) -> None:
    await letters(bench, 20)
    async with started(bench, operator, rate=1) as canary:
        await bench.db.run(FINISH)
        await canary.step()
        retry = operator.dead_letters.retry_some(OPERATOR, DeadLettersChosen(task="greet"))
        await asyncio.gather(retry, canary.step(4))
        assert (await count(bench, "jobs"), await count(bench, "dead_letters")) == (19, 0)
        await bench.db.run(FINISH)
        await canary.step(4)
        shown = await canary.step(4)
        assert shown.state == "done"
        assert shown.succeeded == shown.released <= 20
        assert await count(bench, "finished_jobs") == 20


async def test_a_paused_queue_holds_it_up_and_ten_thousand_letters_do_not(bench: Bench, operator: Operator) -> None:
    await letters(bench, 10_000, queue="other")
    await bench.db.run("INSERT INTO kernel.queues (name, paused_at) VALUES ('other', now())")
    async with started(bench, operator, rate=500) as canary:
        shown = await canary.step(10)
        assert (shown.state, shown.paused_queue) == ("trying", "other")
        assert 2 < canary.delay_s < 3
        await canary.step(3600)
        assert canary.delay_s == 30
        await bench.db.run(FINISH)
        await canary.step()
        for _ in range(3):
            shown = await canary.step(4)
        assert shown.released - shown.succeeded == 1000  # no more than this wait in the paused queue
        assert shown.paused_queue == "other"
        await bench.db.run("UPDATE kernel.queues SET paused_at = NULL")
        for _ in range(12):
            await bench.db.run(FINISH)
            shown = await canary.step(4)
        assert (shown.state, shown.released, shown.succeeded) == ("done", 10_000, 10_000)


async def test_it_ends_when_nothing_happens_for_a_day(bench: Bench, operator: Operator) -> None:
    await letters(bench, 3)
    async with started(bench, operator) as canary:
        assert (await canary.step(86_000)).state == "trying"
        shown = await canary.step(500)
        assert (shown.state, shown.reason) == ("stopped", "nothing was released and nothing ended for a day")
        assert await count(bench, "jobs") == 1  # the job is still there


async def test_its_steps_are_jobs_that_enqueue_the_next_one(
    bench: Bench, operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_canaries, "STEP_S", 0.05)
    seen: list[str] = []

    async def greet(greeting: Greeting) -> None:
        seen.append(greeting.name)

    await letters(bench, 12)
    canary = await operator.canaries.start(OPERATOR, CanaryWanted(task="greet", rate=100))
    await bench.db.run("UPDATE kernel.jobs SET run_at = now(), state = 'ready' WHERE task = 'platform.run_canary'")
    async with bench.consuming([Handler(GREET, greet), *operator.runs_canaries]):
        await bench.until(lambda: bench.rows("SELECT state FROM kernel.canaries"), [("done",)])
        await bench.until(lambda: bench.rows("SELECT count(*) FROM kernel.jobs"), [(0,)])
    assert sorted(seen) == sorted(str(n) for n in range(1, 13))
    shown = await operator.canaries.get(CanaryRef(canary.id))
    assert (shown.released, shown.succeeded) == (12, 12)


def test_its_worker_is_killed_in_each_state_and_every_letter_is_done_once(
    project: Project, database: TestDatabase
) -> None:
    project.env |= {"QUEUE_LEASE": "2s", "QUEUE_POLL_INTERVAL": "100ms"}
    assert project.app("migrate", "up").returncode == 0
    given = {"count": 30, "queue": "default", "task": "platform.heartbeat", "key": None, "died_s": -60}
    with psycopg.connect(database.conninfo, autocommit=True) as session:
        session.execute(LETTERS, given)
    letters = {letter for (letter,) in database.all("SELECT id FROM kernel.dead_letters")}
    started = project.app("dead-letters", "canary", "start", "--task", "platform.heartbeat", "--rate", "10", "--json")
    canary = json.loads(started.stdout)
    state = "SELECT state, released, succeeded, failed FROM kernel.canaries"
    finished = "SELECT id FROM kernel.finished_jobs WHERE task = 'platform.heartbeat'"

    due = "UPDATE kernel.jobs SET run_at = now() + %s * interval '1 s' WHERE task = 'platform.run_canary'"
    database.run(due, 3600)
    worker = project.start("run-event-consumer")
    eventually(lambda: database.all(finished))
    worker.signal(signal.SIGKILL)
    assert database.all(state) == [("trying", 1, 0, 0)]
    database.run(due, 0)
    worker = project.start("run-event-consumer")
    eventually(lambda: database.all("SELECT FROM kernel.canaries WHERE state = 'releasing' AND released > 1"))
    worker.signal(signal.SIGKILL)
    assert database.all("SELECT state FROM kernel.canaries") == [("releasing",)]
    workers = [project.start("run-event-consumer") for _ in range(2)]
    eventually(lambda: database.all(state) == [("done", 30, 30, 0)])
    assert sorted(done for (done,) in database.all(finished)) == sorted(letters)
    assert eventually(lambda: database.all("SELECT count(*) FROM kernel.jobs") == [(0,)])
    assert database.all("SELECT count(*) FROM kernel.dead_letters") == [(0,)]
    shown = project.app("dead-letters", "canary", "list").stdout.splitlines()[1:]
    assert [line.split()[:5] for line in shown] == [[canary["id"], "done", "platform.heartbeat", "all", "30/30"]]
    for each in workers:
        assert each.stop() == 0
