"""Cron managers: exactly one job a tick, however many run."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest
from apscheduler.triggers.combining import OrTrigger
from apscheduler.triggers.interval import IntervalTrigger

from app.kernel.queue import InvalidDeclaration, Schedule, Task
from app.kernel.queue.cron import CronManager, CrontabTrigger, upcoming
from app.kernel.queue.crontab import Crontab
from app.modules.platform.maintenance import MEASURE, SCHEDULES
from tests.conftest import TestDatabase
from tests.kernel.queue.conftest import GREET, Bench
from tests.support.project import Project, eventually


def ticks(database: TestDatabase) -> list[datetime]:
    """Return the ticks of the heartbeat whose jobs are done, in order."""
    rows = database.all(
        "SELECT unique_key FROM kernel.finished_jobs"
        " WHERE outcome = 'done' AND task = 'platform.heartbeat' ORDER BY unique_key"
    )
    return [datetime.fromisoformat(key.partition("@")[2]) for (key,) in rows]


def every_second(project: Project, folder: Path) -> Project:
    """Return a copy of the project whose heartbeat beats every second."""
    copied = project.copy(folder)
    jobs = copied.root / "app/modules/platform/maintenance.py"
    text = jobs.read_text()
    changed = text.replace('cron="* * * * *"', 'every_s=1, misfire="all"')
    assert changed != text
    jobs.write_text(changed)
    return copied


def test_of_two_cron_managers_one_is_killed_and_no_tick_is_missed_or_doubled(
    project: Project, database: TestDatabase, tmp_path: Path
) -> None:
    copied = every_second(project, tmp_path / "copy")
    consumer = copied.start("run-event-consumer")
    consumer.ready()
    managers = [copied.start("run-cron-manager") for _ in range(2)]
    for manager in managers:
        manager.ready()
    eventually(lambda: len(ticks(database)) >= 4)
    managers[0].signal(signal.SIGKILL)
    managers[0].wait()
    seen = len(ticks(database))
    eventually(lambda: len(ticks(database)) >= seen + 5)
    assert managers[1].stop() == 0
    eventually(lambda: database.all("SELECT count(*) FROM kernel.jobs") == [(0,)])
    assert consumer.stop() == 0
    found = ticks(database)
    gaps = {later - earlier for earlier, later in pairwise(found)}
    assert gaps == {timedelta(seconds=1)}
    (beats,) = database.all("SELECT count(*) FROM kernel.finished_jobs WHERE task = 'platform.heartbeat'")[0]
    assert beats == len(found)


TICK = Task[None]("tick")


def test_the_heartbeat_beats_every_minute() -> None:
    from app.modules.platform.maintenance import HEARTBEAT, SCHEDULES

    (heartbeat,) = [schedule for schedule in SCHEDULES if schedule.task is HEARTBEAT]
    after = datetime(2026, 11, 22, 10, 59, 30, tzinfo=UTC)
    found = upcoming(heartbeat, after)
    assert [next(found) for _ in range(3)] == [datetime(2026, 11, 22, 11, minute, tzinfo=UTC) for minute in (0, 1, 2)]


@pytest.mark.parametrize(
    "schedule",
    [
        Schedule(TICK, every_s=90),
        Schedule(TICK, cron="*/7 3 * * *"),
        Schedule(TICK, cron="*/20 1-3 13 * 5", timezone="Europe/Berlin"),
    ],
)
def test_every_manager_computes_the_same_ticks_wherever_it_starts(schedule: Schedule) -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    expected = list(islice(upcoming(schedule, start), 30))
    for position, tick in enumerate(expected[:-1]):
        assert next(upcoming(schedule, tick)) == expected[position + 1]
        assert next(upcoming(schedule, tick - timedelta(microseconds=1))) == tick


@pytest.mark.parametrize("arguments", [{}, {"cron": "* * * * *", "every_s": 5}])
def test_a_schedule_needs_exactly_one_rhythm(arguments: dict) -> None:
    with pytest.raises(ValueError, match="either cron or every_s"):
        Schedule(TICK, **arguments)


def test_the_task_of_a_schedule_takes_no_payload() -> None:
    with pytest.raises(ValueError, match="must not need a payload"):
        Schedule(GREET, every_s=5)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"cron": "* * * *"}, "five fields"),
        ({"cron": "0 0 30 2 *"}, "never comes"),
        ({"cron": "0 0 * * 8"}, "weekdays"),
        ({"cron": "0 0 * * *", "timezone": "Mars/Olympus"}, "no time zone 'Mars/Olympus'"),
        ({"cron": "  "}, "either cron or every_s"),
        ({"every_s": -5}, "every_s must be a whole number, 1 to 31622400"),
        ({"every_s": 0.5}, "every_s must be a whole number"),
        ({"every_s": 10**12}, "every_s must be"),
        ({"every_s": 5, "misfire": "On"}, "misfire must be one of skip, one, all"),
        ({"every_s": 5, "overlap": ""}, "overlap must be one of allow, skip, wait"),
        ({"every_s": 5, "name": "a\nb"}, "name must have"),
        ({"every_s": 5, "priority": 1001}, "priority must be a whole number, -1000 to 1000"),
        ({"cron": "0 0 * * *", "priority": 0.5}, "priority must be"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused_by_its_name_where_it_is_declared(arguments: dict, says: str) -> None:
    with pytest.raises(InvalidDeclaration, match=says) as refused:
        Schedule(TICK, **arguments)
    assert str(refused.value).startswith(f"schedule {arguments.get('name', 'tick')}: ")


def test_a_process_with_a_schedule_that_makes_no_sense_says_so_in_one_line(project: Project, tmp_path: Path) -> None:
    copied = project.copy(tmp_path / "copy")
    jobs = copied.root / "app/modules/platform/maintenance.py"
    jobs.write_text(jobs.read_text().replace('cron="17 * * * *"', 'cron="17 * * * sun-thu/0"'))
    for process in ("run-cron-manager", "run-event-consumer", "run-all-in-one"):
        found = copied.app(process, "--port", "0")
        assert found.returncode == 78, found.stderr
        assert found.stderr == (
            "app: schedule platform.prune: '17 * * * sun-thu/0' in UTC: the step of 'sun-thu/0' must be at least 1\n"
        )


def test_an_interval_goes_by_elapsed_time_where_clocks_change() -> None:
    found = list(islice(upcoming(Schedule(TICK, every_s=3600), datetime(2026, 3, 28, 22, tzinfo=UTC)), 5))
    assert {later - earlier for earlier, later in pairwise(found)} == {timedelta(hours=1)}


def test_a_cron_expression_goes_into_the_triggers_of_apscheduler() -> None:
    nightly = CrontabTrigger(Crontab("30 2 * * *", "Europe/Berlin"))
    weekly = IntervalTrigger(days=7, start_date=datetime(2026, 3, 29, 6, tzinfo=UTC), timezone=UTC)
    moment, found = datetime(2026, 3, 28, 12, tzinfo=UTC), []
    for _ in range(3):
        moment = OrTrigger([nightly, weekly]).get_next_fire_time(None, moment + timedelta(microseconds=1))
        found.append(moment.astimezone(UTC))
    assert [f"{tick:%d %H:%M}" for tick in found] == ["29 01:00", "29 06:00", "30 00:30"]


def manager(bench: Bench, *schedules: Schedule) -> CronManager:
    return CronManager(bench.db, schedules, 0.5)


async def due_since(bench: Bench, ago: timedelta) -> None:
    """Make the schedule due, as if no manager had run for a while."""
    await bench.db.run("UPDATE kernel.schedules SET next_fire_at = date_trunc('second', now()) - %s", (ago,))


async def keys(bench: Bench) -> list[datetime]:
    found = await bench.rows("SELECT unique_key FROM kernel.jobs ORDER BY seq")
    return [datetime.fromisoformat(key.partition("@")[2]) for (key,) in found]


async def fire(cron: CronManager) -> None:
    while await cron.fire_due():
        pass


@pytest.mark.parametrize(("misfire", "least", "most"), [("skip", 0, 0), ("one", 1, 1), ("all", 3600, 3603)])
async def test_ticks_of_an_outage_or_of_a_clock_put_forward_by_an_hour(
    bench: Bench, misfire: Any, least: int, most: int
) -> None:
    cron = manager(bench, Schedule(TICK, every_s=1, misfire=misfire))
    await cron.register()
    await due_since(bench, timedelta(hours=1))
    if misfire == "skip":  # the last tick is always on time: with one a second
        await bench.db.run(
            "UPDATE kernel.schedules SET next_fire_at = now() - interval '1 hour', spec = 'every 7200 s'"
        )
        cron = manager(bench, Schedule(TICK, every_s=7200, misfire="skip"))
    ((began,),) = await bench.rows("SELECT clock_timestamp()")
    await fire(cron)
    found = await keys(bench)
    missed = [tick for tick in found if tick <= began]  # later ones came due while the others were fired
    assert least <= len(found)
    assert len(missed) <= most
    assert {later - earlier for earlier, later in pairwise(found)} <= {timedelta(seconds=1)}


async def test_a_clock_put_back_by_an_hour_does_not_repeat_ticks(bench: Bench) -> None:
    cron = manager(bench, Schedule(TICK, every_s=1))
    await cron.register()
    await due_since(bench, timedelta(seconds=-3600))  # they have been fired until an hour from now
    await fire(cron)
    assert await keys(bench) == []


async def test_twenty_managers_make_one_job_of_each_tick(bench: Bench) -> None:
    schedules = [Schedule(TICK, every_s=1, misfire="all", name=f"s{n}") for n in range(5)]
    managers = [manager(bench, *schedules) for _ in range(20)]
    await asyncio.gather(*(each.register() for each in managers))
    await due_since(bench, timedelta(seconds=200))
    await asyncio.gather(*(fire(each) for each in managers))
    found = await bench.rows("SELECT schedule, count(*), count(DISTINCT unique_key) FROM kernel.jobs GROUP BY 1")
    assert len(found) == 5
    assert all(200 <= count == distinct <= 215 for _, count, distinct in found), found


async def test_the_job_of_a_schedule_with_priority_goes_before_a_backlog(bench: Bench) -> None:
    ordinary, urgent = Schedule(TICK, every_s=60, name="ordinary"), Schedule(TICK, every_s=60, priority=1000)
    for schedule, ago_s in ((ordinary, 30), (urgent, 1)):
        cron = manager(bench, schedule)
        await cron.register()
        await due_since(bench, timedelta(seconds=ago_s))
        await fire(cron)
    assert await bench.rows("SELECT schedule, priority FROM kernel.jobs ORDER BY rank") == [
        ("tick", 1000),
        ("ordinary", 0),
    ]
    assert next(s for s in SCHEDULES if s.task is MEASURE).priority == 1000


async def test_an_edited_schedule_goes_on_in_its_new_rhythm_without_losing_a_tick(bench: Bench) -> None:
    await manager(bench, Schedule(TICK, cron="0 0 1 1 *")).register()
    edited = manager(bench, Schedule(TICK, cron="0 0 * * *"))
    await edited.register()
    ((next_at,),) = await bench.rows("SELECT next_fire_at FROM kernel.schedules")
    assert next_at < datetime.now(UTC) + timedelta(days=1)
    # a tick of the old rhythm is due when it is edited
    await due_since(bench, timedelta(seconds=5))
    again = manager(bench, Schedule(TICK, cron="0 12 * * *"))
    await again.register()
    await fire(again)
    assert len(await keys(bench)) == 1
    ((next_at,),) = await bench.rows("SELECT next_fire_at FROM kernel.schedules")
    assert next_at.hour == 12


async def test_an_older_release_leaves_an_edited_schedule_to_the_newer_one(bench: Bench) -> None:
    older, newer = manager(bench, Schedule(TICK, every_s=60)), manager(bench, Schedule(TICK, every_s=90))
    await older.register()
    await newer.register()
    await due_since(bench, timedelta(seconds=1))
    await fire(older)
    assert await keys(bench) == []
    await fire(newer)
    assert len(await keys(bench)) == 1


@pytest.mark.parametrize(("overlap", "jobs", "states"), [("allow", 2, 2), ("skip", 1, 1), ("wait", 2, 1)])
async def test_a_tick_while_the_job_of_an_earlier_one_is_not_finished(
    bench: Bench, overlap: Any, jobs: int, states: int
) -> None:
    cron = manager(bench, Schedule(TICK, cron="0 0 1 1 *", overlap=overlap))
    await cron.register()
    for ago_s in (5, 1):
        await due_since(bench, timedelta(seconds=ago_s))
        await fire(cron)
        await bench.rows("SELECT id FROM kernel.fetch_jobs('default', kernel.uuid7(), 'w', 60, 10, 0)")
    assert len(await keys(bench)) == jobs
    assert await bench.rows("SELECT count(*) FROM kernel.jobs WHERE state = 'leased'") == [(states,)]
    assert await bench.rows("SELECT fired_count, skipped_count FROM kernel.schedules") == [(jobs, 2 - jobs)]


async def test_a_paused_schedule_rests_and_what_it_missed_is_not_made_up_for(bench: Bench) -> None:
    cron = manager(bench, Schedule(TICK, every_s=10, misfire="all"))
    await cron.register()
    await bench.db.run("UPDATE kernel.schedules SET paused_at = now()")
    await due_since(bench, timedelta(hours=1))
    await fire(cron)
    assert await keys(bench) == []
    await bench.db.run("UPDATE kernel.schedules SET paused_at = NULL, resumed_at = now() - interval '31 seconds'")
    await fire(cron)
    assert 3 <= len(await keys(bench)) <= 4


async def expired(bench: Bench, paused_s: float, ago_s: float) -> None:
    """Let a pause have lasted for so long, and have expired so long ago, while its ticks were due."""
    await bench.db.run("UPDATE kernel.schedules SET paused_at = now() - interval '1 day', paused_until = NULL")
    await bench.db.run(
        "UPDATE kernel.schedules SET paused_until = now() - %s * interval '1 second',"
        " next_fire_at = next_fire_at - %s * interval '1 second'",
        (ago_s, paused_s),
    )


@pytest.mark.parametrize(("misfire", "least", "most"), [("skip", 0, 0), ("one", 1, 1), ("all", 3600, 3602)])
async def test_a_pause_that_expires_leaves_its_ticks_to_the_misfire_policy(
    bench: Bench, misfire: Any, least: int, most: int
) -> None:
    every_s = 1 if misfire == "all" else 1800
    cron = manager(bench, Schedule(TICK, every_s=every_s, misfire=misfire))
    await cron.register()
    await expired(bench, 3600, -60)
    await fire(cron)
    assert await keys(bench) == []  # not yet
    await expired(bench, 0, 0)
    await fire(cron)
    assert least <= len(await keys(bench)) <= most
    assert await bench.rows("SELECT paused_at, paused_until FROM kernel.schedules") == [(None, None)]


@pytest.mark.parametrize(("ago_s", "jobs"), [(0.1, 0), (0.9, 1)])
async def test_a_schedule_that_skips_what_it_misses_fires_a_tick_after_a_pause_and_none_within(
    bench: Bench, ago_s: float, jobs: int
) -> None:
    cron = CronManager(bench.db, [Schedule(TICK, every_s=7200, misfire="skip")], 30)
    await cron.register()
    await expired(bench, 60, ago_s)
    await bench.db.run("UPDATE kernel.schedules SET next_fire_at = now() - interval '0.5 seconds'")
    assert await cron.fire_due() == 1
    assert len(await keys(bench)) == jobs


async def test_of_more_ticks_than_a_transaction_takes_none_within_a_pause_is_made_up_for(bench: Bench) -> None:
    cron = manager(bench, Schedule(TICK, every_s=1, misfire="all"))
    await cron.register()
    await due_since(bench, timedelta(seconds=2500))
    await bench.db.run("UPDATE kernel.schedules SET resumed_at = now() - interval '10 seconds'")
    await fire(cron)
    assert 9 <= len(await keys(bench)) <= 20


async def test_a_pause_expires_while_the_manager_sleeps_until_its_next_poll(bench: Bench) -> None:
    cron = CronManager(bench.db, [Schedule(TICK, every_s=1)], 60)
    await cron.register()
    ((until,),) = await bench.rows("SELECT now() + interval '1.5 seconds'")
    await bench.db.run("UPDATE kernel.schedules SET paused_at = now(), paused_until = %s", (until,))
    async with managing(cron):
        await bench.until(lambda: bench.rows("SELECT min(created_at) >= %s FROM kernel.jobs", until), [(True,)], 10)


@asynccontextmanager
async def managing(cron: CronManager) -> AsyncIterator[None]:
    stop = asyncio.Event()
    running = asyncio.ensure_future(cron.run(stop))
    yield
    stop.set()
    await asyncio.wait_for(running, 10)


async def test_a_schedule_that_no_release_knows_any_more_disappears(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.kernel.queue.cron._SEEN_EVERY_S", 0.1)
    monkeypatch.setattr("app.kernel.queue.cron._GONE_AFTER_S", 1.0)
    await manager(bench, Schedule(TICK, every_s=3600, name="old")).register()
    await bench.db.run("UPDATE kernel.schedules SET paused_at = now(), paused_until = now() + interval '1 day'")
    cron = manager(bench, Schedule(TICK, every_s=3600, name="new"))
    await cron.register()
    async with managing(cron):
        await bench.until(lambda: bench.rows("SELECT name FROM kernel.schedules"), [("new",)])
