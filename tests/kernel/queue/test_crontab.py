"""Cron expressions against a reference that watches the clock on the wall, minute by minute, around every change.

`just cron-oracle` takes every change of every zone since 1975, and whole years, for half an hour.
"""

import os
from collections import Counter
from datetime import UTC, datetime, timedelta
from itertools import islice
from zoneinfo import ZoneInfo

import pytest

from app.kernel.queue import Schedule, Task
from app.kernel.queue.cron import upcoming
from app.kernel.queue.crontab import EPOCH, Crontab
from app.kernel.queue.schedules import ticks
from tests.kernel.queue.wall_clock import DAY, ZONES, Clock, changes, patterns

EVERYTHING = os.environ.get("CRON_ORACLE") == "all"
PARTS = 16 if EVERYTHING else 1

ODD = [
    ("America/Sao_Paulo", datetime(2018, 11, 3, tzinfo=UTC)),  # no midnight
    ("America/Havana", datetime(2026, 3, 7, tzinfo=UTC)),
    ("Asia/Beirut", datetime(2026, 3, 28, tzinfo=UTC)),
    ("Africa/Cairo", datetime(2026, 4, 23, tzinfo=UTC)),
    ("Africa/Cairo", datetime(2026, 10, 29, tzinfo=UTC)),  # midnight twice
    ("America/Asuncion", datetime(2024, 10, 5, tzinfo=UTC)),
    ("Pacific/Apia", datetime(2011, 12, 29, tzinfo=UTC)),  # no 30 December
    ("Australia/Lord_Howe", datetime(2026, 4, 4, tzinfo=UTC)),  # half an hour
    ("Australia/Lord_Howe", datetime(2026, 10, 3, tzinfo=UTC)),
    ("Antarctica/Troll", datetime(2026, 3, 28, tzinfo=UTC)),  # two hours
    ("Africa/Casablanca", datetime(2026, 2, 14, tzinfo=UTC)),  # Ramadan
    ("Europe/Dublin", datetime(2026, 10, 24, tzinfo=UTC)),  # winter time is the exception
    ("America/Caracas", datetime(2016, 4, 30, tzinfo=UTC)),
    ("America/St_Johns", datetime(2006, 10, 28, tzinfo=UTC)),  # at one minute past midnight
    ("Asia/Pyongyang", datetime(2018, 5, 4, tzinfo=UTC)),
    ("Europe/Berlin", datetime(2026, 3, 28, tzinfo=UTC)),
    ("America/New_York", datetime(2026, 10, 31, tzinfo=UTC)),
]


def around(zone: str, day: datetime) -> Clock:
    return Clock(zone, day - timedelta(days=1), 3 * DAY)


@pytest.mark.parametrize(("zone", "day"), ODD)
def test_ticks_around_odd_changes_are_those_of_the_reference(zone: str, day: datetime) -> None:
    clock = around(zone, day)
    for pattern in patterns(40, seed=len(zone)):
        clock.check(pattern)


@pytest.mark.parametrize("part", range(PARTS))
def test_ticks_around_the_changes_of_all_zones_are_those_of_the_reference(part: int) -> None:
    found = changes(1975, 2037) if EVERYTHING else changes(2026, 2026)
    each = patterns(400, seed=part)
    assert len(found) > 40
    for number, (zone, day) in enumerate(found[part::PARTS]):
        clock = around(zone, day)
        for pattern in [each[(number * 7 + n) % 400] for n in range(20)]:
            clock.check(pattern)


