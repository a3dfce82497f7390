"""What operators see of schedules, and do to them."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from itertools import islice
from typing import Any

import pytest

from app.kernel.errors import Invalid
from app.kernel.paging import PageByName
from app.kernel.queue import Handler, Schedule, Task
from app.kernel.queue.cron import CronManager, upcoming
from app.modules.platform.domain.queue import ScheduleBusy, ScheduleNotFound
from app.modules.platform.jobs import JobRef
from app.modules.platform.schedules import RunsWanted, SchedulePause, ScheduleRef
from tests.kernel.queue.conftest import Bench
from tests.modules.platform.conftest import OPERATOR, Operator

REPORT = Task[None]("report", queue="reports", max_attempts=2, timeout_s=7)


async def managed(bench: Bench, *schedules: Schedule) -> CronManager:
    manager = CronManager(bench.db, schedules, 0.5)
    await manager.register()
    return manager


async def test_schedules_are_listed_with_how_their_last_job_ended(bench: Bench, operator: Operator) -> None:
    await managed(
        bench, Schedule(REPORT, cron="0 3 * * *", timezone="Europe/Berlin"), Schedule(Task("tidy"), every_s=60)
    )
    failing = True

    async def report() -> None:
        if failing:
            raise RuntimeError("not today")

    async def last() -> list[Any]:
        return [(s.name, s.last_outcome) for s in (await operator.schedules.list(PageByName())).items]

    assert await last() == [("report", None), ("tidy", None)]
    found = (await operator.schedules.list(PageByName())).items[0]
    assert (found.task, found.queue, found.spec, found.misfire) == (
        "report",
        "reports",
        "0 3 * * * Europe/Berlin",
        "one",
    )
    assert (found.fired_count, found.skipped_count, found.last_fire_at, found.last_finished_at) == (0, 0, None, None)
    async with bench.consuming([Handler(REPORT, report)], names=("reports",)):
        await operator.schedules.trigger(OPERATOR, ScheduleRef("report"))
        await bench.until(lambda: bench.rows("SELECT state FROM kernel.jobs"), [("scheduled",)])
        await bench.db.run("UPDATE kernel.jobs SET run_at = now()")
        await bench.until(last, [("report", "dead"), ("tidy", None)])
        failing = False
        await operator.schedules.trigger(OPERATOR, ScheduleRef("report"))
        await bench.until(last, [("report", "done"), ("tidy", None)])


async def test_a_triggered_schedule_enqueues_a_job_as_its_task_says(bench: Bench, operator: Operator) -> None:
    await managed(bench, Schedule(Task("report", queue="old", max_attempts=9), every_s=60))
    await managed(bench, Schedule(REPORT, every_s=60))  # the code has changed meanwhile
    triggered = await operator.schedules.trigger(OPERATOR, ScheduleRef("report"))
    shown = await operator.jobs.get(JobRef(triggered.job_id))
    assert (shown.task, shown.queue, shown.max_attempts, shown.timeout_s) == ("report", "reports", 2, 7)
    assert (shown.state, shown.schedule, shown.turn_key) == ("ready", "report", None)
    assert shown.unique_key == f"report@manual-{triggered.job_id}"
    ((due,),) = await bench.rows("SELECT next_fire_at > now() FROM kernel.schedules")
    assert due  # the ticks go on as they were
    assert operator.audited() == [("platform.trigger_schedule", "report")]


async def test_what_a_schedule_says_of_overlapping_jobs_holds_when_it_is_triggered(
    bench: Bench, operator: Operator
) -> None:
    once, in_turn = Task[None]("once"), Task[None]("in_turn")
    await managed(bench, Schedule(once, every_s=60, overlap="skip"), Schedule(in_turn, every_s=60, overlap="wait"))

    async def trigger(name: str) -> Any:
        try:
            return await operator.schedules.trigger(OPERATOR, ScheduleRef(name))
        except ScheduleBusy as busy:
            return busy

    together: Sequence[Any] = await asyncio.gather(*(trigger("once") for _ in range(4)))
    assert sum(isinstance(outcome, ScheduleBusy) for outcome in together) == 3
    for _ in range(2):
        await trigger("in_turn")
    most = running = 0

    async def work() -> None:
        nonlocal most, running
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.05)
        running -= 1

    async def nothing() -> None:
        """Does nothing."""

    async with bench.consuming([Handler(in_turn, work), Handler(once, nothing)]):
        await bench.until(bench.finished, [("done", 1)] * 3)
    assert most == 1
    assert not isinstance(await trigger("once"), ScheduleBusy)


async def test_ticks_of_a_paused_schedule_are_not_made_up_for(bench: Bench, operator: Operator) -> None:
    manager = await managed(bench, Schedule(Task("tidy"), every_s=60, misfire="all"))
    jobs = "SELECT count(*) FROM kernel.jobs"
    paused = await operator.schedules.pause(OPERATOR, SchedulePause("tidy"))
    again = await operator.schedules.pause(OPERATOR, SchedulePause("tidy"))
    assert paused.paused_at == again.paused_at is not None
    await bench.db.run("UPDATE kernel.schedules SET next_fire_at = next_fire_at - interval '10 minutes'")
    assert await manager.fire_due() == 0
    assert [s.paused_at for s in (await operator.schedules.list(PageByName())).items] == [paused.paused_at]
    await operator.schedules.trigger(OPERATOR, ScheduleRef("tidy"))  # by hand it still runs
    assert await bench.rows(jobs) == [(1,)]
    assert (await operator.schedules.resume(OPERATOR, ScheduleRef("tidy"))).paused_at is None
    assert await manager.fire_due() == 1
    assert await bench.rows(jobs) == [(1,)]
    assert [(s.fired_count, s.skipped_count) for s in (await operator.schedules.list(PageByName())).items] == [(0, 10)]
    await bench.db.run("UPDATE kernel.schedules SET next_fire_at = next_fire_at - interval '2 minutes'")
    await operator.schedules.resume(OPERATOR, ScheduleRef("tidy"))  # it is not paused: nothing is left out
    assert await manager.fire_due() == 1
    assert await bench.rows(jobs) == [(3,)]


async def test_a_schedule_shows_its_next_and_last_ticks_and_its_pause(bench: Bench, operator: Operator) -> None:
    schedule = Schedule(Task("tidy"), cron="30 * * * *", timezone="Europe/Berlin")
    manager = await managed(bench, schedule)

    async def shown() -> Any:
        return await operator.schedules.get(ScheduleRef("tidy"))

    found = await shown()
    expected = list(islice(upcoming(schedule, found.schedule.next_fire_at - timedelta.resolution), 10))
    assert [tick.at for tick in found.next_ticks] == expected
    assert found.next_ticks[0].at == found.schedule.next_fire_at
    assert {tick.local[-6:] for tick in found.next_ticks} == {"+01:00"}
    assert (found.last_runs, found.schedule.late_s) == ([], None)

    await bench.db.run("UPDATE kernel.schedules SET next_fire_at = next_fire_at - interval '3 hours'")
    assert 3600 < (await shown()).schedule.late_s < 3 * 3600
    assert [tick.at for tick in (await shown()).next_ticks] == expected  # what is due comes in addition
    until = expected[2]
    await operator.schedules.pause(OPERATOR, SchedulePause("tidy", "moving house", until=until))
    paused = await shown()
    assert (paused.schedule.paused_until, paused.schedule.pause_reason) == (until, "moving house")
    assert (paused.schedule.late_s, [tick.at for tick in paused.next_ticks][:8]) == (None, expected[2:])
    await operator.schedules.pause(OPERATOR, SchedulePause("tidy"))
    assert (await shown()).next_ticks == []
    await bench.db.run("UPDATE kernel.schedules SET paused_until = now()")  # it expires
    assert await manager.fire_due() == 1
    triggered = await operator.schedules.trigger(OPERATOR, ScheduleRef("tidy"))
    by_hand, tick = (await shown()).last_runs
    assert (by_hand.id, by_hand.tick, by_hand.late_s, by_hand.state) == (triggered.job_id, None, None, "ready")
    assert (tick.tick, tick.state, tick.ended_at) == (expected[0] - timedelta(hours=1), "ready", None)
    assert tick.late_s == (tick.enqueued_at - tick.tick).total_seconds()
    assert [s.paused_at for s in (await operator.schedules.list(PageByName())).items] == [None]
    details = await bench.rows("SELECT details FROM kernel.audit WHERE action = 'platform.pause_schedule' ORDER BY id")
    assert details == [({"reason": "moving house", "until": until.isoformat()},), ({},)]


async def test_the_jobs_of_a_schedule_are_paged_by_their_ends(bench: Bench, operator: Operator) -> None:
    await managed(bench, Schedule(Task("tidy"), every_s=60))
    await bench.db.run(
        "INSERT INTO kernel.finished_jobs (id, queue, task, outcome, attempt, schedule, unique_key, created_at,"
        " finished_at) SELECT kernel.uuid7(), 'default', 'tidy', 'done', 1, 'tidy', 'tidy@2026-11-22T10:00:00+00:00',"
        " '2026-11-22T10:00:02Z', date_trunc('hour', now()) - n / 3 * interval '1 minute' FROM generate_series(1, 20) n"
    )
    await bench.db.run(
        "INSERT INTO kernel.dead_letters (id, queue, task, reason, attempt, max_attempts, timeout_s, schedule,"
        " created_at, died_at) SELECT kernel.uuid7(), queue, task, 'x', 1, 1, 1, schedule, created_at, finished_at"
        " FROM kernel.finished_jobs ORDER BY finished_at LIMIT 4"
    )
    found, cursor = [], None
    while True:
        page = await operator.schedules.runs(RunsWanted("tidy", 3, cursor))
        found += page.items
        if (cursor := page.next_cursor) is None:
            break
    assert sorted((run.ended_at, run.id) for run in found) == [(run.ended_at, run.id) for run in reversed(found)]
    assert Counter(run.state for run in found) == {"done": 20, "dead": 4}
    assert len({run.id for run in found}) == 24
    assert {run.late_s for run in found} == {2.0, None}
    with pytest.raises(Invalid):
        await operator.schedules.runs(RunsWanted("tidy", 3, "f39_" * 8))


async def test_a_schedule_that_nobody_knows_is_not_found(operator: Operator) -> None:
    for act in (operator.schedules.trigger, operator.schedules.resume, operator.schedules.get):
        with pytest.raises(ScheduleNotFound):
            await act(OPERATOR, ScheduleRef("nothing"))
    for act, wanted in ((operator.schedules.pause, SchedulePause), (operator.schedules.runs, RunsWanted)):
        with pytest.raises(ScheduleNotFound):
            await act(OPERATOR, wanted("nothing"))
    assert operator.audited() == []
