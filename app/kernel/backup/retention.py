"""Which backups, and which WAL, are kept: pure rules. `pruning` applies them to a target."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple, Self

from app.kernel.backup import Backup
from app.kernel.backup.timelines import Fork, lsn_number, way
from app.kernel.config.backup import BackupSettings

_TRUSTED = 3
_WEEK, _MONTH = timedelta(days=7), timedelta(days=31)


@dataclass(frozen=True, slots=True)
class Policy:
    """Every moment of `keep` can be restored; beyond, the last backup of each week and of each month is kept."""

    keep: timedelta
    weekly: int
    monthly: int

    @classmethod
    def of(cls, settings: BackupSettings) -> Self:
        """Return the policy of the settings."""
        return cls(timedelta(seconds=settings.keep), settings.keep_weekly, settings.keep_monthly)


class Line(NamedTuple):
    """A timeline: where it left those that it comes from, oldest first, and when its WAL or history was stored last."""

    forks: tuple[Fork, ...]
    stored_at: datetime


@dataclass(frozen=True, slots=True)
class Retained:
    """What is kept of one cluster, oldest first.

    `window` are the backups whose WAL is kept as well, from each of them on; `longer` those that are kept without.
    """

    window: tuple[Backup, ...]
    longer: tuple[Backup, ...]

    def first_segment(self, timeline: int, segment_bytes: int) -> int | None:
        """Return the number of the first segment of a timeline that is kept, and all after it; None if none is."""
        # a timeline that comes from another has a higher number, and its positions go on
        starts = (lsn_number(backup.start_lsn) for backup in self.window if backup.timeline <= timeline)
        return min((start // segment_bytes for start in starts), default=None)


def trusted_now(backups: Iterable[Backup], now: datetime) -> datetime | None:
    """Return the time at which the window ends: now, but no later than the third newest backup of all clusters.

    So a clock that jumps ahead does not expire anything, until three backups say the same. None: nothing expires.
    """
    times = sorted((backup.finished_at for backup in backups), reverse=True)
    return min(now, times[_TRUSTED - 1]) if len(times) >= _TRUSTED else None


def retained(backups: Sequence[Backup], lines: Mapping[int, Line], policy: Policy, end: datetime) -> Retained:
    """Return what is kept of the backups of one cluster, whose timelines are `lines`, for a window that ends at `end`.

    The window needs, for each timeline that was written in it, the newest backup before it from which that is reached.
    """
    begin = end - policy.keep
    older = sorted((backup for backup in backups if backup.finished_at < begin), key=_age)
    window = {backup.id for backup in backups if backup.finished_at >= begin}
    written = {backup.timeline: backup.finished_at for backup in sorted(backups, key=_age)}
    newest = max([*written, *lines], default=0)
    for timeline in {*written, *lines}:
        line = lines.get(timeline, Line((), written.get(timeline, begin)))
        if timeline == newest or max(line.stored_at, written.get(timeline, line.stored_at)) >= begin:
            window.update(backup.id for backup in [b for b in older if _leads_to(b, timeline, line.forks)][-1:])
    window.update(backup.id for backup in sorted(backups, key=_age)[-1:])
    longer = {
        *_last_of_each(lambda at: at.isocalendar()[:2], older, begin - policy.weekly * _WEEK),
        *_last_of_each(lambda at: (at.year, at.month), older, begin - policy.monthly * _MONTH),
    }
    longer |= _needed(window | longer, {backup.id: backup for backup in backups})
    return Retained(
        tuple(sorted((b for b in backups if b.id in window), key=_age)),
        tuple(sorted((b for b in backups if b.id in longer - window), key=_age)),
    )


def _age(backup: Backup) -> tuple[datetime, str]:
    return backup.finished_at, backup.id


def _leads_to(backup: Backup, timeline: int, forks: tuple[Fork, ...]) -> bool:
    stop = lsn_number(backup.stop_lsn)
    return any(
        backup.timeline == stretch.timeline and (stretch.end is None or stop <= stretch.end)
        for stretch in way(timeline, forks)
    )


def _last_of_each(period: Callable[[datetime], object], older: Sequence[Backup], since: datetime) -> Iterable[str]:
    return {period(backup.finished_at): backup.id for backup in older if backup.finished_at >= since}.values()


def _needed(ids: set[str], known: Mapping[str, Backup]) -> set[str]:
    """Return the ids that others depend on, and what these depend on."""
    found: set[str] = set()
    waiting = list(ids)
    while waiting:
        if backup := known.get(waiting.pop()):
            new = set(backup.depends_on) - found
            found |= new
            waiting.extend(new)
    return found