def test_ticks_are_shown_as_the_cron_manager_fires_them_with_the_clock_changes_that_they_meet() -> None:
    each, seen = patterns(200, seed=3), Counter[str | None]()
    for number, (zone, day) in enumerate(changes(2026, 2026)):
        clock = Clock(zone, day - timedelta(days=1), 2 * DAY + 720)
        for pattern in [each[(number * 7 + n) % 200] for n in range(4)]:
            expected = clock.marks(pattern)[:60]
            begin = day - timedelta(days=1) + timedelta(minutes=1)
            schedule = Schedule(Task("tick"), cron=pattern.text, timezone=zone)
            found = list(islice(ticks(schedule.spec, begin), len(expected)))
            assert [(tick.at, tick.clock_change) for tick in found] == expected, (pattern.text, zone, day)
            fired = islice(upcoming(schedule, begin - timedelta.resolution), len(expected))
            assert [tick.at for tick in found] == list(fired)
            assert all(datetime.fromisoformat(tick.local) == tick.at for tick in found)
            assert all(tick.local == tick.at.astimezone(ZoneInfo(zone)).isoformat() for tick in found)
            seen.update(tick.clock_change for tick in found)
    assert seen.keys() == {None, "first", "second", "skipped"}
    for seconds in (1, 7, 86_400, 366 * 86_400):
        schedule = Schedule(Task("tick"), every_s=seconds)
        for begin in (datetime(1999, 5, 1, tzinfo=UTC), datetime(2026, 3, 29, 0, 59, 59, 1, tzinfo=UTC)):
            found = [tick.at for tick in islice(ticks(schedule.spec, begin), 10)]
            if begin > EPOCH:
                assert found == list(islice(upcoming(schedule, begin - timedelta.resolution), 10))
            assert begin <= found[0] < begin + timedelta(seconds=seconds)
            assert next(ticks(schedule.spec, found[0])).at == found[0]  # from a tick on: that one too


def test_the_ticks_of_a_whole_year_are_those_of_the_reference() -> None:
    zones = ZONES[::12] if EVERYTHING else ["America/Havana"]
    for zone in zones:
        clock = Clock(zone, datetime(2026, 1, 5, tzinfo=UTC), 366 * DAY)
        for pattern in patterns(60, seed=7):
            if len(pattern.minutes(clock.first, clock.first + 40 * DAY)) < 400:
                clock.check(pattern)


@pytest.mark.parametrize(
    ("expression", "zone", "begin", "expected"),
    [
        ("0 0 * * *", "Europe/Berlin", "2026-03-28T12:00", ["29T00:00+01:00", "30T00:00+02:00", "31T00:00+02:00"]),
        ("30 0 * * *", "America/New_York", "2026-03-07T12:00", ["08T00:30-05:00", "09T00:30-04:00", "10T00:30-04:00"]),
        ("0 0 1 * *", "Europe/Berlin", "2026-03-02T00:00", ["01T00:00+02:00", "01T00:00+02:00", "01T00:00+02:00"]),
        ("0 */2 * * *", "Europe/Berlin", "2026-03-28T22:00", ["29T00:00+01:00", "29T04:00+02:00", "29T06:00+02:00"]),
        ("0 0 * * *", "America/Havana", "2026-03-07T12:00", ["08T01:00-04:00", "09T00:00-04:00", "10T00:00-04:00"]),
        ("0 12 * * *", "Pacific/Apia", "2011-12-29T12:00", ["29T12:00-10:00", "31T00:00+14:00", "31T12:00+14:00"]),
        ("*/30 2 * * *", "Europe/Berlin", "2026-03-28T12:00", ["30T02:00+02:00", "30T02:30+02:00", "31T02:00+02:00"]),
        ("0,30 2 * * *", "Europe/Berlin", "2026-03-28T12:00", ["29T03:00+02:00", "30T02:00+02:00", "30T02:30+02:00"]),
        ("*/30 2 * * *", "Europe/Berlin", "2026-10-24T22:00", ["25T02:00+02:00", "25T02:30+02:00", "25T02:00+01:00"]),
        ("0,30 2 * * *", "Europe/Berlin", "2026-10-24T22:00", ["25T02:00+02:00", "25T02:30+02:00", "26T02:00+01:00"]),
        ("0 0 29 2 *", "Asia/Tokyo", "2096-03-01T00:00", ["29T00:00+09:00", "29T00:00+09:00", "29T00:00+09:00"]),
        ("0 0 29 2 *", "UTC", "1998-03-01T00:00", ["29T00:00+00:00", "29T00:00+00:00", "29T00:00+00:00"]),
    ],
)
def test_ticks_at_changes_that_operators_know(expression: str, zone: str, begin: str, expected: list[str]) -> None:
    crontab, moment = Crontab(expression, zone), datetime.fromisoformat(begin).replace(tzinfo=UTC)
    found = []
    for _ in expected:
        moment = crontab.after(moment)
        assert moment is not None
        found.append(moment.astimezone(ZoneInfo(zone)).isoformat(timespec="minutes")[8:])
    assert found == expected


