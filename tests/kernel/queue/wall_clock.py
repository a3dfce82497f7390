"""A reference for cron expressions: it watches the clock on the wall, minute by minute."""

import random
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import cache
from itertools import pairwise
from zoneinfo import ZoneInfo, available_timezones

from app.kernel.queue.crontab import Crontab

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
DAY = 1440
MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
WEEKDAYS = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"]
ZONES = sorted(available_timezones() - {"localtime"})


@dataclass(frozen=True)
class Field:
    """A field of a cron expression: what is written, and which numbers it means."""

    text: str
    values: frozenset[int]

    @property
    def starred(self) -> bool:
        return self.text.startswith("*")


@dataclass(frozen=True)
class Pattern:
    minute: Field
    hour: Field
    day: Field
    month: Field
    weekday: Field

    @property
    def text(self) -> str:
        return " ".join(f.text for f in (self.minute, self.hour, self.day, self.month, self.weekday))

    @property
    def fixed(self) -> bool:
        return not self.minute.starred and not self.hour.starred

    def on(self, day: date) -> bool:
        month, weekday = day.day in self.day.values, day.isoweekday() % 7 in {n % 7 for n in self.weekday.values}
        either = month and weekday if self.day.starred or self.weekday.starred else month or weekday
        return day.month in self.month.values and either

    def minutes(self, first: int, last: int) -> set[int]:
        """Return the minutes by the clock on the wall that match, on the days from one minute to another."""
        times = [hour * 60 + minute for hour in self.hour.values for minute in self.minute.values]
        days = range(first // DAY, last // DAY + 1)
        return {day * DAY + time for day in days if self.on(EPOCH.date() + timedelta(days=day)) for time in times}


def field(chosen: random.Random, least: int, most: int, names: list[str], star: float, end: int = 0) -> Field:
    """Make a field of one to three terms up to `most`, or of a star, which means all up to `end`."""

    def written(number: int) -> str:
        if names and number - (names is MONTHS) < len(names) and chosen.random() < 0.4:
            return chosen.choice([str, str.upper, str.title])(names[number - (names is MONTHS)])
        return str(number)

    if chosen.random() < star:
        step = chosen.choice([1, 1, 1, 2, 3, 5, 7, 15, 29])
        return Field("*" if step == 1 else f"*/{step}", frozenset(range(least, (end or most) + 1, step)))
    terms, values = [], set[int]()
    for _ in range(chosen.choice([1, 1, 1, 2, 3])):
        low = chosen.randint(least, most)
        high = chosen.choice([low, low, chosen.randint(low, most)])
        step = chosen.choice([1, 1, 2, 5, 40]) if high > low else 1
        term = written(low) if high == low else f"{written(low)}-{written(high)}"
        terms.append(term if step == 1 else f"{term}/{step}")
        values |= set(range(low, high + 1, step))
    return Field(",".join(terms), frozenset(values))


def patterns(count: int, seed: int) -> list[Pattern]:
    """Make expressions, most of them with ticks near midnight to four o'clock, when clocks change."""
    chosen = random.Random(seed)
    found: list[Pattern] = []
    while len(found) < count:
        hour = field(chosen, 0, chosen.choice([4, 4, 23]), [], 0.0) if chosen.random() < 0.7 else None
        found.append(
            Pattern(
                field(chosen, 0, 59, [], 0.25),
                hour or field(chosen, 0, 23, [], 0.6),
                field(chosen, 1, 28, [], 0.75, end=31),
                field(chosen, 1, 12, MONTHS, 0.85),
                field(chosen, 0, 7, WEEKDAYS, 0.75),
            )
        )
    return found


class Clock:
    """The clock on the wall of a zone, looked at every minute from one day to another."""

    def __init__(self, zone: str, begin: datetime, minutes: int) -> None:
        self.zone = zone
        self.first = _minute(begin)
        self.last = self.first + minutes
        info = ZoneInfo(zone)
        looks = range(self.first - 3 * DAY, self.last)
        self.shows = {look: _shown(info, look) for look in looks}
        self.reached: dict[int, int] = {}  # a time by the clock on the wall -> the minute that shows it, or a later one
        latest = self.shows[looks[0]]
        for look in looks:
            for time in range(latest, self.shows[look] + 1):
                self.reached.setdefault(time, look)
            latest = max(latest, self.shows[look] + 1)

    def ticks(self, pattern: Pattern) -> list[int]:
        """Return the minutes in which an expression fires."""
        wanted = pattern.minutes(min(self.shows.values()), max(self.shows.values()))
        if pattern.fixed:
            found = sorted({self.reached[time] for time in wanted if time in self.reached})
        else:
            found = [look for look, shown in self.shows.items() if shown in wanted]
        return [tick for tick in found if self.first < tick < self.last]

    def marks(self, pattern: Pattern) -> list[tuple[datetime, str | None]]:
        """Return the ticks of an expression, with the change of the clock that each of them meets."""
        times = Counter(self.shows.values())
        wanted = pattern.minutes(min(times), max(times)) if pattern.fixed else set[int]()
        skipped = {self.reached[time] for time in wanted if time in self.reached and not times[time]}
        found: list[tuple[datetime, str | None]] = []
        for tick in self.ticks(pattern):
            twice = [look for look, shown in self.shows.items() if shown == self.shows[tick]]
            if len(twice) == 2:
                found.append((_moment(tick), "first" if tick == twice[0] else "second"))
            else:
                found.append((_moment(tick), "skipped" if tick in skipped else None))
        return found

    def check(self, pattern: Pattern) -> None:
        """Compare an expression with the reference, asked from every preceding tick, and from between them."""
        crontab = Crontab(pattern.text, self.zone)
        asked = self.first
        for tick in self.ticks(pattern):
            for moment in {asked, (asked + tick) // 2, tick - 1}:
                assert _minute(crontab.after(_moment(moment))) == tick, (pattern.text, self.zone, _moment(moment))
            assert crontab.after(_moment(tick) - timedelta.resolution) == _moment(tick)
            asked = tick
        assert _minute(crontab.after(_moment(asked))) >= self.last, (pattern.text, self.zone, _moment(asked))


def _moment(minute: int) -> datetime:
    return EPOCH + timedelta(minutes=minute)


def _minute(moment: datetime | None) -> int:
    assert moment is not None
    return int((moment - EPOCH).total_seconds()) // 60


def _shown(zone: ZoneInfo, minute: int) -> int:
    offset = _moment(minute).astimezone(zone).utcoffset()
    assert offset is not None
    return minute + int(offset.total_seconds()) // 60


@cache
def changes(first_year: int, last_year: int) -> list[tuple[str, datetime]]:
    """Return the days on which clocks of any zone change, each kind of change once."""
    found: dict[object, tuple[str, datetime]] = {}
    for name in ZONES:
        zone, day = ZoneInfo(name), datetime(first_year, 1, 1, tzinfo=UTC)
        while day.year <= last_year:
            before, after = (moment.astimezone(zone).utcoffset() for moment in (day, day + timedelta(days=1)))
            if before != after:
                shown = [_shown(zone, minute) for minute in range(_minute(day), _minute(day) + DAY)]
                jump = next((now for now, then in pairwise(shown) if then != now + 1), shown[-1])
                found.setdefault((jump, before, after), (name, day))
            day += timedelta(days=1)
    return list(found.values())
