"""What operators see of schedules, and do to them."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from app.kernel.queue import Handler, Schedule, Task
from app.kernel.queue.cron import CronManager
from app.modules.platform.domain.queue import ScheduleBusy, ScheduleNotFound
from app.modules.platform.jobs import JobRef
from app.modules.platform.schedules import ScheduleRef
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
        return [(s.name, s.last_outcome) for s in (await operator.schedules.list()).items]

    assert await last() == [("report", None), ("tidy", None)]
    found = (await operator.schedules.list()).items[0]
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
    paused = await operator.schedules.pause(OPERATOR, ScheduleRef("tidy"))
    again = await operator.schedules.pause(OPERATOR, ScheduleRef("tidy"))
    assert paused.paused_at == again.paused_at is not None
    await bench.db.run("UPDATE kernel.schedules SET next_fire_at = next_fire_at - interval '10 minutes'")
    assert await manager.fire_due() == 0
    assert [s.paused_at for s in (await operator.schedules.list()).items] == [paused.paused_at]
    await operator.schedules.trigger(OPERATOR, ScheduleRef("tidy"))  # by hand it still runs
    assert await bench.rows(jobs) == [(1,)]
    assert (await operator.schedules.resume(OPERATOR, ScheduleRef("tidy"))).paused_at is None
    assert await manager.fire_due() == 1
    assert await bench.rows(jobs) == [(1,)]
    assert [(s.fired_count, s.skipped_count) for s in (await operator.schedules.list()).items] == [(0, 10)]
    await bench.db.run("UPDATE kernel.schedules SET next_fire_at = next_fire_at - interval '2 minutes'")
    await operator.schedules.resume(OPERATOR, ScheduleRef("tidy"))  # it is not paused: nothing is left out
    assert await manager.fire_due() == 1
    assert await bench.rows(jobs) == [(3,)]


async def test_a_schedule_that_nobody_knows_is_not_found(operator: Operator) -> None:
    for act in (operator.schedules.trigger, operator.schedules.pause, operator.schedules.resume):
        with pytest.raises(ScheduleNotFound):
            await act(OPERATOR, ScheduleRef("nothing"))
    assert operator.audited() == []