@pytest.mark.parametrize(
    ("expression", "days"),
    [
        ("0 0 * * 0", "Sun"),
        ("0 0 * * 7", "Sun"),
        ("0 0 * * 5-7", "Fri Sat Sun"),
        ("0 0 * * SAT,0", "Sat Sun"),
        ("0 0 * * */2", "Tue Thu Sat Sun"),
        ("0 0 * * */3", "Wed Sat Sun"),
        ("0 0 * * */7", "Sun"),
        ("0 0 * * mon-fri/2", "Mon Wed Fri"),
        ("0 0 * * sun-thu", "Mon Tue Wed Thu Sun"),
        ("0 0 * * Tue-7/3", "Tue Fri"),
        ("0 0 * * 3-3/2", "Wed"),
        ("@weekly", "Sun"),
        ("@daily", "Mon Tue Wed Thu Fri Sat Sun"),
    ],
)
def test_weekdays_and_steps_are_those_of_crontab(expression: str, days: str) -> None:
    crontab, moment = Crontab(expression, "UTC"), datetime(2026, 11, 22, 12, tzinfo=UTC)  # a Sunday
    found = []
    while (moment := crontab.after(moment)) is not None and moment < datetime(2026, 11, 29, 12, tzinfo=UTC):
        found.append(f"{moment:%a}")
    assert " ".join(found) == days


@pytest.mark.parametrize(
    ("expression", "dates"),
    [
        ("0 0 1 * 5", "06 13 20 27"),  # either
        ("0 0 2 * 5", "02 06 13 20 27"),
        ("0 0 */2 * 5", "13 27"),  # both, since a field begins with *
        ("0 0 13 * */5", "13"),
        ("0 0 1-31/7 * *", "08 15 22 29"),
        ("0 0 6-8/5 * *", "06"),
        ("0 0 */9,2 * *", "02 10 19 28"),
    ],
)
def test_days_of_the_month_and_weekdays_are_combined_as_in_crontab(expression: str, dates: str) -> None:
    crontab, moment = Crontab(expression, "UTC"), datetime(2026, 11, 1, tzinfo=UTC)
    found = []
    while (moment := crontab.after(moment)) is not None and moment < datetime(2026, 12, 1, tzinfo=UTC):
        found.append(f"{moment:%d}")
    assert " ".join(found) == dates


@pytest.mark.parametrize(
    ("expression", "says"),
    [
        ("", "five fields"),
        ("* * * *", "five fields"),
        ("* * * * * *", "five fields"),
        ("60 * * * *", "'60' is none of the minutes: 0 to 59"),
        ("* 24 * * *", "hours"),
        ("* * 0 * *", "days of the month: 1 to 31"),
        ("* * * 13 *", "months: 1 to 12, or jan to dec"),
        ("* * * * 8", "weekdays: 0 to 7, or sun to sat"),
        ("* * * mon *", "months: 1 to 12, or jan to dec"),
        ("* jan * * *", "hours"),
        ("*/0 * * * *", "at least 1"),
        ("5/15 * * * *", "write 5-59/15"),
        ("0 0 * * fri-mon", "two ranges"),
        ("30-10 * * * *", "two ranges"),
        ("1,,2 * * * *", "'' is none of the minutes"),
        ("1-2-3 * * * *", "minutes"),
        ("-1 * * * *", "minutes"),
        ("1.5 * * * *", "minutes"),
        ("99999999999999999999 * * * *", "minutes"),
        ("٣ * * * *", "minutes"),
        ("0 0 30 2 *", "never comes"),
        ("0 0 31 4,6,9,11 *", "never comes"),
        ("0 0 30 2 */2", "never comes"),
        ("@reboot", "none of @hourly"),
        ("@every 5m", "none of @hourly"),
    ],
)
def test_an_expression_that_makes_no_sense_is_refused(expression: str, says: str) -> None:
    with pytest.raises(ValueError, match=says.replace("*", r"\*")):
        Crontab(expression, "UTC")


@pytest.mark.parametrize("zone", ["", "Mars/Olympus", "../etc/passwd", "/etc/passwd", "Europe", "UTC\0", "\ud800"])
def test_an_unknown_time_zone_is_refused(zone: str) -> None:
    with pytest.raises(ValueError, match="there is no time zone"):
        Crontab("0 0 * * *", zone)
