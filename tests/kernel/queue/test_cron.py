"""Cron managers: exactly one job a tick, however many run."""

import signal
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest

from app.kernel.queue import Schedule
from app.kernel.queue.cron import upcoming
from tests.conftest import TestDatabase
from tests.support.project import Project, eventually


def ticks(database: TestDatabase) -> list[datetime]:
    """Return the ticks whose jobs are done, in order."""
    rows = database.all("SELECT unique_key FROM kernel.finished_jobs WHERE outcome = 'done' ORDER BY unique_key")
    return [datetime.fromisoformat(key.partition("@")[2]) for (key,) in rows]


def every_second(project: Project, folder: Path) -> Project:
    """Return a copy of the project whose heartbeat beats every second."""
    copied = project.copy(folder)
    jobs = copied.root / "app/modules/platform/jobs.py"
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
    (beats,) = database.all("SELECT count(*) FROM platform.heartbeats")[0]
    assert beats == len(found)


def test_the_heartbeat_beats_every_minute() -> None:
    from app.modules.platform.jobs import SCHEDULES

    (heartbeat,) = SCHEDULES
    after = datetime(2026, 11, 22, 10, 59, 30, tzinfo=UTC)
    found = upcoming(heartbeat, after)
    assert [next(found) for _ in range(3)] == [datetime(2026, 11, 22, 11, minute, tzinfo=UTC) for minute in (0, 1, 2)]


@pytest.mark.parametrize("schedule", [Schedule("x", every_s=90), Schedule("x", cron="*/7 3 * * *")])
def test_every_manager_computes_the_same_ticks_wherever_it_starts(schedule: Schedule) -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    ahead = upcoming(schedule, start)
    expected = [next(ahead) for _ in range(30)]
    for position, tick in enumerate(expected[:-1]):
        assert next(upcoming(schedule, tick)) == expected[position + 1]
        assert next(upcoming(schedule, tick - timedelta(microseconds=1))) == tick


@pytest.mark.parametrize("arguments", [{}, {"cron": "* * * * *", "every_s": 5}])
def test_a_schedule_needs_exactly_one_rhythm(arguments: dict) -> None:
    with pytest.raises(ValueError, match="either cron or every_s"):
        Schedule("x", **arguments)
