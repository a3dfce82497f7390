"""Cron expressions: fields of crontab(5) and clock changes of cron(8), as in Debian's cron. And intervals."""

import functools
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Literal
from zoneinfo import ZoneInfo

ClockChange = Literal["skipped", "first", "second"]
"""A tick stands for a local time that is skipped that day, or is at the first or second of two equal local times."""
EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
"""A tick of every interval."""

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_FIELDS: tuple[tuple[str, int, int, dict[str, int]], ...] = (
    ("minutes", 0, 59, {}),
    ("hours", 0, 23, {}),
    ("days of the month", 1, 31, {}),
    ("months", 1, 12, {name: number for number, name in enumerate(_MONTHS, 1)}),
    ("weekdays", 0, 7, {name: number for number, name in enumerate(_WEEKDAYS)}),
)
_NICKNAMES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
_TERM = re.compile(r"(?:\*|([a-z]+|\d{1,4})(?:-([a-z]+|\d{1,4}))?)(?:/(\d{1,4}))?", re.ASCII)
_SEARCHED = timedelta(days=41 * 366)  # 29 February falls on a given weekday every 40 years at the latest
_DAY = timedelta(days=1)
_SOME_YEARS = datetime(2000, 1, 1), datetime(2041, 1, 1)  # noqa: DTZ001 - a wall clock


class Crontab:
    """A cron expression in a time zone.

    If its minute or hour begins with `*`, it fires whenever the local time matches. Otherwise each time of day fires
    once: a skipped time at the end of the gap, a repeated time at its first occurrence.
    """

    def __init__(self, expression: str, timezone: str) -> None:
        """Raises ValueError for an invalid expression or time zone."""
        self._zone = _zone(timezone)
        fields = _NICKNAMES.get(expression.strip().lower(), expression).lower().split()
        if fields and fields[0].startswith("@"):
            raise ValueError(f"{fields[0]} is none of {', '.join(_NICKNAMES)}")
        if len(fields) != 5:
            raise ValueError("it must have five fields: minute, hour, day of the month, month, weekday")
        minutes, hours, days, self._months, weekdays = (
            _values(text, *field) for text, field in zip(fields, _FIELDS, strict=True)
        )
        self._times = [timedelta(hours=hour, minutes=minute) for hour in sorted(hours) for minute in sorted(minutes)]
        self._days, self._weekdays = days, {number % 7 for number in weekdays}
        self._follows_elapsed_time = fields[0].startswith("*") or fields[1].startswith("*")
        self._both_days = fields[2].startswith("*") or fields[4].startswith("*")
        if self._matching(_SOME_YEARS[0], _SOME_YEARS[1]) is None:
            raise ValueError("it never comes")

    def after(self, moment: datetime) -> datetime | None:
        """Return the first tick after a time, in UTC; None if there is none within 40 years."""
        moment = moment.astimezone(UTC)
        shown = datetime(1, 1, 1)  # noqa: DTZ001 - the latest local time so far
        for begin, end, offset in _stretches(self._zone, moment - 3 * _DAY, moment + _SEARCHED):
            first, last = _wall(begin, offset), _wall(end, offset)
            if end > moment:
                earliest = max(first, _wall(moment, offset) + timedelta.resolution)
                if not self._follows_elapsed_time:
                    if begin > moment and shown < first and self._matching(shown, first) is not None:
                        return begin
                    earliest = max(earliest, shown)
                found = self._matching(earliest, last)
                if found is not None:
                    return (found - offset).replace(tzinfo=UTC)
            shown = max(shown, last)
        return None

    def shown(self, tick: datetime) -> tuple[datetime, ClockChange | None]:
        """Return the local time of a tick, and the change of clocks that it meets."""
        local = tick.astimezone(self._zone)
        if local.utcoffset() != local.replace(fold=1 - local.fold).utcoffset():
            return local, "second" if local.fold else "first"
        before, offset = _offset(self._zone, tick - timedelta.resolution), _offset(self._zone, tick)
        is_moved = offset > before and not self._follows_elapsed_time
        if is_moved and self._matching(_wall(tick, before), _wall(tick, offset)) is not None:
            return local, "skipped"
        return local, None

    def _matching(self, begin: datetime, end: datetime) -> datetime | None:
        """Return the first matching local time from `begin` (included) to `end` (excluded)."""
        for day in self._matching_days(begin.date(), end.date()):
            midnight = datetime(day.year, day.month, day.day)  # noqa: DTZ001 - a wall clock
            position = bisect_left(self._times, begin - midnight)
            if position < len(self._times):
                found = midnight + self._times[position]
                return found if found < end else None
        return None

    def _matching_days(self, day: date, last: date) -> Iterator[date]:
        while day <= last:
            if day.month not in self._months:
                day = date(day.year + day.month // 12, day.month % 12 + 1, 1)
                continue
            of_month, of_week = day.day in self._days, day.isoweekday() % 7 in self._weekdays
            if (of_month and of_week) if self._both_days else (of_month or of_week):
                yield day
            day += _DAY


def _wall(moment: datetime, offset: timedelta) -> datetime:
    return moment.replace(tzinfo=None) + offset


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (KeyError, OSError, ValueError):  # unknown, a folder or no file of zones, a path
        raise ValueError(f"there is no time zone {name!r}: give a name such as Europe/Berlin") from None


def _values(text: str, name: str, least: int, most: int, names: dict[str, int]) -> frozenset[int]:
    """Return the numbers of a field. Raises ValueError."""

    def number(word: str) -> int:
        found = names.get(word, int(word) if word.isdigit() else -1)
        if not least <= found <= most:
            known = f", or {min(names, key=names.__getitem__)} to {max(names, key=names.__getitem__)}" if names else ""
            raise ValueError(f"{word!r} is none of the {name}: {least} to {most}{known}")
        return found

    found: set[int] = set()
    for term in text.split(","):
        match = _TERM.fullmatch(term)
        if match is None:
            raise ValueError(f"{term!r} is none of the {name}: give numbers, ranges such as {least}-{most}, *, or */2")
        first, last, step = match.groups()
        low, high = (least, most) if first is None else (number(first), number(last or first))
        if step is not None and int(step) == 0:
            raise ValueError(f"the step of {term!r} must be at least 1")
        if first is not None and last is None and step is not None:
            raise ValueError(f"a step needs a range: instead of {term!r}, write {first}-{most}/{step}")
        if high < low:
            raise ValueError(f"{term!r} ends before it begins: write two ranges with a comma between them")
        found.update(range(low, high + 1, int(step or 1)))
    return frozenset(found)


def _stretches(zone: ZoneInfo, begin: datetime, end: datetime) -> Iterator[tuple[datetime, datetime, timedelta]]:
    """Yield the periods of a constant offset from UTC between two times."""
    while begin < end:
        changes = _changes(zone, begin.year)
        until = changes[bisect_right(changes, begin)]
        yield begin, until, _offset(zone, begin)
        begin = until


def _offset(zone: ZoneInfo, moment: datetime) -> timedelta:
    return moment.astimezone(zone).utcoffset() or timedelta()


@functools.lru_cache(512)
def _changes(zone: ZoneInfo, year: int) -> tuple[datetime, ...]:
    """Return the offset changes of a zone in a year, and the end of the year.

    No zone of tzdata has two changes within four days.
    """
    begin, end = datetime(year, 1, 1, tzinfo=UTC), datetime(year + 1, 1, 1, tzinfo=UTC)
    found: list[datetime] = []
    while begin < end:
        before, next_day = _offset(zone, begin), min(begin + _DAY, end)
        if _offset(zone, next_day) != before:
            seconds = range(1, int((next_day - begin).total_seconds()) + 1)
            first = bisect_left(seconds, True, key=lambda s: _offset(zone, begin + timedelta(seconds=s)) != before)
            found.append(begin + timedelta(seconds=seconds[first]))
        begin = next_day
    return (*found, end)
